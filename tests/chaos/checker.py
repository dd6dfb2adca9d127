"""Judges a history: pure, and from the event stream and the callers' notes alone.

The stream is a total order that the broker has made, so a fold over it decides; nothing has to be searched. What a
caller was told is held against it: a promise needs its run, a refusal must not have one, an answer has to say what
the stream says. An unknown outcome allows for a run and demands none.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from runwire.domain.schedule import schedule_of
from tests.chaos.history import Call, DeadLetter, Event, Execution, Fault, History, Rest, Rows

ENDED = frozenset({"DONE", "ERROR"})
COURSE = frozenset({"claimed", "retrying", "released", "concluded"})
"""The changes that are steps of a run."""
DERIVED = {"task", "run"}
"""Tables whose keys follow from EVENTS alone."""


class Rule(StrEnum):
    """What must not happen."""

    LOST = "an accepted run has no event"
    STUCK = "a run has no end"
    TWO_ENDS = "a run has two ends"
    AFTER_END = "a run goes on after its end"
    ATTEMPTS = "attempts do not count 1, 2, 3, or an earlier one ends the run"
    PHANTOM = "a run that nobody asked for"
    KEY_TWICE = "one Idempotency-Key has two runs"
    FALSE_REPLY = "a caller was told something else than the stream says"
    LATE_REPLY = "a caller was not told of the end although it waited"
    OVERLAP = "two runs of one task at the same time"
    TRANSITION = "an event that may not follow the one before"
    WRITE_LOST = "a confirmed change is not in the stream"
    RESULT = "the result is another attempt's, or the action never ran"
    READ_MODEL = "the read model is not what the stream says"
    REST = "something is left when all is over"
    TICK = "a tick was lost, doubled or early"


@dataclass(frozen=True)
class Violation:
    """A broken promise."""

    rule: Rule
    detail: str


@dataclass(kw_only=True)
class Figures:
    """How much of what there was."""

    calls: int = 0
    """Intentions to execute: tries with the same key, or the same run id, are one."""
    accepted: int = 0
    refused: int = 0
    unknown: int = 0
    retried: int = 0
    """Calls that took more than one try."""
    runs: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    """Ended runs: DONE, or the error code."""
    ticks: int = 0
    """Runs that schedules asked for."""
    skipped: int = 0
    """Ticks that are recorded as skipped."""
    events: int = 0
    repeated: int = 0
    """Runs whose action began more than once, without a retry: at least once is what is promised."""
    faults: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    """Seconds from the end of a run until a call that waited for it was answered, at most."""
    settled: float = 0.0
    """Seconds from the last heal until nothing was left."""


@dataclass(kw_only=True)
class Verdict:
    """What the checker has to say."""

    figures: Figures
    violations: list[Violation]
    doubts: list[str]
    """Why the run proves less than it should."""

    @property
    def is_good(self) -> bool:
        """Whether every promise was kept, and that means something."""
        return not self.violations and not self.doubts


def check(history: History) -> Verdict:
    """Hold the history against every rule."""
    return _Checker(history).verdict()


@dataclass(frozen=True, eq=False)
class Step:
    """An event, and those of its fields that matter."""

    sequence: int
    stored: float
    event_id: str
    chain: int
    task: int
    subject_code: str
    version: int
    state: str
    desc: str
    created: str
    change: str
    run: dict[str, Any] | None
    skipped: dict[str, Any] | None

    @classmethod
    def of(cls, event: Event) -> Step:
        """As the stream has it. Raises LookupError when it is no event of a task."""
        document, task = event.document, event.document["task"]
        _, _, chain, number, code = event.subject.split(".")
        return cls(
            sequence=event.sequence, stored=event.stored, event_id=event.headers.get("ce-id", ""),
            chain=int(chain), task=int(number), subject_code=code, version=task["version"],
            state=task["state"]["code"], desc=task["desc"], created=task["state"]["created_date"],
            change=document["change"], run=document.get("run"), skipped=document.get("skipped"),
        )  # fmt: skip

    @property
    def run_id(self) -> str | None:
        """The task's latest run."""
        return self.run["id"] if self.run else None

    @property
    def is_outstanding(self) -> bool:
        """Whether the task is at work on it."""
        return self.run is not None and self.run["code"] == "INPROGRESS"


