"""What tests are written with: a real broker, a real adapter, real processes, and waiting for conditions."""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import httpx
import nats
import pytest
import uvicorn
from nats.aio.client import Client
from nats.js.errors import NotFoundError

from runwire import embedded
from runwire.app import App
from runwire.bootstrap.adapter import adapter_app, server_config
from runwire.domain import lifecycle
from runwire.domain.access import AccessLevel, AccessToken, TokenKind, digest, new_credential
from runwire.domain.lifecycle import Definition, Document
from runwire.domain.task import LogEntry, Target
from runwire.http.services import Pressure
from runwire.messaging import codec, events, site, subjects, tokens
from runwire.messaging.audit import Refusals
from runwire.messaging.broker import UNAVAILABLE, Bus
from runwire.messaging.callout import Callout
from runwire.messaging.tokens import Uses
from runwire.settings import Settings
from runwire.signing import Signer
from runwire.worker.actions.builtin import builtin_actions
from runwire.worker.consumer import Consumer
from runwire.worker.executor import Executor

T = TypeVar("T")

TOKEN = "tester:correct-horse-battery-staple"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
CHAIN = 1764


def refused_reconnections(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """For tests in which a client's reconnection is refused at first: nats-py leaks each connection that is."""
    ignoring = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    return pytest.mark.usefixtures("collected")(ignoring(test))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def eventually(condition: Callable[[], T | Awaitable[T]], *, within: float = 15.0, what: str = "") -> T:
    """The condition's value as soon as it is truthy; fails when it is not ``within`` seconds."""
    deadline = time.monotonic() + within
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"never came true: {what or inspect.getsource(condition).strip()}")
        await asyncio.sleep(0.01)


class Broker:
    """A nats-server child with the project's nats.conf and a store of its own."""

    def __init__(self, settings: Settings) -> None:
        self._prepared = embedded.prepare(settings)
        self.url = self._prepared.url
        self.bus_url = self._prepared.bus_url
        self.bus_key = self._prepared.bus_key
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(self._prepared.argv, env=self._prepared.env)
        port = int(self.url.rpartition(":")[2])
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.01)
        raise AssertionError("the broker did not start")

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()

    def restart(self) -> None:
        """kill -9 and start again on the same store and port."""
        self.kill()
        self.start()


def let_no_file_grow(pid: int) -> None:
    """From now on every write of a process beyond the first byte of a file fails, as on a full disk (Linux)."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))


async def connected(settings: Settings) -> Bus:
    bus = Bus(settings, "runwire test")
    await bus.connect()
    return bus


@asynccontextmanager
async def adapter(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """The adapter on a real socket in this event loop; the client carries the manager's token."""
    app = adapter_app(settings)
    server = uvicorn.Server(server_config(app, settings))
    serving = asyncio.create_task(server.serve())
    try:
        await eventually(lambda: server.started or serving.done(), what="adapter started")
        if serving.done():
            raise getattr(app.state, "failure", None) or AssertionError("the adapter did not start")
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{settings.http_port}", headers=HEADERS, timeout=60
        ) as http:
            http.services = app.state.services  # type: ignore[attr-defined]
            http.server = server  # type: ignore[attr-defined]
            yield http
    finally:
        server.should_exit = True
        await asyncio.gather(serving, return_exceptions=True)


