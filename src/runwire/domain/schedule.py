"""When a task runs by itself: what its trigger says, as instants. Pure; time zones come from the IANA database.

A *tick* is an instant at which the trigger wants a run. Ticks are named by wall clocks (a cron line, a daily time)
and become instants by one rule: a wall time that a time zone skips (spring) is the first instant after the gap, one
that it has twice (autumn) is the first of the two. Two wall times that come to the same instant are one tick.

The rule never changes the order of wall times. So the ticks after an instant are those of the wall times after the
last one that has come by then (:func:`_last_wall`), and a search on plain wall clocks finds them.
"""

from __future__ import annotations

import re
import zoneinfo
from calendar import monthrange
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import cache, lru_cache
from hashlib import sha256
from itertools import islice
from typing import Protocol

from cronsim import CronSim, CronSimError
from pydantic import JsonValue

SCHEDULE_FIELDS = frozenset(
    {"once", "repeat", "cron", "every", "time_zone", "start", "end", "paused", "jitter"},
)
"""The fields of a trigger that say when; a change in one of them begins the schedule anew."""

SHORTEST_PERIOD, LONGEST_PERIOD = timedelta(seconds=1), timedelta(days=366)
"""What ``every`` may be."""
LONGEST_JITTER = 86_400
"""Seconds."""
LONGEST_CRON = 200
"""Characters."""
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


class Series(Protocol):
    """Ticks without a beginning and an end set by the trigger's ``start`` and ``end``."""

    def after(self, instant: datetime) -> datetime | None:
        """The first tick after the instant."""

    def until(self, instant: datetime) -> datetime | None:
        """The last tick that is not after the instant."""

    def count(self, after: datetime, until: datetime) -> int | None:
        """How many ticks there are in ``(after, until]``; None: they have to be gone through."""


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
    once, repeat, cron = _text(trigger, "once"), _text(trigger, "repeat"), _text(trigger, "cron")
    time_zone, start, end = _text(trigger, "time_zone"), _text(trigger, "start"), _text(trigger, "end")
    schedule = _schedule(once, repeat, cron, every, time_zone, start, end, created.astimezone(UTC))
    return None if paused else schedule


def delay_of(trigger: Mapping[str, JsonValue], task: int) -> timedelta:
    """How much later than its ticks the task runs: 0 to ``jitter`` whole seconds, always the same for a task."""
    most = int(_jitter(trigger))
    digest = sha256(str(task).encode()).digest()
    return timedelta(seconds=int.from_bytes(digest) % (most + 1))


# --- the ticks -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Once:
    """A single tick."""

    tick: datetime

    def after(self, instant: datetime) -> datetime | None:
        return self.tick if self.tick > instant else None

    def until(self, instant: datetime) -> datetime | None:
        return self.tick if self.tick <= instant else None

    def count(self, after: datetime, until: datetime) -> int:
        return int(after < self.tick <= until)


@dataclass(frozen=True)
class _Every:
    """Ticks at equal intervals, whatever the clocks on the walls do."""

    first: datetime
    period: timedelta

    def after(self, instant: datetime) -> datetime:
        return self._tick(max(self._passed(instant), 0))

    def until(self, instant: datetime) -> datetime | None:
        passed = self._passed(instant)
        return self._tick(passed - 1) if passed > 0 else None

    def count(self, after: datetime, until: datetime) -> int:
        return max(self._passed(until), 0) - max(self._passed(after), 0)

    def _passed(self, instant: datetime) -> int:
        """How many ticks are not after the instant; zero or less: none."""
        return (instant - self.first) // self.period + 1

    def _tick(self, number: int) -> datetime:
        return self.first + number * self.period


@dataclass(frozen=True)
class _Repeat:
    """The wall time of an instant, every so many days or months."""

    origin: datetime
    """Where the series begins, as a wall time."""
    zone: zoneinfo.ZoneInfo
    days: int
    """Between two ticks; 0: a month."""
    first: datetime
    """The first tick; it may be the second passage of a wall time, since somebody named the very instant."""

    def after(self, instant: datetime) -> datetime:
        if instant < self.first:
            return self.first
        return _instant_of(self.wall(self._passed(_last_wall(instant, self.zone))), self.zone)

    def until(self, instant: datetime) -> datetime | None:
        if instant < self.first:
            return None
        return max(self.first, _instant_of(self.wall(self._passed(_last_wall(instant, self.zone)) - 1), self.zone))

    def count(self, after: datetime, until: datetime) -> None:
        """They have to be gone through: two wall times may be one tick."""

    def _passed(self, wall: datetime) -> int:
        """How many wall times of the series, from its origin, are not after this one."""
        if self.days:
            return (wall - self.origin) // timedelta(days=self.days) + 1
        months = (wall.year - self.origin.year) * 12 + wall.month - self.origin.month
        return months + 1 if self.wall(months) <= wall else months

    def wall(self, number: int) -> datetime:
        if self.days:
            return self.origin + timedelta(days=self.days) * number
        years, month = divmod(self.origin.month - 1 + number, 12)
        year, month = self.origin.year + years, month + 1
        return self.origin.replace(year=year, month=month, day=min(self.origin.day, monthrange(year, month)[1]))


