"""Takes the alarms that have rung, together with the forwarders of all other workers, and settles them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime

from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig

from runwire import failpoints
from runwire.domain.errors import NotAccepted, Undecodable
from runwire.failpoints import Point
from runwire.messaging import codec, site, subjects
from runwire.messaging.broker import UNAVAILABLE, Bus
from runwire.messaging.pull import Puller
from runwire.scheduler.forwarding import Forwarding
from runwire.scheduler.setting import align
from runwire.settings import Settings

log = logging.getLogger("runwire.scheduler")

AT_ONCE = 256
"""Alarms in hand, those not counted that wait for their task."""
MOST_IN_HAND = 100_000
"""Alarms that all forwarders together may have in hand, those that wait counted."""
LATER = 2.0
"""Seconds before an alarm that came to nothing is tried again."""
LAST_WORDS = 2.0
"""Seconds a stopping forwarder takes to finish what it has in hand."""


def _now() -> datetime:
    return datetime.now(UTC)


class Forwarder:
    """Alarms as they come, heartbeats, acknowledgements; what becomes of one is up to :class:`Forwarding`."""

    def __init__(self, bus: Bus, settings: Settings, *, clock: Callable[[], datetime] = _now) -> None:
        """``clock`` tells the time in UTC."""
        self._bus = bus
        self._ack_wait = settings.ack_wait
        self._clock = clock
        self._forwarding = Forwarding(bus, clock=clock)
        self._puller = Puller(bus, on_message=self._receive, on_reset=self._begin_anew)
        self._in_hand: dict[asyncio.Task[None], Msg] = {}
        self._waiting: set[asyncio.Task[None]] = set()
        self._errands: set[asyncio.Future[None]] = set()
        self._heart: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to take alarms."""
        await self._puller.start()
        self._heart = asyncio.create_task(self._beat())
        await self._bus.until_available(self._begin_anew)

    async def stop(self) -> None:
        """Take nothing new; what does not come to its end soon goes to another forwarder."""
        await self._puller.stop()
        busy = self._in_hand.keys() - self._waiting
        if busy:
            await asyncio.wait(busy, timeout=LAST_WORDS)
        left = dict(self._in_hand)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        for message in left.values():
            with suppress(NatsError):
                await message.nak()
        if self._heart is not None:
            self._heart.cancel()

    async def _begin_anew(self) -> None:
        self._forwarding.key = await site.server_key(self._bus)
        await self._bus.js.add_consumer(
            subjects.SCHEDULES,
            ConsumerConfig(
                name=subjects.FORWARDERS,
                durable_name=subjects.FORWARDERS,
                ack_policy=AckPolicy.EXPLICIT,
                ack_wait=self._ack_wait,
                max_deliver=-1,
                max_ack_pending=MOST_IN_HAND,
                filter_subject=subjects.ALL_DUE,
            ),
        )
        self._puller.consume(subjects.SCHEDULES, subjects.FORWARDERS)
        await self._refill()

    async def _refill(self) -> None:
        """Ask for as many alarms as there is room for, once it is worth a request."""
        room = AT_ONCE - (len(self._in_hand) - len(self._waiting)) - self._puller.outstanding
        if room >= AT_ONCE // 4:
            await self._puller.request(room)

    def _receive(self, message: Msg) -> None:
        task = asyncio.create_task(self._process(message))
        self._in_hand[task] = message
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._in_hand.pop(task, None)
        self._waiting.discard(task)
        self._run_errand(self._refill())

    async def _process(self, message: Msg) -> None:
        """Deal with an alarm and acknowledge it; one that could not be dealt with comes again."""
        answer: Awaitable[None]
        try:
            await self._forward(message)
        except UNAVAILABLE as error:
            log.info("%s is left to redelivery: %r", message.subject, error, extra={"action": "interrupted"})
            return
        except NotAccepted as error:
            log.debug("%s waits: %s", message.subject, error, extra={"action": "postponed"})
            answer = message.nak(delay=LATER)
        except Exception:
            log.exception("%s is tried again", message.subject, extra={"action": "broken"})
            answer = message.nak(delay=LATER)
        else:
            failpoints.reach(Point.ALARM_STORED)
            answer = message.ack()
        with suppress(NatsError):
            await answer

    async def _forward(self, message: Msg) -> None:
        chain, task = subjects.parse(message.subject)
        try:
            alarm = codec.decode_alarm(message.data)
        except Undecodable as undecodable:
            log.error("%s is garbled: %s", message.subject, undecodable, extra={"action": "undecodable"})
            await align(self._bus, chain, task, now=self._clock())
            return
        rang, again = message.metadata.timestamp, message.metadata.num_delivered > 1
        await self._forwarding.forward(chain, task, alarm, rang=rang, again=again, on_wait=self._wait_aside)

    def _wait_aside(self) -> None:
        """The alarm in hand waits for its task: make room for another one."""
        task = asyncio.current_task()
        if task is not None:
            self._waiting.add(task)
            self._run_errand(self._refill())

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._ack_wait / 3)
            for message in list(self._in_hand.values()):
                with suppress(NatsError):
                    await message.in_progress()

    def _run_errand(self, errand: Awaitable[None]) -> None:
        async def run() -> None:
            with suppress(NatsError):  # while the broker is away; when it is back all begins anew
                await errand

        task = asyncio.ensure_future(run())
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)
