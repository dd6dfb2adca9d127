"""When a task runs next, as it is shown."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice

import pytest

from runwire.domain.schedule import delay_of
from runwire.domain.upcoming import has_schedule, is_overdue, next_run, runs_after

NOW = datetime(2026, 11, 24, 12, 0, 0, 500_000, tzinfo=UTC)
CREATED = datetime(2026, 11, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def shown(trigger: dict[str, object], *, cursor: datetime = CREATED, now: datetime = NOW, task: int = 7) -> str | None:
    coming = next_run(trigger, task, created=CREATED, cursor=cursor, now=now)
    return None if coming is None else coming.isoformat()


@pytest.mark.parametrize(
    ("trigger", "expected"),
    [
        ({"cron": "0 18 * * *"}, "2026-11-24T18:00:00+00:00"),
        ({"cron": "0 18 * * *", "time_zone": "Asia/Kolkata"}, "2026-11-24T12:30:00+00:00"),
        ({"every": "PT6H"}, "2026-11-24T18:00:00+00:00"),
        ({"repeat": "daily", "once": "2026-11-01T09:00:00Z"}, "2026-11-25T09:00:00+00:00"),
        ({"once": "2026-12-24T18:00:00+01:00"}, "2026-12-24T17:00:00+00:00"),
        ({"every": 60, "end": "2026-11-24T11:59:59Z"}, None),
        ({"cron": "0 18 * * *", "paused": True}, None),
        ({"cron": "0 18 * * *", "time_zone": "Mars/Base"}, None),
        ({"segment": "vip"}, None),
    ],
)
def test_the_next_run_is_that_of_the_first_tick_to_come(trigger: dict[str, object], expected: str | None) -> None:
    assert shown(trigger) == expected


def test_a_tick_that_has_been_dealt_with_is_not_the_next_one() -> None:
    assert shown({"every": 3600}, cursor=datetime(2026, 11, 24, 15, tzinfo=UTC)) == "2026-11-24T16:00:00+00:00"


def test_a_fraction_is_rounded_up() -> None:
    assert shown({"once": "2026-12-24T18:00:00.000001Z"}) == "2026-12-24T18:00:01+00:00"
    assert shown({"once": "2026-12-24T18:00:00.000Z"}) == "2026-12-24T18:00:00+00:00"


def test_what_runs_once_runs_now_until_it_has_run() -> None:
    trigger = {"once": "2026-11-24T12:00:00Z"}
    due = datetime(2026, 11, 24, 12, tzinfo=UTC)
    assert shown(trigger) == "2026-11-24T12:00:01+00:00"
    assert shown(trigger, cursor=due) is None
    assert is_overdue(trigger, 7, created=CREATED, cursor=CREATED, now=NOW)
    assert not is_overdue(trigger, 7, created=CREATED, cursor=due, now=NOW)
    assert not is_overdue(trigger, 7, created=CREATED, cursor=CREATED, now=due - SECOND)
    assert not is_overdue(trigger | {"paused": True}, 7, created=CREATED, cursor=CREATED, now=NOW)
    assert not is_overdue(trigger | {"repeat": "daily"}, 7, created=CREATED, cursor=CREATED, now=NOW)


def test_a_tick_that_jitter_delays_is_the_next_one_until_it_runs() -> None:
    trigger = {"cron": "0 12 * * *", "jitter": 3600}
    delay = delay_of(trigger, 7)
    assert delay > SECOND
    due = datetime(2026, 11, 24, 12, tzinfo=UTC) + delay
    assert shown(trigger) == due.isoformat()
    assert shown(trigger, now=due - SECOND) == due.isoformat()
    assert shown(trigger, now=due + SECOND) == (due + timedelta(days=1)).isoformat()
    once = {"once": "2026-11-24T12:00:00Z", "jitter": 3600}
    assert shown(once) == due.isoformat()
    assert not is_overdue(once, 7, created=CREATED, cursor=CREATED, now=due - SECOND)
    assert is_overdue(once, 7, created=CREATED, cursor=CREATED, now=due)


@pytest.mark.parametrize("jitter", [0, 600])
def test_the_runs_after_one_follow_without_gap_or_repeat(jitter: int) -> None:
    trigger = {"every": 1, "start": "2026-11-24T12:00:00.7Z", "jitter": jitter}
    first = next_run(trigger, 7, created=CREATED, cursor=NOW, now=NOW)
    following = list(islice(runs_after(first, trigger, 7, created=CREATED), 3))
    assert following == [first + SECOND, first + 2 * SECOND, first + 3 * SECOND]


def test_nothing_follows_the_last_run() -> None:
    last = {"every": 60, "start": "2026-12-01T00:00:00Z", "end": "2026-12-01T00:01:00Z"}
    begin = datetime(2026, 12, 1, tzinfo=UTC)
    assert list(runs_after(begin, last, 7, created=CREATED)) == [begin + timedelta(minutes=1)]
    assert list(runs_after(NOW, {"segment": 1}, 7, created=CREATED)) == []


def test_only_what_says_a_time_has_a_schedule() -> None:
    assert has_schedule({"every": 60, "paused": True})
    assert not has_schedule({"once": None, "segment": "vip", "time_zone": "UTC", "jitter": 5})