class _Checker:
    def __init__(self, history: History) -> None:
        self._plan = history.plan
        self._calls = history.all(Call)
        self._steps = [Step.of(event) for event in history.all(Event)]
        self._dead = {letter.run for letter in history.all(DeadLetter)}
        self._executions = history.all(Execution)
        self._rows = {rows.model: rows.tables for rows in history.all(Rows)}
        self._rest = history.all(Rest)
        self._violations: list[Violation] = []
        self.figures = Figures(faults=Counter(fault.what for fault in history.all(Fault)), events=len(self._steps))

        self._by_task: dict[int, list[Step]] = defaultdict(list)
        self._by_run: dict[str, list[Step]] = defaultdict(list)
        for step in self._steps:
            self._by_task[step.task].append(step)
            if step.run_id is not None and step.change in COURSE:
                self._by_run[step.run_id].append(step)
        self._ends = {
            run: next((step for step in steps if step.change == "concluded"), None)
            for run, steps in self._by_run.items()
        }

    def verdict(self) -> Verdict:
        self._stream()
        for run, steps in self._by_run.items():
            self._run(run, steps)
        for steps in self._by_task.values():
            self._task(steps)
        self._promises()
        self._phantoms()
        for call in self._calls:
            self._reply(call)
        self._results()
        self._schedules()
        self._read_models()
        self._at_rest()
        return Verdict(figures=self.figures, violations=self._violations, doubts=list(self._doubts()))

    def _bad(self, rule: Rule, detail: str) -> None:
        self._violations.append(Violation(rule, detail))

    # --- the stream by itself --------------------------------------------------------------------------

    def _stream(self) -> None:
        """Nothing is missing between two events, and no event is there twice."""
        ids = Counter(step.event_id for step in self._steps)
        for event_id, count in ids.items():
            if count > 1 or not event_id:
                self._bad(Rule.TRANSITION, f"{count} events have the id {event_id!r}")
        before = self._plan.after
        for step in self._steps:
            if step.sequence != before + 1:
                self._bad(Rule.WRITE_LOST, f"after event {before} comes {step.sequence}")
            before = step.sequence

    def _run(self, run: str, steps: list[Step]) -> None:
        ends = [step for step in steps if step.change == "concluded"]
        if not ends:
            self._bad(Rule.STUCK, f"run {run}, last seen {steps[-1].change} at {steps[-1].sequence}")
        if len(ends) > 1:
            self._bad(Rule.TWO_ENDS, f"run {run}: events {', '.join(str(step.sequence) for step in ends)}")
        if ends and steps[-1] is not ends[0] and len(ends) == 1:
            self._bad(Rule.AFTER_END, f"run {run}: {steps[-1].change} at {steps[-1].sequence}")
        attempts = [step.run["attempt"] for step in steps if step.change == "claimed" and step.run]
        if attempts != list(range(1, len(attempts) + 1)):
            self._bad(Rule.ATTEMPTS, f"run {run}: attempts {attempts}")
        if ends and ends[0].run and ends[0].run["attempt"] != max(attempts, default=0):
            self._bad(Rule.ATTEMPTS, f"run {run}: attempt {ends[0].run['attempt']} ended it, of {attempts}")
        if len({step.task for step in steps}) > 1:
            self._bad(Rule.TRANSITION, f"run {run} is in the events of several tasks")
        self.figures.runs += 1
        if ends and ends[0].run:
            error = ends[0].run["error"]
            self.figures.ends[error["code"] if error else ends[0].run["code"]] += 1

    def _task(self, steps: list[Step]) -> None:
        """Every event may follow the one before it."""
        before: Step | None = None
        for step in steps:
            wrong = _may_begin(step) if before is None else _may_follow(before, step)
            if wrong:
                rule = Rule.OVERLAP if wrong == OVERLAP else Rule.TRANSITION
                self._bad(rule, f"task {step.task}, event {step.sequence} ({step.change}): {wrong}")
            expected = _subject_code(step)
            if step.subject_code != expected:
                self._bad(Rule.TRANSITION, f"event {step.sequence} is on {step.subject_code}, not on {expected}")
            before = step

    # --- what callers were told ------------------------------------------------------------------------

    def _promises(self) -> None:
        """Accepted means that the run is there and ends; one key has one run."""
        runs_of_key: dict[tuple[int, str], set[str]] = defaultdict(set)
        for call in self._calls:
            if call.what != "execute" or call.outcome != "accepted" or call.run is None:
                continue
            if call.key is not None:
                runs_of_key[call.task, call.key].add(call.run)
            if call.run not in self._by_run and call.run not in self._dead:
                self._bad(Rule.LOST, f"run {call.run} of task {call.task}, accepted at {_clock(call.answered)}")
            if call.run in self._by_run and call.run in self._dead:
                self._bad(Rule.TWO_ENDS, f"run {call.run} is in the stream and a dead letter")
        for (task, key), runs in runs_of_key.items():
            if len(runs) > 1:
                self._bad(Rule.KEY_TWICE, f"key {key} of task {task}: runs {', '.join(sorted(runs))}")

    def _phantoms(self) -> None:
        """Every run was asked for: by a call that got it, by one that may have, or by the schedule."""
        wanted: set[str] = set()
        perhaps: Counter[int] = Counter()
        for tries in self._intentions():
            outcomes = {call.outcome for call in tries}
            answered = {call.run for call in tries if call.outcome == "accepted" and call.run and not call.joined}
            self.figures.calls += 1
            self.figures.retried += len(tries) > 1
            self.figures.accepted += "accepted" in outcomes
            self.figures.refused += outcomes == {"refused"}
            self.figures.unknown += "accepted" not in outcomes and "unknown" in outcomes
            wanted |= answered
            if tries[0].door == "bus" and "unknown" in outcomes and tries[0].run:
                wanted.add(tries[0].run)
            elif tries[0].door == "http" and "unknown" in outcomes and not answered:
                perhaps[tries[0].task] += 1
        for run, steps in self._by_run.items():
            details = steps[0].run or {}
            if run in wanted:
                continue
            if details.get("source") == "schedule" and details.get("tick") and steps[0].task in self._plan.triggers:
                self.figures.ticks += 1
            elif details.get("source") == "http" and perhaps[steps[0].task] > 0:
                perhaps[steps[0].task] -= 1
            else:
                self._bad(Rule.PHANTOM, f"run {run} of task {steps[0].task}, by {details.get('source')}")

    def _intentions(self) -> Iterator[list[Call]]:
        """The calls that wanted a run, each with all its tries."""
        tries: dict[tuple[str, int, str], list[Call]] = defaultdict(list)
        for call in self._calls:
            if call.what == "execute":
                name = call.run if call.door == "bus" else call.key
                if name is None:
                    yield [call]
                else:
                    tries[call.door, call.task, name].append(call)
        yield from tries.values()

    def _reply(self, call: Call) -> None:
        """What the answer says is what the stream says."""
        if call.outcome != "accepted":
            return
        if call.what == "edit":
            found = [step for step in self._by_task.get(call.task, ()) if step.version == call.version]
            if not found or found[0].change != "edited" or found[0].desc != call.desc:
                self._bad(Rule.WRITE_LOST, f"task {call.task}: the edit that made version {call.version}")
            return
        if call.run is None:
            self._bad(Rule.FALSE_REPLY, f"task {call.task}: a {call.what} was accepted without a run")
            return
        end = self._ends.get(call.run)
        if call.code is not None:
            self._told(call, call.run, end)
        elif call.what == "execute" and end is not None and call.wait and call.answered - call.sent >= call.wait:
            self._in_time(call, end)

    def _told(self, call: Call, run: str, end: Step | None) -> None:
        if end is None or end.run is None:
            self._bad(Rule.FALSE_REPLY, f"{call.what} of run {run}: told {call.code}, the stream has no end of it")
            return
        error = end.run["error"]["code"] if end.run["error"] else None
        if (call.code, call.error) != (end.run["code"], error):
            self._bad(Rule.FALSE_REPLY, f"{call.what} of run {run}: told {call.code} {call.error}, it is {error}")
        if call.finished is not None and call.finished != end.run["finished"]:
            self._bad(Rule.FALSE_REPLY, f"run {run}: told {call.finished}, it is {end.run['finished']}")
        if end.stored - call.answered > 1:  # the clock that has the stream is that of the caller
            self._bad(Rule.FALSE_REPLY, f"run {run}: told of its end before it was stored")
        if call.what == "execute":
            self._in_time(call, end)

    def _in_time(self, call: Call, end: Step) -> None:
        late = call.answered - max(end.stored, call.sent)
        self.figures.slowest = max(self.figures.slowest, late)
        if late > self._plan.late_after:
            self._bad(Rule.LATE_REPLY, f"run {call.run}: its caller was answered {late:.1f} s after the end")

    # --- the outside world, schedules, read models -----------------------------------------------------

    def _results(self) -> None:
        """The action of a DONE run ran, and the result is that of the attempt that ended it."""
        begun: dict[str, Counter[int]] = defaultdict(Counter)
        finished: set[tuple[str, int]] = set()
        for execution in self._executions:
            if execution.ended:
                finished.add((execution.run, execution.attempt))
            else:
                begun[execution.run][execution.attempt] += 1
        for run, end in self._ends.items():
            if end is None or end.run is None or end.run["code"] != "DONE" or end.task in self._plan.untraced:
                continue
            attempt, result = end.run["attempt"], end.run["result"] or {}
            if (run, attempt) not in finished:
                self._bad(Rule.RESULT, f"run {run} is DONE, its attempt {attempt} never came to its end")
            if (result.get("run"), result.get("attempt")) != (run, attempt):
                self._bad(Rule.RESULT, f"run {run}, attempt {attempt}: the result is {result}")
        for run, attempts in begun.items():
            retried = sum(step.change == "retrying" for step in self._by_run.get(run, ()))
            self.figures.repeated += sum(attempts.values()) - retried > 1

    def _schedules(self) -> None:
        """Each tick is one run or recorded as skipped, and none is early."""
        for task, trigger in self._plan.triggers.items():
            steps = self._by_task.get(task, [])
            if not steps:
                continue
            created = datetime.fromisoformat(steps[0].created)
            schedule = schedule_of(trigger, created=created)
            if schedule is None:
                continue
            wanted = set(schedule.ticks(created, _instant(trigger["end"])))
            runs: Counter[datetime] = Counter()
            for step in steps:
                if step.change == "concluded" and step.run and step.run["tick"]:
                    runs[_instant(step.run["tick"]["due"])] += 1
                if step.change == "claimed" and step.run and step.run["tick"]:
                    due = _instant(step.run["tick"]["due"])
                    if step.stored < due.timestamp():
                        self._bad(Rule.TICK, f"task {task}: the tick of {due} began early")
            skipped = set(_skipped(schedule, steps))
            self.figures.skipped += len(skipped)
            for due, count in runs.items():
                if count > 1 or due not in wanted:
                    self._bad(Rule.TICK, f"task {task}: the tick of {due} ran {count} times, wanted: {due in wanted}")
            lost = wanted - set(runs) - skipped
            if lost:
                self._bad(Rule.TICK, f"task {task}: {len(lost)} ticks are lost, the first of {min(lost)}")
            for due in sorted(skipped & set(runs)):
                self._bad(Rule.TICK, f"task {task}: the tick of {due} ran and is recorded as skipped")

    def _read_models(self) -> None:
        """Every read model is the rebuilt one, and that one holds what the stream says."""
        rebuilt = self._rows.get("rebuilt", {})
        for model, tables in self._rows.items():
            for table in sorted(tables.keys() | rebuilt.keys()):
                live, anew = tables.get(table, {}), rebuilt.get(table, {})
                different = sorted(key for key in live.keys() | anew.keys() if live.get(key) != anew.get(key))
                if different:
                    sample = ", ".join(different[:3])
                    self._bad(Rule.READ_MODEL, f"{model}: {len(different)} rows of {table} differ, such as {sample}")
        if not rebuilt or not self._steps:
            return
        living = {task for task, steps in self._by_task.items() if steps[-1].change != "deleted"}
        wanted = {
            "task": {str(task) for task in living},
            "run": {
                str(step.sequence)
                for task in living
                for step in self._by_task[task]
                if step.change in {"concluded", "skipped"}
            },
        }
        for table in DERIVED:
            different = sorted(wanted[table] ^ rebuilt.get(table, {}).keys())
            if different:
                self._bad(Rule.READ_MODEL, f"rebuilt: {len(different)} rows of {table} are not those of the stream")

    def _at_rest(self) -> None:
        for rest in self._rest:
            self.figures.settled = rest.after
            for what, count in (
                ("commands", rest.commands), ("alarms", rest.alarms), ("unacknowledged commands", rest.unacknowledged),
                ("waiting calls", rest.waiting),
            ):  # fmt: skip
                if count:
                    self._bad(Rule.REST, f"{count} {what} are left")
            if self._steps and rest.last_sequence != self._steps[-1].sequence:
                self._bad(Rule.WRITE_LOST, f"the stream's last event is {rest.last_sequence}, not the last one read")

    def _doubts(self) -> Iterator[str]:
        if self.figures.accepted < self._plan.fewest_accepted:
            yield f"{self.figures.accepted} runs were accepted, {self._plan.fewest_accepted} at least are needed"
        for what in self._plan.faults:
            if not self.figures.faults[what]:
                yield f"there was no {what!r}"


