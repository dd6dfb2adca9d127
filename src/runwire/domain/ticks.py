"""What a rung alarm leads to: which tick is run, and which are recorded as skipped. Pure.

::

    alarm rings ---> turn: run one tick, or none; what was missed is recorded
                       |
                       |  the task is busy: wait for it, or record the tick as skipped
                       v
                     the next alarm

An alarm carries what its forwarder has to know beside the task's document, so that any other can go on from it.
Everything before the tick of an alarm has been dealt with: up to the document's cursor or the alarm's ``handed_over``
it is run or recorded, and what lies between that and the tick was skipped and is still to be recorded. Nothing is run
before that is done, so that nothing is lost when two forwarders have alarms of the same task in hand.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from pydantic import AwareDatetime

from runwire.domain.lifecycle import Change, Document
from runwire.domain.run import Claim, ErrorCode, Run, RunCode, RunError, Source, Tick
from runwire.domain.schedule import CatchUp, InvalidTrigger, Overlap, Schedule, delay_of, schedule_of
from runwire.domain.task import Model, Task, whole_seconds

LATE = timedelta(minutes=1)
"""How late a tick may be run that nobody makes up for: a forwarder that is restarted misses none."""
MOST_MADE_UP = 100
"""Missed ticks that ``catch_up: all`` runs afterwards, the latest ones."""
MOST_COUNTED = 1000
"""Skipped ticks that are counted; of more it is said that there were more."""
COALESCED = timedelta(minutes=1)
"""Ticks that are skipped for the same reason within this time share a record."""
INSTANT = timedelta(microseconds=1)


class Skipped(Model):
    """A stretch of ticks that are not run."""

    first: AwareDatetime
    last: AwareDatetime
    ticks: int
    reason: Literal[ErrorCode.OVERLAP, ErrorCode.MISSED]
    busy_with: str | None = None
    """The run that was in the way."""


class Alarm(Model):
    """The one alarm of a task."""

    version: int
    """Of the schedule, as in :class:`~runwire.domain.lifecycle.Progress`."""
    due: AwareDatetime
    """The tick it rings for."""
    making_up_until: AwareDatetime | None = None
    """Ticks up to this one were missed and are run one after the other: they wait for the task to be free."""
    waiting: bool = False
    """Its tick waits until the task is free, however long that takes."""
    handed_over: AwareDatetime | None = None
    """The last tick that was given a command; the document hears of it only when its run begins."""
    recorded: AwareDatetime | None = None
    """When ticks of this task were last recorded as skipped."""


@dataclass(frozen=True)
class Plan:
    """The schedule of a task as its document has it now."""

    task: Task
    schedule: Schedule
    version: int
    cursor: datetime
    delay: timedelta
    catch_up: CatchUp
    overlap: Overlap

    def rings_at(self, alarm: Alarm) -> datetime:
        """When the alarm rings: at its tick, or later by the task's share of the jitter."""
        return alarm.due + self.delay

    def may_wait(self, turn: Turn) -> bool:
        """Whether the tick of this turn waits for a task that is busy."""
        return self.overlap is Overlap.WAIT or turn.making_up_until is not None

    def tick(self, due: datetime) -> Tick:
        """One of its ticks, by name."""
        return Tick(version=self.version, due=due)


@dataclass(frozen=True)
class Turn:
    """What is to be done now that an alarm has rung."""

    run: datetime | None
    """The tick that gets a run; None: none does."""
    missed: Skipped | None = None
    """Ticks that are recorded as missed."""
    until: datetime | None = None
    """The last tick that has been dealt with then; None: there was none."""
    making_up_until: datetime | None = None


def plan_of(document: Document | None) -> Plan | None:
    """The schedule that is in force; None: nothing is due by itself."""
    if document is None or document.change is Change.DELETED or document.schedule is None:
        return None
    task = document.task
    trigger = task.trigger
    try:
        schedule = schedule_of(trigger, created=task.state.created_date)
        if schedule is None:
            return None
        # A task that runs once has no later tick to make up for one that is skipped.
        only_once = trigger.get("once") is not None and trigger.get("repeat") is None
        return Plan(
            task=task,
            schedule=schedule,
            version=document.schedule.version,
            cursor=document.schedule.cursor,
            delay=delay_of(trigger, task.id),
            catch_up=CatchUp(str(trigger.get("catch_up") or CatchUp.LATEST)),
            overlap=Overlap(str(trigger.get("overlap") or (Overlap.WAIT if only_once else Overlap.SKIP))),
        )
    except (InvalidTrigger, ValueError):  # a zone that has vanished from the database; nobody stores such a trigger
        return None


def first_alarm(plan: Plan) -> Alarm | None:
    """The alarm of a schedule that nobody has in hand; it may be overdue. None: there are no more ticks."""
    due = plan.schedule.next_after(plan.cursor)
    return None if due is None else Alarm(version=plan.version, due=due)


