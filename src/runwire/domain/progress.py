"""How far the schedule of a task has come, and what an edit does to it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from pydantic import AwareDatetime, JsonValue
from pydantic_core import to_json

from runwire.domain.run import Tick
from runwire.domain.schedule import SCHEDULE_FIELDS, InvalidTrigger, schedule_of
from runwire.domain.task import Model

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
INSTANT = timedelta.resolution
REMEMBERED = 8
"""How many stretches of skipped ticks are remembered: a task has one command at most, which is seconds late."""

Trigger = Mapping[str, JsonValue]


class Progress(Model):
    """How far the task's schedule has come."""

    version: int
    """The version of the task that brought the schedule: a change of the trigger begins a new one."""
    cursor: AwareDatetime
    """Every tick up to and including this instant has been dealt with: run, skipped, or never meant."""
    skipped: tuple[tuple[AwareDatetime, AwareDatetime], ...] = ()
    """The stretches of ticks that were skipped last, first and last tick of each: no run of theirs may begin now."""


def says_when(trigger: Trigger) -> dict[str, bytes]:
    """What the trigger says about when, each value as JSON: to Python 1 and true are the same."""
    return {field: to_json(value) for field, value in trigger.items() if field in SCHEDULE_FIELDS and value is not None}


def begin(trigger: Trigger, before: Trigger, *, version: int, created: datetime, now: datetime) -> Progress | None:
    """The schedule that a trigger brings, in the place of another one; None: the task runs by hand only.

    It counts from ``now`` on. But a ``once`` that has just been set may lie before that, and is still to be run.
    """
    try:
        schedule = schedule_of({**trigger, "paused": None}, created=created)
        once = schedule_of({"once": trigger.get("once")}, created=created)
    except InvalidTrigger:  # no door lets it in
        return None
    if schedule is None:
        return None
    first = once.next_after(EPOCH - INSTANT) if once is not None else None
    is_new = trigger.get("once") != before.get("once") and trigger.get("repeat") is None
    if first is not None and is_new and first <= now and not trigger.get("paused"):
        return Progress(version=version, cursor=first - INSTANT)
    return Progress(version=version, cursor=now)


def after_edit(
    schedule: Progress | None, trigger: Trigger, before: Trigger, *, version: int, created: datetime, now: datetime
) -> Progress | None:
    """The schedule of a task whose trigger was ``before``: another one, if the trigger says another time."""
    if says_when(trigger) == says_when(before):
        return schedule
    begun = begin(trigger, before, version=version, created=created, now=now)
    if begun is None and schedule is not None:  # its end is a version, too, or nobody would take the alarm away
        return Progress(version=version, cursor=now)
    return begun


def moved(schedule: Progress | None, until: datetime) -> Progress | None:
    """The schedule once the ticks up to and including this instant have been dealt with."""
    if schedule is None or until <= schedule.cursor:
        return schedule
    return schedule.model_copy(update={"cursor": until})


def passed_over(schedule: Progress | None, first: datetime, last: datetime) -> Progress | None:
    """The schedule once the ticks from ``first`` to ``last`` are recorded as skipped."""
    schedule = moved(schedule, last)
    if schedule is None:
        return None
    return schedule.model_copy(update={"skipped": (*schedule.skipped, (first, last))[-REMEMBERED:]})


def has_skipped(schedule: Progress | None, tick: Tick | None) -> bool:
    """Whether this tick is recorded as skipped."""
    if schedule is None or tick is None or tick.version != schedule.version:
        return False
    return any(first <= tick.due <= last for first, last in schedule.skipped)
