"""The ticks of triggers, against an oracle that watches the clock on the wall go by, minute for minute."""

from __future__ import annotations

import subprocess
import sys
import time
from calendar import monthrange
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from runwire.domain.schedule import SCHEDULE_FIELDS, InvalidTrigger, Schedule, delay_of, schedule_of

CREATED = datetime(1980, 1, 1, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)

TURNS = [
    ("Europe/Amsterdam", "2027-03-28T01:00Z"),
    ("Europe/Amsterdam", "2026-10-25T01:00Z"),
    ("America/New_York", "2028-03-12T07:00Z"),
    ("America/New_York", "2050-11-06T06:00Z"),  # beyond the table of transitions: by its closing rule
    ("Australia/Lord_Howe", "2026-10-03T15:30Z"),  # half an hour
    ("Australia/Lord_Howe", "2027-04-03T15:00Z"),
    ("Asia/Kathmandu", "1985-12-31T18:30Z"),  # +05:30 became +05:45
    ("America/Sao_Paulo", "1985-11-02T03:00Z"),  # midnight is skipped
    ("America/Sao_Paulo", "2017-10-15T03:00Z"),
    ("America/Sao_Paulo", "2019-02-17T02:00Z"),  # the hour before midnight comes twice
    ("Pacific/Apia", "2011-12-30T10:00Z"),  # a whole day is skipped
    ("Africa/Casablanca", "2027-02-07T02:00Z"),
    ("Africa/Casablanca", "2027-03-14T02:00Z"),
    ("Europe/Dublin", "2027-10-31T01:00Z"),  # its winter is the daylight saving time, with a negative offset
    ("UTC", "2028-02-29T00:00Z"),
]


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


def made(trigger: dict[str, object], created: datetime = CREATED) -> Schedule:
    schedule = schedule_of(trigger, created=created)
    assert schedule is not None
    return schedule


def between(trigger: dict[str, object], after: str, until: str, created: datetime = CREATED) -> list[str]:
    ticks = made(trigger, created).ticks(at(after), at(until))
    return [tick.isoformat().replace("+00:00", "Z") for tick in ticks]


# --- the oracle ----------------------------------------------------------------------------------------


def watch(zone: str, begin: datetime, end: datetime, matches: Callable[[datetime], bool]) -> Iterator[datetime]:
    """The instants in (begin, end] at which a wall clock reaches a matching minute, or jumps over one."""
    clock = ZoneInfo(zone)
    instant = begin - 2 * DAY  # to know what has been shown before
    furthest = instant.astimezone(clock).replace(tzinfo=None)
    while instant < end:
        instant += MINUTE
        shown = instant.astimezone(clock).replace(tzinfo=None)
        reached = False
        while furthest < shown:
            furthest += MINUTE
            reached = reached or matches(furthest)
        if reached and instant > begin:
            yield instant


DAY_NAMES = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"]
MONTH_NAMES = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]


@st.composite
def fields(draw: st.DrawFn, low: int, high: int, names: dict[int, str] | None = None) -> tuple[str, frozenset[int]]:
    """A field of a cron line, and the numbers that it stands for."""

    def say(number: int) -> str:
        name = (names or {}).get(number)
        return name if name is not None and draw(st.booleans()) else str(number)

    number = st.integers(low, high)
    kind = draw(st.sampled_from(["*", "*/", "list", "range", "range/"]))
    step = draw(st.integers(1, high))
    first, second = sorted((draw(number), draw(number)))
    if kind == "*":
        return "*", frozenset(range(low, high + 1))
    if kind == "*/":
        return f"*/{step}", frozenset(n for n in range(low, high + 1) if (n - low) % step == 0)
    if kind == "range":
        return f"{first}-{second}", frozenset(range(first, second + 1))
    if kind == "range/":
        return f"{first}-{second}/{step}", frozenset(n for n in range(first, second + 1) if (n - first) % step == 0)
    chosen = draw(st.lists(number, min_size=1, max_size=4))
    return ",".join(say(n) for n in chosen), frozenset(chosen)


MINUTES, HOURS, DAYS = fields(0, 59), fields(0, 23), fields(1, 31)
MONTHS = fields(1, 12, {n + 1: name for n, name in enumerate(MONTH_NAMES)})
WEEKDAYS = fields(0, 7, dict(enumerate(DAY_NAMES)) | {7: "sun"})
ANY_DAY, ANY_MONTH, ANY_WEEKDAY = (("*", frozenset(range(32))), ("*", frozenset(range(13))), ("*", frozenset(range(8))))
Field = tuple[str, frozenset[int]]


