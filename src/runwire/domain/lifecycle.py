"""The life of a task: which event may follow which, as pure functions.

::

    create            claim                conclude
    ------>  READY  ------->  INPROGRESS  --------->  DONE | ERROR
                               |      ^   ^                |
                               '------'   '----------------'
                      retry, release,          claim (the next run)
                      claim again after a crash

    READY | DONE | ERROR  --- cancel of a run that is still queued --->  ERROR
    any state             --- edit --->                                  the same state, a new definition
    any state             --- skip of a tick --->                        the same state
    READY | DONE | ERROR  --- delete --->                                nothing follows any more

Every event of a task is its next *document*: the whole task, the run it is about, and what changed.
The functions here take the current document and return the next one; :func:`decide` says which of
them a worker has to apply when a command reaches it. Nobody else changes a document.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from pydantic import JsonValue

from runwire.domain import progress
from runwire.domain.progress import Progress
from runwire.domain.run import Claim, Command, ErrorCode, Failed, Outcome, Run, RunCode, RunError
from runwire.domain.task import FINAL, Model, RetryPolicy, State, StateCode, Target, Task, whole_seconds

RING = 16
"""How many ended run ids a document remembers. The broker forgets the Msg-Id of a consumed command when
it crashes; a publisher that lost its acknowledgement and tries again is recognised by this memory."""

LONGEST_BACKOFF = 86_400.0
"""Seconds between two tries, at most."""


class Change(StrEnum):
    """What an event says happened."""

    CREATED = "created"
    CLAIMED = "claimed"
    """An attempt began."""
    RETRYING = "retrying"
    """An attempt failed; the run waits for its next try."""
    RELEASED = "released"
    """A worker was stopped in an orderly way and gave the run back."""
    CONCLUDED = "concluded"
    """The run ended."""
    EDITED = "edited"
    """The definition was changed; run and state are as before."""
    SKIPPED = "skipped"
    """One or more ticks of the schedule were not run; run and state are as before."""
    DELETED = "deleted"


class Terms(Model):
    """What a run is carried out by: the part of the definition that matters to a worker."""

    target: Target
    trigger: dict[str, JsonValue]
    timeout: float
    deadline: float | None = None
    retry: RetryPolicy | None


class Document(Model):
    """What every event carries: the task and its latest run after the change."""

    task: Task
    run: Run | None = None
    change: Change
    recent_runs: tuple[str, ...] = ()
    """Ids of the last ended runs, newest last."""
    by: str | None = None
    """Id of the access token that asked for this very change; None: nobody did, it is the course of a run."""
    started_with: Terms | None = None
    """What the run goes by when the task has been edited since it began; None: by the task as it stands."""
    schedule: Progress | None = None
    """None: the task has only ever been run by hand."""
    skipped: Run | None = None
    """The ticks that were not run, when this event is about some."""

    @property
    def task_in_force(self) -> Task:
        """The task as the run has to see it: an edit takes effect with the next one."""
        if self.started_with is None:
            return self.task
        return self.task.model_copy(update=dict(self.started_with))


@dataclass(frozen=True, kw_only=True)
class Definition:
    """What a user may say about a task."""

    chain: int
    desc: str
    target: Target
    trigger: dict[str, JsonValue]
    debug: str | None = None
    timeout: float = 3600
    deadline: float | None = None
    retry: RetryPolicy | None = None


# --- what a worker has to do with a command ------------------------------------------------------------


@dataclass(frozen=True)
class Finished:
    """The run has ended already, or its tick is recorded as skipped: acknowledge."""


@dataclass(frozen=True)
class Begin:
    """Claim the run and act."""


@dataclass(frozen=True)
class Exhausted:
    """Its workers died too often: conclude it as ERROR ``attempts_exhausted``."""


@dataclass(frozen=True)
class EndLost:
    """Another run is INPROGRESS with no command behind it: conclude that one as ERROR ``lost``, then decide again."""


@dataclass(frozen=True)
class Verify:
    """The command may be a stale delivery: check that COMMANDS still holds it, then decide again."""


@dataclass(frozen=True)
class Postpone:
    """Not before ``seconds`` from now: the run waits between two tries."""

    seconds: float


@dataclass(frozen=True)
class Ignore:
    """A delivery older than the claim: a healthy worker has the run. Say nothing to the broker."""


@dataclass(frozen=True)
class Overdue:
    """Its deadline has passed: conclude it as ERROR ``deadline_exceeded``."""


@dataclass(frozen=True)
class Reject:
    """Nothing can be run: to the dead letters."""

    reason: str
    detail: str


Decision = Finished | Begin | Exhausted | Overdue | EndLost | Verify | Postpone | Ignore | Reject


def decide(
    document: Document | None, command: Command, *, now: datetime, max_deliveries: int, verified: bool = False
) -> Decision:
    """What to do with this delivery of a command, given the task's current document.

    ``verified`` says that COMMANDS was seen to hold the command; as it holds one command per task at
    most, no other run of the task can then have one.
    """
    if document is None:
        return Reject("no_such_task", f"There is no task {command.task} in chain {command.chain}.")
    if has_ended(document, command.run):
        return Finished()
    if document.change is Change.DELETED:
        return Reject("task_deleted", f"Task {command.task} has been deleted.")
    is_current = document.run is not None and document.run.id == command.run
    if not is_current and progress.has_skipped(document.schedule, command.tick):
        return Finished()  # two forwarders had the tick: to one the task was busy, to the other it was free by then
    decision = _decide(document.run, command, now=now, max_deliveries=max_deliveries, verified=verified)
    left = time_left(document.task_in_force, command.accepted, now=now)
    may_go_on = isinstance(decision, Begin | Postpone)
    return Overdue() if may_go_on and left is not None and left <= 0 else decision


def time_left(task: Task, accepted: datetime, *, now: datetime) -> float | None:
    """Seconds until the deadline of a run that was accepted then; None: it has none."""
    return None if task.deadline is None else task.deadline - (now - accepted).total_seconds()


def _decide(run: Run | None, command: Command, *, now: datetime, max_deliveries: int, verified: bool) -> Decision:
    if run is None:
        return Begin()
    if run.id == command.run:
        return _decide_again(run.claim, command, now=now, max_deliveries=max_deliveries)
    if not verified and (not run.is_final or command.sequence <= run.claim.command):
        return Verify()
    return Begin() if run.is_final else EndLost()


def _decide_again(claim: Claim, command: Command, *, now: datetime, max_deliveries: int) -> Decision:
    """The run was claimed before: is its worker still at it, gone, or waiting for the next try?"""
    if claim.retry_at is not None:
        wait = (claim.retry_at - now).total_seconds()
        return Postpone(wait) if wait > 0 else Begin()
    if claim.released:
        return Begin()
    if command.delivery <= claim.delivery and command.sequence <= claim.command:
        return Ignore()
    if claim.interruptions + 1 >= max_deliveries:
        return Exhausted()
    return Begin()


# --- document -> next document -------------------------------------------------------------------------


def create(definition: Definition, task_id: int, now: datetime, *, by: str | None = None) -> Document:
    """The first document of a task: READY."""
    schedule = progress.begin(definition.trigger, {}, version=1, created=now, now=now)
    now = whole_seconds(now)
    task = Task(
        id=task_id,
        chain=definition.chain,
        desc=definition.desc,
        state=State(code=StateCode.READY, last_run_date=None, last_modified=now, created_date=now),
        trigger=definition.trigger,
        target=definition.target,
        debug=definition.debug,
        timeout=definition.timeout,
        deadline=definition.deadline,
        retry=definition.retry,
    )
    return Document(task=task, change=Change.CREATED, by=by, schedule=schedule)


def claim(document: Document, command: Command, *, claim_id: str, now: datetime) -> Document:
    """An attempt begins: INPROGRESS. The first of its run, or a further one."""
    now = whole_seconds(now)
    previous = document.run if document.run and document.run.id == command.run else None
    run = Run(
        id=command.run,
        task=command.task,
        chain=command.chain,
        code=RunCode.INPROGRESS,
        attempt=previous.attempt + 1 if previous else 1,
        source=command.source,
        reason=previous.reason if previous else command.reason,
        accepted=previous.accepted if previous else whole_seconds(command.accepted),
        tick=command.tick,
        trace=previous.trace if previous else command.trace,
        started=previous.started if previous else now,
        log_seq=previous.log_seq if previous else 0,
        claim=Claim(
            id=claim_id,
            command=command.sequence,
            delivery=command.delivery,
            failures=previous.claim.failures if previous else 0,
            interruptions=previous.claim.interruptions + _was_interrupted(previous.claim) if previous else 0,
        ),
    )
    return _next(document, run, Change.CLAIMED, now)


def conclude(document: Document, outcome: Outcome, *, now: datetime, log_seq: int = 0) -> Document:
    """The run ends: DONE or ERROR. ``log_seq`` is the LOGS sequence of its last line."""
    return _end(document, _run_of(document), outcome, now=now, log_seq=log_seq)


def retry(document: Document, failed: Failed, *, delay: float, now: datetime, log_seq: int) -> Document:
    """An attempt failed and the run will be tried again ``delay`` seconds from now."""
    run = _run_of(document)
    waiting = run.claim.model_copy(
        update={"failures": run.claim.failures + 1, "retry_at": now + timedelta(seconds=delay)}
    )
    run = run.model_copy(update={"error": failed.error, "log_seq": max(log_seq, run.log_seq), "claim": waiting})
    return _next(document, run, Change.RETRYING, whole_seconds(now))


def release(document: Document, *, now: datetime, log_seq: int) -> Document:
    """The worker stops in an orderly way: the run goes back, and this attempt is held against nobody."""
    run = _run_of(document)
    run = run.model_copy(
        update={"log_seq": max(log_seq, run.log_seq), "claim": run.claim.model_copy(update={"released": True})}
    )
    return _next(document, run, Change.RELEASED, whole_seconds(now))


def exhausted(document: Document, *, now: datetime) -> Document:
    """The run's workers died too often."""
    attempts = _run_of(document).attempt
    error = RunError(
        code=ErrorCode.ATTEMPTS_EXHAUSTED,
        message=f"The worker died or froze in the middle of every one of {attempts} attempts.",
    )
    return conclude(document, Failed(error), now=now)


