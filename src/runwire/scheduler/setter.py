"""Follows EVENTS and keeps the alarms in step: a task that is created, changed or deleted has its alarm aligned.

All workers share one durable consumer, so an event is dealt with once, and again when a worker died over it. What
counts is not the event but the task as it stands when the event is dealt with; so the order does not matter.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from runwire.domain.errors import NotAccepted, Undecodable
from runwire.domain.lifecycle import Change, Document
from runwire.messaging import codec, subjects
from runwire.messaging.broker import UNAVAILABLE, Bus
from runwire.messaging.pull import Puller
from runwire.scheduler.setting import align
from runwire.settings import Settings

log = logging.getLogger("runwire.scheduler")

AT_ONCE = 64
"""Events in hand."""
LATER = 2.0
"""Seconds before an event that came to nothing is tried again."""


def _now() -> datetime:
    return datetime.now(UTC)


class Setter:
    """Takes the events that may change when a task is due."""

    def __init__(self, bus: Bus, settings: Settings, *, clock: Callable[[], datetime] = _now) -> None:
        """``clock`` tells the time in UTC."""
        self._bus = bus
        self._ack_wait = settings.ack_wait
        self._clock = clock
        self._puller = Puller(bus, on_message=self._receive, on_reset=self._begin_anew)
        self._in_hand: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin to follow."""
        await self._puller.start()
        await self._bus.until_available(self._begin_anew)

    async def stop(self) -> None:
        """Take nothing new, and finish what is in hand as far as the broker answers."""
        await self._puller.stop()
        if self._in_hand:
            await asyncio.wait(self._in_hand, timeout=1.0)
        for task in self._in_hand:
            task.cancel()

    async def _begin_anew(self) -> None:
        await self._bus.js.add_consumer(
            subjects.EVENTS,
            ConsumerConfig(
                name=subjects.ALARM_SETTERS,
                durable_name=subjects.ALARM_SETTERS,
                deliver_policy=DeliverPolicy.ALL,
                ack_policy=AckPolicy.EXPLICIT,
                ack_wait=max(self._ack_wait, 5.0),
                max_deliver=-1,
                filter_subjects=subjects.DEFINITIONS,
            ),
        )
        self._puller.consume(subjects.EVENTS, subjects.ALARM_SETTERS)
        await self._refill()

    async def _refill(self) -> None:
        """Ask for as many events as there is room for, once it is worth a request."""
        room = AT_ONCE - len(self._in_hand) - self._puller.outstanding
        if room >= AT_ONCE // 2:
            await self._puller.request(room)

    def _receive(self, message: Msg) -> None:
        task = asyncio.create_task(self._process(message))
        self._in_hand.add(task)
        task.add_done_callback(self._in_hand.discard)

    async def _process(self, message: Msg) -> None:
        try:
            if _says_when(message):
                chain, task = subjects.parse(message.subject)
                await align(self._bus, chain, task, now=self._clock())
        except UNAVAILABLE:
            pass  # it comes again
        except NotAccepted:
            with suppress(NatsError):
                await message.nak(delay=LATER)
        except Exception:
            log.exception("%s is tried again", message.subject, extra={"action": "broken"})
            with suppress(NatsError):
                await message.nak(delay=LATER)
        else:
            with suppress(NatsError):
                await message.ack()
        self._in_hand.discard(asyncio.current_task())
        with suppress(NatsError):
            await self._refill()


def _says_when(message: Msg) -> bool:
    """Whether the event brings a schedule, another one, or the end of one. Most tasks never have any."""
    try:
        document: Document = codec.decode(message.data)
    except Undecodable:
        return False
    if document.schedule is None:
        return False
    return document.change is not Change.EDITED or document.schedule.version == document.task.version
