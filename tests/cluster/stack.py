"""The processes of :mod:`tests.chaos.stack`, with a broker of three servers and nothing between them but cables."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from nats.js.api import StreamInfo
from nats.js.errors import Error as JetStreamError

from benchmarks.children import ChildFailed, Children
from runwire import embedded
from runwire.embedded import Embedded
from runwire.messaging import subjects
from runwire.messaging.broker import UNAVAILABLE, Bus
from runwire.settings import Settings
from tests.chaos.proxy import Proxy
from tests.chaos.stack import Stack
from tests.cluster.network import CLIENTS, ROUTES, Network, address

SIZE = 3
CLIENT_PORT, ROUTE_PORT = 4222, 6222
LONGEST_RECOVERY = 90.0
"""Seconds after a fault until every stream has to have all its copies again."""
HEARD_OF = 2.5e9
"""Nanoseconds since a copy was heard of, at most: a leader calls one current for ten seconds after it has gone."""
LAME_DUCK = signal.SIGUSR2
"""What tells a nats-server to send its clients away and end, its leaderships first."""
LONGEST_STOP = 30.0
STREAMS = (subjects.COMMANDS, subjects.EVENTS, subjects.LOGS, subjects.SCHEDULES, subjects.KEYS, subjects.TOKENS_STREAM)
"""Those that have to be whole before the next fault."""


class ClusterStack(Stack):
    """Three servers; where there is a network each is in a namespace of its own."""

    def __init__(
        self, children: Children, folder: Path, network: Network | None, *, adapters: int = 2, workers: int = 3
    ) -> None:
        """``network`` None: all are on this machine's loopback, and no link can be cut."""
        self.network = network
        self.bus: Bus
        super().__init__(children, folder, adapters=adapters, workers=workers)

    @property
    def settings(self) -> Settings:
        """For a connection of our own."""
        return super().settings.model_copy(update={"nats_replicas": SIZE})

    def url_of(self, name: str) -> str:
        """One server, for a connection of our own."""
        return self._brokers[name].url

    def _prepare(self, settings: Settings) -> dict[str, Embedded]:
        prepared = embedded.prepare_cluster(settings, SIZE)
        if self.network is not None:
            prepared = [_placed(server, number) for number, server in enumerate(prepared, 1)]
        return {f"broker-{number}": server for number, server in enumerate(prepared, 1)}

    def _made_proxies(self) -> dict[str, Proxy]:
        return {}

    def _env(self, name: str) -> dict[str, str]:
        return super()._env(name) | {"RUNWIRE_NATS_REPLICAS": str(SIZE)}

    async def _until_brokers_answer(self) -> None:
        for name, broker in self._brokers.items():
            host, _, port = broker.bus_url.rpartition("/")[2].partition(":")
            self._children.wait_for(name, lambda there=(host, int(port)): _can_connect(there))

    async def start(self) -> None:
        """As there, and a connection of our own that says who leads."""
        await super().start()
        self.bus = Bus(self.settings, "cluster test")
        await self.bus.connect()
        await self.until_whole()

    async def close(self) -> None:
        """As there."""
        if hasattr(self, "bus"):
            await self.bus.broker.stop()
        await super().close()

    async def leader(self, stream: str) -> str:
        """The server that leads the stream."""
        while True:
            with suppress(*UNAVAILABLE, JetStreamError):
                info = await self.bus.js.stream_info(stream)
                if info.cluster is not None and info.cluster.leader in self._brokers:
                    return str(info.cluster.leader)
            await asyncio.sleep(0.2)

    async def step_down(self, stream: str) -> None:
        """Its leader gives way to another one."""
        with suppress(*UNAVAILABLE):
            await self.bus.nc.request(f"$JS.API.STREAM.LEADER.STEPDOWN.{stream}", b"", timeout=5)

    async def until_whole(self) -> float:
        """Return when every stream has a leader and all its copies; how many seconds it took. Raises ChildFailed."""
        began = time.monotonic()
        while True:
            with suppress(*UNAVAILABLE, JetStreamError):
                async with asyncio.timeout(5):
                    found = [await self.bus.js.stream_info(stream) for stream in STREAMS]
                if all(_is_whole(info) for info in found):
                    self.is_split = False
                    return time.monotonic() - began
            if time.monotonic() - began > LONGEST_RECOVERY:
                raise ChildFailed(f"the cluster was not whole again within {LONGEST_RECOVERY:g} s")
            await asyncio.sleep(0.3)

    async def retire(self, name: str) -> None:
        """Lame duck mode, as an operator restarts a server; it is started again when it has ended."""
        pid = self._children.pids[name]
        with suppress(ProcessLookupError):
            os.kill(pid, LAME_DUCK)
        deadline = time.monotonic() + LONGEST_STOP
        while self._is_still(name, pid) and time.monotonic() < deadline:
            await asyncio.sleep(0.1)

    @contextmanager
    def frozen(self, name: str) -> Iterator[None]:
        """As there; a server that wakes up does not know what it has missed."""
        self.is_split = name in self._brokers
        with super().frozen(name):
            yield

    @contextmanager
    def alone(self, name: str, *, also_from_clients: bool) -> Iterator[None]:
        """The server sees no other one, and if so wished no client, until the block is left."""
        self.is_split = True
        with ExitStack() as stack:
            if self.network is not None:
                networks = (ROUTES, CLIENTS) if also_from_clients else (ROUTES,)
                stack.enter_context(self.network.unplugged(int(name.rpartition("-")[2]), networks))
            yield


def _placed(server: Embedded, number: int) -> Embedded:
    """In its namespace, on the addresses it has there."""
    listen, old = f"{address(CLIENTS, number)}:{CLIENT_PORT}", server.bus_url.rpartition("/")[2]
    password = server.env["RUNWIRE_NATS_CLUSTER_PASSWORD"].strip('"')
    others = [
        f'"nats://route:{password}@{address(ROUTES, other)}:{ROUTE_PORT}"'
        for other in range(1, SIZE + 1)
        if other != number
    ]
    here = {
        "RUNWIRE_NATS_LISTEN": f'"{listen}"',
        "RUNWIRE_NATS_CLUSTER_LISTEN": f'"{address(ROUTES, number)}:{ROUTE_PORT}"',
        "RUNWIRE_NATS_ROUTES": f"[{', '.join(others)}]",
    }
    return replace(
        server,
        argv=Network.within(number, server.argv),
        env=server.env | here,
        url=server.url.replace(old, listen),
        bus_url=server.bus_url.replace(old, listen),
    )


def _is_whole(info: StreamInfo) -> bool:
    cluster = info.cluster
    copies = (cluster and cluster.replicas) or []
    return (
        cluster is not None
        and cluster.leader is not None
        and len(copies) == SIZE - 1
        and all(copy.current and not copy.offline and (copy.active or 0) < HEARD_OF for copy in copies)
    )


def _can_connect(there: tuple[str, int]) -> bool:
    socket.create_connection(there, timeout=1).close()
    return True
