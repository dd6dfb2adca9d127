"""What a rung alarm leads to, without a broker."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runwire.domain import lifecycle, ticks
from runwire.domain.lifecycle import Change, Definition, Document
from runwire.domain.progress import Progress
from runwire.domain.run import Command, Done, ErrorCode, RunCode, Source, Tick
from runwire.domain.schedule import CatchUp, Overlap
from runwire.domain.task import Target
from runwire.domain.ticks import Alarm, Plan, Skipped

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
HOUR, MINUTE, SECOND = timedelta(hours=1), timedelta(minutes=1), timedelta(seconds=1)
HOURLY = {"cron": "0 * * * *"}


def document(trigger: dict[str, object], *, created: datetime = NOON) -> Document:
    definition = Definition(chain=1764, desc="", target=Target(action="noop"), trigger=trigger)
    return lifecycle.create(definition, 7, created)


def plan(trigger: dict[str, object], *, created: datetime = NOON) -> Plan:
    found = ticks.plan_of(document(trigger, created=created))
    assert found is not None
    return found


def edited(before: Document, trigger: dict[str, object], *, at: datetime) -> Document:
    task = before.task
    definition = Definition(chain=task.chain, desc=task.desc, target=task.target, trigger=trigger)
    return lifecycle.edit(before, definition, by="tester", now=at)


def first(trigger: dict[str, object]) -> Alarm:
    found = ticks.first_alarm(plan(trigger))
    assert found is not None
    return found


# --- where a schedule begins ---------------------------------------------------------------------------------


def test_a_schedule_counts_from_the_creation_of_its_task() -> None:
    assert document(HOURLY).schedule == Progress(version=1, cursor=NOON)
    assert first(HOURLY).due == NOON + HOUR  # the tick of the very moment is past


def test_a_task_that_runs_by_hand_has_no_schedule() -> None:
    assert document({}).schedule is None
    assert document({"segment": "vip", "time_zone": "Europe/Amsterdam"}).schedule is None
    assert ticks.plan_of(document({})) is None


def test_a_once_that_lies_in_the_past_is_still_to_be_run() -> None:
    assert first({"once": "2020-01-01T00:00:00Z"}).due == datetime(2020, 1, 1, tzinfo=UTC)
    assert first({"once": "2020-01-01T00:00:00Z", "repeat": "daily"}).due == NOON + 12 * HOUR


def test_another_time_begins_another_schedule_and_other_fields_do_not() -> None:
    before = document(HOURLY)
    assert edited(before, {**HOURLY, "catch_up": "all"}, at=NOON + MINUTE).schedule == before.schedule
    assert edited(before, {**HOURLY, "start": None}, at=NOON + MINUTE).schedule == before.schedule
    after = edited(before, {"every": 60}, at=NOON + MINUTE)
    assert after.schedule == Progress(version=2, cursor=NOON + MINUTE)


def test_what_is_paused_is_not_due_and_counts_anew_afterwards() -> None:
    paused = edited(document(HOURLY), {**HOURLY, "paused": True}, at=NOON + MINUTE)
    assert ticks.plan_of(paused) is None
    resumed = edited(paused, HOURLY, at=NOON + 5 * HOUR)
    assert resumed.schedule == Progress(version=3, cursor=NOON + 5 * HOUR)


def test_a_once_that_passed_during_a_pause_is_not_run() -> None:
    once = {"once": (NOON + HOUR).isoformat()}
    paused = edited(document(once), {**once, "paused": True}, at=NOON + MINUTE)
    resumed = ticks.plan_of(edited(paused, once, at=NOON + 2 * HOUR))
    assert resumed is not None
    assert ticks.first_alarm(resumed) is None


def test_a_once_that_is_set_into_the_past_is_run() -> None:
    after = ticks.plan_of(edited(document({}), {"once": NOON.isoformat()}, at=NOON + HOUR))
    assert after is not None
    assert ticks.first_alarm(after) == Alarm(version=2, due=NOON)


def test_a_trigger_without_a_time_ends_the_schedule() -> None:
    after = edited(document(HOURLY), {}, at=NOON + MINUTE)
    assert after.schedule == Progress(version=2, cursor=NOON + MINUTE)  # the setter learns of it by the version
    assert ticks.plan_of(after) is None


def test_a_run_moves_the_schedule_only_when_it_stands_for_a_tick() -> None:
    def claimed(tick: Tick | None) -> Document:
        command = Command(
            chain=1764, task=7, run="r", source=Source.SCHEDULE, accepted=NOON, sequence=1, delivery=1, tick=tick
        )
        return lifecycle.claim(document(HOURLY), command, claim_id="c", now=NOON)

    assert claimed(None).schedule == Progress(version=1, cursor=NOON)
    assert claimed(Tick(version=1, due=NOON + HOUR)).schedule == Progress(version=1, cursor=NOON + HOUR)
    done = lifecycle.conclude(claimed(Tick(version=1, due=NOON + HOUR)), Done(None), now=NOON + HOUR)
    assert done.schedule == Progress(version=1, cursor=NOON + HOUR)


def test_a_skipped_tick_changes_nothing_but_the_version() -> None:
    before = document(HOURLY)
    skipped = Skipped(first=NOON + HOUR, last=NOON + HOUR, ticks=1, reason=ErrorCode.OVERLAP, busy_with="r")
    entry = ticks.record(b"key", before.task, 1, skipped, now=NOON + HOUR, log_seq=3)
    after = lifecycle.skip(before, entry, until=skipped.last)
    assert after.change is Change.SKIPPED
    assert after.task == before.task.model_copy(update={"version": 2})
    assert after.run == before.run
    assert after.schedule == Progress(version=1, cursor=NOON + HOUR, skipped=((NOON + HOUR, NOON + HOUR),))
    assert (after.skipped.code, after.skipped.started, after.skipped.attempt) == (RunCode.SKIPPED, None, 0)
    following = edited(after, {"every": 60}, at=NOON + 2 * HOUR)
    assert following.skipped is None


def test_a_tick_that_is_recorded_as_skipped_gets_no_run_any_more() -> None:
    """Two forwarders have its alarm: to one the task is busy, to the other it is free a moment later."""

    def skipping(before: Document, first: datetime, last: datetime) -> Document:
        stretch = Skipped(first=first, last=last, ticks=1, reason=ErrorCode.OVERLAP)
        return lifecycle.skip(before, ticks.record(b"key", before.task, 1, stretch, now=last, log_seq=0), until=last)

    def decide(at: Document, due: datetime, *, version: int = 1, run: str = "late") -> lifecycle.Decision:
        tick = Tick(version=version, due=due)
        command = Command(
            chain=1764, task=7, run=run, source=Source.SCHEDULE, accepted=due, sequence=1, delivery=1, tick=tick
        )
        return lifecycle.decide(at, command, now=due, max_deliveries=5, verified=True)

    skipped = skipping(document(HOURLY), NOON + 2 * HOUR, NOON + 4 * HOUR)
    assert [decide(skipped, NOON + hours * HOUR) for hours in (2, 3, 4)] == [lifecycle.Finished()] * 3
    assert decide(skipped, NOON + HOUR) == lifecycle.Begin()  # was queued before; the others found it in their way
    assert decide(skipped, NOON + 5 * HOUR) == lifecycle.Begin()
    assert decide(skipped, NOON + 3 * HOUR, version=2) == lifecycle.Begin()  # of another schedule
    for hours in range(10, 17):
        skipped = skipping(skipped, NOON + hours * HOUR, NOON + hours * HOUR)
    assert decide(skipped, NOON + 3 * HOUR) == lifecycle.Finished()
    assert len(skipping(skipped, NOON + 17 * HOUR, NOON + 17 * HOUR).schedule.skipped) == 8


# --- turns -----------------------------------------------------------------------------------------------------


def test_an_alarm_on_time_runs_its_tick() -> None:
    turn = ticks.turn(plan(HOURLY), first(HOURLY), now=NOON + HOUR + SECOND)
    assert (turn.run, turn.missed, turn.until) == (NOON + HOUR, None, NOON + HOUR)


def test_an_alarm_that_rings_before_its_time_runs_nothing() -> None:
    turn = ticks.turn(plan(HOURLY), first(HOURLY), now=NOON + HOUR - SECOND)
    assert (turn.run, turn.missed, turn.until) == (None, None, None)


def test_an_alarm_of_a_tick_that_was_dealt_with_runs_nothing() -> None:
    done = document(HOURLY).model_copy(update={"schedule": Progress(version=1, cursor=NOON + HOUR)})
    known = ticks.plan_of(done)
    assert known is not None
    assert ticks.turn(known, first(HOURLY), now=NOON + HOUR + SECOND).run is None


def test_the_latest_tick_makes_up_for_those_that_were_missed() -> None:
    turn = ticks.turn(plan(HOURLY), first(HOURLY), now=NOON + 4.5 * HOUR)
    assert turn.run == NOON + 4 * HOUR
    assert turn.missed == Skipped(first=NOON + HOUR, last=NOON + 3 * HOUR, ticks=3, reason=ErrorCode.MISSED)


def test_missed_ticks_are_let_go_but_for_one_that_is_hardly_late() -> None:
    none = plan({**HOURLY, "catch_up": "none"})
    turn = ticks.turn(none, first(HOURLY), now=NOON + 4.5 * HOUR)
    assert (turn.run, turn.until) == (None, NOON + 4 * HOUR)
    assert turn.missed == Skipped(first=NOON + HOUR, last=NOON + 4 * HOUR, ticks=4, reason=ErrorCode.MISSED)
    turn = ticks.turn(none, first(HOURLY), now=NOON + 4 * HOUR + 30 * SECOND)
    assert turn.run == NOON + 4 * HOUR
    assert turn.missed is not None
    assert turn.missed.ticks == 3


def test_all_missed_ticks_are_run_one_after_the_other_up_to_a_number() -> None:
    every = plan({**HOURLY, "catch_up": "all"})
    turn = ticks.turn(every, first(HOURLY), now=NOON + 3 * HOUR)
    assert (turn.run, turn.missed, turn.making_up_until) == (NOON + HOUR, None, NOON + 3 * HOUR)
    turn = ticks.turn(every, first(HOURLY), now=NOON + 150 * HOUR)
    assert turn.run == NOON + 51 * HOUR
    assert turn.missed == Skipped(first=NOON + HOUR, last=NOON + 50 * HOUR, ticks=50, reason=ErrorCode.MISSED)


def test_what_becomes_due_while_the_missed_ticks_are_run_is_no_new_downtime() -> None:
    every = plan({**HOURLY, "catch_up": "all"})
    alarm = Alarm(version=1, due=NOON + 4 * HOUR, making_up_until=NOON + 3 * HOUR)
    turn = ticks.turn(every, alarm, now=NOON + 6 * HOUR)
    assert turn.run == NOON + 6 * HOUR
    assert turn.missed is not None
    assert (turn.missed.reason, turn.missed.ticks) == (ErrorCode.OVERLAP, 2)
    assert turn.making_up_until is None


def test_a_tick_that_waits_is_run_however_late_it_has_become() -> None:
    none = plan({**HOURLY, "catch_up": "none", "overlap": "wait"})
    waiting = Alarm(version=1, due=NOON + HOUR, waiting=True)
    turn = ticks.turn(none, waiting, now=NOON + 9 * HOUR)
    assert (turn.run, turn.missed, turn.until) == (NOON + HOUR, None, NOON + HOUR)
    assert none.may_wait(turn)


def test_a_year_of_missed_minutes_is_dealt_with_at_once() -> None:
    minutely = {"cron": "* * * * *"}
    turn = ticks.turn(plan(minutely), first(minutely), now=NOON + timedelta(days=365))
    assert turn.run == NOON + timedelta(days=365)
    assert turn.missed is not None
    assert turn.missed.ticks == ticks.MOST_COUNTED
    assert "More than 1000 ticks" in ticks.in_words(turn.missed)


def test_a_task_that_runs_once_waits_by_default_and_others_skip() -> None:
    assert plan({"once": "2027-01-01T00:00:00Z"}).overlap is Overlap.WAIT
    assert plan({"once": "2027-01-01T00:00:00Z", "overlap": "skip"}).overlap is Overlap.SKIP
    assert plan({"once": "2027-01-01T00:00:00Z", "repeat": "daily"}).overlap is Overlap.SKIP
    assert plan({**HOURLY, "overlap": "wait"}).overlap is Overlap.WAIT
    assert plan(HOURLY).catch_up is CatchUp.LATEST


def test_jitter_shifts_when_ticks_are_due() -> None:
    shifted = plan({**HOURLY, "jitter": 1800})
    assert shifted.delay > timedelta()
    alarm = first(HOURLY)
    assert shifted.rings_at(alarm) == alarm.due + shifted.delay
    assert ticks.turn(shifted, alarm, now=alarm.due).run is None
    assert ticks.turn(shifted, alarm, now=alarm.due + shifted.delay).run == alarm.due


@pytest.mark.parametrize("trigger", [{"cron": "nonsense"}, {"every": 60, "catch_up": "sometimes"}])
def test_a_stored_trigger_that_cannot_be_read_is_never_due(trigger: dict[str, object]) -> None:
    broken = document(HOURLY)
    task = broken.task.model_copy(update={"trigger": trigger})
    assert ticks.plan_of(broken.model_copy(update={"task": task})) is None


def test_records_are_put_off_only_right_after_another_and_not_for_long() -> None:
    alarm = Alarm(version=1, due=NOON, recorded=NOON - 30 * SECOND)
    assert ticks.may_go_unrecorded(alarm, NOON + SECOND, now=NOON)
    assert not ticks.may_go_unrecorded(alarm, NOON + HOUR, now=NOON)
    assert not ticks.may_go_unrecorded(alarm, None, now=NOON)
    assert not ticks.may_go_unrecorded(Alarm(version=1, due=NOON), NOON + SECOND, now=NOON)


# --- the whole chain of alarms -----------------------------------------------------------------------------------


@given(
    catch_up=st.sampled_from(["latest", "none", "all"]),
    rings=st.lists(st.integers(0, 400), min_size=1, max_size=40),
)
def test_every_tick_is_run_or_recorded_and_never_twice(catch_up: str, rings: list[int]) -> None:
    """``rings``: how many seconds late each alarm is heard. The task is always free."""
    known = plan({"every": 10, "catch_up": catch_up})
    alarm = ticks.first_alarm(known)
    now, run, recorded = NOON, [], []
    for late in rings:
        assert alarm is not None
        now = max(now, alarm.due) + late * SECOND
        turn = ticks.turn(known, alarm, now=now)
        recorded += [] if turn.missed is None else [turn.missed]
        run += [] if turn.run is None else [turn.run]
        assert turn.until is not None
        following = known.schedule.next_after(turn.until)
        assert following is not None
        alarm = Alarm(version=1, due=following, making_up_until=turn.making_up_until if following <= now else None)
    dealt_with = sorted(run + [tick for stretch in recorded for tick in every_tick(known, stretch)])
    assert dealt_with == list(known.schedule.ticks(NOON, alarm.due - ticks.INSTANT))
    assert run == sorted(set(run))


def every_tick(known: Plan, stretch: Skipped) -> list[datetime]:
    found = list(known.schedule.ticks(stretch.first - ticks.INSTANT, stretch.last))
    assert len(found) == stretch.ticks
    return found