def turn(plan: Plan, alarm: Alarm, *, now: datetime) -> Turn:
    """What the alarm asks for, whenever it is heard: on time, late, or again."""
    schedule = plan.schedule
    now -= plan.delay
    after = max(plan.cursor, alarm.due - INSTANT)
    newest = schedule.latest_until(now, after=after)
    oldest = schedule.next_after(after)
    if newest is None or oldest is None:
        return Turn(run=None)
    if alarm.waiting and oldest == alarm.due:
        return Turn(oldest, until=oldest, making_up_until=alarm.making_up_until)
    if alarm.making_up_until is not None and oldest <= alarm.making_up_until:
        return Turn(oldest, until=oldest, making_up_until=alarm.making_up_until)
    if alarm.making_up_until is not None:  # what became due while it was at that is not missed but late
        return _run(schedule, newest, oldest=oldest, reason=ErrorCode.OVERLAP)
    if plan.catch_up is CatchUp.ALL and oldest < newest:
        first = _first_made_up(schedule, newest, after=after)
        return _run(schedule, first, oldest=oldest, reason=ErrorCode.MISSED, making_up_until=newest)
    if plan.catch_up is CatchUp.NONE and now - newest > LATE:
        return Turn(None, _stretch(schedule, oldest, newest, ErrorCode.MISSED), until=newest)
    return _run(schedule, newest, oldest=oldest, reason=ErrorCode.MISSED)


def unrecorded(plan: Plan, alarm: Alarm, until: datetime, *, busy_with: str | None = None) -> Skipped | None:
    """The ticks before the alarm's, and up to ``until``, that found the task busy and are not recorded yet."""
    return overlapped(plan, after=max(plan.cursor, alarm.handed_over or plan.cursor), until=until, busy_with=busy_with)


def overlapped(plan: Plan, *, after: datetime, until: datetime, busy_with: str | None = None) -> Skipped | None:
    """The ticks in ``(after, until]``, which found the task queued or running; None: there are none."""
    first = plan.schedule.next_after(after)
    last = plan.schedule.latest_until(until, after=after)
    if first is None or last is None:
        return None
    return _stretch(plan.schedule, first, last, ErrorCode.OVERLAP, busy_with)


def beyond(plan: Plan, skipped: Skipped, cursor: datetime) -> Skipped | None:
    """What of a stretch lies beyond the cursor: the rest has been dealt with by somebody else."""
    if cursor < skipped.first:
        return skipped
    first = plan.schedule.next_after(cursor)
    if first is None or first > skipped.last:
        return None
    return _stretch(plan.schedule, first, skipped.last, skipped.reason, skipped.busy_with)


def may_go_unrecorded(alarm: Alarm, following: datetime | None, *, now: datetime) -> bool:
    """Whether the record of skipped ticks can wait for the next alarm: there was one just now, and that is soon."""
    is_recent = alarm.recorded is not None and now - alarm.recorded < COALESCED
    return is_recent and following is not None and following - now < COALESCED


def run_id(key: bytes, chain: int, task: int, tick: Tick) -> str:
    """The run of a tick: always the same, and nobody without the installation's key can tell or claim it."""
    name = f"{chain}.{task}.{tick.version}.{tick.due.astimezone(UTC).isoformat()}"
    return f"sch-{hmac.digest(key, name.encode(), 'sha256').hex()[:32]}"


def record(key: bytes, task: Task, version: int, skipped: Skipped, *, now: datetime, log_seq: int) -> Run:
    """Skipped ticks as they stand in the history of the task: a run that never was."""
    tick = Tick(version=version, due=skipped.first)
    return Run(
        id=run_id(key, task.chain, task.id, tick),
        task=task.id,
        chain=task.chain,
        code=RunCode.SKIPPED,
        attempt=0,
        source=Source.SCHEDULE,
        accepted=whole_seconds(skipped.first),
        tick=tick,
        finished=whole_seconds(now),
        result={"ticks": skipped.ticks, "first": _iso(skipped.first), "last": _iso(skipped.last)},
        error=RunError(code=skipped.reason, message=in_words(skipped)),
        log_seq=log_seq,
        claim=Claim(id="", command=0, delivery=0),
    )


def in_words(skipped: Skipped) -> str:
    """One sentence about skipped ticks."""
    if skipped.ticks == 1:
        what = f"The tick of {_iso(skipped.first)} was skipped"
    else:
        number = f"{skipped.ticks} ticks" if skipped.ticks < MOST_COUNTED else f"More than {MOST_COUNTED} ticks"
        what = f"{number} from {_iso(skipped.first)} to {_iso(skipped.last)} were skipped"
    if skipped.reason is ErrorCode.MISSED:
        return f"{what}: nothing was running then."
    return f"{what}: the task was busy with run {skipped.busy_with}." if skipped.busy_with else f"{what}: it was busy."


def _run(
    schedule: Schedule,
    tick: datetime,
    *,
    oldest: datetime,
    reason: Literal[ErrorCode.OVERLAP, ErrorCode.MISSED],
    making_up_until: datetime | None = None,
) -> Turn:
    """Run one tick; those from ``oldest`` up to it are not run."""
    missed = None
    if oldest < tick:
        last = schedule.latest_until(tick - INSTANT, after=oldest - INSTANT)
        missed = _stretch(schedule, oldest, last or oldest, reason)
    return Turn(tick, missed, until=tick, making_up_until=making_up_until)


def _first_made_up(schedule: Schedule, newest: datetime, *, after: datetime) -> datetime:
    """The oldest of the latest MOST_MADE_UP ticks."""
    first = newest
    for _ in range(MOST_MADE_UP - 1):
        before = schedule.latest_until(first - INSTANT, after=after)
        if before is None:
            break
        first = before
    return first


def _stretch(
    schedule: Schedule,
    first: datetime,
    last: datetime,
    reason: Literal[ErrorCode.OVERLAP, ErrorCode.MISSED],
    busy_with: str | None = None,
) -> Skipped:
    ticks = schedule.count(first - INSTANT, last, at_most=MOST_COUNTED)
    return Skipped(first=first, last=last, ticks=ticks, reason=reason, busy_with=busy_with)


def _iso(instant: datetime) -> str:
    return whole_seconds(instant).isoformat().replace("+00:00", "Z")