def day_matches(wall: datetime, days: Field, months: Field, weekdays: Field) -> bool:
    weekday = wall.isoweekday()
    is_day, is_weekday = wall.day in days[1], weekday in weekdays[1] or weekday % 7 in weekdays[1]
    restricted = not days[0].startswith("*") and not weekdays[0].startswith("*")
    return wall.month in months[1] and (is_day or is_weekday if restricted else is_day and is_weekday)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(TURNS),
    MINUTES,
    HOURS,
    DAYS | st.just(ANY_DAY),
    MONTHS | st.just(ANY_MONTH) | st.just(ANY_MONTH),
    WEEKDAYS | st.just(ANY_WEEKDAY),
    st.integers(-2000, 1000),
)
def test_a_cron_line_fires_when_the_clock_shows_or_skips_a_match(
    turn: tuple[str, str], minutes: Field, hours: Field, days: Field, months: Field, weekdays: Field, shift: int
) -> None:
    def matches(wall: datetime) -> bool:
        of_time = wall.minute in minutes[1] and wall.hour in hours[1]
        return of_time and day_matches(wall, days, months, weekdays)

    zone, moment = turn
    begin = at(moment) + shift * MINUTE
    end = begin + 36 * HOUR
    line = " ".join((minutes[0], hours[0], days[0], months[0], weekdays[0]))
    try:
        schedule = made({"cron": line, "time_zone": zone})
    except InvalidTrigger as error:
        assert error.reason == "never fires"
        assert not list(watch(zone, begin, end, matches))
        return
    assert_ticks(schedule, begin, end, list(watch(zone, begin, end, matches)))


@settings(max_examples=100, deadline=None)
@given(DAYS, MONTHS, WEEKDAYS, st.integers(1971, 2150))
def test_a_cron_line_fires_on_its_days_through_the_years(
    days: Field, months: Field, weekdays: Field, year: int
) -> None:
    every_day = (datetime(year, 1, 1, 6, 30, tzinfo=UTC) + n * DAY for n in range(5 * 365))
    expected = [day for day in every_day if day_matches(day, days, months, weekdays)]
    try:
        schedule = made({"cron": f"30 6 {days[0]} {months[0]} {weekdays[0]}"}, created=datetime(1970, 1, 1, tzinfo=UTC))
    except InvalidTrigger as error:
        assert error.reason == "never fires"
        assert not expected
        return
    begin = datetime(year, 1, 1, tzinfo=UTC)
    assert_ticks(schedule, begin, begin + 5 * 365 * DAY, expected)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(TURNS),
    st.sampled_from(["daily", "weekly", "monthly"]),
    st.integers(-1500, 1500),
    st.integers(0, 14),
    st.sampled_from([None, 28, 29, 30, 31]),
    st.integers(-3000, 0),
)
def test_a_repetition_keeps_the_time_on_the_wall(
    turn: tuple[str, str], repeat: str, shift: int, periods: int, day: int | None, before: int
) -> None:
    zone, moment = turn
    near = (at(moment) + shift * MINUTE).astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    if repeat == "monthly":
        month = near.year * 12 + near.month - 1 - periods
        year, month = month // 12, month % 12 + 1
        near = near.replace(year=year, month=month, day=min(day or near.day, monthrange(year, month)[1]))
    else:
        near -= periods * {"daily": DAY, "weekly": 7 * DAY}[repeat]
    once = near.replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
    origin = once.astimezone(ZoneInfo(zone)).replace(tzinfo=None)

    def matches(wall: datetime) -> bool:
        kept = {
            "daily": True,
            "weekly": wall.weekday() == origin.weekday(),
            "monthly": wall.day == min(origin.day, monthrange(wall.year, wall.month)[1]),
        }[repeat]
        return kept and wall > origin and wall.time() == origin.time()

    begin = at(moment) + before * MINUTE
    end = begin + 4 * DAY
    expected = {tick for tick in watch(zone, begin, end, matches) if tick > once}
    if begin < once <= end:
        expected.add(once)
    schedule = made({"once": once.isoformat(), "repeat": repeat, "time_zone": zone})
    assert_ticks(schedule, begin, end, sorted(expected))


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 40_000),
    st.integers(366 * 86_400, 180 * 365 * 86_400).map(lambda seconds: datetime.fromtimestamp(seconds, UTC)),
    st.booleans(),
    st.integers(-50_000, 50_000),
    st.integers(0, 200_000),
)
def test_an_interval_is_as_long_whatever_the_clocks_do(
    seconds: int, anchor: datetime, named: bool, offset: int, length: int
) -> None:
    period = timedelta(seconds=seconds)
    length = min(length, 200 * seconds)
    begin = anchor + timedelta(seconds=offset)
    end = begin + timedelta(seconds=length)
    tick, expected = anchor if named else anchor + period, []
    while tick <= end:
        if tick > begin:
            expected.append(tick)
        tick += period
    trigger: dict[str, object] = {"every": seconds} | ({"start": anchor.isoformat()} if named else {})
    schedule = made(trigger, created=begin if named else anchor)
    assert_ticks(schedule, begin, end, expected)


