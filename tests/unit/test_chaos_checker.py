"""The checker finds what histories are made to show, and nothing in a history that is all right."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from runwire.domain import lifecycle
from runwire.domain.lifecycle import Definition, Document
from runwire.domain.run import Command, Done, Failed, RunError, Source, Tick
from runwire.domain.task import Target
from runwire.messaging import codec, subjects
from tests.chaos.checker import Rule, check
from tests.chaos.history import Call, Event, Execution, Fault, History, Plan, Record, Rest, Rows

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
CHAIN = 1764


class Story:
    """A history that is made event by event, by the code that makes them in life."""

    def __init__(self, **plan: object) -> None:
        self.records: list[Record] = [Plan(seed=1, chain=CHAIN, **plan)]
        self.documents: dict[int, Document] = {}
        self.sequence = 0
        self.commands = 0

    def at(self, seconds: float) -> datetime:
        return NOW + timedelta(seconds=seconds)

    def append(self, document: Document, *, event_id: str | None = None, when: float | None = None) -> Document:
        """Append an event, whether it may follow or not."""
        self.sequence += 1
        stored = self.at(self.sequence if when is None else when)
        headers = codec.event_headers(document, event_id or f"event-{self.sequence}", stored)
        self.records.append(
            Event(
                sequence=self.sequence,
                subject=subjects.event(document),
                stored=stored.timestamp(),
                headers=headers,
                document=document.model_dump(mode="json"),
            )
        )
        self.documents[document.task.id] = document
        return document

    def create(self, task: int = 1, trigger: dict | None = None) -> Document:
        definition = Definition(chain=CHAIN, desc="x", target=Target(action="probe"), trigger=trigger or {})
        return self.append(lifecycle.create(definition, task, NOW), when=0)

    def command(self, run: str, task: int = 1, *, delivery: int = 1, **fields: object) -> Command:
        self.commands += 1
        given = {"source": Source.HTTP, **fields}
        return Command(
            chain=CHAIN, task=task, run=run, accepted=NOW, sequence=self.commands, delivery=delivery, **given
        )

    def claim(self, run: str, task: int = 1, *, when: float | None = None, **fields: object) -> Document:
        command = self.command(run, task, **fields)
        document = lifecycle.claim(self.documents[task], command, claim_id=f"claim-{self.sequence}", now=NOW)
        attempt = document.run.attempt
        self.records += [Execution(run=run, attempt=attempt, pid=1, at=0, ended=ended) for ended in (False, True)]
        return self.append(document, when=when)

    def done(self, claimed: Document) -> Document:
        run = claimed.run
        return self.append(lifecycle.conclude(claimed, Done({"run": run.id, "attempt": run.attempt}), now=NOW))

    def call(self, run: str | None, outcome: str = "accepted", task: int = 1, **fields: object) -> None:
        given = {"door": "http", "what": "execute", "sent": NOW.timestamp(), "answered": self.at(5).timestamp()}
        self.records.append(Call(task=task, run=run, outcome=outcome, **(given | fields)))

    def run(self, run: str = "r1", task: int = 1) -> Document:
        """A run as it should be, with its call."""
        self.call(run, task=task, key=run)
        return self.done(self.claim(run, task))

    def broken(self) -> set[Rule]:
        return {violation.rule for violation in check(History(self.records)).violations}


@pytest.fixture
def story() -> Story:
    made = Story()
    made.create()
    return made


def test_a_history_in_which_all_is_well_has_no_violation(story: Story) -> None:
    story.run("r1")
    story.run("r2")
    verdict = check(History(story.records))
    assert verdict.is_good
    assert (verdict.figures.calls, verdict.figures.accepted, verdict.figures.runs) == (2, 2, 2)
    assert verdict.figures.ends == {"DONE": 2}


def test_a_second_attempt_after_a_crash_is_well_and_counts_as_repeated(story: Story) -> None:
    story.call("r1", key="k")
    story.claim("r1")
    story.done(story.claim("r1", delivery=2))
    verdict = check(History(story.records))
    assert verdict.is_good
    assert verdict.figures.repeated == 1


def test_an_accepted_run_without_an_event_is_lost(story: Story) -> None:
    story.call("r1", key="k")
    assert story.broken() == {Rule.LOST}


def test_a_run_without_an_end_is_stuck(story: Story) -> None:
    story.call("r1", key="k")
    story.claim("r1")
    assert story.broken() == {Rule.STUCK}


def test_two_ends_of_a_run_are_found(story: Story) -> None:
    ended = story.run("r1")
    story.append(ended.model_copy(update={"task": ended.task.model_copy(update={"version": ended.task.version + 1})}))
    assert Rule.TWO_ENDS in story.broken()


def test_a_run_that_begins_again_after_another_one_has_two_ends(story: Story) -> None:
    story.run("r1")
    story.run("r2")
    story.done(story.claim("r1"))
    assert {Rule.TWO_ENDS, Rule.ATTEMPTS} == story.broken()


def test_an_end_over_a_cancelled_run_is_found(story: Story) -> None:
    story.call("r1", key="k")
    claimed = story.claim("r1")
    story.append(lifecycle.cancel(claimed, claimed.run, by="x", now=NOW))
    late = lifecycle.conclude(story.documents[1], Done({"run": "r1", "attempt": 1}), now=NOW)
    story.append(late)
    assert {Rule.TWO_ENDS, Rule.TRANSITION} <= story.broken()


def test_the_end_of_an_attempt_that_was_fenced_is_found(story: Story) -> None:
    story.call("r1", key="k")
    first = story.claim("r1")
    second = story.claim("r1", delivery=2)
    stale = lifecycle.conclude(second.model_copy(update={"run": first.run}), Done(None), now=NOW)
    story.append(stale)
    assert {Rule.ATTEMPTS, Rule.TRANSITION} <= story.broken()


def test_two_runs_of_a_task_at_once_are_found(story: Story) -> None:
    story.call("r1", key="k")
    story.call("r2", key="l")
    first = story.claim("r1")
    second = story.claim("r2")
    story.done(second)
    after = story.documents[1]
    story.append(lifecycle.conclude(after.model_copy(update={"run": first.run}), Done({}), now=NOW))
    assert Rule.OVERLAP in story.broken()


def test_a_run_that_nobody_asked_for_is_a_phantom(story: Story) -> None:
    story.done(story.claim("r1"))
    assert story.broken() == {Rule.PHANTOM}


def test_a_refused_call_explains_no_run(story: Story) -> None:
    story.call(None, "refused", key="k")
    story.done(story.claim("r1"))
    assert story.broken() == {Rule.PHANTOM}


def test_an_unknown_call_explains_one_run_and_demands_none(story: Story) -> None:
    story.call(None, "unknown", key="k")
    assert story.broken() == set()
    story.done(story.claim("r1"))
    assert story.broken() == set()
    story.done(story.claim("r2"))
    assert story.broken() == {Rule.PHANTOM}


def test_a_command_on_the_bus_explains_the_run_it_named_only(story: Story) -> None:
    story.call("r1", "unknown", door="bus")
    story.done(story.claim("r1", source=Source.BUS))
    assert story.broken() == set()
    story.done(story.claim("r2", source=Source.BUS))
    assert story.broken() == {Rule.PHANTOM}


def test_a_key_with_two_runs_is_found(story: Story) -> None:
    story.call("r1", key="k")
    story.call("r2", key="k")
    story.done(story.claim("r1"))
    story.done(story.claim("r2"))
    assert story.broken() == {Rule.KEY_TWICE}


@pytest.mark.parametrize(
    "told",
    [{"code": "ERROR", "error": "timeout"}, {"code": "DONE", "finished": "2026-11-24T11:00:00Z"}],
)
def test_an_answer_that_is_not_what_the_stream_says_is_false(story: Story, told: dict) -> None:
    story.done(story.claim("r1"))
    story.call("r1", key="k", **told)
    assert story.broken() == {Rule.FALSE_REPLY}


def test_an_answer_about_the_end_of_a_run_without_one_is_false(story: Story) -> None:
    story.call("r1", key="k", code="DONE")
    story.claim("r1")
    assert story.broken() == {Rule.FALSE_REPLY, Rule.STUCK}


def test_an_answer_long_after_the_end_is_late(story: Story) -> None:
    story.done(story.claim("r1"))
    story.call("r1", key="k", code="DONE", answered=story.at(30).timestamp())
    assert story.broken() == {Rule.LATE_REPLY}


def test_a_202_to_a_caller_that_waited_long_past_the_end_is_late(story: Story) -> None:
    story.done(story.claim("r1"))
    story.call("r1", key="k", wait=15, answered=story.at(20).timestamp())
    assert story.broken() == {Rule.LATE_REPLY}


def test_a_202_to_a_caller_that_did_not_wait_is_not_late(story: Story) -> None:
    story.done(story.claim("r1"))
    story.call("r1", key="k", answered=story.at(20).timestamp())
    assert story.broken() == set()


def test_a_confirmed_edit_that_is_not_in_the_stream_is_lost(story: Story) -> None:
    story.call(None, what="edit", version=2, desc="other")
    assert story.broken() == {Rule.WRITE_LOST}


def test_a_gap_in_the_stream_is_a_lost_write(story: Story) -> None:
    story.sequence += 1
    story.run("r1")
    assert story.broken() == {Rule.WRITE_LOST}


def test_an_event_that_skips_a_version_is_no_legal_transition(story: Story) -> None:
    created = story.documents[1]
    task = created.task.model_copy(update={"version": 7})
    story.documents[1] = created.model_copy(update={"task": task})
    story.run("r1")
    assert story.broken() == {Rule.TRANSITION}


def test_nothing_may_follow_a_deletion(story: Story) -> None:
    story.append(lifecycle.delete(story.documents[1], by="x"))
    story.run("r1")
    assert story.broken() == {Rule.TRANSITION}


def test_an_event_that_is_stored_twice_is_found(story: Story) -> None:
    claimed = story.claim("r1")
    story.call("r1", key="k")
    done = lifecycle.conclude(claimed, Failed(RunError(code="x", message="y")), now=NOW)
    story.append(done, event_id="same")
    story.append(done, event_id="same")
    assert {Rule.TRANSITION, Rule.TWO_ENDS} <= story.broken()


def test_the_result_of_another_attempt_is_found(story: Story) -> None:
    story.call("r1", key="k")
    claimed = story.claim("r1")
    story.append(lifecycle.conclude(claimed, Done({"run": "r1", "attempt": 2}), now=NOW))
    assert story.broken() == {Rule.RESULT}


def test_a_run_that_is_done_without_its_action_is_found(story: Story) -> None:
    story.run("r1")
    story.records = [record for record in story.records if not isinstance(record, Execution)]
    assert story.broken() == {Rule.RESULT}


def rows(model: str, **tables: dict[str, str]) -> Rows:
    return Rows(model=model, tables=tables)


def test_a_read_model_that_lacks_a_row_is_found(story: Story) -> None:
    end = story.run("r1")
    assert end.run.is_final
    whole = {"task": {"1": "a"}, "run": {"3": "b"}}
    story.records += [rows("rebuilt", **whole), rows("adapter-1", **whole)]
    assert story.broken() == set()
    story.records.append(rows("adapter-2", task={"1": "a"}, run={}))
    assert story.broken() == {Rule.READ_MODEL}


def test_a_rebuilt_read_model_that_is_not_the_stream_is_found(story: Story) -> None:
    story.run("r1")
    same = {"task": {"1": "a"}, "run": {}}
    story.records += [rows("rebuilt", **same), rows("adapter-1", **same)]
    assert story.broken() == {Rule.READ_MODEL}


@pytest.mark.parametrize("what", ["commands", "alarms", "unacknowledged"])
def test_what_is_left_over_is_found(story: Story, what: str) -> None:
    left = {"commands": 0, "alarms": 0, "unacknowledged": 0, what: 1}
    story.records.append(Rest(after=1, last_sequence=1, **left))
    assert story.broken() == {Rule.REST}


TRIGGER = {"every": 10, "end": "2026-11-24T12:00:30Z"}


def scheduled(story: Story, seconds: int, *, began: float | None = None) -> None:
    run = f"sch-{seconds}-{story.sequence}"
    tick = Tick(version=1, due=story.at(seconds))
    story.done(story.claim(run, when=seconds + 1 if began is None else began, source=Source.SCHEDULE, tick=tick))


def test_ticks_that_all_ran_are_well() -> None:
    story = Story(triggers={1: TRIGGER})
    story.create(trigger=TRIGGER)
    for seconds in (10, 20, 30):
        scheduled(story, seconds)
    verdict = check(History(story.records))
    assert verdict.is_good
    assert verdict.figures.ticks == 3


@pytest.mark.parametrize("ran", [(10, 30), (10, 20, 20, 30), (10, 20, 25, 30)])
def test_a_tick_that_is_lost_doubled_or_made_up_is_found(ran: tuple[int, ...]) -> None:
    story = Story(triggers={1: TRIGGER})
    story.create(trigger=TRIGGER)
    for seconds in ran:
        scheduled(story, seconds)
    assert story.broken() == {Rule.TICK}


def test_a_tick_that_begins_early_is_found() -> None:
    story = Story(triggers={1: TRIGGER})
    story.create(trigger=TRIGGER)
    scheduled(story, 10, began=9.5)
    scheduled(story, 20)
    scheduled(story, 30)
    assert story.broken() == {Rule.TICK}


def test_a_run_with_too_little_in_it_proves_nothing() -> None:
    story = Story(fewest_accepted=2, faults=["kill worker", "kill broker"])
    story.create()
    story.run("r1")
    story.records.append(Fault(what="kill worker", whom="worker-1", at=0, seconds=0))
    verdict = check(History(story.records))
    assert not verdict.violations
    assert len(verdict.doubts) == 2
    assert not verdict.is_good


def test_a_history_can_be_saved_and_judged_again(story: Story, tmp_path: Path) -> None:
    story.run("r1")
    story.call("r2", key="l")
    history = History(story.records)
    history.save(tmp_path / "history.jsonl")
    assert check(History.load(tmp_path / "history.jsonl")) == check(history)