def overdue(document: Document, command: Command, *, now: datetime) -> Document:
    """The run's deadline has passed while it was queued, or between two attempts."""
    current = document.run
    run = current if current is not None and current.id == command.run else queued(command)
    cause = "" if run.error is None else f" Its last attempt had failed with {run.error.code}: {run.error.message}"
    return _end(document, run, Failed(beyond(document.task_in_force, cause)), now=now)


def beyond(task: Task, cause: str = "") -> RunError:
    """Why a run ends whose deadline has passed."""
    message = f"The run was not over {task.deadline:g} s after it had been accepted.{cause}"
    return RunError(code=ErrorCode.DEADLINE_EXCEEDED, message=message)


def lost(document: Document, *, now: datetime) -> Document:
    """The run is INPROGRESS, but no command stands behind it any more."""
    error = RunError(code=ErrorCode.LOST, message="The command behind this run is gone; nobody was working on it.")
    return conclude(document, Failed(error), now=now)


def cancel(document: Document, run: Run, *, by: str, now: datetime) -> Document:
    """Somebody ends the outstanding run: the one that is INPROGRESS, or a :func:`queued` one."""
    error = RunError(code=ErrorCode.CANCELLED, message="The run was cancelled.")
    return _end(document, run, Failed(error), now=now).model_copy(update={"by": by})


