"""A forwarder that dies between a tick's command and the next alarm, or on either side of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from runwire.domain.lifecycle import Change
from runwire.domain.schedule import schedule_of
from runwire.failpoints import Point
from runwire.messaging import subjects
from runwire.messaging.broker import Bus
from tests.crash.processes import Processes, died
from tests.support import eventually, history, make_task, queue_is_empty


@pytest.mark.parametrize("point", [Point.BEFORE_COMMAND, Point.COMMAND_STORED, Point.BEFORE_ALARM, Point.ALARM_STORED])
async def test_a_tick_whose_forwarder_dies_at_any_step_is_one_run(
    bus: Bus, processes: Processes, task: int, point: str
) -> None:
    dying = processes.worker(f"{point}:kill")
    await dying.says("worker ready")
    end = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=3)
    trigger = {"every": 1, "end": end.isoformat(), "catch_up": "all"}
    created = await make_task(bus, "probe", task=task, file=str(processes.trace), trigger=trigger)
    begin = created.task.state.created_date
    due = list(schedule_of(created.task.trigger, created=begin).ticks(begin, end + timedelta(seconds=1)))
    assert due
    await died(dying)
    processes.worker()

    async def all_ran() -> bool:
        return len(await ticks(bus, task)) >= len(due) and await queue_is_empty(bus) and await nothing_is_due(bus)

    await eventually(all_ran, what="every tick has run")
    assert await ticks(bus, task) == due
    assert len(processes.executions()) == len(due)
    assert [document for document in await history(bus, task=task) if document.change is Change.SKIPPED] == []


async def ticks(bus: Bus, task: int) -> list[datetime]:
    """The ticks whose runs have ended, in that order."""
    return [d.run.tick.due for d in await history(bus, task=task) if d.change is Change.CONCLUDED]


async def nothing_is_due(bus: Bus) -> bool:
    info = await bus.js.consumer_info(subjects.SCHEDULES, subjects.FORWARDERS)
    return info.num_pending == info.num_ack_pending == 0
