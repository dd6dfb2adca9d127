"""What may happen, as rules of a state machine; hypothesis decides what does, and when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from tests.simulation.network import Flight
from tests.simulation.world import World

T = TypeVar("T")

ANY = st.integers(0, 11)
"""Which of those there are, counted round."""
REPEATED = 6
"""Runs of a task that may be asked for again: fewer than a document remembers."""
PAUSES = (1.0, 6.0, 30.0, 2000.0)


def pick(some: Sequence[T], number: int) -> T:
    return some[number % len(some)]


class Machine(RuleBasedStateMachine):
    """One installation: two tasks, two adapters, three workers, one broker."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    @property
    def flights(self) -> list[Flight]:
        return self.world.network.flights

    @property
    def commands(self) -> list[int]:
        return list(self.world.broker.commands.messages)

    # --- callers -----------------------------------------------------------------------------------------

    @rule(adapter=ANY, door=st.sampled_from(["http", "bus"]), task=ANY)
    def execute(self, adapter: int, door: str, task: int) -> None:
        task = pick(self.world.tasks, task)
        self.world.execute(adapter % 2, door, task, self.world.new_run(door, task))

    @precondition(lambda self: self.world.asked)
    @rule(adapter=ANY, number=ANY)
    def ask_again(self, adapter: int, number: int) -> None:
        door, task, run = pick(list(dict.fromkeys(self.world.asked))[-REPEATED:], number)
        self.world.execute(adapter % 2, door, task, run)

    @rule(adapter=ANY, task=ANY)
    def cancel(self, adapter: int, task: int) -> None:
        self.world.cancel(adapter % 2, pick(self.world.tasks, task))

    @rule(adapter=ANY, task=ANY, number=ANY)
    def edit(self, adapter: int, task: int, number: int) -> None:
        self.world.edit(adapter % 2, pick(self.world.tasks, task), f"edit {number}")

    @precondition(lambda self: len(self.world.asked) > 5)
    @rule(adapter=ANY, force=st.booleans())
    def delete(self, adapter: int, force: bool) -> None:
        self.world.delete(adapter % 2, self.world.tasks[0], force=force)

    @rule(adapter=ANY, door=st.sampled_from(["http", "bus"]), task=ANY, worker=ANY)
    def run(self, adapter: int, door: str, task: int, worker: int) -> None:
        """From one end to the other, if nothing stands in its way."""
        self.execute(adapter, door, task)
        self.world.pass_all()
        for sequence in self.commands:
            self.world.deliver(worker % 3, sequence)
        self.world.pass_all()
        for acting in list(self.world.acting):
            self.world.finish(acting, "done")
        self.world.pass_all()

    # --- workers -----------------------------------------------------------------------------------------

    @precondition(lambda self: self.commands)
    @rule(worker=ANY, number=ANY)
    def deliver(self, worker: int, number: int) -> None:
        self.world.deliver(worker % 3, pick(self.commands, number))

    @precondition(lambda self: self.world.acting)
    @rule(number=ANY, how=st.sampled_from(["done", "done", "fail", "retry"]))
    def finish(self, number: int, how: str) -> None:
        self.world.finish(pick(self.world.acting, number), how)

    @rule(worker=ANY)
    def kill(self, worker: int) -> None:
        self.world.kill(worker % 3)

    @precondition(lambda self: self.world.acting)
    @rule(number=ANY)
    def stop(self, number: int) -> None:
        self.world.stop(self.world.workers.index(pick(self.world.acting, number).worker))

    # --- the broker and the network ----------------------------------------------------------------------

    @precondition(lambda self: self.flights)
    @rule(number=ANY, behind=st.sampled_from([0, 0, 0, 1, 2]))
    def let_pass(self, number: int, behind: int) -> None:
        self.world.let_pass(pick(self.flights, number), behind=behind)

    @precondition(lambda self: self.flights)
    @rule(number=ANY)
    def lose_answer(self, number: int) -> None:
        self.world.lose_answer(pick(self.flights, number))

    @precondition(lambda self: self.flights)
    @rule(number=ANY)
    def lose(self, number: int) -> None:
        self.world.lose(pick(self.flights, number))

    @precondition(lambda self: any(flight.writes for flight in self.flights))
    @rule(number=ANY)
    def delay(self, number: int) -> None:
        self.world.delay(pick([flight for flight in self.flights if flight.writes], number))

    @precondition(lambda self: self.world.network.late)
    @rule(number=ANY)
    def arrive_late(self, number: int) -> None:
        self.world.arrive_late(pick(self.world.network.late, number))

    @precondition(lambda self: self.world.hints)
    @rule(number=ANY)
    def hear(self, number: int) -> None:
        self.world.hear(number % len(self.world.hints))

    @rule()
    def pass_all(self) -> None:
        self.world.pass_all()

    @rule()
    def go_on(self) -> None:
        """For a while all goes well."""
        for _ in range(3):
            self.world.loop.advance(0.6)
            self.world.pass_all()

    @rule()
    def crash_broker(self) -> None:
        self.world.broker.crash()

    @rule(seconds=st.sampled_from(PAUSES))
    def wait(self, seconds: float) -> None:
        self.world.loop.advance(seconds)

    # --- the end -----------------------------------------------------------------------------------------

    def teardown(self) -> None:
        try:
            self.world.heal()
            found = self.world.violations()
        finally:
            self.world.close()
        errors = [str(context.get("exception") or context["message"]) for context in self.world.loop.errors]
        assert not found, "\n".join(f"{violation.rule}: {violation.detail}" for violation in found)
        assert not errors, errors
