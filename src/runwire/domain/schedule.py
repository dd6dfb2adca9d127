"""When a task runs by itself: what its trigger says, as instants. Pure; time zones come from the IANA database.

A *tick* is an instant at which the trigger wants a run. Ticks are named by wall clocks (a cron line, a daily time)
and become instants by one rule: a wall time that a time zone skips (spring) is the first instant after the gap, one
that it has twice (autumn) is the first of the two. Two wall times that come to the same instant are one tick.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from pydantic import JsonValue

SCHEDULE_FIELDS = frozenset(
    {"once", "repeat", "cron", "every", "time_zone", "start", "end", "paused", "jitter"},
)
"""The fields of a trigger that say when; a change in one of them begins the schedule anew."""


class Overlap(StrEnum):
    """What becomes of a tick that finds the task queued or running."""

    SKIP = "skip"
    """It is recorded as skipped."""
    WAIT = "wait"
    """It runs when the task is free; further ticks meanwhile are skipped."""


class CatchUp(StrEnum):
    """Which of the ticks that nobody was there for are run afterwards."""

    LATEST = "latest"
    NONE = "none"
    ALL = "all"


class InvalidTrigger(ValueError):
    """A trigger that makes no schedule: which of its fields, and why (a sentence for people)."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


@dataclass(frozen=True)
class Schedule:
    """The ticks of one trigger."""

    def next_after(self, instant: datetime) -> datetime | None:
        """The first tick after ``instant`` (strictly), in UTC; None: there is none."""
        raise NotImplementedError

    def latest_until(self, until: datetime, *, after: datetime) -> datetime | None:
        """The last tick in ``(after, until]``, in UTC; None: there is none."""
        raise NotImplementedError

    def count(self, after: datetime, until: datetime, *, at_most: int) -> int:
        """How many ticks there are in ``(after, until]``, counted no further than ``at_most``."""
        raise NotImplementedError


def schedule_of(trigger: Mapping[str, JsonValue], *, created: datetime) -> Schedule | None:
    """The schedule of a stored trigger; None: it is paused, or runs only by hand. Raises InvalidTrigger.

    ``created`` is when the task was created (UTC): where a schedule without ``start`` or ``once`` begins to count.
    """
    raise NotImplementedError


def delay_of(trigger: Mapping[str, JsonValue], task: int) -> timedelta:
    """How much later than its ticks the task runs: 0 to ``jitter`` whole seconds, always the same for a task."""
    raise NotImplementedError