def queued(command: Command) -> Run:
    """The run of a command that no worker has claimed yet: attempt 0, and never started."""
    return Run(
        id=command.run,
        task=command.task,
        chain=command.chain,
        code=RunCode.READY,
        attempt=0,
        source=command.source,
        reason=command.reason,
        accepted=whole_seconds(command.accepted),
        tick=command.tick,
        trace=command.trace,
        claim=Claim(id="", command=command.sequence, delivery=0),
    )


def skip(document: Document, skipped: Run, *, until: datetime) -> Document:
    """Some ticks up to and including ``until`` are not run; the task and its run stay as they are."""
    task = document.task.model_copy(update={"version": document.task.version + 1})
    first = until if skipped.tick is None else skipped.tick.due
    schedule = progress.passed_over(document.schedule, first, until)
    return document.model_copy(
        update={"task": task, "change": Change.SKIPPED, "by": None, "schedule": schedule, "skipped": skipped}
    )


def edit(document: Document, definition: Definition, *, by: str, now: datetime) -> Document:
    """The task gets another definition; run and state stay. A run that has begun goes on by what it began with.

    A trigger that says another time than before counts from ``now`` on.
    """
    task = document.task
    started_with = document.started_with
    if started_with is None and document.run is not None and not document.run.is_final:
        started_with = Terms(
            target=task.target, trigger=task.trigger, timeout=task.timeout, deadline=task.deadline, retry=task.retry
        )
    edited = task.model_copy(
        update={
            "desc": definition.desc,
            "target": definition.target,
            "trigger": definition.trigger,
            "debug": definition.debug,
            "timeout": definition.timeout,
            "deadline": definition.deadline,
            "retry": definition.retry,
            "version": task.version + 1,
        }
    )
    schedule = progress.after_edit(
        document.schedule, definition.trigger, task.trigger,
        version=edited.version, created=task.state.created_date, now=now,
    )  # fmt: skip
    return document.model_copy(
        update={
            "task": edited, "change": Change.EDITED, "by": by, "started_with": started_with, "schedule": schedule,
            "skipped": None,
        }
    )  # fmt: skip


