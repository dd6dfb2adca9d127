"""``python -m tests.chaos.soak``: calls and faults for hours, and nothing grows.

One adapter, one worker and the broker live all the time, and are frozen and cut off only; the others are killed, too.
The time is cut into stretches with tasks of their own: at the end of each everything comes to rest, the checker judges
its events, and the tasks are deleted and forgotten, so that a soak takes no more room the longer it goes on.

Exit status 0: every promise was kept and every figure is flat; 1: not so; 2: too little happened to tell. The last
line is the verdict.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import httpx
import typer
import uvloop
from rich.console import Console

from benchmarks.children import ChildFailed, Children
from runwire.messaging import events, janitor
from runwire.messaging.broker import Bus
from tests.chaos import collect, flatness, plot, trial
from tests.chaos.checker import Violation, check
from tests.chaos.flatness import Finding
from tests.chaos.history import Fault, History, Plan, Rows
from tests.chaos.mutated import LEAKS
from tests.chaos.nemesis import KINDS
from tests.chaos.samples import Figure, Sampler
from tests.chaos.stack import BROKER, CREDENTIAL, Stack
from tests.chaos.trial import Trial

LASTING = ("adapter-1", "worker-1", BROKER)
"""The processes that live all the time."""
FAULTS = tuple(kind for kind in KINDS if kind != "kill broker")
STRETCH, SHORTEST = 600.0, 180.0
"""Seconds of faults until the checker judges; in a short soak, at least: every kind has its turn."""
FEWEST_PER_SECOND = 5.0
"""Accepted runs, below which the verdict is worth nothing."""
PAUSE = (9.0, 13.0)
"""Seconds between two faults: about five a minute."""
OF_DELETED = {"audit", "audited", "deleted"}
"""Tables about deleted tasks whose events were thrown away ahead of their time."""
SETTLED = 30.0
"""Seconds within which no call may be waiting any more when nobody calls."""
TASKS = 40
MOST_SHOWN = 20
"""Violations of which the details are printed."""


@dataclass(kw_only=True)
class Soak:
    """How long, and what came of it."""

    seed: int
    seconds: float
    mutant: str | None
    tell: Callable[[str], None]
    violations: list[Violation] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    accepted: int = 0
    events: int = 0
    repeated: int = 0
    kinds: set[str] = field(default_factory=set)
    """Of faults that happened."""
    faults: list[float] = field(default_factory=list)
    """When something was done to somebody, in seconds since the beginning."""
    findings: list[Finding] = field(default_factory=list)
    picture: str = ""
    """As SVG."""

    async def run(self, folder: Path) -> None:
        """All of it, in a folder that is empty. Raises ChildFailed, or one of ``trial.FAILURES``."""
        with Children() as children:
            stack = Stack(children, folder, mutant=self.mutant)
            try:
                self.tell("starting")
                await stack.start()
                await self._run(stack, folder)
            finally:
                await stack.close()

    async def _run(self, stack: Stack, folder: Path) -> None:
        bus = Bus(stack.settings, "soak")
        await bus.connect()
        sampler = Sampler(stack, bus)
        sampler.start()
        try:
            lasted = await self._stretches(stack, bus, sampler, folder)
        finally:
            await sampler.stop()
        await self._compare(stack, bus)
        await bus.broker.stop()
        self.findings = flatness.judge(sampler.samples, LASTING, lasted)
        self.doubts += [f"{name} did not live all the time" for name in flatness.restarted(sampler.samples, LASTING)]
        judged = {(finding.process, finding.figure) for finding in self.findings if finding.is_known}
        self.doubts += [
            f"too few samples of {process}: {figure}"
            for process in LASTING
            for figure in (Figure.MEMORY, Figure.DESCRIPTORS)
            if (process, figure) not in judged
        ]
        self.doubts += [f"there was no {kind!r}" for kind in FAULTS if kind not in self.kinds]
        if self.accepted < FEWEST_PER_SECOND * self.seconds:
            self.doubts.append(f"only {self.accepted:,} runs were accepted")
        self.picture = plot.draw(
            sampler.samples,
            LASTING,
            self.faults,
            f"seed {self.seed}: {self.accepted:,} runs, {len(self.faults)} faults",
        )

    async def _stretches(self, stack: Stack, bus: Bus, sampler: Sampler, folder: Path) -> float:
        """One after the other; returns how long they took."""
        count = max(1, min(int(self.seconds // SHORTEST), 4), round(self.seconds / STRETCH))
        after = 0
        for number in range(count):
            stretch = Trial(
                seed=self.seed + number, seconds=self.seconds / count, tasks=TASKS, http=4, bus=2, kinds=FAULTS,
                spared=LASTING[:2], pause=PAUSE, first_task=1 + number * 100, after=after, call_pause=0.25,
                tell=self.tell,
            )  # fmt: skip
            history = await self._stretch(stretch, stack, bus, sampler)
            if self._judge(history):
                history.save(folder / f"history-{number + 1}.jsonl")
                self.tell(f"history: {folder / f'history-{number + 1}.jsonl'}")
            await self._forget(stretch, stack, bus)
            after = await events.last_sequence(bus)
        return time.monotonic() - sampler.began

    async def _stretch(self, stretch: Trial, stack: Stack, bus: Bus, sampler: Sampler) -> History:
        """Call and strike, and let everything come to rest."""
        history, offset = History(), time.time() - (time.monotonic() - sampler.began)
        healed = await stretch.strike(stack, history)
        rest = await collect.rest(bus, since=healed)
        history.add(rest.model_copy(update={"waiting": await self._still_waiting(stack, sampler)}))
        async for event in collect.events(bus, after=stretch.after):
            history.add(event)
        async for letter in collect.dead_letters(bus):
            history.add(letter)
        for execution in collect.executions(stack.traces):
            history.add(execution)
        self.faults += [fault.at - offset for fault in history.all(Fault)]
        return history

    def _judge(self, history: History) -> bool:
        """Whether it breaks a promise."""
        verdict = check(history)
        figures = verdict.figures
        self.violations += verdict.violations
        self.kinds |= figures.faults.keys()
        self.accepted += figures.accepted
        self.events += figures.events
        self.repeated += figures.repeated
        self.tell(f"judged: {figures.accepted:,} accepted runs, {len(verdict.violations)} violations")
        return bool(verdict.violations)

    async def _still_waiting(self, stack: Stack, sampler: Sampler) -> int:
        """Calls that adapters take for waiting, though nobody calls any more."""
        deadline = time.monotonic() + SETTLED
        while True:
            counts = [await sampler.waiting(name) for name in stack.adapters]
            if all(count == 0 for count in counts) or time.monotonic() > deadline:
                return sum(count or 0 for count in counts)
            await asyncio.sleep(0.2)

    async def _forget(self, stretch: Trial, stack: Stack, bus: Bus) -> None:
        """Delete the tasks of a stretch, and throw away at once what is kept of deleted tasks for a while."""
        url = next(iter(stack.adapters.values()))
        headers = {"Authorization": f"Bearer {':'.join(CREDENTIAL)}"}
        async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False, timeout=20) as http:
            for task in stretch.all_tasks:
                (await http.delete(f"/tasks/{task}")).raise_for_status()
        await janitor.sweep(bus, now=datetime.now(UTC) + timedelta(days=janitor.DELETED_DAYS + 1))
        stack.traces.write_bytes(b"")

    async def _compare(self, stack: Stack, bus: Bus) -> None:
        """The read models of all adapters with one that is rebuilt; but for what stays known of deleted tasks."""
        self.tell("rebuilding the read model")
        history = History([Plan(seed=self.seed, chain=trial.CHAIN)])
        async for rows in collect.read_models(bus, stack):
            history.add(Rows(model=rows.model, tables={k: v for k, v in rows.tables.items() if k not in OF_DELETED}))
        self.violations += check(history).violations


def main(
    hours: Annotated[float, typer.Option(min=0, help="How long.")] = 1,
    minutes: Annotated[float | None, typer.Option(min=1, help="How long, for a trial.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the dice; another one each time when not given.")] = None,
    mutant: Annotated[str | None, typer.Option(help=f"Break it: {', '.join(LEAKS)}.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Where the picture goes (SVG); else beside the logs.")] = None,
) -> None:
    """Calls and faults for hours, and nothing grows."""
    console = Console(highlight=False, soft_wrap=True)
    folder, began = Path(tempfile.mkdtemp(prefix="soak-")), time.monotonic()
    seed = secrets.randbelow(1_000_000) if seed is None else seed
    console.print(f"seed {seed}, logs and streams in {folder}")

    def tell(line: str) -> None:
        console.print(f"{(time.monotonic() - began) / 60:6.1f} min  {line}")

    soak = Soak(seed=seed, seconds=60 * minutes if minutes else 3600 * hours, mutant=mutant, tell=tell)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(soak.run(folder))
    except (ChildFailed, *trial.FAILURES) as error:
        console.print(f"seed {seed}: not carried out: {error!r}")
        sys.exit(2)
    path = picture or folder / "soak.svg"
    path.write_text(soak.picture)
    console.print(f"picture: {path}")
    sys.exit(report(console, soak))


def report(console: Console, soak: Soak) -> int:
    """Print what was found, the verdict last; returns the exit status."""
    console.print(f"{'':27}{'first':>9}{'last':>9}{'most':>9}{'rise':>9}{'allowed':>9}")
    for finding in soak.findings:
        name = f"{finding.process:<10} {finding.figure}"
        values = (finding.first, finding.last, finding.most, finding.rise, finding.allowed)
        told = "" if finding.is_flat else "   GROWS"
        console.print(f"{name:<27}{''.join(f'{value:9.1f}' for value in values)}{told}")
    for violation in soak.violations[:MOST_SHOWN]:
        console.print(f"VIOLATION   {violation.rule}: {violation.detail}")
    for doubt in soak.doubts:
        console.print(f"DOUBT       {doubt}")
    growing = [finding for finding in soak.findings if not finding.is_flat]
    console.print(f"seed {soak.seed}: {_in_short(soak, growing)}")
    if soak.violations or growing:
        return 1
    return 2 if soak.doubts else 0


def _in_short(soak: Soak, growing: Sequence[Finding]) -> str:
    what = f"{soak.accepted:,} accepted runs, {len(soak.faults)} faults, {soak.events:,} events"
    if soak.violations or growing:
        grows = ", ".join(f"{finding.figure} of {finding.process}" for finding in growing) or "nothing"
        return f"FAILED: {len(soak.violations)} violations, {grows} grows; {what}"
    return (
        f"{'INCONCLUSIVE' if soak.doubts else 'PASSED'}: nothing grows; {what}; {soak.repeated:,} actions began again"
    )


if __name__ == "__main__":
    typer.run(main)
