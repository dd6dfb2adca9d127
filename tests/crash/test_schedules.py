"""A forwarder that dies between a tick's command and the next alarm, or on either side of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest

from runwire.domain.lifecycle import Change
from runwire.domain.schedule import schedule_of
from runwire.failpoints import Point
from runwire.messaging import subjects
from runwire.messaging.broker import Bus
from runwire.scheduler.forwarder import Forwarder
from runwire.settings import Settings
from tests.crash.app import app
from tests.crash.processes import Processes, died
from tests.support import eventually, history, make_task, queue_is_empty, worker


@pytest.mark.parametrize("point", [Point.BEFORE_COMMAND, Point.COMMAND_STORED, Point.BEFORE_ALARM, Point.ALARM_STORED])
async def test_a_tick_whose_forwarder_dies_at_any_step_is_one_run(
    bus: Bus, processes: Processes, settings: Settings, task: int, point: str
) -> None:
    dying = processes.worker(f"{point}:kill")
    await dying.says("worker ready")
    end = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=3)
    trigger = {"every": 1, "end": end.isoformat(), "catch_up": "all"}
    created = await make_task(bus, "probe", task=task, file=str(processes.trace), trigger=trigger)
    begin = created.task.state.created_date
    due = list(schedule_of(created.task.trigger, created=begin).ticks(begin, end + timedelta(seconds=1)))
    await died(dying)
    async with worker(bus, app, settings), forwarding(bus, settings):
        await eventually(lambda: all_dealt_with(bus, task, len(due)), within=30, what="every tick is dealt with")
    # The one that was in hand has run; while its command was with the dead worker others may have been skipped.
    ran, skipped = await ticks(bus, task)
    assert ran[0] == due[0]
    assert sorted(ran + skipped) == due
    assert len(processes.executions()) == len(ran)


@asynccontextmanager
async def forwarding(bus: Bus, settings: Settings) -> AsyncIterator[None]:
    """A forwarder alone: a whole scheduler would also look for alarms that are missing, and set them."""
    forwarder = Forwarder(bus, settings)
    await forwarder.start()
    try:
        yield
    finally:
        await forwarder.stop()


async def all_dealt_with(bus: Bus, task: int, number: int) -> bool:
    ran, skipped = await ticks(bus, task)
    due = await bus.js.consumer_info(subjects.SCHEDULES, subjects.FORWARDERS)
    return len(ran + skipped) >= number and due.num_pending == due.num_ack_pending == 0 and await queue_is_empty(bus)


async def ticks(bus: Bus, task: int) -> tuple[list[datetime], list[datetime]]:
    """Those whose runs have ended, and those that are recorded as skipped."""
    ran, skipped = [], []
    for document in await history(bus, task=task):
        if document.change is Change.CONCLUDED:
            ran.append(document.run.tick.due)
        if document.change is Change.SKIPPED:
            first, last = (datetime.fromisoformat(document.skipped.result[name]) for name in ("first", "last"))
            skipped += [first + timedelta(seconds=n) for n in range(round((last - first).total_seconds()) + 1)]
    return ran, skipped
