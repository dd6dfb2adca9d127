"""When a task runs by itself: what its trigger says, as instants. Pure; time zones come from the IANA database.

A *tick* is an instant at which the trigger wants a run. Ticks are named by wall clocks (a cron line, a daily time)
and become instants by one rule: a wall time that a time zone skips (spring) is the first instant after the gap, one
that it has twice (autumn) is the first of the two. Two wall times that come to the same instant are one tick.
"""

from __future__ import annotations

import re
import zoneinfo
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import cache, lru_cache
from hashlib import sha256
from itertools import islice

from pydantic import JsonValue

from runwire.domain import cron
from runwire.domain.series import Cron, Every, Once, Repeat, Series, instant_of

SCHEDULE_FIELDS = frozenset(
    {"once", "repeat", "cron", "every", "time_zone", "start", "end", "paused", "jitter"},
)
"""The fields of a trigger that say when; a change in one of them begins the schedule anew."""

SHORTEST_PERIOD, LONGEST_PERIOD = timedelta(seconds=1), timedelta(days=366)
"""What ``every`` may be."""
LONGEST_JITTER = 86_400
"""Seconds."""
FIRST_YEAR, LAST_YEAR = 1970, 2199
"""Of every instant, in UTC."""

EARLIEST = datetime(FIRST_YEAR, 1, 1, tzinfo=UTC)
LATEST = datetime(LAST_YEAR + 1, 1, 1, tzinfo=UTC) - timedelta.resolution


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
    """The ticks of one trigger: those of a series in ``[first, last]``. All instants are UTC."""

    series: Series
    first: datetime
    last: datetime

    def next_after(self, instant: datetime) -> datetime | None:
        """The first tick after ``instant`` (strictly), in UTC; None: there is none."""
        instant = max(instant, self._before)
        if instant >= self.last:
            return None
        tick = self.series.after(instant)
        return tick if tick is not None and tick <= self.last else None

    def latest_until(self, until: datetime, *, after: datetime) -> datetime | None:
        """The last tick in ``(after, until]``, in UTC; None: there is none."""
        after, until = max(after, self._before), min(until, self.last)
        if until <= after:
            return None
        tick = self.series.until(until)
        return tick if tick is not None and tick > after else None

    def count(self, after: datetime, until: datetime, *, at_most: int) -> int:
        """How many ticks there are in ``(after, until]``, counted no further than ``at_most``."""
        after, until = max(after, self._before), min(until, self.last)
        if until <= after:
            return 0
        known = self.series.count(after, until)
        if known is not None:
            return min(known, at_most)
        return sum(1 for _ in islice(self.ticks(after, until), at_most))

    def ticks(self, after: datetime, until: datetime) -> Iterator[datetime]:
        """The ticks in ``(after, until]``, in order and in UTC."""
        tick = self.next_after(after)
        while tick is not None and tick <= until:
            yield tick
            tick = self.next_after(tick)

    @property
    def _before(self) -> datetime:
        return self.first - timedelta.resolution


def schedule_of(trigger: Mapping[str, JsonValue], *, created: datetime) -> Schedule | None:
    """The schedule of a stored trigger; None: it is paused, or runs only by hand. Raises InvalidTrigger.

    ``created`` is when the task was created (UTC): where a schedule without ``start`` or ``once`` begins to count.
    A cron line has to have a tick from then on. The same trigger costs next to nothing the second time.
    """
    paused = trigger.get("paused")
    if not isinstance(paused, bool | None):
        raise InvalidTrigger("paused", "has to be true or false")
    _jitter(trigger)
    every = trigger.get("every")
    if isinstance(every, bool | list | dict):
        raise InvalidTrigger("every", "has to be a number of seconds or an ISO 8601 duration")
    once, repeat, line = _text(trigger, "once"), _text(trigger, "repeat"), _text(trigger, "cron")
    time_zone, start, end = _text(trigger, "time_zone"), _text(trigger, "start"), _text(trigger, "end")
    schedule = _schedule(once, repeat, line, every, time_zone, start, end, created.astimezone(UTC))
    return None if paused else schedule


