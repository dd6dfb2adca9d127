"""Do the alarms fit the tasks? Looked at when a worker starts and now and then, and repaired where they do not.

Nothing of ours loses an alarm. But a stream can be purged by hand, or come back from an older copy than the other;
then a task would never run again, and nobody would hear of it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from nats.errors import Error as NatsError
from nats.js.errors import Error as JetStreamError

from runwire.domain import ticks
from runwire.domain.errors import NotAccepted
from runwire.domain.lifecycle import Change
from runwire.domain.ticks import Plan
from runwire.messaging import alarms, events
from runwire.messaging.broker import UNAVAILABLE, Bus
from runwire.scheduler.setting import Aligned, align, fits

log = logging.getLogger("runwire.scheduler")

INTERVAL = 600.0
"""Seconds between two looks, about."""
SELDOM = 50
"""The time between two looks is at least so many times what one takes."""
AT_ONCE = 32
"""Tasks that are looked at closely at the same time."""
PORTION = 200
"""Tasks after which the worker gets a breath."""
BREATH = 1.0
"""Seconds of rest for each second of looking: runs come first."""


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class Report:
    """What one look came to."""

    schedules: int
    """Tasks with a trigger that says when."""
    alarms: int
    """Alarms that were pending."""
    set: int
    """Alarms that were missing."""
    moved: int
    """Alarms that stood at another time."""
    removed: int
    """Alarms that nobody wanted."""


async def reconcile(bus: Bus, *, clock: Callable[[], datetime] = _now) -> Report:
    """Look at every task that has a schedule and at every alarm; repair what does not fit.

    May be done by several processes at once. Raises NotAccepted or one of UNAVAILABLE.
    """
    pace = _Pace()
    plans: dict[tuple[int, int], Plan | None] = {}
    async for key, document in events.schedules(bus):
        await pace.breathe()
        plans.pop(key, None)
        if document is not None and document.change is not Change.DELETED:
            plans[key] = ticks.plan_of(document)
    in_hand = await alarms.rung(bus)  # first: what is set from here on is found below
    suspects: dict[tuple[int, int], None] = {}
    missing = {key: plan for key, plan in plans.items() if plan is not None and key not in in_hand}
    pending = 0
    async for found in alarms.every(bus):
        await pace.breathe()
        pending += 1
        key = (found.chain, found.task)
        missing.pop(key, None)
        plan = plans.get(key)
        if plan is None or not fits(plan, found, now=clock()):
            suspects[key] = None
    done = dict.fromkeys(Aligned, 0)
    questionable = [*suspects, *missing]
    for begin in range(0, len(questionable), AT_ONCE):
        await pace.breathe()
        portion = questionable[begin : begin + AT_ONCE]
        for aligned in await asyncio.gather(*(align(bus, chain, task, now=clock()) for chain, task in portion)):
            if aligned is not None:
                done[aligned] += 1
    return Report(len(plans), pending, done[Aligned.SET], done[Aligned.MOVED], done[Aligned.REMOVED])


async def keep_reconciled(bus: Bus, *, clock: Callable[[], datetime] = _now) -> None:
    """Look now, and then every INTERVAL seconds, for as long as the process runs."""
    while True:
        began = time.monotonic()
        with suppress(*UNAVAILABLE, NatsError, JetStreamError, NotAccepted):
            report = await reconcile(bus, clock=clock)
            repaired = report.set + report.moved + report.removed
            log.log(
                logging.WARNING if repaired else logging.INFO,
                "alarms: %d schedules and %d alarms looked at in %.1f s; %d set, %d moved, %d removed",
                report.schedules, report.alarms, time.monotonic() - began, report.set, report.moved, report.removed,
                extra={"action": "reconciled"},
            )  # fmt: skip
        pause = max(INTERVAL, (time.monotonic() - began) * SELDOM)
        await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311 - not all workers at once


class _Pace:
    """Looking takes a share of the worker's time, not all of it."""

    def __init__(self) -> None:
        self._tasks = 0
        self._began = time.monotonic()

    async def breathe(self) -> None:
        self._tasks += 1
        if self._tasks % PORTION == 0:
            await asyncio.sleep((time.monotonic() - self._began) * BREATH)
            self._began = time.monotonic()
