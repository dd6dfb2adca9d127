"""Triggers as bodies give them and as answers show them. What they mean is in domain/schedule.py."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, Strict, WithJsonSchema

from runwire.domain import upcoming
from runwire.domain.cron import LONGEST as LONGEST_CRON
from runwire.domain.errors import FieldError, InvalidFields
from runwire.domain.lifecycle import Document
from runwire.domain.progress import says_when
from runwire.domain.schedule import (
    LONGEST_JITTER,
    LONGEST_PERIOD,
    SCHEDULE_FIELDS,
    SHORTEST_PERIOD,
    InvalidTrigger,
    schedule_of,
)

INSTANT: dict[str, Any] = {"format": "date-time"}
"""For the documentation of a time with an offset."""

Every = Annotated[
    JsonValue,
    WithJsonSchema(
        {
            "anyOf": [
                {
                    "type": "integer",
                    "minimum": int(SHORTEST_PERIOD.total_seconds()),
                    "maximum": int(LONGEST_PERIOD.total_seconds()),
                },
                {"type": "string", "format": "duration", "maxLength": 64},
                {"type": "null"},
            ]
        }
    ),
]
"""Seconds or an ISO 8601 duration, as it was given."""
Jitter = Annotated[
    JsonValue,
    WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0, "maximum": LONGEST_JITTER}, {"type": "null"}]}),
]
"""Seconds, as they were given."""


class Trigger(BaseModel):
    """What a trigger may say."""

    once: Annotated[
        str | None,
        Field(
            json_schema_extra=INSTANT,
            examples=["2026-12-24T18:00:00+01:00"],
            description="An instant, with its offset from UTC. Without `repeat` the task runs then, and at once when "
            "it lies in the past; with `repeat` it is the first time.",
        ),
    ] = None
    repeat: Annotated[
        Literal["daily", "weekly", "monthly"] | None,
        Field(
            description="Every day, week or month at the wall time (in `time_zone`) of `once`; without `once`, of "
            "`start`; without either, of the creation. A month that lacks the day runs on its last one."
        ),
    ] = None
    cron: Annotated[
        str | None,
        Field(
            max_length=LONGEST_CRON,
            examples=["0 18 * * MON-FRI"],
            description="Five fields (minute, hour, day of month, month, day of week) of the wall clock in "
            "`time_zone`, or `@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly`.",
        ),
    ] = None
    every: Annotated[
        Every,
        Field(
            examples=[900, "PT15M"],
            description="At equal intervals: whole seconds, or an ISO 8601 duration without years and months (a day "
            "is 24 hours); from a second to 366 days. The first time is `start`; without it, one interval after the "
            "creation.",
        ),
    ] = None
    time_zone: Annotated[
        str | None,
        Field(
            examples=["Europe/Amsterdam"],
            description="IANA time zone of the wall clock that `cron` and `repeat` go by. Left out: UTC.",
        ),
    ] = None
    start: Annotated[
        str | None,
        Field(json_schema_extra=INSTANT, description="With `cron`, `every` or `repeat`: no run before this instant."),
    ] = None
    end: Annotated[
        str | None,
        Field(
            json_schema_extra=INSTANT,
            description="With `cron`, `every` or `repeat`: no run after this instant. Of a new task: in the future.",
        ),
    ] = None
    paused: Annotated[
        Annotated[bool, Strict()] | None,
        Field(description="true: the schedule rests; what would have run meanwhile is not made up for."),
    ] = None
    jitter: Annotated[
        Jitter,
        Field(
            examples=[60],
            description="Seconds (0 to 86400) over which tasks with the same schedule are spread: each runs later by "
            "a share of its own, which never changes.",
        ),
    ] = None
    overlap: Annotated[
        Literal["skip", "wait"] | None,
        Field(
            description="When it is time and the task is still queued or running: `skip` records the time as a "
            "SKIPPED run, `wait` runs it afterwards. Left out: `skip`; `wait` for `once` without `repeat`."
        ),
    ] = None
    catch_up: Annotated[
        Literal["latest", "none", "all"] | None,
        Field(
            description="What passed while nothing was there to run it: only the `latest` is run afterwards (left "
            "out: this one), `none` of it, or `all` of it, the latest 100. The rest is recorded as SKIPPED."
        ),
    ] = None
    segment: JsonValue = None
    segment_id: JsonValue = None
    user_list: JsonValue = None


class TriggerBody(Trigger):
    """When the task runs. `{}`: only by hand.

    One of `once`, `repeat`, `cron` and `every`; `once` goes with `repeat`, too, as its first time. A wall time that a
    time zone skips (spring) runs at the first instant after the gap; one that it has twice (autumn) runs once, at the
    first of the two. The filters `segment`, `segment_id` and `user_list` are handed to the action.
    """

    model_config = ConfigDict(extra="forbid")

    next: Annotated[
        str | None,
        Field(
            json_schema_extra={"readOnly": True},
            description="As answers have it. A body may carry it along; nothing comes of it.",
        ),
    ] = None

    def stored(self) -> dict[str, JsonValue]:
        """The trigger as it was sent, less what only answers say."""
        return self.model_dump(mode="json", exclude_unset=True, exclude={"next"})


class TriggerView(Trigger):
    """When the task runs: what was given, and `next`."""

    next: Annotated[
        datetime | None,
        Field(
            json_schema_extra={"readOnly": True},
            description="When the task runs next by itself, jitter included; whole seconds, never earlier than it "
            "does. null: it does not, as it is paused or over. Absent when it runs only by hand.",
        ),
    ] = None


# --- what makes no schedule ------------------------------------------------------------------------------


def check_new(trigger: Mapping[str, JsonValue], *, now: datetime) -> None:
    """Raise InvalidFields unless a task that is created now with this trigger has a schedule to go by, or none."""
    errors = _misfits(trigger)
    end = trigger.get("end")
    if not errors and isinstance(end, str) and datetime.fromisoformat(end.upper()) <= now:
        errors = [_error("end", "lies in the past: the task would never run by itself")]
    _refuse(errors or _contradictions(trigger, created=now))


def check_changed(trigger: Mapping[str, JsonValue], before: Mapping[str, JsonValue], *, created: datetime) -> None:
    """Raise InvalidFields unless the changed trigger of a task makes sense. What stays as it was is not looked at."""
    if says_when(trigger) != says_when(before):
        _refuse(_misfits(trigger) or _contradictions(trigger, created=created))


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
BESIDE: Mapping[str, dict[str, JsonValue]] = {"start": {"every": 1}, "end": {"every": 1}}
"""What a field has to stand beside."""


def _misfits(trigger: Mapping[str, JsonValue]) -> list[FieldError]:
    """The fields that mean nothing, whatever stands beside them."""
    found = []
    for field in trigger:
        if field in SCHEDULE_FIELDS:
            found += _contradictions({field: trigger[field], **BESIDE.get(field, {})}, created=EPOCH)
    return found


def _contradictions(trigger: Mapping[str, JsonValue], *, created: datetime) -> list[FieldError]:
    try:
        schedule_of(trigger, created=created)
    except InvalidTrigger as invalid:
        return [_error(invalid.field, invalid.reason)]
    return []


def _error(field: str, reason: str) -> FieldError:
    return FieldError(pointer=f"/trigger/{field}", detail=reason)


def _refuse(errors: list[FieldError]) -> None:
    if errors:
        raise InvalidFields(errors)


# --- what is shown ---------------------------------------------------------------------------------------


def shown(
    trigger: dict[str, Any], task: int, *, created: datetime, cursor: datetime | None, now: datetime
) -> dict[str, Any]:
    """The trigger with ``next``, if it says when the task runs. ``cursor`` None: nothing goes by it.

    So it is with a task that was stored before there were schedules: they begin when its trigger is changed.
    """
    if not upcoming.has_schedule(trigger):
        return trigger
    coming = None
    if cursor is not None:
        coming = upcoming.next_run(trigger, task, created=created, cursor=cursor, now=now)
    return trigger | {"next": None if coming is None else coming.isoformat()[:19] + "Z"}


def task_note(document: Document, *, now: datetime) -> dict[str, str]:
    """The header that says what a caller may not expect of the trigger which this very document brings; or none."""
    task, schedule = document.task, document.schedule
    if schedule is None or schedule.version != task.version:
        return {}
    runs_now = upcoming.is_overdue(
        task.trigger, task.id, created=task.state.created_date, cursor=schedule.cursor, now=now
    )
    return {"Task-Note": PAST_ONCE} if runs_now else {}


PAST_ONCE = "once lies in the past: the task runs now"
TASK_NOTE = {
    "Task-Note": {
        "schema": {"type": "string"},
        "description": f"What comes of the trigger, where that may surprise: `{PAST_ONCE}`.",
    }
}