def assert_ticks(schedule: Schedule, begin: datetime, end: datetime, expected: list[datetime]) -> None:
    """What the schedule says of (begin, end], in all the ways it can be asked."""
    assert list(schedule.ticks(begin, end)) == expected
    assert schedule.latest_until(end, after=begin) == (expected[-1] if expected else None)
    assert schedule.count(begin, end, at_most=10_000) == len(expected)
    assert schedule.count(begin, end, at_most=1) == min(len(expected), 1)
    for earlier, later in pairwise(expected[:20]):
        inside = earlier + (later - earlier) / 2
        assert earlier < later
        assert schedule.next_after(inside) == later
        assert schedule.latest_until(inside, after=begin) == earlier
        assert schedule.next_after(later - timedelta.resolution) == later


# --- the rule for clocks that are changed ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("zone", "line", "after", "until", "ticks"),
    [
        ("Europe/Amsterdam", "30 2 * * *", "2027-03-27T12:00Z", "2027-03-28T12:00Z", ["2027-03-28T01:00:00Z"]),
        ("Europe/Amsterdam", "30 2 * * *", "2026-10-24T12:00Z", "2026-10-25T12:00Z", ["2026-10-25T00:30:00Z"]),
        ("Europe/Amsterdam", "0,30 2 * * *", "2027-03-27T12:00Z", "2027-03-28T12:00Z", ["2027-03-28T01:00:00Z"]),
        ("America/Sao_Paulo", "0 0 * * *", "2017-10-14T12:00Z", "2017-10-15T12:00Z", ["2017-10-15T03:00:00Z"]),
        ("Pacific/Apia", "0 9 30 12 *", "2011-12-29T12:00Z", "2011-12-31T12:00Z", ["2011-12-30T10:00:00Z"]),
        ("Australia/Lord_Howe", "15 2 * * *", "2026-10-03T00:00Z", "2026-10-03T20:00Z", ["2026-10-03T15:30:00Z"]),
        ("Africa/Monrovia", "0 0 * * *", "1972-01-07T00:00Z", "1972-01-07T12:00Z", ["1972-01-07T00:44:30Z"]),
    ],
)
def test_a_skipped_time_comes_at_once_and_a_double_one_the_first_time(
    zone: str, line: str, after: str, until: str, ticks: list[str]
) -> None:
    created = datetime(1970, 1, 1, tzinfo=UTC)
    assert between({"cron": line, "time_zone": zone}, after, until, created) == ticks


def test_every_quarter_by_cron_is_silent_when_an_hour_comes_again_and_by_every_it_is_not() -> None:
    cron = {"cron": "*/15 * * * *", "time_zone": "Europe/Amsterdam"}
    assert between(cron, "2026-10-25T00:30:00Z", "2026-10-25T02:00:00Z") == [
        "2026-10-25T00:45:00Z",
        "2026-10-25T02:00:00Z",
    ]
    assert len(between({"every": "PT15M"}, "2026-10-25T00:30:00Z", "2026-10-25T02:00:00Z")) == 6


def test_once_in_the_second_passage_of_an_hour_is_kept_as_it_was_said() -> None:
    trigger = {"once": "2026-10-25T01:30:00Z", "repeat": "daily", "time_zone": "Europe/Amsterdam"}
    assert between(trigger, "2026-10-24T00:00Z", "2026-10-26T12:00Z") == [
        "2026-10-25T01:30:00Z",
        "2026-10-26T01:30:00Z",
    ]