OVERLAP = "another run is at work"


def _may_begin(step: Step) -> str | None:
    """Why an event may not be a task's first; None: it may."""
    if step.change != "created" or step.version != 1 or step.state != "READY" or step.run is not None:
        return "a task begins with its creation"
    return None


def _may_follow(before: Step, step: Step) -> str | None:
    """Why an event may not follow the task's event before it; None: it may."""
    if before.change == "deleted":
        return "the task is deleted"
    if step.version != before.version + 1:
        return f"version {step.version} follows version {before.version}"
    same_run = step.run_id is not None and step.run_id == before.run_id
    match step.change:
        case "edited" | "skipped":
            if step.run != before.run or step.state != before.state:
                return "it changes the run or the state"
        case "deleted":
            if before.is_outstanding:
                return "a run is at work"
        case "claimed":
            if step.state != "INPROGRESS" or not step.is_outstanding:
                return f"the task is {step.state}"
            if before.is_outstanding and not same_run:
                return OVERLAP
            if same_run and not before.is_outstanding:
                return "the run has ended"
        case "retrying" | "released":
            if not same_run or not before.is_outstanding or not _same_claim(before, step):
                return "the claim is another's"
        case "concluded":
            return _may_end(before, step, same_run=same_run)
        case _:
            return "it is of no kind that is known"
    return None


def _may_end(before: Step, step: Step, *, same_run: bool) -> str | None:
    run = step.run or {}
    if step.state not in ENDED or run.get("code") != step.state:
        return f"the task is {step.state}, the run {run.get('code')}"
    if same_run:
        if not before.is_outstanding:
            return "the run has ended"
        return None if _same_claim(before, step) else "the claim is another's"
    if before.is_outstanding:
        return OVERLAP
    return None if run.get("attempt") == 0 else "the run was never begun"


def _same_claim(before: Step, step: Step) -> bool:
    one, other = before.run or {}, step.run or {}
    return bool(one["claim"]["id"] == other["claim"]["id"] and one["attempt"] == other["attempt"])


def _subject_code(step: Step) -> str:
    return step.change if step.change in {"edited", "skipped", "deleted"} else step.state.lower()


def _skipped(schedule: Any, steps: list[Step]) -> Iterator[datetime]:
    for step in steps:
        if step.change == "skipped" and step.skipped:
            first, last = (_instant(step.skipped["result"][name]) for name in ("first", "last"))
            yield from schedule.ticks(first - timedelta(microseconds=1), last)


def _instant(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def _clock(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%H:%M:%S}"
