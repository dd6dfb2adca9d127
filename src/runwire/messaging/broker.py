"""The connection to NATS.

FastStream's broker owns the connection and its lifecycle, and carries what is off the path of a run. Where
JetStream's own semantics are needed (the fence, slots before fetch, provisioning) the nats-py client behind
it is used directly: :class:`Bus` holds both.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar
from urllib.parse import urlsplit

import nats.errors
from faststream.nats import NatsBroker
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.errors import Error as JetStreamError
from nats.js.errors import NoStreamResponseError, ServiceUnavailableError
from nats.js.kv import KeyValue

from runwire.domain.errors import BrokerUnreachable, SetupError
from runwire.settings import Settings

log = logging.getLogger("runwire.bus")

T = TypeVar("T")

PING_INTERVAL = 5
"""Seconds between two pings; two unanswered ones close the connection (nats-py's own 120 s is far too long)."""
CONNECT_TIMEOUT = 5
"""Seconds a starting process tries to reach the broker."""
COMING_UP = 60
"""Seconds JetStream may take to answer after the broker does: a large store is read first."""
REQUEST_TIMEOUT = 5.0
"""Seconds a request to JetStream may take. When they are over the outcome is unknown, not negative."""

LOOK = 3.0
"""Seconds between two looks whether the server of a cluster is still of use, and that JetStream has for the answer."""
USELESS = 12.0
"""Seconds without an answer after which another server is tried. An election, which is no reason, takes 4 to 9."""

UNAVAILABLE = (
    TimeoutError,
    nats.errors.TimeoutError,
    nats.errors.NoRespondersError,
    nats.errors.ConnectionClosedError,
    nats.errors.ConnectionDrainingError,
    nats.errors.ConnectionReconnectingError,
    nats.errors.OutboundBufferLimitError,
    nats.errors.StaleConnectionError,
    NoStreamResponseError,
    ServiceUnavailableError,
)
"""What a request raises when the broker did not answer, or could not: whether it was carried out is unknown."""


class Bus:
    """One process's connection. ``on_reconnect`` holds what has to happen whenever the broker is back."""

    nc: Client
    js: JetStreamContext

    def __init__(self, settings: Settings, name: str) -> None:
        """Prepare; nothing connects yet. ``name`` shows in NATS monitoring. Raises SetupError without a URL."""
        if settings.nats_url is None:
            msg = "RUNWIRE_NATS_URL is not set: where is the broker? (`runwire up` brings one of its own)"
            raise SetupError(msg)
        self.url = settings.nats_url
        self.settings = settings
        self.chains: set[int] = set()
        """Chains that are known to have their consumer (:mod:`runwire.messaging.chains`)."""
        self.on_reconnect: list[Callable[[], Awaitable[None]]] = []
        self._waiting: set[asyncio.Future[Any]] = set()
        self._last_error: Exception | None = None
        self._buckets: dict[str, KeyValue] = {}
        self._lookout: asyncio.Task[None] | None = None
        self.is_in_vain = False
        """Whether no server of the cluster has done anything for us for USELESS seconds."""
        self.broker = NatsBroker(
            self.url.split(","),
            name=name,
            connect_timeout=2,
            max_reconnect_attempts=-1,
            reconnect_time_wait=random.uniform(0.1, 0.4),  # type: ignore[arg-type]  # noqa: S311 - jitter; fractions work
            ping_interval=PING_INTERVAL,
            max_outstanding_pings=2,
            error_cb=self._on_error,
            reconnected_cb=self._on_reconnected,
            disconnected_cb=self._on_disconnected,
            logger=None,
        )

    async def connect(self) -> None:
        """Connect within CONNECT_TIMEOUT; from then on the connection mends itself. Raises BrokerUnreachable."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                self.nc = await self.broker.connect()
        except (OSError, nats.errors.Error, ValueError) as error:
            reason = self._last_error if isinstance(error, TimeoutError) else error
            why = f": {str(reason).removeprefix('nats: ')}" if reason else ""
            raise BrokerUnreachable(f"cannot reach the broker at {self.address}{why}") from None
        # FastStream's own callback raises on an authorisation error; in a reconnection that would end the client.
        self.nc._error_cb = self._on_error  # noqa: SLF001
        self._show_everywhere()
        self.nc._parse_header_lines = parse_headers  # type: ignore[method-assign]  # noqa: SLF001 - as below
        self.js = self.nc.jetstream(timeout=REQUEST_TIMEOUT)
        if self.is_clustered:
            self._lookout = asyncio.create_task(self._look_out())

    def _show_everywhere(self) -> None:
        """Use the credentials at every server, also at those of a cluster that the broker tells of by themselves.

        nats-py takes them from the URL of the server it connects to, and such a one's has none.
        """
        shown = {(parts.username, parts.password) for parts in map(urlsplit, self.url.split(","))}
        if len(shown) == 1:
            self.nc.options["user"], self.nc.options["password"] = shown.pop()

    async def _look_out(self) -> None:
        """Leave a server that has lost the others: it still takes connections, and can do nothing for them."""
        clock = asyncio.get_running_loop().time
        answered = clock()
        while not self.nc.is_closed:
            await asyncio.sleep(LOOK)
            if await self._answers():
                answered = clock()
            was, self.is_in_vain = self.is_in_vain, clock() - answered > USELESS
            if self.is_in_vain and self.nc.is_connected:
                level = logging.INFO if was else logging.WARNING
                log.log(level, "JetStream does not answer, trying another server", extra={"action": "server_left"})
                await self.nc.force_reconnect()

    async def _answers(self) -> bool:
        """Whether a majority of the servers is behind the one we are connected to.

        Of a stream a server without the others tells what it last knew; of the account it does not.
        """
        try:
            async with asyncio.timeout(LOOK):
                await self.js.account_info()
        except (*UNAVAILABLE, nats.errors.Error):
            return False
        except JetStreamError:  # an answer
            return True
        return True

    async def until_available(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do something that may be done twice, for as long as JetStream is only coming up. Raises SetupError."""
        deadline = asyncio.get_running_loop().time() + COMING_UP
        while True:
            try:
                return await work()
            except UNAVAILABLE as error:
                log.info("waiting for JetStream: %r", error, extra={"action": "waiting"})
                if asyncio.get_running_loop().time() > deadline:
                    raise BrokerUnreachable(f"JetStream at {self.address} does not answer") from None
                await asyncio.sleep(0.2)

    async def bucket(self, name: str) -> KeyValue:
        """A key-value bucket; looked up once. Raises one of UNAVAILABLE."""
        if name not in self._buckets:
            self._buckets[name] = await self.js.key_value(name)
        return self._buckets[name]

    async def entries(self, name: str) -> dict[str, bytes]:
        """Every entry of a bucket at the moment of the call, by key.

        Raises one of UNAVAILABLE; TimeoutError when the broker goes away meanwhile.
        """
        watcher = await (await self.bucket(name)).watchall(ignore_deletes=True)
        found: dict[str, bytes] = {}
        try:
            while (entry := await watcher.updates()) is not None:
                found[entry.key] = entry.value or b""
        finally:
            with suppress(*UNAVAILABLE):
                await watcher.stop()
        return found

    @contextmanager
    def while_connected(self, future: asyncio.Future[Any]) -> Iterator[None]:
        """Until the block is left, the loss of the connection ends this future with ConnectionReconnectingError."""
        self._waiting.add(future)
        try:
            yield
        finally:
            self._waiting.discard(future)

    @property
    def address(self) -> str:
        """The broker's URL without the credentials in it."""
        return ",".join(f"{p.scheme}://{p.hostname}:{p.port or 4222}" for p in map(urlsplit, self.url.split(",")))

    @property
    def is_clustered(self) -> bool:
        """Whether there is more than one server: we were told of several, or the broker has told us."""
        return len(self.nc.servers) > 1

    @property
    def is_connected(self) -> bool:
        """Whether the broker can be reached at this moment, and can do something."""
        return self.nc.is_connected and not self.is_in_vain

    async def _on_error(self, error: Exception) -> None:
        self._last_error = error
        log.debug("%s", error, extra={"action": "bus_error"})

    async def _on_disconnected(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_exception(nats.errors.ConnectionReconnectingError())
        if not self.nc.is_closed and not self.nc.is_draining:
            log.warning("the broker is gone, reconnecting", extra={"action": "disconnected"})

    async def _on_reconnected(self) -> None:
        log.info("the broker is back", extra={"action": "reconnected"})
        self.chains.clear()
        for callback in self.on_reconnect:
            await callback()


def parse_headers(raw: bytes) -> dict[str, str]:
    """The headers of a message, exactly as nats-py reads them, in a quarter of its time.

    nats-py looks at every character of every name, which was 5 % of the CPU of a run. A test holds both together.
    """
    headers = {}
    for line in raw.split(b"\r\n"):
        name, colon, value = line.partition(b":")
        if not colon or not name.isascii():
            continue
        key = name.strip().decode()
        if not key or key.split() == [key]:
            headers[key] = value.strip().decode("utf-8", "replace")
    return headers
