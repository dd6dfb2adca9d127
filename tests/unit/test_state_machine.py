"""The course of runs under every race that hypothesis comes upon, and the ways to break it that it has to find.

``make state-machine`` (``STATE_MACHINE_EXAMPLES`` says how many) looks for
longer, at other places each time. What it prints when it fails is a function body: paste it below as a test of its
own, named after what went wrong, so that it is tried for ever.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from nats.js import JetStreamContext

from runwire.domain import lifecycle
from runwire.worker.consumer import Consumer
from runwire.worker.watch import Watch
from tests.chaos.mutated import MUTANTS
from tests.simulation.machine import Machine

EXAMPLES = int(os.environ.get("STATE_MACHINE_EXAMPLES", "0"))
QUICK = settings(
    max_examples=EXAMPLES or 120,
    stateful_step_count=50,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
MUTABLE: tuple[tuple[object, str], ...] = (
    (JetStreamContext, "publish"),
    (Consumer, "_dispose"),
    (Watch, "_look"),
    (lifecycle, "still_claimed"),
    (lifecycle, "has_ended"),
)
"""What the mutants below put something else in the place of."""


@pytest.fixture(autouse=True)
def _silence() -> Iterator[None]:
    """A thousand runs that are fenced off have nothing to say."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.timeout(0 if EXAMPLES else 120)
def test_no_promise_is_broken_whatever_is_lost_delayed_repeated_or_killed() -> None:
    run_state_machine_as_test(Machine, settings=QUICK)


# --- what was found -----------------------------------------------------------------------------------


def test_a_command_that_may_still_be_on_its_way_is_not_called_refused() -> None:
    """Its first try came late, when the run that stood in the way of the second one was over."""
    state = Machine()
    state.execute(adapter=0, door="http", task=0)
    state.pass_all()
    state.execute(adapter=1, door="http", task=0)
    state.delay(number=0)
    for _ in range(3):
        state.wait(seconds=1.0)
        state.pass_all()
    state.deliver(worker=0, number=0)
    state.pass_all()
    state.finish(number=0, how="done")
    state.pass_all()
    state.arrive_late(number=0)
    state.teardown()


# --- what has to be found -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mutant", "rule"),
    [
        ("no-fence", "a run has two ends|that may not follow"),
        ("acknowledged-first", "has no event|has no end"),
        ("over-a-cancel", "a run has two ends|that may not follow"),
        ("no-ring", "a run has two ends"),
    ],
)
def test_what_the_promises_rest_on_is_missed(mutant: str, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for where, name in MUTABLE:
        monkeypatch.setattr(where, name, getattr(where, name))  # so that it is put back
    breaking: Callable[[], None] = MUTANTS[mutant]
    breaking()
    hunt = settings(QUICK, max_examples=3000, derandomize=True, phases=[Phase.generate], report_multiple_bugs=False)
    with pytest.raises(AssertionError, match=rule):
        run_state_machine_as_test(Machine, settings=hunt)