def delay_of(trigger: Mapping[str, JsonValue], task: int) -> timedelta:
    """How much later than its ticks the task runs: 0 to ``jitter`` whole seconds, always the same for a task."""
    most = int(_jitter(trigger))
    if most == 0:
        return timedelta()
    digest = sha256(str(task).encode()).digest()
    return timedelta(seconds=int.from_bytes(digest) % (most + 1))


# --- reading a trigger ---------------------------------------------------------------------------------

UTC_ZONE = zoneinfo.ZoneInfo("UTC")

CONFLICTS = (("cron", "once"), ("every", "once"), ("every", "cron"), ("repeat", "cron"), ("repeat", "every"))

PERIOD_DAYS = {"daily": 1, "weekly": 7, "monthly": 0}

INSTANT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}(:(?P<second>[0-9]{2})([.,][0-9]{1,20})?)?"
    r"(?P<offset>[Zz]|[+-][0-9]{2}(:?[0-9]{2})?)?"
)

DURATION = re.compile(
    r"P(?:(?P<weeks>[0-9]+)W|(?:(?P<years>[0-9]+)Y)?(?:(?P<months>[0-9]+)M)?(?:(?P<days>[0-9]+)D)?"
    r"(?:T(?=[0-9])(?:(?P<hours>[0-9]+)H)?(?:(?P<minutes>[0-9]+)M)?(?:(?P<seconds>[0-9]+)S)?)?)"
)
LONGEST_DURATION = 64
"""Characters."""


@lru_cache(maxsize=4096, typed=True)  # 1.0 and 1 are equal, but say different things in a message
def _schedule(
    once: str | None,
    repeat: str | None,
    line: str | None,
    every: str | float | None,
    time_zone: str | None,
    start: str | None,
    end: str | None,
    created: datetime,
) -> Schedule | None:
    """As :func:`schedule_of`, of what can be remembered."""
    zone = _zone(time_zone) if time_zone is not None else UTC_ZONE
    at, begin, last = _instant("once", once), _instant("start", start), _instant("end", end)
    given = {"once": once, "repeat": repeat, "cron": line, "every": every}
    for field, other in CONFLICTS:
        if given[field] is not None and given[other] is not None:
            raise InvalidTrigger(field, f"does not go with {other}")
    if begin is not None and last is not None and last < begin:
        raise InvalidTrigger("end", "has to be later than start")
    bounds = begin or EARLIEST, last or LATEST
    if line is not None:
        schedule = Schedule(Cron(_cron_line(line), zone), *bounds)
        _refuse_silence(schedule, begin or created)
        return schedule
    if every is not None:
        period = _period(every)
        return Schedule(Every(begin if begin is not None else created + period, period), *bounds)
    if repeat is not None:
        return Schedule(_repeat(repeat, at, begin, last, zone, created), *bounds)
    for field, bound in ("start", begin), ("end", last):
        if bound is not None:
            raise InvalidTrigger(field, "goes only with cron, every or repeat")
    return Schedule(Once(at), *bounds) if at is not None else None


def _repeat(
    repeat: str,
    once: datetime | None,
    start: datetime | None,
    end: datetime | None,
    zone: zoneinfo.ZoneInfo,
    created: datetime,
) -> Repeat:
    days = PERIOD_DAYS.get(repeat)
    if days is None:
        raise InvalidTrigger("repeat", "has to be daily, weekly or monthly")
    if once is not None and end is not None and end < once:
        raise InvalidTrigger("end", "has to be later than once")
    named = once or start
    origin = (named or created).astimezone(zone).replace(tzinfo=None, fold=0)
    if named is not None:
        return Repeat(origin, zone, days, first=named)
    second = instant_of(Repeat(origin, zone, days, first=created).wall(1), zone)
    return Repeat(origin, zone, days, first=second)


