"""What a fault cost, as `make cluster` reckons it."""

from __future__ import annotations

from tests.chaos.history import Call, Event, Fault, History
from tests.cluster.stalls import Stall, stalls


def accepted(at: float, *, took: float = 0.1, joined: bool = False) -> Call:
    return Call(
        door="http", what="execute", task=1, run="r", sent=at - took, answered=at, outcome="accepted", joined=joined
    )


def ended(at: float) -> Event:
    return Event(sequence=1, subject="tasks.evt.1.1.done", stored=at, headers={}, document={"change": "concluded"})


def fault(at: float, what: str = "kill leader") -> Fault:
    return Fault(what=what, whom="broker-1", at=at, seconds=1)


def test_the_next_acceptance_is_of_a_run_that_was_asked_for_after_the_fault() -> None:
    history = History([fault(10), accepted(12, took=3), accepted(16), accepted(17), ended(13), ended(18)])
    assert stalls(history) == [Stall("kill leader", 1, (6, 6), silence=4, idle=4)]


def test_a_run_that_is_somebody_elses_was_not_accepted_now() -> None:
    (stall,) = stalls(History([fault(10), accepted(11, joined=True), accepted(15), ended(15)]))
    assert (stall.next, stall.silence) == ((5, 5), 5)


def test_what_comes_after_the_next_fault_is_that_ones_cost() -> None:
    history = History([fault(10), accepted(11), fault(12, "freeze broker"), accepted(19), accepted(20), ended(20)])
    assert [(stall.what, stall.silence) for stall in stalls(history)] == [("freeze broker", 7), ("kill leader", 1)]


def test_faults_of_one_kind_share_a_line_with_the_worst_of_them() -> None:
    history = History([fault(10), accepted(11), fault(20), accepted(25), accepted(30), ended(30)])
    (stall,) = stalls(history)
    assert (stall.times, stall.next, stall.silence) == (2, (3, 5), 9)