def delete(document: Document, *, by: str) -> Document:
    """The task's last document. Raises ValueError while a run is INPROGRESS: that one has to end first."""
    if document.run is not None and not document.run.is_final:
        msg = f"task {document.task.id} is busy with run {document.run.id}"
        raise ValueError(msg)
    task = document.task.model_copy(update={"version": document.task.version + 1})
    return document.model_copy(update={"task": task, "change": Change.DELETED, "by": by, "skipped": None})


def has_ended(document: Document | None, run: str) -> bool:
    """Whether the document knows the run as ended."""
    if document is None:
        return False
    current = document.run
    return run in document.recent_runs or (current is not None and current.id == run and current.is_final)


def is_taken_away(document: Document, run: Run) -> bool:
    """Whether nothing is left to do for this attempt: its run has ended, its task is gone, or a later one has begun.

    True of no document from before the claim, so a reader that lags only says it later.
    """
    if document.change is Change.DELETED or has_ended(document, run.id):
        return True
    current = document.run
    return current is not None and current.id == run.id and current.attempt > run.attempt


def still_claimed(document: Document, claim_id: str) -> bool:
    """Whether the claim still holds after somebody else's event, such as an edit of the definition."""
    run = document.run
    return document.change is not Change.DELETED and run is not None and not run.is_final and run.claim.id == claim_id


def delay_before_retry(task: Task, run: Run, failed: Failed, *, left: float | None = None) -> float | None:
    """Seconds until the next try, or None when this failure ends the run. ``left``: seconds until its deadline."""
    delay = _backoff(task, run, failed)
    return None if delay is not None and left is not None and delay >= left else delay


def _backoff(task: Task, run: Run, failed: Failed) -> float | None:
    policy = task.retry
    if policy is None or not failed.retryable or run.claim.failures + 1 >= policy.attempts:
        return None
    if policy.on is not None and failed.error.code not in policy.on:
        return None
    if failed.retry_after is not None:
        return min(failed.retry_after, LONGEST_BACKOFF)
    backoff: float = policy.backoff * 2.0**run.claim.failures
    return min(backoff * random.uniform(0.8, 1.2), LONGEST_BACKOFF)  # noqa: S311 - jitter, not a secret


def _was_interrupted(claim: Claim) -> int:
    return 0 if claim.released or claim.retry_at is not None else 1


def _end(document: Document, run: Run, outcome: Outcome, *, now: datetime, log_seq: int = 0) -> Document:
    now = whole_seconds(now)
    failed = isinstance(outcome, Failed)
    ended = run.model_copy(
        update={
            "code": RunCode.ERROR if failed else RunCode.DONE,
            "finished": now,
            "result": None if isinstance(outcome, Failed) else outcome.result,
            "error": outcome.error if isinstance(outcome, Failed) else None,
            "log_seq": max(log_seq, run.log_seq),
        }
    )
    return _next(document, ended, Change.CONCLUDED, now)


def _run_of(document: Document) -> Run:
    if document.run is None:
        msg = f"task {document.task.id} has no run"
        raise ValueError(msg)
    return document.run


def _next(document: Document, run: Run, change: Change, now: datetime) -> Document:
    """The next document: the task follows its run, the version counts, an ended run joins the ring."""
    task, recent, started_with = document.task, document.recent_runs, document.started_with
    state = task.state
    started = run.started or state.last_run_date  # a run that was cancelled in the queue has never started
    code = StateCode(run.code)
    if code is not state.code or started != state.last_run_date or code in FINAL:
        state = state.model_copy(update={"code": code, "last_run_date": started, "last_modified": now})
    if code in FINAL:
        recent, started_with = (*recent, run.id)[-RING:], None
    result = run.result if code is StateCode.DONE else task.result
    task = task.model_copy(update={"state": state, "version": task.version + 1, "result": result})
    schedule = document.schedule if run.tick is None else progress.moved(document.schedule, run.tick.due)
    return Document(task=task, run=run, change=change, recent_runs=recent, started_with=started_with, schedule=schedule)
