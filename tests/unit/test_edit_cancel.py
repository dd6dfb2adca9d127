"""Edits, deletions and cancels in the state machine; and what holds after any sequence of everything."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from runwire.domain import lifecycle
from runwire.domain.errors import InvalidFields, MalformedBody
from runwire.domain.lifecycle import Begin, Change, Definition, Document, EndLost, Finished, Reject, Terms
from runwire.domain.run import Command, Done, ErrorCode, Failed, RunError, Source
from runwire.domain.task import RetryPolicy, StateCode, Target, Task
from runwire.http.etag import if_match
from runwire.http.schemas import parse_patch, patched
from runwire.messaging import codec, subjects

NOW = datetime(2026, 5, 26, 14, 35, tzinfo=UTC)
BOOM = Failed(RunError(code="handler_error", message="boom"), retryable=True)


def definition(action: str = "a", **fields: object) -> Definition:
    return Definition(
        chain=1764, desc=f"d {action}", target=Target.model_validate({"action": action}), **{"trigger": {}, **fields}
    )


def new_task(**fields: object) -> Document:
    return lifecycle.create(definition(**fields), 7, NOW)


def command(run: str = "r1", *, sequence: int = 1, delivery: int = 1) -> Command:
    return Command(chain=1764, task=7, run=run, source=Source.HTTP, accepted=NOW, sequence=sequence, delivery=delivery)


def claimed(document: Document, asked: Command | None = None, claim_id: str = "c1") -> Document:
    return lifecycle.claim(document, asked or command(), claim_id=claim_id, now=NOW)


def edited(document: Document, action: str = "b", **fields: object) -> Document:
    return lifecycle.edit(document, definition(action, **fields), by="someone", now=NOW)


def decide(document: Document, asked: Command, *, verified: bool = False):
    return lifecycle.decide(document, asked, now=NOW, max_deliveries=3, verified=verified)


# --- edit ----------------------------------------------------------------------------------------------


def test_an_edit_changes_the_definition_and_nothing_else() -> None:
    done = lifecycle.conclude(claimed(new_task()), Done({"n": 1}), now=NOW)
    after = edited(done, "b", timeout=5, retry=RetryPolicy(attempts=2), trigger={"segment": 1}, debug="x")
    task = after.task
    assert (task.desc, task.target.action, task.timeout, task.retry.attempts) == ("d b", "b", 5, 2)
    assert (task.trigger, task.debug) == ({"segment": 1}, "x")
    assert (task.version, task.state, task.result) == (done.task.version + 1, done.task.state, {"n": 1})
    assert (after.run, after.recent_runs) == (done.run, done.recent_runs)
    assert (after.change, after.by, after.started_with) == (Change.EDITED, "someone", None)


def test_an_edit_of_a_running_task_takes_effect_after_the_run() -> None:
    working = claimed(new_task(timeout=1, retry=RetryPolicy(attempts=3)))
    after = edited(edited(working, "b"), "c", timeout=9)
    assert after.task.target.action == "c"
    assert (after.task_in_force.target.action, after.task_in_force.timeout) == ("a", 1)
    assert after.task_in_force.version == after.task.version
    waiting = lifecycle.retry(after, BOOM, delay=0, now=NOW, log_seq=0)
    again = claimed(lifecycle.release(claimed(waiting), now=NOW, log_seq=0))
    assert again.task_in_force.target.action == "a"
    assert lifecycle.delay_before_retry(again.task_in_force, again.run, BOOM) is not None
    ended = lifecycle.conclude(again, Done(None), now=NOW)
    assert (ended.started_with, ended.task_in_force.target.action, ended.task.timeout) == (None, "c", 9)
    assert claimed(ended, command("r2", sequence=2)).task_in_force.target.action == "c"


def test_a_kept_definition_survives_the_wire() -> None:
    after = edited(claimed(new_task(retry=RetryPolicy(attempts=3, on=("timeout",)), trigger={"segment": [1]})))
    assert codec.decode(codec.encode(after)) == after


def test_a_document_of_an_older_version_has_nothing_kept() -> None:
    payload = codec.encode(new_task()).replace(b',"started_with":null', b"")
    assert codec.decode(payload).started_with is None


def test_edits_and_deletions_have_subjects_of_their_own() -> None:
    done = lifecycle.conclude(claimed(new_task()), Done(None), now=NOW)
    assert subjects.event(done) == "tasks.evt.1764.7.done"
    assert subjects.event(edited(done)) == "tasks.evt.1764.7.edited"
    assert subjects.event(lifecycle.delete(done, by="x")) == "tasks.evt.1764.7.deleted"
    assert codec.event_headers(edited(done), "id", NOW)["ce-type"] == "dev.runwire.task.edited.v1"


# --- cancel --------------------------------------------------------------------------------------------


def test_a_run_cancelled_in_the_queue_has_ended_without_ever_starting() -> None:
    done = lifecycle.conclude(claimed(new_task()), Done({"n": 1}), now=NOW)
    later = NOW + timedelta(seconds=9)
    after = lifecycle.cancel(done, lifecycle.queued(command("r2", sequence=2)), by="someone", now=later)
    run = after.run
    assert (run.id, run.attempt, run.started, run.finished, run.accepted) == ("r2", 0, None, later, NOW)
    assert (run.code, run.error.code, run.source) == (StateCode.ERROR, ErrorCode.CANCELLED, Source.HTTP)
    assert (after.task.state.code, after.task.state.last_modified) == (StateCode.ERROR, later)
    assert after.task.state.last_run_date == done.task.state.last_run_date
    assert (after.task.result, after.by, after.change) == ({"n": 1}, "someone", Change.CONCLUDED)
    assert decide(after, command("r2", sequence=2)) == Finished()
    assert decide(after, command("r3", sequence=3)) == Begin()


def test_a_first_run_cancelled_in_the_queue_leaves_a_task_that_never_ran() -> None:
    after = lifecycle.cancel(new_task(), lifecycle.queued(command()), by="someone", now=NOW)
    assert (after.task.state.code, after.task.state.last_run_date) == (StateCode.ERROR, None)


def test_a_second_cancelled_queued_run_is_a_state_change_too() -> None:
    first = lifecycle.cancel(new_task(), lifecycle.queued(command()), by="x", now=NOW)
    later = NOW + timedelta(seconds=5)
    second = lifecycle.cancel(first, lifecycle.queued(command("r2", sequence=2)), by="x", now=later)
    assert second.task.state.last_modified == later


def test_a_cancelled_running_run_keeps_its_attempt_and_fences_its_worker() -> None:
    working = claimed(new_task())
    after = lifecycle.cancel(working, working.run, by="someone", now=NOW)
    assert (after.run.attempt, after.run.started, after.run.error.code) == (1, NOW, "cancelled")
    assert not lifecycle.still_claimed(after, "c1")
    assert lifecycle.is_taken_away(after, working.run)


def test_an_attempt_is_taken_away_by_an_end_a_deletion_or_a_later_attempt_only() -> None:
    new = new_task()
    working = claimed(new)
    assert not lifecycle.is_taken_away(new, working.run)
    assert not lifecycle.is_taken_away(working, working.run)
    assert not lifecycle.is_taken_away(edited(working), working.run)
    assert lifecycle.is_taken_away(claimed(working, command(delivery=2), "c2"), working.run)
    done = lifecycle.conclude(working, Done(None), now=NOW)
    assert lifecycle.is_taken_away(claimed(done, command("r2", sequence=2)), working.run)
    assert lifecycle.is_taken_away(lifecycle.delete(done, by="x"), working.run)


# --- delete --------------------------------------------------------------------------------------------


def test_a_deletion_is_the_last_version() -> None:
    after = lifecycle.delete(new_task(), by="someone")
    assert (after.change, after.by, after.task.version) == (Change.DELETED, "someone", 2)
    assert isinstance(decide(after, command()), Reject)


def test_a_running_task_cannot_be_deleted() -> None:
    with pytest.raises(ValueError, match="busy with run r1"):
        lifecycle.delete(claimed(new_task()), by="x")


def test_the_command_of_a_run_that_ended_before_the_deletion_is_no_dead_letter() -> None:
    working = claimed(new_task())
    after = lifecycle.delete(lifecycle.cancel(working, working.run, by="x", now=NOW), by="x")
    assert decide(after, command(delivery=2)) == Finished()


# --- the patch -----------------------------------------------------------------------------------------


def task_with(**fields: object) -> Task:
    return new_task(**fields).task


def apply(task: Task, patch: bytes) -> Definition:
    return patched(task, parse_patch(patch))


def test_a_patch_changes_what_it_names_and_null_takes_away() -> None:
    task = lifecycle.create(
        Definition(
            chain=1764,
            desc="d",
            target=Target.model_validate({"action": "a", "keep": {"x": 1, "y": [None]}, "drop": 2}),
            trigger={"segment": 1},
            debug="on",
            timeout=5,
            retry=RetryPolicy(attempts=3, backoff=1),
        ),
        7,
        NOW,
    ).task
    result = apply(
        task,
        b'{"target": {"drop": null, "keep": {"x": 2}, "new": "n"}, "trigger": {"segment": null}, "debug": null,'
        b' "timeout": null, "retry": {"attempts": 4}}',
    )
    assert result.target.parameters == {"keep": {"x": 2, "y": [None]}, "new": "n"}
    assert (result.desc, result.target.action, result.trigger, result.debug) == ("d", "a", {}, None)
    assert (result.timeout, result.retry.attempts, result.retry.backoff) == (3600, 4, 1)
    assert apply(task, b'{"retry": null}').retry is None


@pytest.mark.parametrize(
    ("patch", "pointers"),
    [
        (b'{"id": 7}', ["/id"]),
        (b'{"chain": 1764}', ["/chain"]),
        (b'{"state": {}, "version": 2, "lo/gs": []}', ["/state", "/version", "/lo~1gs"]),
        (b'{"desc": null}', ["/desc"]),
        (b'{"target": null}', ["/target"]),
        (b'{"target": {"action": ""}}', ["/target/action"]),
        (b'{"target": 5}', ["/target"]),
        (b'{"timeout": 0}', ["/timeout"]),
        (b'{"trigger": {"unknown": 1}}', ["/trigger/unknown"]),
        (b'{"retry": {"attempts": 0}}', ["/retry/attempts"]),
        (b"[]", [""]),
        (b'"text"', [""]),
    ],
)
def test_what_would_come_of_a_bad_patch_is_pointed_at(patch: bytes, pointers: list[str]) -> None:
    with pytest.raises(InvalidFields) as refused:
        apply(task_with(), patch)
    assert [error.pointer for error in refused.value.errors] == pointers


@pytest.mark.parametrize("patch", [b"", b"{", b"\xff", b'{"desc": NaN}', b"[" * 5000, b'{"desc": "\\ud800"}'])
def test_a_patch_that_is_no_json_is_refused(patch: bytes) -> None:
    with pytest.raises(MalformedBody):
        parse_patch(patch)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
FIELD = st.sampled_from(["desc", "target", "trigger", "debug", "timeout", "retry", "id", "x"])


@given(patch=JSON | st.dictionaries(FIELD, JSON))
def test_any_patch_is_a_definition_or_a_clear_refusal(patch: object) -> None:
    import json

    try:
        result = apply(task_with(), json.dumps(patch).encode())
    except (InvalidFields, MalformedBody):
        return
    assert isinstance(result, Definition)


class Request:
    """What :func:`if_match` looks at."""

    def __init__(self, *values: str) -> None:
        from starlette.datastructures import Headers

        self.headers = Headers(raw=[(b"if-match", value.encode("latin-1")) for value in values])


@pytest.mark.parametrize(
    ("values", "fits"),
    [
        ((), True),
        (("*",), True),
        (('"7"',), True),
        (('"6"',), False),
        (('"6", "7"',), True),
        (('"6"', '"7"'), True),
        ((' ,"7" , ',), True),
        (('W/"7"',), False),
        (('"7,8"',), False),
        (('""',), False),
    ],
)
def test_if_match_is_a_strong_comparison(values: tuple[str, ...], fits: bool) -> None:
    from runwire.domain.errors import Stale

    condition = if_match(Request(*values))
    if fits:
        condition.require(7)
    else:
        with pytest.raises(Stale):
            condition.require(7)


@pytest.mark.parametrize("value", ["7", "", '"7', '"7" "8"', '*, "7"', 'w/"7"', '"a b"', ","])
def test_a_malformed_if_match_is_refused(value: str) -> None:
    from runwire.domain.errors import MalformedIfMatch

    with pytest.raises(MalformedIfMatch):
        if_match(Request(value))


# --- any sequence of everything ------------------------------------------------------------------------


class Life(RuleBasedStateMachine):
    """A task, one command at most, and whoever may change the task, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.document = new_task()
        self.events = [self.document]
        self.command: Command | None = None
        self.commands = 0
        self.edits = 0
        self.in_force: Terms | None = None
        """What the run that is not final was started with."""

    def append(self, document: Document) -> None:
        self.document = document
        self.events.append(document)
        if document.run is None or document.run.is_final:
            self.in_force = None

    @property
    def alive(self) -> bool:
        return self.document.change is not Change.DELETED

    @property
    def running(self) -> bool:
        return self.document.run is not None and not self.document.run.is_final

    @precondition(lambda self: self.command is None)
    @rule()
    def execute(self) -> None:
        self.commands += 1
        self.command = command(f"r{self.commands}", sequence=self.commands)

    @precondition(lambda self: self.command is not None)
    @rule(redelivered=st.booleans())
    def deliver(self, redelivered: bool) -> None:
        """A worker gets the command and does what it is told."""
        if redelivered:
            self.command = command(self.command.run, sequence=self.command.sequence, delivery=self.command.delivery + 1)
        decision = decide(self.document, self.command, verified=True)
        match decision:
            case Begin():
                if not self.running:
                    task = self.document.task
                    self.in_force = Terms(
                        target=task.target, trigger=task.trigger, timeout=task.timeout, retry=task.retry
                    )
                self.append(claimed(self.document, self.command, f"claim-{len(self.events)}"))
            case Finished() | Reject():
                self.command = None
            case EndLost():
                self.append(lifecycle.lost(self.document, now=NOW))
            case lifecycle.Exhausted():
                self.append(lifecycle.exhausted(self.document, now=NOW))

    @precondition(lambda self: self.running)
    @rule(how=st.sampled_from(["done", "failed", "retry", "release"]))
    def end_the_attempt(self, how: str) -> None:
        match how:
            case "done":
                self.append(lifecycle.conclude(self.document, Done(None), now=NOW))
            case "failed":
                self.append(lifecycle.conclude(self.document, BOOM, now=NOW))
            case "retry":
                self.append(lifecycle.retry(self.document, BOOM, delay=0, now=NOW, log_seq=0))
            case "release":
                self.append(lifecycle.release(self.document, now=NOW, log_seq=0))

    @precondition(lambda self: self.alive)
    @rule()
    def edit(self) -> None:
        self.edits += 1
        self.append(edited(self.document, f"action {self.edits}", timeout=self.edits))

    @precondition(lambda self: self.alive)
    @rule(removed=st.booleans())
    def cancel(self, removed: bool) -> None:
        """As messaging/cancellation.py does it, with and without a crash before the command is removed."""
        if self.running:
            self.append(lifecycle.cancel(self.document, self.document.run, by="x", now=NOW))
        elif self.command is not None and not lifecycle.has_ended(self.document, self.command.run):
            self.append(lifecycle.cancel(self.document, lifecycle.queued(self.command), by="x", now=NOW))
        if removed:
            self.command = None

    @precondition(lambda self: self.running)
    @rule()
    def lose_the_command(self) -> None:
        self.command = None

    @precondition(lambda self: self.alive and not self.running)
    @rule(really=st.integers(0, 9))
    def delete(self, really: int) -> None:
        if really == 0:
            self.append(lifecycle.delete(self.document, by="x"))

    @invariant()
    def versions_count(self) -> None:
        assert [event.task.version for event in self.events] == list(range(1, len(self.events) + 1))

    @invariant()
    def a_run_ends_once_at_most(self) -> None:
        ended = [event.run.id for event in self.events if event.change is Change.CONCLUDED]
        assert len(ended) == len(set(ended))

    @invariant()
    def a_run_goes_by_what_it_was_started_with(self) -> None:
        if self.running:
            task = self.document.task_in_force
            assert dict(self.in_force) == {name: getattr(task, name) for name in Terms.model_fields}
        else:
            assert self.document.started_with is None

    @invariant()
    def no_edit_is_lost(self) -> None:
        assert self.document.task.target.action == (f"action {self.edits}" if self.edits else "a")

    @invariant()
    def the_task_follows_its_run(self) -> None:
        run, state = self.document.run, self.document.task.state
        assert state.code == (run.code if run else StateCode.READY)
        assert (state.last_run_date is None) == (not any(event.run and event.run.started for event in self.events))

    @invariant()
    def nothing_follows_a_deletion(self) -> None:
        assert all(event.change is not Change.DELETED for event in self.events[:-1])

    @invariant()
    def attempts_have_no_gaps(self) -> None:
        attempts: dict[str, list[int]] = {}
        for event in self.events:
            if event.change is Change.CLAIMED:
                attempts.setdefault(event.run.id, []).append(event.run.attempt)
        assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in attempts.values())


TestLife = Life.TestCase
