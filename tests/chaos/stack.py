"""The processes: as users start them, each adapter and worker behind a proxy of its own, started again when it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from benchmarks.children import ChildFailed, Children, can_connect, free_port
from runwire import embedded
from runwire.embedded import Embedded
from runwire.settings import Settings, load
from tests.chaos.probe import TRACES
from tests.chaos.proxy import Proxy

BROKER = "broker"
CREDENTIAL = ("chaos", "a-secret-of-no-importance")
"""Id and secret of the token that everybody calls with."""
ACK_WAIT = 1.0
STORE_BYTES = 2 << 30
STARTING = 60.0
"""Seconds until everything has to be there, on a machine that is busy."""


class Stack:
    """Everything that is tried, under one folder."""

    app = "tests.chaos.probe:app"
    """What the workers know."""

    def __init__(
        self,
        children: Children,
        folder: Path,
        *,
        adapters: int = 2,
        workers: int = 3,
        mutant: str | None = None,
        sync: str = "always",
        store_bytes: int = STORE_BYTES,
    ) -> None:
        """Nothing runs yet.

        ``mutant``: how adapters and workers are broken; None: they are not. ``sync``: when the broker flushes to disk.
        """
        self._children = children
        self._folder = folder
        self._store_bytes = store_bytes
        self._brokers = self._prepare(load(data_dir=folder / "broker", nats_sync=sync, store_bytes=store_bytes))
        self._entry = ["-m", "runwire"] if mutant is None else ["-m", "tests.chaos.mutated", mutant]
        self._names = {
            "broker": list(self._brokers),
            "adapter": [f"adapter-{number + 1}" for number in range(adapters)],
            "worker": [f"worker-{number + 1}" for number in range(workers)],
        }
        self._processes = [*self._names["adapter"], *self._names["worker"]]
        self._proxies = self._made_proxies()
        self._ports = {name: free_port() for name in self._names["adapter"]}
        self._held: set[str] = set()
        self._keeper: asyncio.Task[None] | None = None
        self.is_split = False
        """Whether a server may say what it last knew, before it was cut off: also that a task is busy."""
        self.restarts = 0
        """Processes that ended by themselves and were started again."""

    def _prepare(self, settings: Settings) -> dict[str, Embedded]:
        """The servers of the broker by name."""
        return {BROKER: embedded.prepare(settings)}

    def _made_proxies(self) -> dict[str, Proxy]:
        """What stands between a process and the broker."""
        return {name: Proxy(self._broker_port) for name in self._processes}

    @property
    def url(self) -> str:
        """The broker, for processes of ours that reach it past all proxies."""
        return ",".join(broker.url for broker in self._brokers.values())

    @property
    def _broker(self) -> Embedded:
        return next(iter(self._brokers.values()))

    @property
    def _broker_port(self) -> int:
        return int(self._broker.url.rpartition(":")[2])

    @property
    def bus_urls(self) -> list[str]:
        """Where clients of the bus connect."""
        return [broker.bus_url for broker in self._brokers.values()]

    @property
    def adapters(self) -> dict[str, str]:
        """The URLs of the adapters."""
        return {name: f"http://127.0.0.1:{port}" for name, port in self._ports.items()}

    @property
    def traces(self) -> Path:
        """What the action writes."""
        return self._folder / "traces.jsonl"

    @property
    def settings(self) -> Settings:
        """For a connection of our own, past all proxies."""
        return load(nats_url=self.url, data_dir=self._folder / "rebuilt", store_bytes=self._store_bytes)

    @property
    def pids(self) -> dict[str, int]:
        """The process ids, by name."""
        return dict(self._children.pids)

    def named(self, role: str) -> list[str]:
        """The processes of a role."""
        return self._names[role]

    def read_model(self, name: str) -> Path:
        """The SQLite file of an adapter, or of the one that is ``rebuilt``."""
        return self._folder / name / "readmodel.db"

    def log(self, name: str) -> Path:
        """What a process said."""
        return self._folder / f"{name}.log"

    async def start(self) -> None:
        """Start everything; returns when every adapter answers. Raises ChildFailed."""
        self.traces.touch()
        for name in self._brokers:
            self._start(name)
        await self._until_brokers_answer()
        for proxy in self._proxies.values():
            await proxy.start()
        for name in self._processes:
            self._start(name)
        self._keeper = asyncio.create_task(self._keep_running())
        await self.until_ready()

    async def _until_brokers_answer(self) -> None:
        self._children.wait_for(BROKER, lambda: can_connect(self._broker_port))

    async def until_ready(self) -> None:
        """Return when every adapter says that it is well. Raises ChildFailed."""
        deadline = time.monotonic() + STARTING
        async with httpx.AsyncClient(trust_env=False, timeout=5) as http:
            for name, url in self.adapters.items():
                while True:
                    with suppress(httpx.HTTPError):
                        if (await http.get(f"{url}/readyz")).is_success:
                            break
                    if time.monotonic() > deadline:
                        raise ChildFailed(f"{name} was not ready within {STARTING:g} s: {self.log(name)}")
                    await asyncio.sleep(0.1)

    async def stop(self, name: str) -> None:
        """SIGTERM; it is started again when it has ended."""
        if self._children.is_running(name):
            pid = self._children.pids[name]
            os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + 10
            while self._is_still(name, pid) and time.monotonic() < deadline:
                await asyncio.sleep(0.05)

    def _is_still(self, name: str, pid: int) -> bool:
        """Whether that process has not ended; another one may have taken its place."""
        return self._children.pids.get(name) == pid and self._children.is_running(name)

    async def stop_adapters(self) -> None:
        """SIGTERM to all of them, for good."""
        self._held |= set(self._names["adapter"])
        await asyncio.gather(*(self.stop(name) for name in self._names["adapter"]))

    async def close(self) -> None:
        """Start nothing any more; the children are ended by their owner."""
        if self._keeper is not None:
            self._keeper.cancel()
        for proxy in self._proxies.values():
            await proxy.stop()

    @contextmanager
    def down(self, name: str) -> Iterator[None]:
        """Kill -9; started again when the block is left."""
        self._held.add(name)
        with suppress(KeyError):
            self._children.kill(name)
        try:
            yield
        finally:
            self._start(name)
            self._held.discard(name)

    @contextmanager
    def frozen(self, name: str) -> Iterator[None]:
        """SIGSTOP until the block is left."""
        pid = self._children.pids[name]
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    @contextmanager
    def stalled(self, name: str) -> Iterator[None]:
        """Nothing passes to and from the broker until the block is left."""
        self._proxies[name].stall()
        try:
            yield
        finally:
            self._proxies[name].heal()

    @contextmanager
    def throttled(self, name: str) -> Iterator[None]:
        """Little passes to and from the broker until the block is left."""
        self._proxies[name].throttle()
        try:
            yield
        finally:
            self._proxies[name].heal()

    def cut(self, name: str) -> None:
        """Its connections to the broker are reset."""
        self._proxies[name].cut()

    async def rebuild(self) -> None:
        """``runwire rebuild`` into a folder of its own. Raises ChildFailed."""
        env = self._env("rebuilt") | {"RUNWIRE_NATS_URL": str(self.settings.nats_url)}
        with self.log("rebuilt").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "runwire", "rebuild", env=env, stdout=log, stderr=log
            )
            if await process.wait() != 0:
                raise ChildFailed(f"the read model could not be rebuilt: {self.log('rebuilt')}")

    async def _keep_running(self) -> None:
        while True:
            for name in (*self._brokers, *self._processes):
                if name not in self._held and not self._children.is_running(name):
                    self._start(name)
                    self.restarts += 1
            await asyncio.sleep(0.1)

    def _start(self, name: str) -> None:
        self._children.start(name, self._argv(name), self._env(name), log=self.log(name))

    def _argv(self, name: str) -> list[str]:
        if name in self._brokers:
            return self._brokers[name].argv
        python = [sys.executable, *self._entry]
        own = ["adapter"] if name.startswith("adapter") else ["worker", "--app", self.app]
        return [*python, *own]

    def _url_for(self, name: str) -> str:
        """How a process reaches the broker."""
        if name not in self._proxies:
            return self.url
        url = urlsplit(self.url)
        return url._replace(netloc=f"{url.username}:{url.password}@127.0.0.1:{self._proxies[name].port}").geturl()

    def _env(self, name: str) -> dict[str, str]:
        if name in self._brokers:
            return self._brokers[name].env
        clean = {variable: value for variable, value in os.environ.items() if not variable.startswith("RUNWIRE_")}
        return clean | {
            "RUNWIRE_NATS_URL": self._url_for(name),
            "RUNWIRE_DATA_DIR": str(self._folder / name),
            "RUNWIRE_HTTP_PORT": str(self._ports.get(name, 1)),
            "RUNWIRE_BUS_KEY": self._broker.bus_key,
            "RUNWIRE_BOOTSTRAP_TOKEN": ":".join(CREDENTIAL),
            "RUNWIRE_ACK_WAIT": str(ACK_WAIT),
            "RUNWIRE_GRACE_SECONDS": "2",
            "RUNWIRE_EVENTS_HISTORY": "1000000",
            "RUNWIRE_STORE_BYTES": str(self._store_bytes),
            "RUNWIRE_LOG_LEVEL": "info",
            TRACES: str(self.traces),
        }
