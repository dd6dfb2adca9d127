"""Series of ticks: once, at equal intervals, at wall times that repeat or match a cron line. All instants are UTC.

The rule for wall times never changes their order. So the ticks after an instant are those of the wall times after the
last one that has come by then (:func:`_last_wall`), and a search on plain wall clocks finds them.
"""

from __future__ import annotations

import zoneinfo
from calendar import monthrange
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from runwire.domain.cron import CronLine


class Series(Protocol):
    """Ticks without a beginning and an end set by the trigger's ``start`` and ``end``."""

    def after(self, instant: datetime) -> datetime | None:
        """The first tick after the instant."""

    def until(self, instant: datetime) -> datetime | None:
        """The last tick that is not after the instant."""

    def count(self, after: datetime, until: datetime) -> int | None:
        """How many ticks there are in ``(after, until]``; None: they have to be gone through."""


@dataclass(frozen=True)
class Once:
    """A single tick."""

    tick: datetime

    def after(self, instant: datetime) -> datetime | None:
        """The first tick after the instant."""
        return self.tick if self.tick > instant else None

    def until(self, instant: datetime) -> datetime | None:
        """The last tick that is not after the instant."""
        return self.tick if self.tick <= instant else None

    def count(self, after: datetime, until: datetime) -> int:
        """How many ticks there are in ``(after, until]``."""
        return int(after < self.tick <= until)


@dataclass(frozen=True)
class Every:
    """Ticks at equal intervals, whatever the clocks on the walls do."""

    first: datetime
    period: timedelta

    def after(self, instant: datetime) -> datetime:
        """The first tick after the instant."""
        return self._tick(max(self._passed(instant), 0))

    def until(self, instant: datetime) -> datetime | None:
        """The last tick that is not after the instant."""
        passed = self._passed(instant)
        return self._tick(passed - 1) if passed > 0 else None

    def count(self, after: datetime, until: datetime) -> int:
        """How many ticks there are in ``(after, until]``."""
        return max(self._passed(until), 0) - max(self._passed(after), 0)

    def _passed(self, instant: datetime) -> int:
        """How many ticks are not after the instant; zero or less: none."""
        return (instant - self.first) // self.period + 1

    def _tick(self, number: int) -> datetime:
        return self.first + number * self.period


@dataclass(frozen=True)
class Repeat:
    """The wall time of an instant, every so many days or months."""

    origin: datetime
    """Where the series begins, as a wall time."""
    zone: zoneinfo.ZoneInfo
    days: int
    """Between two ticks; 0: a month."""
    first: datetime
    """The first tick; it may be the second passage of a wall time, since somebody named the very instant."""

    def after(self, instant: datetime) -> datetime:
        """The first tick after the instant."""
        if instant < self.first:
            return self.first
        return instant_of(self.wall(self._passed(_last_wall(instant, self.zone))), self.zone)

    def until(self, instant: datetime) -> datetime | None:
        """The last tick that is not after the instant."""
        if instant < self.first:
            return None
        return max(self.first, instant_of(self.wall(self._passed(_last_wall(instant, self.zone)) - 1), self.zone))

    def count(self, after: datetime, until: datetime) -> None:
        """They have to be gone through: two wall times may be one tick."""

    def _passed(self, wall: datetime) -> int:
        """How many wall times of the series, from its origin, are not after this one."""
        if self.days:
            return (wall - self.origin) // timedelta(days=self.days) + 1
        months = (wall.year - self.origin.year) * 12 + wall.month - self.origin.month
        return months + 1 if self.wall(months) <= wall else months

    def wall(self, number: int) -> datetime:
        """The wall time of this number in the series; 0 is the origin."""
        if self.days:
            return self.origin + timedelta(days=self.days) * number
        years, month = divmod(self.origin.month - 1 + number, 12)
        year, month = self.origin.year + years, month + 1
        return self.origin.replace(year=year, month=month, day=min(self.origin.day, monthrange(year, month)[1]))


@dataclass(frozen=True)
class Cron:
    """The wall times that match a cron line."""

    line: CronLine
    zone: zoneinfo.ZoneInfo

    def after(self, instant: datetime) -> datetime | None:
        """The first tick after the instant."""
        wall = self.line.after(_last_wall(instant, self.zone))
        return instant_of(wall, self.zone) if wall is not None else None

    def until(self, instant: datetime) -> datetime | None:
        """The last tick that is not after the instant."""
        wall = self.line.until(_last_wall(instant, self.zone))
        return instant_of(wall, self.zone) if wall is not None else None

    def count(self, after: datetime, until: datetime) -> None:
        """They have to be gone through."""


# --- wall clocks and instants --------------------------------------------------------------------------


def instant_of(wall: datetime, zone: zoneinfo.ZoneInfo) -> datetime:
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