# --- repeat, every, bounds -------------------------------------------------------------------------------


def test_monthly_on_the_31st_takes_the_last_day_of_shorter_months() -> None:
    trigger = {"once": "2028-01-31T23:00:00+01:00", "repeat": "monthly", "time_zone": "Europe/Amsterdam"}
    days = [tick[:10] for tick in between(trigger, "2028-01-01T00:00Z", "2028-06-01T00:00Z")]
    assert days == ["2028-01-31", "2028-02-29", "2028-03-31", "2028-04-30", "2028-05-31"]


def test_a_repetition_without_once_begins_a_period_after_the_creation() -> None:
    assert made({"repeat": "weekly"}, at("2026-05-26T14:35Z")).next_after(at("2020-01-01T00:00Z")) == at(
        "2026-06-02T14:35Z"
    )


def test_a_repetition_without_once_begins_at_its_start() -> None:
    trigger = {"repeat": "daily", "start": "2026-05-26T14:35:00Z"}
    assert between(trigger, "2026-01-01T00:00Z", "2026-05-27T14:35Z") == [
        "2026-05-26T14:35:00Z",
        "2026-05-27T14:35:00Z",
    ]


def test_ticks_lie_between_start_and_end_inclusive() -> None:
    trigger = {"cron": "@hourly", "start": "2026-05-26T14:00:00Z", "end": "2026-05-26T16:00:00Z"}
    assert [tick[11:16] for tick in between(trigger, "2020-01-01T00:00Z", "2030-01-01T00:00Z")] == [
        "14:00",
        "15:00",
        "16:00",
    ]
    assert made(trigger).next_after(at("2026-05-26T16:00Z")) is None


def test_once_may_have_a_fraction_and_any_offset() -> None:
    schedule = made({"once": "2026-05-26T14:35:00.25-09:30"})
    tick = at("2026-05-27T00:05:00.25Z")
    assert schedule.next_after(tick - timedelta.resolution) == tick
    assert schedule.next_after(tick) is None
    assert schedule.latest_until(tick, after=CREATED) == tick
    assert schedule.count(CREATED, tick, at_most=5) == 1


@pytest.mark.parametrize(
    ("said", "seconds"),
    [(90, 90), (90.0, 90), ("PT1H30M", 5400), ("P1D", 86_400), ("P1W", 604_800), ("P1DT1S", 86_401), ("PT15M", 900)],
)
def test_every_is_seconds_or_a_duration(said: object, seconds: int) -> None:
    assert made({"every": said}).next_after(CREATED) == CREATED + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("line", "days"),
    [
        ("0 0 L * *", ["01-31", "02-28", "03-31"]),
        ("0 0 LW 1-3 *", ["01-30", "02-27", "03-31"]),
        ("0 0 * 1-3 fri#2", ["01-09", "02-13", "03-13"]),
        ("0 0 * 1-3 5L", ["01-30", "02-27", "03-27"]),
        ("0 0 13 1,2,3 5", ["01-02", "01-09", "01-13"]),
        ("0 0 */13 1,2,3 5", ["02-27", "03-27", "01-01"]),
        ("0 0 5-5/2,08-8/9 1 *", ["01-05", "01-08", "01-05"]),
        ("0 0 1 jan-1/6 *", ["01-01", "01-01", "01-01"]),
        ("0 0 * 1 sun-0/2", ["01-04", "01-11", "01-18"]),
        ("0 0 * 1 mon-1/2", ["01-05", "01-12", "01-19"]),
        ("@monthly", ["01-01", "02-01", "03-01"]),
    ],
)
def test_days_of_a_cron_line_may_be_said_in_many_ways(line: str, days: list[str]) -> None:
    schedule = made({"cron": line}, at("2025-12-31T12:00Z"))
    ticks = list(schedule.ticks(at("2025-12-31T12:00Z"), at("2031-01-01T00:00Z")))[:3]
    assert [tick.strftime("%m-%d") for tick in ticks] == days


def test_a_trigger_that_says_no_time_makes_no_schedule() -> None:
    assert schedule_of({}, created=CREATED) is None
    assert schedule_of({"segment": 1, "next": "x", "once": None, "time_zone": "UTC"}, created=CREATED) is None


def test_a_paused_trigger_makes_no_schedule_but_has_to_be_right() -> None:
    assert schedule_of({"cron": "@daily", "paused": True}, created=CREATED) is None
    with pytest.raises(InvalidTrigger):
        schedule_of({"cron": "@never", "paused": True}, created=CREATED)


