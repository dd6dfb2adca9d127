"""All access tokens in memory, as the bucket has them: a look-up costs nothing, and a change is heard of at once.

The bucket's stream is read by a pull consumer of this process's own, from the last version of each token on. As in the
read model's projector, a gap, a reconnection or requests that are lost make the consumer anew; until it has caught
up, nothing is answered from memory.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from uuid import uuid4

from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from runwire.domain.access import AccessToken
from runwire.domain.errors import Undecodable
from runwire.messaging import subjects, tokens
from runwire.messaging.broker import Bus
from runwire.messaging.place import place_of
from runwire.messaging.pull import Puller

log = logging.getLogger("runwire.bus")

WINDOW = 1000
"""Versions on their way, at most."""


class TokenMirror:
    """The tokens as they stand."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._tokens: dict[str, AccessToken] = {}
        self._puller = Puller(bus, on_message=self._receive, on_reset=self._open)
        self._consumer = ""
        self._delivered = 0
        self._current = asyncio.Event()
        self._errands: set[asyncio.Task[None]] = set()
        self.on_change: list[Callable[[AccessToken | None, AccessToken], None]] = []
        """Called with a token as it was (None: unknown) and as it is now."""
        self.on_current: list[Callable[[], None]] = []
        """Called whenever it has caught up: what happened in between may have been missed."""

    async def start(self) -> None:
        """Begin to read. Raises one of UNAVAILABLE; may be called again then."""
        await self._puller.start()
        await self._bus.until_available(self._open)

    async def stop(self) -> None:
        """Read no more."""
        await self._puller.stop()
        for errand in self._errands:
            errand.cancel()

    @property
    def is_current(self) -> bool:
        """Whether it has caught up with the bucket."""
        return self._current.is_set()

    async def current(self, *, timeout: float) -> None:
        """Returns when the mirror has caught up with the bucket. Raises TimeoutError."""
        if not self._current.is_set():
            async with asyncio.timeout(timeout):
                await self._current.wait()

    def get(self, token_id: str) -> AccessToken | None:
        """The token, also a deleted one; None: there is none."""
        return self._tokens.get(token_id)

    async def _open(self) -> None:
        self._current.clear()
        self._tokens.clear()
        self._consumer, self._delivered = f"mirror-{uuid4().hex[:12]}", 0
        made = await self._bus.js.add_consumer(
            subjects.TOKENS_STREAM,
            ConsumerConfig(
                name=self._consumer,
                deliver_policy=DeliverPolicy.LAST_PER_SUBJECT,
                ack_policy=AckPolicy.NONE,
                filter_subject=subjects.ALL_TOKENS,
                inactive_threshold=60.0,
                mem_storage=True,
                num_replicas=1,
            ),
        )
        self._puller.consume(subjects.TOKENS_STREAM, self._consumer)
        await self._puller.request(WINDOW)
        if not made.num_pending:
            self._caught_up()

    def _receive(self, message: Msg) -> None:
        place = place_of(message)
        if place.consumer != self._consumer:
            return  # from a consumer that has been given up
        self._delivered += 1
        if place.delivered != self._delivered:
            log.info("gap in %s, reading it anew", subjects.TOKENS_STREAM, extra={"action": "gap"})
            self._current.clear()
            self._spawn(self._puller.reset())
            return
        self._take(message)
        if not place.pending:
            self._caught_up()
        if self._puller.outstanding <= WINDOW // 2:
            self._spawn(self._puller.request(WINDOW - self._puller.outstanding))

    def _take(self, message: Msg) -> None:
        token_id = message.subject.rpartition(".")[2]
        try:
            token = tokens.decode(message.data) if message.data else None
        except Undecodable as undecodable:
            log.error("garbled access token %s: %s", token_id, undecodable, extra={"action": "undecodable"})
            token = None
        before = self._tokens.pop(token_id, None)
        if token is not None:
            self._tokens[token_id] = token
        gone = token or (before and before.model_copy(update={"active": False}))
        if gone is not None and gone != before:
            for listener in self.on_change:
                listener(before, gone)

    def _caught_up(self) -> None:
        if not self._current.is_set():
            self._current.set()
            for listener in self.on_current:
                listener()

    def _spawn(self, errand: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(errand)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)
