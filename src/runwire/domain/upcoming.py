"""When a task runs next by itself, as it is shown to people. Pure.

What really runs is decided when an alarm rings, in ticks.py; this says what to expect of it. Instants that come out
of here are UTC in whole seconds, and never earlier than the task runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta

from pydantic import JsonValue

from runwire.domain.schedule import InvalidTrigger, Schedule, delay_of, schedule_of
from runwire.domain.task import whole_seconds

SECOND = timedelta(seconds=1)

Trigger = Mapping[str, JsonValue]


def has_schedule(trigger: Trigger) -> bool:
    """Whether the trigger says when the task runs, paused or not; else it runs only by hand."""
    return any(trigger.get(field) is not None for field in ("once", "repeat", "cron", "every"))


def next_run(trigger: Trigger, task: int, *, created: datetime, cursor: datetime, now: datetime) -> datetime | None:
    """When the task runs next by itself; None: it does not, or nobody can tell, as its time zone is gone.

    ``cursor``: ticks up to and including this instant have been dealt with. A task that :func:`is_overdue` runs now.
    """
    schedule, delay = _read(trigger, task, created)
    if schedule is None:
        return None
    if _is_overdue(trigger, schedule, delay, cursor=cursor, now=now):
        return _rounded_up(now)
    tick = schedule.next_after(max(cursor, now - delay))
    return None if tick is None else _rounded_up(tick + delay)


def runs_after(run: datetime, trigger: Trigger, task: int, *, created: datetime) -> Iterator[datetime]:
    """The runs that follow this one, as far as they are asked for."""
    schedule, delay = _read(trigger, task, created)
    tick = None if schedule is None else schedule.next_after(run - delay)
    while schedule is not None and tick is not None:
        yield _rounded_up(tick + delay)
        tick = schedule.next_after(tick)


def is_overdue(trigger: Trigger, task: int, *, created: datetime, cursor: datetime, now: datetime) -> bool:
    """Whether the task runs once, and at once: its time has come, and it has not run yet."""
    schedule, delay = _read(trigger, task, created)
    return schedule is not None and _is_overdue(trigger, schedule, delay, cursor=cursor, now=now)


def _read(trigger: Trigger, task: int, created: datetime) -> tuple[Schedule | None, timedelta]:
    try:
        return schedule_of(trigger, created=created), delay_of(trigger, task)
    except InvalidTrigger:
        return None, timedelta()


def _is_overdue(trigger: Trigger, schedule: Schedule, delay: timedelta, *, cursor: datetime, now: datetime) -> bool:
    if trigger.get("once") is None or trigger.get("repeat") is not None:
        return False
    tick = schedule.next_after(cursor)
    return tick is not None and tick + delay <= now


def _rounded_up(instant: datetime) -> datetime:
    return whole_seconds(instant + SECOND - timedelta.resolution)