# --- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trigger", "field", "reason"),
    [
        ({"once": "2026-05-26T14:35:00"}, "once", "offset"),
        ({"once": "2026-06-30T23:59:60Z"}, "once", "leap seconds are not supported"),
        ({"once": "9999-12-31T23:59:59-23:59"}, "once", "1970 to 2199"),
        ({"once": "0001-01-01T00:00:00+23:59"}, "once", "1970 to 2199"),
        ({"once": "1970-01-01T00:00:00+00:01"}, "once", "1970 to 2199"),
        ({"once": "2200-01-01T00:00:00Z"}, "once", "1970 to 2199"),
        ({"once": "2026-02-30T00:00:00Z"}, "once", "exists"),
        ({"once": "2026-W01-1T00:00:00Z"}, "once", "ISO 8601"),
        ({"once": 5}, "once", "string"),
        ({"once": "2026-05-26T14:35:00Z", "cron": "@daily"}, "cron", "once"),
        ({"once": "2026-05-26T14:35:00Z", "every": 5}, "every", "once"),
        ({"cron": "@daily", "every": 5}, "every", "cron"),
        ({"repeat": "daily", "cron": "@daily"}, "repeat", "cron"),
        ({"repeat": "daily", "every": 5}, "repeat", "every"),
        ({"repeat": "yearly"}, "repeat", "daily, weekly or monthly"),
        ({"start": "2026-05-26T14:35:00Z"}, "start", "only with"),
        ({"once": "2026-05-26T14:35:00Z", "end": "2026-05-27T14:35:00Z"}, "end", "only with"),
        ({"every": 5, "start": "2026-05-26T14:35:00Z", "end": "2026-05-26T14:34:59Z"}, "end", "start"),
        ({"once": "2026-05-26T14:35:00Z", "repeat": "daily", "end": "2026-05-25T00:00:00Z"}, "end", "once"),
        ({"every": 0}, "every", "at least a second"),
        ({"every": 1.5}, "every", "whole seconds"),
        ({"every": True}, "every", "number of seconds"),
        ({"every": float("nan")}, "every", "at least"),
        ({"every": 10**400}, "every", "366 days"),
        ({"every": "P1M"}, "every", "use cron or repeat"),
        ({"every": "P1Y2D"}, "every", "use cron or repeat"),
        ({"every": "P367D"}, "every", "366 days"),
        ({"every": "PT0.5S"}, "every", "whole numbers"),
        ({"every": "P"}, "every", "ISO 8601"),
        ({"every": "P1DT"}, "every", "ISO 8601"),
        ({"every": "P" + "9" * 5000 + "D"}, "every", "ISO 8601"),
        ({"cron": "@reboot"}, "cron", "@reboot"),
        ({"cron": "@fortnightly"}, "cron", "@weekly"),
        ({"cron": "0 * * * * *"}, "cron", "6 fields"),
        ({"cron": "0 * * * * * 2026"}, "cron", "7 fields"),
        ({"cron": ""}, "cron", "five fields"),
        ({"cron": "61 * * * *"}, "cron", "61 as minute"),
        ({"cron": "* * ? * *"}, "cron", "? as day-of-month"),
        ({"cron": "* * * * FRI-SUN"}, "cron", "FRI-SUN as day-of-week"),
        ({"cron": "\u0661 * * * *"}, "cron", "characters"),
        ({"cron": "0 " * 101}, "cron", "200 characters"),
        ({"cron": "0 0 30 2 *"}, "cron", "never fires"),
        ({"cron": "0 0 */31 * SUN#5"}, "cron", "never fires"),
        ({"cron": "@yearly", "start": "2026-01-02T00:00:00Z", "end": "2026-12-31T00:00:00Z"}, "cron", "between start"),
        ({"cron": "@yearly", "end": "1979-01-01T00:00:00Z"}, "cron", "creation"),
        ({"time_zone": "../etc/passwd"}, "time_zone", "IANA"),
        ({"time_zone": "localtime"}, "time_zone", "IANA"),
        ({"time_zone": "CET-1CEST,M3.5.0,M10.5.0/3"}, "time_zone", "IANA"),
        ({"time_zone": "Europe/Amsterdam\0"}, "time_zone", "IANA"),
        ({"jitter": 86_401}, "jitter", "86400"),
        ({"jitter": True}, "jitter", "number"),
        ({"jitter": -1}, "jitter", "from 0"),
        ({"paused": "yes"}, "paused", "true or false"),
    ],
)
def test_a_trigger_that_makes_no_sense_is_refused_with_its_field_and_a_reason(
    trigger: dict[str, object], field: str, reason: str
) -> None:
    with pytest.raises(InvalidTrigger) as refusal:
        schedule_of(trigger, created=CREATED)
    assert refusal.value.field == field
    assert reason in refusal.value.reason