async def events_nearly_full(http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the adapter, which looks every few seconds, finds EVENTS nearly full."""

    async def nearly_full(_bus: Bus) -> Pressure:
        return Pressure("EVENTS", 0.9, 0.9)

    monkeypatch.setattr("runwire.bootstrap.adapter._pressure", nearly_full)
    await eventually(lambda: http.services.pressure.events == 0.9, what="the adapter has looked at the streams")


async def grant(
    bus: Bus,
    chain: int = CHAIN,
    level: AccessLevel = AccessLevel.OPERATOR,
    *,
    token_id: str | None = None,
    also: dict[int, AccessLevel] | None = None,
    **fields: object,
) -> tuple[str, str]:
    """(id, secret) of a new access token, made without an adapter."""
    made, secret = new_credential()
    levels = {chain: level, **(also or {})}
    token = AccessToken(
        id=token_id or made,
        kind=TokenKind.ADMIN,
        digest=digest(secret),
        levels=levels,
        created=lifecycle_now(),
        **fields,
    )
    assert await tokens.create(bus, token)
    return token.id, secret


@asynccontextmanager
async def answering_logins(bus: Bus, settings: Settings) -> AsyncIterator[Callout]:
    """What an adapter does about the logins of bus clients."""
    signer = Signer(settings.bus_key.get_secret_value())
    key = await site.server_key(bus)
    callout = Callout(bus, signer, server_key=key, uses=Uses(bus), refusals=Refusals(bus))
    await callout.start()
    try:
        yield callout
    finally:
        await callout.stop()


async def on_the_bus(
    broker: Broker, token_id: str, secret: str, *, user: str | None = None, **options: object
) -> Client:
    """A client of the bus, as the documentation says how to connect."""
    return await nats.connect(
        broker.bus_url,
        user=user or token_id,
        password=secret,
        **{"inbox_prefix": f"_INBOX_{token_id}", "reconnect_time_wait": 0.05, **options},
    )


@asynccontextmanager
async def worker(bus: Bus, app: App, settings: Settings, **options: object) -> AsyncIterator[Consumer]:
    """A worker in this event loop with the built-in actions and those of ``app``."""
    actions = builtin_actions(bus, app)
    consumer = Consumer(bus, Executor(bus, actions, settings, **options), settings)
    await consumer.start()
    try:
        yield consumer
    finally:
        await consumer.stop()


async def make_task(bus: Bus, action: str = "noop", *, task: int = 1, chain: int = CHAIN, **fields: object) -> Document:
    """A task in EVENTS, created without an adapter. ``fields``: of its definition, or ``target`` fields."""
    definition = {key: fields.pop(key) for key in ("timeout", "deadline", "retry", "trigger") if key in fields}
    document = lifecycle.create(
        Definition(
            chain=chain,
            desc="made by a test",
            target=Target.model_validate({"action": action, **fields}),
            trigger=definition.pop("trigger", {}),
            **definition,
        ),
        task,
        lifecycle_now(),
    )
    await events.append(bus, document, expected=0, event_id=uuid4().hex, unique_id=True)
    return document


def lifecycle_now():
    from datetime import UTC, datetime

    return datetime.now(UTC)


async def publish_command(bus: Bus, run: str | None, *, task: int = 1, chain: int = CHAIN, body: bytes = b"{}"):
    """A command straight on the bus; returns its PubAck."""
    headers = {subjects.MSG_ID: run} if run else None
    return await bus.js.publish(f"tasks.cmd.{chain}.{task}.execute", body, headers=headers)


async def history(bus: Bus, *, task: int = 1, chain: int = CHAIN) -> list[Document]:
    """Every event of the task that EVENTS holds, in order."""
    found: list[Document] = []
    sequence = 0
    while True:
        try:
            message = await bus.js.get_msg(
                subjects.EVENTS, sequence + 1, subject=f"tasks.evt.{chain}.{task}.*", next=True
            )
        except NotFoundError:
            return found
        found.append(codec.decode(message.data))
        sequence = message.seq


async def ended(bus: Bus, run: str, *, task: int = 1, chain: int = CHAIN, within: float = 15.0) -> Document:
    """The document that ended this run."""

    async def look() -> Document | None:
        with suppress(*UNAVAILABLE):  # the question to a broker that is being killed is lost
            for document in await history(bus, task=task, chain=chain):
                if document.run and document.run.id == run and document.run.is_final:
                    return document
        return None

    return await eventually(look, within=within, what=f"run {run} ended")


async def log_of(bus: Bus) -> list[LogEntry]:
    """Every line that LOGS holds, in order."""
    last = (await bus.js.stream_info("LOGS")).state.last_seq
    return [codec.decode_log((await bus.js.get_msg("LOGS", number)).data) for number in range(1, last + 1)]


async def queue_is_empty(bus: Bus) -> bool:
    return (await bus.js.stream_info(subjects.COMMANDS)).state.messages == 0


async def dead_letters(bus: Bus, *, chain: int = CHAIN, task: int = 1):
    try:
        return await bus.js.get_msg(subjects.DEADLETTERS, subject=f"tasks.dlq.{chain}.{task}")
    except NotFoundError:
        return None


class Runwire:
    """A `runwire` command as a user starts it, in a process group of its own."""

    def __init__(self, *arguments: str, cwd: Path, **env: str) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RUNWIRE_")}
        self.out = cwd / f"{arguments[0]}-{uuid4().hex[:6]}.out"
        with self.out.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "runwire", *arguments],
                cwd=cwd,
                env={**clean, "PYTHONUNBUFFERED": "1", **env},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self.out.read_text()

    async def says(self, text: str, *, within: float = 30.0) -> str:
        await eventually(
            lambda: text in self.output or self.process.poll() is not None, within=within, what=f"output has {text!r}"
        )
        assert text in self.output, self.output
        return self.output

    def children(self) -> dict[str, int]:
        """Name (nats-server, of a cluster nats-server-1 and so on, adapter, worker) -> process id."""
        found = {}
        for pid in child_pids(self.process.pid):
            command = command_line(pid)
            for name in ("nats-server", "adapter", "worker"):
                if name in command:
                    number = re.search(r"/broker-(\d+)/", command)
                    found[f"{name}-{number[1]}" if number else name] = pid
        return found

    async def stop(self, number: int = signal.SIGTERM, within: float = 20.0) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        await eventually(lambda: self.process.poll() is not None, within=within, what="the process ended")
        return self.process.returncode

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def child_pids(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == parent:
                found.append(int(entry.name))
    return found


async def pid_left(folder: Path, name: str) -> int:
    """The process id that a process leaves in a file, as soon as it is there."""
    path = folder / name
    await eventually(lambda: path.exists() and path.read_text(), what=f"{name} is there")
    return int(path.read_text())


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
