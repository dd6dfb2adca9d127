"""A large and uneven history, published to a broker as adapters and workers would have left it.

A few chains hold most of the tasks, a few actions most of theirs, and a few tasks thousands of runs. Published are
the first event of every task, the last of every run and some log lines; the events in between leave no trace in a
read model that is built later.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from runwire.domain import lifecycle
from runwire.domain.lifecycle import Definition
from runwire.domain.run import Command, Done, Failed, Outcome, RunError, Source
from runwire.domain.task import LogEntry, LogLevel, StateCode, Target
from runwire.messaging import codec, subjects
from runwire.messaging.broker import Bus

CHAINS = {1: 60, 2: 20, 3: 10, **dict.fromkeys(range(4, 14), 1)}
"""Percent of the tasks by chain."""
ACTIONS = {"export": 500, "http": 300, "bulk issue rewards": 150, "sync": 49, "audit once": 1}
"""Per mille of the tasks by action."""
CAMPAIGNS = 1000
LONG_HISTORIES = 20
"""Tasks with MANY_RUNS runs each, and MANY_LINES log lines."""
MANY_RUNS = 2000
MANY_LINES = 5000
RUNS_WITH_LINES = 3
"""The log lines of a task are of its first runs."""
FAILING = 0.1
"""Share of the runs that end as ERROR."""
IN_FLIGHT = 2000
"""Messages on their way before one is waited for."""
NOW = datetime(2026, 5, 26, 14, 35, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much of everything."""

    tasks: int
    runs: int

    @property
    def events(self) -> int:
        """Messages in EVENTS."""
        return self.tasks + self.runs


async def publish(bus: Bus, size: Size) -> int:
    """Publish it all; returns the number of log lines. Raises ValueError when the broker did not take everything."""
    for count, (subject, payload, headers) in enumerate(_events(size), start=1):
        if count % IN_FLIGHT and count != size.events:
            await bus.nc.publish(subject, payload, headers=headers)
        else:  # stored in order: this one is, so are those before it
            await bus.js.publish(subject, payload, headers=headers, timeout=60)
    stored = (await bus.js.stream_info(subjects.EVENTS)).state.messages
    if stored != size.events:
        msg = f"the broker stored {stored:,} of {size.events:,} events"
        raise ValueError(msg)
    return await _publish_lines(bus, size)


def long_histories(size: Size) -> range:
    """The tasks with many runs: they are of the first chain."""
    return range(1, 1 + min(LONG_HISTORIES, max(1, size.runs // (4 * MANY_RUNS))))


def _events(size: Size) -> Iterator[tuple[str, bytes, dict[str, str]]]:
    """Every event in an order as in life: tasks come into being over time, and run now and then."""
    dice = random.Random(1)
    long = long_histories(size)
    for task in range(1, size.tasks + 1):
        template = _Template.of(task, dice, first=task in long)
        yield template.created(task)
        left, sharing = size.runs - template.published, size.tasks - task + 1
        runs = MANY_RUNS if task in long else left // sharing + (dice.random() < left % sharing / sharing)
        for number in range(runs):
            # Half of many: neither half outgrows what the stream keeps.
            failed = number % 2 == 0 if task in long else dice.random() < FAILING
            yield template.concluded(task, number, failed=failed)


def run_id(task: int, number: int) -> str:
    """The id of a task's run, counted from 0: looks like one of ours."""
    return f"0197f2a0-7c1e-7abc-9{task % 4096:03x}-{number:012x}"


class _Template:
    """The events of tasks that differ in their ids only: made once by the real code, and filled in as text."""

    published = 0
    """Ends of runs so far."""
    _known: dict[tuple[int, str, int | None], _Template] = {}  # noqa: RUF012 - a memory, shared on purpose
    TASK, RUN, CAMPAIGN = 7_777_777_777, "0197f2a0-7c1e-7abc-9def-00000000face", 888_888

    def __init__(self, chain: int, action: str, campaign: int | None) -> None:
        target = {"action": action, "export_index": "runs"} | ({"campaign": campaign} if campaign else {})
        definition = Definition(
            chain=chain, desc="Part of a large history", target=Target.model_validate(target), trigger={}
        )
        self._created = lifecycle.create(definition, self.TASK, NOW)
        command = Command(
            chain=chain, task=self.TASK, run=self.RUN, source=Source.HTTP, accepted=NOW, sequence=1, delivery=1
        )
        claimed = lifecycle.claim(self._created, command, claim_id="c" * 32, now=NOW)
        error = RunError(code="handler_error", message="Something that went wrong on the other side")
        outcomes: dict[StateCode, Outcome] = {StateCode.DONE: Done({"rows": 1200}), StateCode.ERROR: Failed(error)}
        ended = {code: lifecycle.conclude(claimed, outcome, now=NOW) for code, outcome in outcomes.items()}
        self._ended = {code: codec.encode(document) for code, document in ended.items()}
        self._headers = {code: codec.event_headers(document, "e" * 32, NOW) for code, document in ended.items()}
        self._chain = chain

    @classmethod
    def of(cls, task: int, dice: random.Random, *, first: bool) -> _Template:
        """The template of a task: chain, action and campaign as the dice fall."""
        chain = 1 if first else dice.choices(list(CHAINS), list(CHAINS.values()))[0]
        action = dice.choices(list(ACTIONS), list(ACTIONS.values()))[0]
        campaign = 1 + task % CAMPAIGNS if dice.random() < 0.8 else None
        key = (chain, action, campaign)
        if key not in cls._known:
            cls._known[key] = cls(*key)
        return cls._known[key]

    def created(self, task: int) -> tuple[str, bytes, dict[str, str]]:
        """The first event of a task."""
        payload = codec.encode(self._created).replace(str(self.TASK).encode(), str(task).encode())
        return f"tasks.evt.{self._chain}.{task}.ready", payload, codec.event_headers(self._created, "e" * 32, NOW)

    def concluded(self, task: int, number: int, *, failed: bool) -> tuple[str, bytes, dict[str, str]]:
        """The last event of a run of a task."""
        type(self).published += 1
        code = StateCode.ERROR if failed else StateCode.DONE
        run = run_id(task, number).encode()
        payload = self._ended[code].replace(str(self.TASK).encode(), str(task).encode())
        payload = payload.replace(self.RUN.encode(), run)
        return f"tasks.evt.{self._chain}.{task}.{code.value.lower()}", payload, self._headers[code]


async def _publish_lines(bus: Bus, size: Size) -> int:
    """Ten log lines for every tenth task, and many for those with many runs."""
    dice, count = random.Random(2), 0
    long = long_histories(size)
    for task in (*long, *range(long.stop, size.tasks, 10)):
        chain = 1 if task in long else dice.choices(list(CHAINS), list(CHAINS.values()))[0]
        for number in range(MANY_LINES if task in long else 10):
            entry = LogEntry(
                date=NOW,
                level=LogLevel.INFO,
                message=f"line {number} of what it had to say",
                run=run_id(task, number % RUNS_WITH_LINES),
            )
            count += 1
            if count % IN_FLIGHT:
                await bus.nc.publish(subjects.log(chain, task), codec.encode_log(entry))
            else:
                await bus.js.publish(subjects.log(chain, task), codec.encode_log(entry), timeout=60)
    await bus.nc.flush()
    return count
