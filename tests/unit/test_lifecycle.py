"""The state machine, without anything around it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from runwire.domain import lifecycle
from runwire.domain.lifecycle import (
    Begin,
    Change,
    Definition,
    Document,
    EndLost,
    Exhausted,
    Finished,
    Ignore,
    Overdue,
    Postpone,
    Reject,
    Verify,
)
from runwire.domain.run import Command, Done, Failed, RunError, Source
from runwire.domain.task import RetryPolicy, StateCode, Target

NOW = datetime(2026, 5, 26, 14, 35, 0, 700_000, tzinfo=UTC)
BOOM = Failed(RunError(code="handler_error", message="boom"), retryable=True)


def new_task(**fields: object) -> Document:
    definition = Definition(chain=1764, desc="d", target=Target.model_validate({"action": "a"}), trigger={}, **fields)
    return lifecycle.create(definition, 7, NOW)


def command(run: str = "r1", *, sequence: int = 1, delivery: int = 1) -> Command:
    return Command(chain=1764, task=7, run=run, source=Source.HTTP, accepted=NOW, sequence=sequence, delivery=delivery)


def decide(document: Document | None, asked: Command, *, now: datetime = NOW, verified: bool = False):
    return lifecycle.decide(document, asked, now=now, max_deliveries=3, verified=verified)


def claimed(document: Document, asked: Command, claim_id: str = "c1") -> Document:
    return lifecycle.claim(document, asked, claim_id=claim_id, now=NOW)


def concluded(document: Document, outcome=Done({"n": 1}), *, later: float = 45) -> Document:
    return lifecycle.conclude(document, outcome, now=NOW + timedelta(seconds=later))


def test_a_new_task_is_ready_and_has_never_run() -> None:
    task = new_task().task
    assert task.state.code is StateCode.READY
    assert task.state.last_run_date is None
    assert task.state.created_date == datetime(2026, 5, 26, 14, 35, tzinfo=UTC)
    assert task.version == 1


def test_a_run_goes_from_ready_over_inprogress_to_done() -> None:
    working = claimed(new_task(), command())
    assert working.task.state.code is StateCode.INPROGRESS
    assert working.task.state.last_run_date == working.run.started
    done = concluded(working)
    assert done.task.state.code is StateCode.DONE
    assert done.task.result == {"n": 1}
    assert (done.task.state.last_modified - done.task.state.last_run_date).total_seconds() == 45
    assert [new_task().task.version, working.task.version, done.task.version] == [1, 2, 3]


def test_a_failed_run_is_error_and_keeps_the_result_of_the_last_success() -> None:
    done = concluded(claimed(new_task(), command()))
    failed = concluded(claimed(done, command("r2", sequence=2)), BOOM)
    assert failed.task.state.code is StateCode.ERROR
    assert failed.run.error.code == "handler_error"
    assert failed.run.result is None
    assert failed.task.result == {"n": 1}


def test_a_command_for_a_missing_or_deleted_task_is_rejected() -> None:
    assert decide(None, command()) == Reject("no_such_task", "There is no task 7 in chain 1764.")
    deleted = new_task().model_copy(update={"change": Change.DELETED})
    assert isinstance(decide(deleted, command()), Reject)


def test_a_run_that_has_ended_is_finished() -> None:
    done = concluded(claimed(new_task(), command()))
    assert decide(done, command()) == Finished()


def test_the_ring_knows_runs_that_ended_before_the_last_one() -> None:
    document = new_task()
    for number in range(1, 20):
        document = concluded(claimed(document, command(f"r{number}", sequence=number)))
    assert len(document.recent_runs) == lifecycle.RING
    assert decide(document, command("r5", sequence=40)) == Finished()
    assert decide(document, command("r2", sequence=40)) == Begin()  # too long ago, and newer than the last command


def test_an_old_command_is_only_believed_when_the_stream_still_holds_it() -> None:
    done = concluded(claimed(new_task(), command("r9", sequence=9)))
    assert decide(done, command("r5", sequence=5)) == Verify()
    assert decide(done, command("r5", sequence=5), verified=True) == Begin()


def test_a_newer_delivery_of_an_unfinished_run_begins_the_next_attempt() -> None:
    working = claimed(new_task(), command())
    assert decide(working, command(delivery=2)) == Begin()
    again = claimed(working, command(delivery=2), "c2")
    assert (again.run.attempt, again.run.claim.interruptions) == (2, 1)
    assert again.run.started == working.run.started


def test_a_delivery_not_newer_than_the_claim_is_ignored() -> None:
    working = claimed(new_task(), command(delivery=2))
    assert decide(working, command(delivery=1)) == Ignore()
    assert decide(working, command(delivery=2)) == Ignore()


def test_a_run_whose_workers_keep_dying_is_exhausted() -> None:
    document = claimed(new_task(), command())
    document = claimed(document, command(delivery=2))
    assert decide(document, command(delivery=3)) == Begin()
    document = claimed(document, command(delivery=3))
    assert decide(document, command(delivery=4)) == Exhausted()
    ended = lifecycle.exhausted(document, now=NOW)
    assert (ended.task.state.code, ended.run.error.code) == (StateCode.ERROR, "attempts_exhausted")


def test_a_released_run_costs_no_attempt() -> None:
    document = claimed(new_task(), command())
    for delivery in range(2, 12):
        document = lifecycle.release(document, now=NOW, log_seq=0)
        assert decide(document, command(delivery=delivery)) == Begin()
        document = claimed(document, command(delivery=delivery))
    assert (document.run.attempt, document.run.claim.interruptions) == (11, 0)


def test_another_run_left_inprogress_is_ended_as_lost_once_its_command_is_known_to_be_gone() -> None:
    working = claimed(new_task(), command("r1"))
    assert decide(working, command("r2", sequence=2)) == Verify()
    assert decide(working, command("r2", sequence=2), verified=True) == EndLost()
    ended = lifecycle.lost(working, now=NOW)
    assert (ended.run.id, ended.run.error.code) == ("r1", "lost")
    assert decide(ended, command("r2", sequence=2)) == Begin()


def test_a_failing_run_waits_for_its_next_try_and_counts_it_as_a_failure() -> None:
    working = claimed(new_task(retry=RetryPolicy(attempts=3, backoff=10)), command())
    delay = lifecycle.delay_before_retry(working.task, working.run, BOOM)
    assert 8 <= delay <= 12
    waiting = lifecycle.retry(working, BOOM, delay=delay, now=NOW, log_seq=3)
    assert waiting.task.state.code is StateCode.INPROGRESS
    assert waiting.change is Change.RETRYING
    early = decide(waiting, command(delivery=2))
    assert isinstance(early, Postpone)
    assert early.seconds == pytest.approx(delay)
    assert decide(waiting, command(delivery=2), now=NOW + timedelta(seconds=13)) == Begin()
    again = claimed(waiting, command(delivery=2))
    assert (again.run.attempt, again.run.claim.failures, again.run.claim.interruptions) == (2, 1, 0)


@pytest.mark.parametrize(
    ("policy", "failed", "retries"),
    [
        (None, BOOM, False),
        (RetryPolicy(attempts=1), BOOM, False),
        (RetryPolicy(attempts=2), BOOM, True),
        (RetryPolicy(attempts=2), Failed(BOOM.error, retryable=False), False),
        (RetryPolicy(attempts=2, on=("timeout",)), BOOM, False),
        (RetryPolicy(attempts=2, on=("handler_error",)), BOOM, True),
    ],
)
def test_what_is_tried_again(policy: RetryPolicy | None, failed: Failed, retries: bool) -> None:
    working = claimed(new_task(retry=policy), command())
    assert (lifecycle.delay_before_retry(working.task, working.run, failed) is not None) is retries


def test_the_backoff_doubles_and_stays_below_a_day() -> None:
    document = claimed(new_task(retry=RetryPolicy(attempts=100, backoff=3600)), command())
    delays = []
    for delivery in range(2, 9):
        delay = lifecycle.delay_before_retry(document.task, document.run, BOOM)
        delays.append(delay)
        document = claimed(lifecycle.retry(document, BOOM, delay=delay, now=NOW, log_seq=0), command(delivery=delivery))
    assert 1.2 < delays[1] / delays[0] < 3.1
    assert max(delays) == lifecycle.LONGEST_BACKOFF


def test_a_run_past_its_deadline_is_begun_no_more_wherever_it_waits() -> None:
    created = new_task(deadline=60, retry=RetryPolicy(attempts=3))
    soon, late = NOW + timedelta(seconds=59), NOW + timedelta(seconds=60)
    working = claimed(created, command())
    waiting = lifecycle.retry(working, BOOM, delay=59, now=NOW, log_seq=0)
    for document, delivery in ((created, 1), (lifecycle.release(working, now=NOW, log_seq=0), 2), (working, 2)):
        assert decide(document, command(delivery=delivery), now=soon) == Begin()
        assert decide(document, command(delivery=delivery), now=late) == Overdue()
    assert decide(waiting, command(delivery=2), now=late) == Overdue()
    assert decide(working, command(), now=late) == Ignore()  # at work: its worker sees to the deadline
    assert decide(concluded(working), command(), now=late) == Finished()


def test_a_run_that_never_began_ends_as_such_when_its_deadline_has_passed() -> None:
    ended = lifecycle.overdue(new_task(deadline=0.5), command(), now=NOW + timedelta(seconds=5))
    assert (ended.run.id, ended.run.attempt, ended.run.started) == ("r1", 0, None)
    assert (ended.run.error.code, ended.task.state.code) == ("deadline_exceeded", StateCode.ERROR)
    assert ended.run.error.message == "The run was not over 0.5 s after it had been accepted."


def test_a_run_that_waited_for_its_next_try_says_at_its_deadline_why_it_had_to() -> None:
    working = claimed(new_task(deadline=60, retry=RetryPolicy(attempts=3)), command())
    waiting = lifecycle.retry(working, BOOM, delay=59, now=NOW, log_seq=0)
    ended = lifecycle.overdue(waiting, command(delivery=2), now=NOW + timedelta(seconds=60))
    assert ended.run.attempt == 1
    assert ended.run.error.message.endswith("Its last attempt had failed with handler_error: boom")


def test_an_edit_of_the_deadline_takes_effect_with_the_next_run() -> None:
    working = claimed(new_task(deadline=60), command())
    definition = Definition(chain=1764, desc="d", target=working.task.target, trigger={}, deadline=1)
    edited = lifecycle.edit(working, definition, by="t", now=NOW)
    assert decide(edited, command(delivery=2), now=NOW + timedelta(seconds=30)) == Begin()
    assert decide(edited, command(delivery=2), now=NOW + timedelta(seconds=61)) == Overdue()
    assert decide(concluded(edited), command("r2", sequence=2), now=NOW + timedelta(seconds=2)) == Overdue()


@pytest.mark.parametrize(("left", "retries"), [(None, True), (13, True), (8, False), (-1, False)])
def test_no_try_is_waited_for_that_would_begin_past_the_deadline(left: float | None, retries: bool) -> None:
    working = claimed(new_task(retry=RetryPolicy(attempts=3, backoff=10)), command())
    assert (lifecycle.delay_before_retry(working.task, working.run, BOOM, left=left) is not None) is retries


def test_a_run_says_when_its_next_try_begins_as_long_as_it_waits_for_it() -> None:
    working = claimed(new_task(retry=RetryPolicy(attempts=3)), command())
    assert working.run.public()["next_attempt"] is None
    waiting = lifecycle.retry(working, BOOM, delay=60, now=NOW, log_seq=0)
    assert waiting.run.public()["next_attempt"] == "2026-05-26T14:36:00Z"
    assert claimed(waiting, command(delivery=2)).run.public()["next_attempt"] is None
    assert lifecycle.cancel(waiting, waiting.run, by="t", now=NOW).run.public()["next_attempt"] is None


def test_a_claim_holds_over_an_edit_but_not_over_the_end_or_a_deletion() -> None:
    working = claimed(new_task(), command(), "mine")
    assert lifecycle.still_claimed(working, "mine")
    assert not lifecycle.still_claimed(working, "other")
    assert not lifecycle.still_claimed(concluded(working), "mine")
    assert not lifecycle.still_claimed(working.model_copy(update={"change": Change.DELETED}), "mine")