@dataclass(frozen=True)
class _Cron:
    """The wall times that match a cron line."""

    line: _CronLine
    zone: zoneinfo.ZoneInfo

    def after(self, instant: datetime) -> datetime | None:
        wall = self.line.after(_last_wall(instant, self.zone))
        return _instant_of(wall, self.zone) if wall is not None else None

    def until(self, instant: datetime) -> datetime | None:
        wall = self.line.until(_last_wall(instant, self.zone))
        return _instant_of(wall, self.zone) if wall is not None else None

    def count(self, after: datetime, until: datetime) -> None:
        """They have to be gone through."""


class _CronLine:
    """A cron expression on a plain clock without a time zone, which is all that cronsim is asked about.

    A search takes 10 to 70 microseconds. The last one is remembered, since a list of tasks asks again and again for
    the first match after about the same time; it is replaced as a whole, so that threads may share the line.
    """

    def __init__(self, expression: str) -> None:
        self._expression = expression
        self._silence: tuple[datetime, datetime] | None = None
        """There is no match between these two but the second of them."""

    def after(self, wall: datetime) -> datetime | None:
        """The first match after the wall time; None: there is none within 50 years."""
        silence = self._silence
        if silence is not None and silence[0] <= wall < silence[1]:
            return silence[1]
        match = next(CronSim(self._expression, wall), None)
        if match is not None:
            self._silence = wall, match
        return match

    def until(self, wall: datetime) -> datetime | None:
        """The last match that is not after the wall time; None: there is none within 50 years."""
        second = wall.replace(microsecond=0) + timedelta(seconds=1)
        return next(CronSim(self._expression, second, reverse=True), None)


# --- wall clocks and instants --------------------------------------------------------------------------


def _instant_of(wall: datetime, zone: zoneinfo.ZoneInfo) -> datetime:
    """When it is that time: the first time, if twice; when the clock jumps over it, if never."""
    first, second = wall.replace(tzinfo=zone), wall.replace(tzinfo=zone, fold=1)
    if _offset(first) >= _offset(second):
        return first.astimezone(UTC)
    # In a gap, fold 0 goes by the offset before it and so comes out after it; fold 1 the other way (PEP 495).
    return _transition(second.astimezone(UTC), first.astimezone(UTC), zone)


def _last_wall(instant: datetime, zone: zoneinfo.ZoneInfo) -> datetime:
    """The last wall time whose instant is not after this one: what clocks show, or have shown just before."""
    local = instant.astimezone(zone)
    if not local.fold:
        return local.replace(tzinfo=None)
    first = local.replace(fold=0)
    turned_back = _transition(first.astimezone(UTC), instant, zone)
    return (turned_back + _offset(first)).replace(tzinfo=None) - timedelta.resolution


def _transition(before: datetime, after: datetime, zone: zoneinfo.ZoneInfo) -> datetime:
    """The instant between two, a whole second, from which the clocks of the zone go as they do at the latter."""
    offset = _offset(after.astimezone(zone))
    while after - before > timedelta(seconds=1):
        middle = before + (after - before) // 2
        if _offset(middle.astimezone(zone)) == offset:
            after = middle
        else:
            before = middle
    return after.replace(microsecond=0)


def _offset(local: datetime) -> timedelta:
    return local.utcoffset() or timedelta()


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

NICKNAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}

NEVER = "never fires"
STEPPED_RANGE = re.compile(r"([0-9]+|[A-Z]+)-([0-9]+|[A-Z]+)/0*[1-9][0-9]*")
MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
WEEKDAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
CRON_FIELDS = ("minute", "hour", "day-of-month", "month", "day-of-week")


