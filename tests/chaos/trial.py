"""One run from beginning to end: start, call, strike, heal, collect."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from benchmarks.children import Children
from runwire.messaging.broker import Bus
from tests.chaos import collect, nemesis
from tests.chaos.callers import WAIT, Callers
from tests.chaos.history import Call, Fault, History, Plan
from tests.chaos.nemesis import KINDS
from tests.chaos.stack import BROKER, Stack

Note = Callable[[Fault | Call], None]
"""Takes what is done to the system, and what was asked of it meanwhile."""
CHAIN = 1764
LATE_AFTER = 8.0
"""Seconds: longer than any fault with all that it takes to recover, shorter than callers wait."""
LONGEST_RUNS = (0, 0, 0.02, 0.1, 0.4, 1.5)
"""Seconds that the runs of a task take, in turn."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """How much of everything."""

    seed: int
    seconds: float
    """Of faults."""
    http: int = 20
    """Callers over HTTP."""
    bus: int = 6
    """Callers on the bus."""
    tasks: int = 80
    """Tasks that are called."""
    scheduled: int = 10
    """Tasks that run by themselves; half of them are called as well."""
    adapters: int = 2
    workers: int = 3
    kinds: Sequence[str] = KINDS
    pause: tuple[float, float] = nemesis.PAUSE
    """Seconds between two faults, from and to."""
    spared: Collection[str] = ()
    """Processes that are not ended."""
    call_pause: float = 0.1
    """Seconds between two calls of a caller over HTTP, at most."""
    first_task: int = 1
    after: int = 0
    """Sequence of the last event of before."""
    longest_runs: Sequence[float] = LONGEST_RUNS
    fewest_per_second: float = 3.0
    """Accepted runs per second of faults, below which the verdict is worth nothing."""
    late_after: float = LATE_AFTER
    untraced: Sequence[int] = ()
    """Tasks whose action is not the probe."""
    mutant: str | None = None
    tell: Callable[[str], None] = lambda _line: None
    """Called with each thing that happens."""

    async def run(self, folder: Path) -> History:
        """All of it, in a folder that is empty; the processes' own words stay there. Raises ChildFailed."""
        history = History()
        with Children() as children:
            stack = self.stack(children, folder)
            try:
                self.tell("starting")
                await stack.start()
                await self._run(stack, history)
            finally:
                await stack.close()
        return history

    def stack(self, children: Children, folder: Path) -> Stack:
        """What is tried."""
        return Stack(children, folder, adapters=self.adapters, workers=self.workers, mutant=self.mutant)

    async def make_faults(self, stack: Stack, note: Note) -> None:
        """Do what is to be done to it, and undo it; ``note`` is given every fault as it begins."""
        blows = nemesis.plan(self.seed, self.seconds, self.kinds, pause=self.pause)
        await nemesis.strike(stack, blows, note, spared=self.spared)

    async def _run(self, stack: Stack, history: History) -> None:
        healed = await self.strike(stack, history)
        bus = await self._connected(stack)
        try:
            self.tell("waiting until nothing is left")
            history.add(await collect.rest(bus, since=healed))
            await self._collect(stack, bus, history)
        finally:
            await bus.broker.stop()

    @property
    def all_tasks(self) -> range:
        """The ids of the tasks."""
        return range(self.first_task, self.first_task + self.tasks + self.scheduled)

    async def strike(self, stack: Stack, history: History) -> float:
        """Create the tasks, call them while everything is struck, heal; returns when that was: monotonic seconds."""
        called = list(self.all_tasks[: self.tasks + self.scheduled // 2])
        ticking = self.all_tasks[self.tasks :]
        callers = Callers(stack, CHAIN, called, self.seed, history.add, ticking=ticking, pause=self.call_pause)
        for task in self.all_tasks[: self.tasks]:
            await callers.create(task, self._body(task))
        history.add(
            Plan(
                seed=self.seed,
                chain=CHAIN,
                after=self.after,
                triggers=await self._create_scheduled(callers),
                late_after=self.late_after,
                fewest_accepted=int(self.seconds * self.fewest_per_second),
                faults=sorted(set(self.kinds)),
                untraced=list(self.untraced),
            )
        )
        self.tell(f"{self.http} callers over HTTP, {self.bus} on the bus; faults begin")
        callers.start(http=self.http, bus=self.bus)

        def note(record: Fault | Call) -> None:
            history.add(record)
            if isinstance(record, Fault):
                lasting = f" for {record.seconds:.1f} s" if record.seconds else ""
                self.tell(
                    f"{record.what}{'' if record.whom == BROKER else ' ' + record.whom.partition('-')[2]}{lasting}"
                )

        await self.make_faults(stack, note)
        healed = time.monotonic()
        self.tell("all is healed; the callers finish")
        await callers.finish()
        return healed

    async def _collect(self, stack: Stack, bus: Bus, history: History) -> None:
        self.tell("reading the streams, rebuilding the read model")
        async for event in collect.events(bus):
            history.add(event)
        async for letter in collect.dead_letters(bus):
            history.add(letter)
        async for rows in collect.read_models(bus, stack):
            history.add(rows)
        for execution in collect.executions(stack.traces):
            history.add(execution)

    async def _connected(self, stack: Stack) -> Bus:
        bus = Bus(stack.settings, "chaos")
        await bus.connect()
        return bus

    def _body(self, task: int, trigger: dict[str, Any] | None = None) -> dict[str, Any]:
        target = {
            "action": "plain probe" if task % 5 == 0 else "probe",
            "seconds": self.longest_runs[task % len(self.longest_runs)],
            "retry_every": 11 if task % 4 == 0 else 0,
        }
        retry = {"attempts": 3, "backoff": 0.2} if task % 4 == 0 else None
        body = {"desc": "as created", "target": target, "trigger": trigger or {}}
        return body | ({"retry": retry} if retry else {})

    async def _create_scheduled(self, callers: Callers) -> dict[int, dict[str, Any]]:
        end = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=int(self.seconds) + 2)
        triggers: dict[int, dict[str, Any]] = {}
        for number in range(self.scheduled):
            task = self.all_tasks[self.tasks + number]
            triggers[task] = {
                "every": 1 + number % 3,
                "end": end.isoformat().replace("+00:00", "Z"),
                "overlap": ("skip", "wait")[number % 2],
                "catch_up": ("latest", "all", "none")[number % 3],
            }
            await callers.create(task, self._body(task, triggers[task]))
        return triggers


async def run(trial: Trial, folder: Path) -> History:
    """As :meth:`Trial.run`, and given up when it hangs. Raises ChildFailed or TimeoutError, or an HTTPError."""
    longest = trial.seconds * 2 + WAIT + 4 * collect.LONGEST_DRAIN
    asyncio.get_running_loop().set_exception_handler(_ignore)
    async with asyncio.timeout(longest):
        return await trial.run(folder)


def _ignore(_loop: asyncio.AbstractEventLoop, _context: dict[str, Any]) -> None:
    """Tasks of nats-py that come to grief while what they connect to is being killed; callers see it themselves."""


FAILURES = (TimeoutError, httpx.HTTPError)
"""What ends a trial without a verdict, beside ChildFailed."""
