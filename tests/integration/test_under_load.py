"""Clients of the bus that misbehave, all at once: who is told what, and what it costs one that does not."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import nats.errors
import pytest
from nats.aio.client import Client
from nats.js.errors import APIError

from runwire.app import App
from runwire.messaging import streams, subjects
from runwire.messaging.broker import Bus
from runwire.settings import Settings
from tests.support import (
    CHAIN,
    Broker,
    adapter,
    dead_letters,
    eventually,
    grant,
    make_task,
    on_the_bus,
    queue_is_empty,
    worker,
)

OTHER = 2000
"""Another chain."""
CALLS = 60
"""Runs that the caller asks for, one after the other, in quiet and in noise."""
PENDING = 20
"""Events that a subscriber may leave unacknowledged."""
WANTS_ALL = 200
"""How often the one that does not read has subscribed to everything."""
ROOT = Path(__file__).parents[2]

NO_COMMANDS: dict[str, tuple[dict[str, str], bytes]] = {
    "not JSON": ({}, b"now!" * 1000),
    "no source": ({"ce-specversion": "1.0", "ce-id": "1", "ce-type": "t"}, b"{}"),
    "0.3": ({"Content-Type": "application/cloudevents+json"},
            b'{"specversion": "0.3", "id": "1", "source": "s", "type": "t"}'),
    "no run id": ({"Run-Id": "x" * 20_000}, b""),
}  # fmt: skip
"""What is stored, and put aside with this in its reason."""


@pytest.fixture
def base_settings(base_settings: Settings, tmp_path: Path) -> Settings:
    """A broker that loses patience with a connection sooner than in ten seconds, and has room for the flood."""
    config = tmp_path / "nats.conf"
    config.write_text((ROOT / "nats.conf").read_text().replace('write_deadline: "10s"', 'write_deadline: "1s"'))
    return base_settings.model_copy(update={"nats_config": config, "store_bytes": 2 << 30})


class Mischief:
    """A client of another chain that floods, and two subscribers of the caller's own: all with good tokens."""

    def __init__(self, bus: Bus, broker: Broker) -> None:
        self._bus, self._broker = bus, broker
        self.stored: Counter[str] = Counter()
        """Commands that the broker took, by what is wrong with them."""
        self.refused: Counter[str] = Counter()
        """By what was said."""
        self.subscription = ""
        self._over = asyncio.Event()

    @asynccontextmanager
    async def going_on(self, http: httpx.AsyncClient) -> AsyncIterator[None]:
        flooder = await on_the_bus(
            self._broker, *await grant(self._bus, OTHER, token_id="flooder"), error_cb=self._complain
        )
        forgetful = await on_the_bus(self._broker, *await self._subscribe(http))
        self._reader, self._writer = await self._deaf(*await grant(self._bus, token_id="deaf"))
        doing = [
            *(asyncio.create_task(self._flood(flooder, number, *case)) for number, case in enumerate(self._cases())),
            asyncio.create_task(self._fetch(forgetful)),
        ]
        try:
            yield
        finally:
            self._over.set()
            await asyncio.gather(*doing)
            await flooder.close()
            await forgetful.close()
            self._writer.close()

    @staticmethod
    def _cases() -> list[tuple[str, str, dict[str, str], bytes]]:
        """(what is wrong, subject, headers, body)"""
        return [
            *((why, f"tasks.cmd.{OTHER}.{{}}.execute", *message) for why, message in NO_COMMANDS.items()),
            ("wildcard", f"tasks.cmd.{OTHER}.*.execute", {}, b"{}"),
            ("forbidden", f"tasks.cmd.{OTHER}.>", {}, b"{}"),
            ("large", f"tasks.cmd.{OTHER}.{{}}.execute", {"x-large": "x" * 66_000}, b"{}"),
        ]

    async def _flood(self, client: Client, number: int, why: str, subject: str, headers: Any, body: bytes) -> None:
        """One after the other, without a pause, each of another task where the subject has room for one."""
        jetstream = client.jetstream()
        for task in itertools.count(1_000_000 * (number + 1)):
            if self._over.is_set():
                return
            if why == "forbidden":  # there is no answer
                await client.publish(subject, body)
                await asyncio.sleep(0.01)
                continue
            try:
                await jetstream.publish(subject.format(task), body, headers={**headers})
                self.stored[why] += 1
            except APIError as error:
                self.refused[str(error.err_code)] += 1

    async def _complain(self, error: Exception) -> None:
        if "permissions violation" in str(error).lower():
            self.refused["permissions"] += 1

    async def _subscribe(self, http: httpx.AsyncClient) -> tuple[str, str]:
        token, secret = await grant(self._bus, token_id="forgetful")
        credential = {"Authorization": f"Bearer {token}:{secret}"}
        made = await http.post("/subscriptions", json={"kind": "pull", "chain": CHAIN}, headers=credential)
        self.subscription = made.json()["id"]
        return token, secret

    async def _fetch(self, client: Client) -> None:
        """Ask for all events, and acknowledge none."""
        pulling = await client.jetstream().pull_subscribe_bind(self.subscription, stream=subjects.EVENTS)
        while not self._over.is_set():
            with suppress(TimeoutError, nats.errors.TimeoutError):
                await pulling.fetch(100, timeout=1)

    async def _deaf(self, token: str, secret: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Subscribed to everything, many times over, and reading nothing."""
        reader, writer = await eventually(lambda: self._let_in(token, secret), what="the deaf one is let in")
        for number in range(WANTS_ALL):
            writer.write(f"SUB tasks.evt.{CHAIN}.> {number}\r\n".encode())
        await writer.drain()
        return reader, writer

    async def _let_in(self, token: str, secret: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """A connection with little room for what comes; None: the login was not answered in time."""
        port = int(self._broker.bus_url.rpartition(":")[2])
        narrow = socket.socket()
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        narrow.connect(("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(sock=narrow, limit=1024)
        writer.write(f"CONNECT {json.dumps({'user': token, 'pass': secret, 'verbose': False})}\r\nPING\r\n".encode())
        while line := await reader.readline():
            if line == b"PONG\r\n":
                return reader, writer
        writer.close()
        return None

    def is_under_way(self) -> bool:
        wanted = {*NO_COMMANDS, "wildcard"}
        return self.stored.keys() == wanted and self.refused.keys() >= {"10054", "permissions"}

    async def cut_off(self) -> str:
        """Why the broker has closed the connection that nobody reads; empty: it has not."""
        question = {"state": 1, "auth": True, "limit": 1000}
        answer = await self._bus.nc.request(subjects.ALL_CONNECTIONS, json.dumps(question).encode(), timeout=5)
        found = json.loads(answer.data)["data"]["connections"] or []
        return next((one["reason"] for one in found if one.get("authorized_user", "").startswith("deaf")), "")


async def test_whoever_misbehaves_is_refused_or_put_aside_and_disturbs_nobody(
    bus: Bus, app: App, broker: Broker, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "SUBSCRIBER_PENDING", PENDING)
    await make_task(bus)
    async with adapter(settings) as http, worker(bus, app, settings):
        quiet = await executed(http)
        mischief = Mischief(bus, broker)
        async with mischief.going_on(http):
            await eventually(mischief.is_under_way, what="all of it is under way")
            noisy = await executed(http)
            why = await eventually(mischief.cut_off, what="the one that does not read is cut off")
        stuck = (await http.get(f"/subscriptions/{mischief.subscription}")).json()
        await eventually(lambda: queue_is_empty(bus), within=30)
        token, secret = await grant(bus, OTHER)
        credential = {"Authorization": f"Bearer {token}:{secret}"}
        answer = await http.get("/dead_letters?limit=100", headers=credential)
        assert answer.status_code == 200, answer.text
        letters = answer.json()
    print(f"median of a run: {median(quiet) * 1000:.1f} ms in quiet, {median(noisy) * 1000:.1f} ms beside")
    print(f"{dict(mischief.stored)} put aside, {dict(mischief.refused)} refused, {why}")
    assert median(noisy) < 5 * median(quiet) + 0.1
    assert why.startswith("Slow Consumer")
    assert (stuck["unacknowledged"], stuck["pending"] > 0) == (PENDING, True)
    assert (await bus.js.stream_info(subjects.DEADLETTERS)).state.messages == sum(mischief.stored.values())
    assert await dead_letters(bus, chain=OTHER, task=0), "the one of no task"
    assert {letter["reason"] for letter in letters} == {"undecodable"}
    for reason in NO_COMMANDS:
        assert any(reason in letter["detail"] for letter in letters), reason


async def executed(http: httpx.AsyncClient) -> list[float]:
    """Seconds that each of CALLS runs took, all of them DONE."""
    times = []
    for _ in range(CALLS):
        began = time.monotonic()
        answer = await http.post("/tasks/1/execute")
        times.append(time.monotonic() - began)
        assert (answer.status_code, answer.json()["code"]) == (200, "DONE"), answer.text
    return times