ODD_TEXTS = st.sampled_from(
    ["2026-05-26T14:35:00Z", "1970-01-01T00:00:00Z", "2199-12-31T23:59:59Z", "@daily", "0 0 29 2 7L", "*/7 1 L * *"]  # noqa: RUF005  # two lines
    + ["daily", "monthly", "PT1S", "P366D", "UTC", "Pacific/Apia", "posix/UTC", "", "\ud800"]
)
CRON_LIKE = st.text("0123456789*,-/#LWFRISUN@ \t?", max_size=40) | st.lists(
    st.text("0123456789*,-/#LW", min_size=1, max_size=5), min_size=5, max_size=5
).map(" ".join)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | ODD_TEXTS | CRON_LIKE,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)


@settings(max_examples=1000, deadline=None)
@given(
    st.dictionaries(st.sampled_from(sorted(SCHEDULE_FIELDS)), VALUES, max_size=4) | CRON_LIKE.map(lambda t: {"cron": t})
)
def test_whatever_json_is_a_schedule_or_refused(trigger: dict[str, object]) -> None:
    try:
        schedule = schedule_of(trigger, created=CREATED)
        delay_of(trigger, 1)
    except InvalidTrigger as refusal:
        assert refusal.field in SCHEDULE_FIELDS
        return
    assume(schedule is not None)
    assert schedule is not None
    for instant in (datetime.min.replace(tzinfo=UTC), CREATED, datetime.max.replace(tzinfo=UTC)):
        tick = schedule.next_after(instant)
        assert tick is None or tick > instant
        last = schedule.latest_until(instant, after=datetime.min.replace(tzinfo=UTC))
        assert last is None or last <= instant


# --- jitter ----------------------------------------------------------------------------------------------


@given(st.integers(0, 86_400), st.integers(1, 2**53))
def test_a_delay_is_whole_seconds_up_to_the_jitter(jitter: int, task: int) -> None:
    delay = delay_of({"jitter": jitter}, task)
    assert timedelta() <= delay <= timedelta(seconds=jitter)
    assert delay.microseconds == 0


def test_delays_differ_among_tasks_and_reach_both_ends() -> None:
    assert {delay_of({"jitter": 3.9}, task).seconds for task in range(100)} == {0, 1, 2, 3}
    assert delay_of({}, 7) == timedelta()


def test_a_delay_is_the_same_in_every_process() -> None:
    program = "from runwire.domain.schedule import delay_of; print(delay_of({'jitter': 86400}, 12345).total_seconds())"
    answers = {subprocess.check_output([sys.executable, "-c", program], text=True) for _ in range(2)}
    assert answers == {f"{delay_of({'jitter': 86_400}, 12345).total_seconds()}\n"}


# --- cost ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line", ["0 0 */31 * SUN#5", "59 23 */31 2 1#5,2#5,3#5,4#5,5#5,6#5,7#5", "0 0 * 2 MON#5", ",".join(["*/1"] * 40)]
)
def test_a_hostile_cron_line_is_answered_quickly(line: str) -> None:
    def answer() -> float:
        begin = time.process_time()
        with suppress(InvalidTrigger):
            schedule_of({"cron": line if " " in line else f"{line} * * * *"}, created=CREATED)
        return time.process_time() - begin

    assert min(answer() for _ in range(3)) < 0.05


def test_years_of_downtime_are_looked_at_quickly() -> None:
    begin = time.process_time()
    until = CREATED + 20 * 365 * DAY
    for trigger in ({"cron": "* * * * *", "time_zone": "Europe/Amsterdam"}, {"every": 1}, {"repeat": "daily"}):
        schedule = made(trigger)
        assert schedule.latest_until(until, after=CREATED) == until
        assert schedule.count(CREATED, until, at_most=1000) == 1000
    assert time.process_time() - begin < 0.5
