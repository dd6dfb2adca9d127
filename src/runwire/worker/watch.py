"""Runs that end from outside, by a cancel or a deletion: their worker hears of it and stops.

A core subscription brings the events that end a run as an error, or a task, the moment they are published. They are
few beside the others, and a hint only: the broker hands a message out before the fence has let it into the stream.
So the task's last event is read, and that decides. A hint can get lost, too: at the rhythm of the heartbeat the last
events of the runs that have been going on for a while are read anyway.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from nats.js.errors import Error as JetStreamError

from runwire.domain import lifecycle
from runwire.domain.errors import Undecodable
from runwire.domain.run import Run
from runwire.messaging import events, subjects
from runwire.messaging.broker import UNAVAILABLE, Bus
from runwire.worker.acting import Hold

PAUSES = (0.0, 0.05, 0.2, 0.6)
"""Seconds before each look that follows a hint: the event may not be in the stream yet."""
LONG = 5.0
"""Seconds after which a run is looked after without a hint. Shorter ones, which are most, cost no read."""


class Watch:
    """Looks after the attempts that this worker has in hand."""

    def __init__(self, bus: Bus, *, interval: float) -> None:
        """``interval``: seconds between two looks at a long run."""
        self._bus = bus
        self._interval = interval
        self._holds: dict[tuple[int, int], list[Hold]] = {}
        self._subscriptions: list[Subscription] = []
        self._rounds: asyncio.Task[None] | None = None
        self._errands: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin to listen."""
        for subject in (subjects.ALL_ERRORS, subjects.ALL_DELETIONS):
            self._subscriptions.append(await self._bus.nc.subscribe(subject, cb=self._hear))
        self._rounds = asyncio.create_task(self._make_rounds())

    async def stop(self) -> None:
        """Listen no longer."""
        for subscription in self._subscriptions:
            with suppress(NatsError):
                await subscription.unsubscribe()
        for task in (self._rounds, *self._errands):
            if task is not None:
                task.cancel()

    @contextmanager
    def over(self, run: Run) -> Iterator[Hold]:
        """A hold on this attempt, which is taken away as soon as it turns out to be over; until the block is left."""
        key, hold = (run.chain, run.task), Hold(run)
        self._holds.setdefault(key, []).append(hold)
        try:
            yield hold
        finally:
            holds = self._holds[key]
            holds.remove(hold)
            if not holds:
                del self._holds[key]

    async def _hear(self, message: Msg) -> None:
        with suppress(Undecodable):
            for hold in self._holds.get(subjects.parse(message.subject), ()):
                self._spawn(self._follow(hold))

    async def _follow(self, hold: Hold) -> None:
        """A hint about the hold's task: see what the stream says, more than once if need be."""
        for pause in PAUSES:
            await asyncio.sleep(pause)
            if hold.is_taken_away or hold not in self._holds.get((hold.run.chain, hold.run.task), ()):
                return
            await self._look(hold, leader=True)

    async def _make_rounds(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            long_ago = time.monotonic() - LONG
            for hold in [hold for holds in self._holds.values() for hold in holds if hold.since < long_ago]:
                await self._look(hold)

    async def _look(self, hold: Hold, *, leader: bool = False) -> None:
        """Take the hold away if the task's last event says so."""
        with suppress(*UNAVAILABLE, NatsError, JetStreamError, Undecodable):
            head = await events.load(self._bus, hold.run.chain, hold.run.task, leader=leader)
            if head is not None and lifecycle.is_taken_away(head.document, hold.run):
                hold.take_away()

    def _spawn(self, errand: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(errand)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)
