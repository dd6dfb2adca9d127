"""Cron lines: five fields, read and searched by cronsim, on a plain clock without a time zone."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from functools import lru_cache

from cronsim import CronSim, CronSimError

LONGEST = 200
"""Characters."""
FIELDS = ("minute", "hour", "day-of-month", "month", "day-of-week")
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


class UnreadableLine(ValueError):
    """No cron line: the reason, a sentence for people without its subject."""


class CronLine:
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


def cron_line(cron: str) -> CronLine:
    """The line; nicknames are written out. Raises UnreadableLine.

    The letters L and # are understood: ``L`` and ``LW`` as a day of the month (the last one, the last from Monday to
    Friday), ``5L`` and ``MON#2`` as a day of the week (the last Friday, the second Monday).
    """
    if len(cron) > LONGEST:
        raise UnreadableLine(f"has more than {LONGEST} characters")
    if not cron.isascii():
        raise UnreadableLine("has characters that no cron line has")
    words = cron.upper().split()
    if words and words[0].startswith("@"):
        words = _nickname(" ".join(words).lower()).split()
    if len(words) in (6, 7):
        raise UnreadableLine(f"has {len(words)} fields; seconds and years are not supported")
    if len(words) != len(FIELDS):
        raise UnreadableLine(f"has to have five fields: {', '.join(FIELDS)}")
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
        raise UnreadableLine("@reboot is not supported: a service that is always there has no such moment")
    if cron not in NICKNAMES:
        raise UnreadableLine(f"has to be five fields, or one of {', '.join(NICKNAMES)}")
    return NICKNAMES[cron]


@lru_cache(maxsize=4096)
def _parsed(words: tuple[str, ...]) -> CronLine:
    if _is_readable(words):
        return CronLine(" ".join(words))
    anything = ("*",) * len(words)
    for position, word in enumerate(words):
        if not _is_readable((*anything[:position], word, *anything[position + 1 :])):
            raise UnreadableLine(f"cannot be read: {word} as {FIELDS[position]}")
    raise UnreadableLine(NEVER)  # cronsim refuses days that none of the months has, such as 30 February


def _is_readable(words: tuple[str, ...]) -> bool:
    try:
        CronSim(" ".join(words), datetime.min)  # noqa: DTZ901  # a plain clock; which time does not matter here
    except CronSimError:
        return False
    return True