@lru_cache(maxsize=4096, typed=True)  # 1.0 and 1 are equal, but say different things in a message
def _schedule(
    once: str | None,
    repeat: str | None,
    cron: str | None,
    every: str | float | None,
    time_zone: str | None,
    start: str | None,
    end: str | None,
    created: datetime,
) -> Schedule | None:
    """As :func:`schedule_of`, of what can be remembered."""
    zone = _zone(time_zone) if time_zone is not None else UTC_ZONE
    at, begin, last = _instant("once", once), _instant("start", start), _instant("end", end)
    given = {"once": once, "repeat": repeat, "cron": cron, "every": every}
    for field, other in CONFLICTS:
        if given[field] is not None and given[other] is not None:
            raise InvalidTrigger(field, f"does not go with {other}")
    if begin is not None and last is not None and last < begin:
        raise InvalidTrigger("end", "has to be later than start")
    bounds = begin or EARLIEST, last or LATEST
    if cron is not None:
        schedule = Schedule(_Cron(_cron_line(cron), zone), *bounds)
        _refuse_silence(schedule, begin or created)
        return schedule
    if every is not None:
        period = _period(every)
        return Schedule(_Every(begin if begin is not None else created + period, period), *bounds)
    if repeat is not None:
        return Schedule(_repeat(repeat, at, begin, last, zone, created), *bounds)
    for field, bound in ("start", begin), ("end", last):
        if bound is not None:
            raise InvalidTrigger(field, "goes only with cron, every or repeat")
    return Schedule(_Once(at), *bounds) if at is not None else None


def _repeat(
    repeat: str,
    once: datetime | None,
    start: datetime | None,
    end: datetime | None,
    zone: zoneinfo.ZoneInfo,
    created: datetime,
) -> _Repeat:
    days = PERIOD_DAYS.get(repeat)
    if days is None:
        raise InvalidTrigger("repeat", "has to be daily, weekly or monthly")
    if once is not None and end is not None and end < once:
        raise InvalidTrigger("end", "has to be later than once")
    named = once or start
    origin = (named or created).astimezone(zone).replace(tzinfo=None, fold=0)
    if named is not None:
        return _Repeat(origin, zone, days, first=named)
    second = _instant_of(_Repeat(origin, zone, days, first=created).wall(1), zone)
    return _Repeat(origin, zone, days, first=second)


def _cron_line(cron: str) -> _CronLine:
    """The line; nicknames are written out.

    The letters L and # are understood: ``L`` and ``LW`` as a day of the month (the last one, the last from Monday to
    Friday), ``5L`` and ``MON#2`` as a day of the week (the last Friday, the second Monday).
    """
    if len(cron) > LONGEST_CRON:
        raise InvalidTrigger("cron", f"has more than {LONGEST_CRON} characters")
    if not cron.isascii():
        raise InvalidTrigger("cron", "has characters that no cron line has")
    words = cron.upper().split()
    if words and words[0].startswith("@"):
        words = _nickname(" ".join(words).lower()).split()
    if len(words) in (6, 7):
        raise InvalidTrigger("cron", f"has {len(words)} fields; seconds and years are not supported")
    if len(words) != len(CRON_FIELDS):
        raise InvalidTrigger("cron", f"has to have five fields: {', '.join(CRON_FIELDS)}")
    return _parsed(tuple(",".join(map(_without_idle_step, word.split(","))) for word in words))


def _without_idle_step(item: str) -> str:
    """``5`` for ``5-5/2``, which cronsim 2.8 takes for ``5/2``, that is from 5 to the end."""
    match = STEPPED_RANGE.fullmatch(item)
    return match[1] if match is not None and _number(match[1]) == _number(match[2]) else item


def _number(word: str) -> object:
    """What a bound of a range stands for; the word itself if nothing does."""
    if word.isdigit():
        return int(word)
    if word in MONTHS:
        return MONTHS.index(word) + 1
    return WEEKDAYS.index(word) if word in WEEKDAYS else word


def _nickname(cron: str) -> str:
    if cron == "@reboot":
        raise InvalidTrigger("cron", "@reboot is not supported: a service that is always there has no such moment")
    if cron not in NICKNAMES:
        raise InvalidTrigger("cron", f"has to be five fields, or one of {', '.join(NICKNAMES)}")
    return NICKNAMES[cron]


@lru_cache(maxsize=4096)
def _parsed(words: tuple[str, ...]) -> _CronLine:
    anything = ("*",) * len(words)
    for position, word in enumerate(words):
        if not _is_readable((*anything[:position], word, *anything[position + 1 :])):
            raise InvalidTrigger("cron", f"cannot be read: {word} as {CRON_FIELDS[position]}")
    if not _is_readable(words):
        raise InvalidTrigger("cron", NEVER)  # cronsim refuses days that none of the months has, such as 30 February
    return _CronLine(" ".join(words))


def _is_readable(words: tuple[str, ...]) -> bool:
    try:
        CronSim(" ".join(words), datetime.min)  # noqa: DTZ901  # a plain clock; which time does not matter here
    except CronSimError:
        return False
    return True


def _refuse_silence(schedule: Schedule, begin: datetime) -> None:
    if schedule.next_after(begin - timedelta.resolution) is not None:
        return
    if schedule.series.after(EARLIEST) is None:
        raise InvalidTrigger("cron", NEVER)
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