def _cron_line(line: str) -> cron.CronLine:
    try:
        return cron.cron_line(line)
    except cron.UnreadableLine as unreadable:
        raise InvalidTrigger("cron", str(unreadable)) from None


def _refuse_silence(schedule: Schedule, begin: datetime) -> None:
    if schedule.next_after(begin - timedelta.resolution) is not None:
        return
    if schedule.series.after(EARLIEST) is None:
        raise InvalidTrigger("cron", cron.NEVER)
    raise InvalidTrigger("cron", "does not fire between start (else the creation of the task) and end")


def _period(every: str | float) -> timedelta:
    """The period that a number of seconds or an ISO 8601 duration says; a day is 24 hours."""
    seconds = _seconds_of(every) if isinstance(every, str) else every
    if not SHORTEST_PERIOD.total_seconds() <= seconds <= LONGEST_PERIOD.total_seconds():
        raise InvalidTrigger("every", "has to be at least a second and at most 366 days")
    if isinstance(seconds, float) and not seconds.is_integer():
        raise InvalidTrigger("every", "has to be whole seconds")
    return timedelta(seconds=int(seconds))


def _seconds_of(duration: str) -> int:
    match = DURATION.fullmatch(duration)
    if match is None or duration == "P" or len(duration) > LONGEST_DURATION:
        raise InvalidTrigger("every", "has to be seconds or an ISO 8601 duration in whole numbers, such as PT15M")
    amount = {unit: int(digits) for unit, digits in match.groupdict(default="0").items()}
    if match["years"] is not None or match["months"] is not None:
        raise InvalidTrigger("every", "cannot be years or months, which differ in length: use cron or repeat")
    days = amount["weeks"] * 7 + amount["days"]
    return ((days * 24 + amount["hours"]) * 60 + amount["minutes"]) * 60 + amount["seconds"]


def _instant(field: str, text: str | None) -> datetime | None:
    if text is None:
        return None
    match = INSTANT.fullmatch(text)
    if match is None:
        raise InvalidTrigger(field, "has to be an ISO 8601 instant, such as 2026-05-26T14:35:00Z")
    if match["offset"] is None:
        raise InvalidTrigger(field, "needs an offset from UTC, such as Z or +02:00")
    if match["second"] == "60":
        raise InvalidTrigger(field, "leap seconds are not supported")
    try:
        instant = datetime.fromisoformat(text.upper())
    except ValueError:
        raise InvalidTrigger(field, "is no date and time that exists") from None
    if FIRST_YEAR - 1 <= instant.year <= LAST_YEAR + 1:  # else the conversion may leave what a datetime can hold
        instant = instant.astimezone(UTC)
        if EARLIEST <= instant <= LATEST:
            return instant
    raise InvalidTrigger(field, f"has to be in the years {FIRST_YEAR} to {LAST_YEAR}")


@lru_cache(maxsize=1024)
def _zone(name: str) -> zoneinfo.ZoneInfo:
    if name not in _zone_names():
        raise InvalidTrigger("time_zone", "has to be a name of the IANA time zone database, such as Europe/Amsterdam")
    return zoneinfo.ZoneInfo(name)


@cache
def _zone_names() -> frozenset[str]:
    """Looked for on disk once, which takes 50 milliseconds."""
    return frozenset(zoneinfo.available_timezones() - {"localtime", "Factory"})


def _jitter(trigger: Mapping[str, JsonValue]) -> float:
    jitter = trigger.get("jitter")
    if jitter is None:
        return 0
    if not isinstance(jitter, int | float) or isinstance(jitter, bool) or not 0 <= jitter <= LONGEST_JITTER:
        raise InvalidTrigger("jitter", f"has to be a number of seconds from 0 to {LONGEST_JITTER}")
    return jitter


def _text(trigger: Mapping[str, JsonValue], field: str) -> str | None:
    value = trigger.get(field)
    if value is not None and not isinstance(value, str):
        raise InvalidTrigger(field, "has to be a string")
    return value
