"""``python -m tests.chaos.mutants``: break the system in every way that is known, and see that the checker notices.

A checker that has never failed proves nothing, and one that always does proves no more: the system as it is goes
first, under the faults of all of them, and has to come through. Exit status 0 when it did and every mutant broke a
promise that it is expected to break; 1 otherwise.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console

from benchmarks.children import ChildFailed
from tests.chaos import trial
from tests.chaos.checker import Rule, Verdict, check
from tests.chaos.trial import Trial

NO_FSYNC = "no-fsync"
"""A broker that acknowledges before it flushes; only a power cut tells, which needs root."""
TASKS = 20
"""Few, so that each is called often."""


@dataclass(frozen=True, kw_only=True)
class Hunt:
    """The faults that bring a mutant to light, and by which broken promises it is known."""

    kinds: tuple[str, ...]
    rules: frozenset[Rule]
    runs: tuple[float, ...] = trial.LONGEST_RUNS
    http: int = 12
    bus: int = 4


HUNTS = {
    "no-fence": Hunt(
        kinds=("freeze worker", "stall worker"),
        rules=frozenset({Rule.TWO_ENDS, Rule.AFTER_END, Rule.TRANSITION, Rule.OVERLAP}),
        runs=(0.4, 1.0),
    ),
    "acknowledged-first": Hunt(kinds=("kill worker",), rules=frozenset({Rule.STUCK, Rule.LOST}), runs=(0.4, 1.0)),
    "published-first": Hunt(kinds=("cut worker",), rules=frozenset({Rule.LATE_REPLY}), runs=(0,)),
    "random-run": Hunt(kinds=("kill adapter", "freeze broker"), rules=frozenset({Rule.KEY_TWICE, Rule.PHANTOM})),
    "position-first": Hunt(
        kinds=(
            "kill adapter",
            "cut worker",
            "cut worker",
            "cut worker",
        ),  # one that starts has nothing to lose
        rules=frozenset({Rule.READ_MODEL}),
    ),
    "over-a-cancel": Hunt(kinds=("cut worker",), rules=frozenset({Rule.TWO_ENDS}), runs=(0.4, 1.0)),
    "no-ring": Hunt(kinds=("kill broker",), rules=frozenset({Rule.TWO_ENDS}), runs=(0,), http=2, bus=8),
}


KNOWN = [*HUNTS, NO_FSYNC]


def main(
    names: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(KNOWN)}; all when none is given.")] = None,
    seed: Annotated[int, typer.Option(help="Of the dice.")] = 1,
    seconds: Annotated[float, typer.Option(min=1, help="How long each is hunted.")] = 10,
    at_once: Annotated[int, typer.Option(min=1, help="Hunts that go on at the same time.")] = 2,
) -> None:
    """Break the system in every way that is known, and see that the checker notices."""
    console = Console(highlight=False, soft_wrap=True)
    chosen = names or KNOWN
    began = time.monotonic()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        is_well, hunted = runner.run(_hunt(console, chosen, seed, seconds, at_once))
    escaped = [name for name, is_caught in hunted.items() if not is_caught]
    caught = f"{len(hunted) - len(escaped)} of {len(hunted)} mutants caught"
    console.print(f"seed {seed}: {caught}, {time.monotonic() - began:.0f} s")
    if escaped:
        console.print(f"got away: {', '.join(escaped)}")
    if escaped or not is_well:
        sys.exit(1)


async def _hunt(
    console: Console, names: Sequence[str], seed: int, seconds: float, at_once: int
) -> tuple[bool, dict[str, bool]]:
    """Whether the system as it is came through, and which mutants were caught, of those that can be hunted here."""
    places = asyncio.Semaphore(at_once)

    async def is_well() -> bool:
        ordinary = [name for name in names if name in HUNTS]
        async with places:
            return not ordinary or await _is_well(console, ordinary, seed, seconds)

    async def is_caught(name: str) -> bool | None:
        async with places:
            if name == NO_FSYNC:
                return await _loses_what_it_acknowledged(console, seed)
            return await _is_caught(console, name, seed, seconds)

    well, caught = await asyncio.gather(is_well(), asyncio.gather(*map(is_caught, names)))
    return well, {name: found for name, found in zip(names, caught, strict=True) if found is not None}


async def _is_well(console: Console, names: Sequence[str], seed: int, seconds: float) -> bool:
    """The system as it is breaks nothing under the same faults."""
    kinds = sorted({kind for name in names for kind in HUNTS[name].kinds})
    verdict = await _try(console, None, Trial(seed=seed, seconds=seconds, kinds=kinds, tasks=TASKS, scheduled=0))
    if verdict is None or verdict.violations:
        told = verdict.violations[0] if verdict else None
        console.print(f"unbroken: already breaks a promise: {told and told.rule}: {told and told.detail}")
        return False
    console.print(f"unbroken: nothing in {verdict.figures.accepted:,} runs and {verdict.figures.faults.total()} faults")
    return True


async def _is_caught(console: Console, name: str, seed: int, seconds: float) -> bool:
    hunt, began = HUNTS[name], time.monotonic()
    attempt = Trial(
        seed=seed, seconds=seconds, kinds=hunt.kinds, longest_runs=hunt.runs, http=hunt.http, bus=hunt.bus,
        tasks=TASKS, scheduled=0, adapters=1, workers=2, mutant=name,
    )  # fmt: skip
    verdict = await _try(console, name, attempt)
    if verdict is None:
        return False
    found = [violation for violation in verdict.violations if violation.rule in hunt.rules]
    where = f"in {verdict.figures.accepted:,} runs, {time.monotonic() - began:.0f} s"
    if not found:
        console.print(f"{name}: NOT noticed {where}")
        return False
    console.print(f"{name}: {found[0].rule} ({len(found)} times {where}): {found[0].detail}")
    return True


async def _loses_what_it_acknowledged(console: Console, seed: int) -> bool | None:
    """Whether the power cut of ``tests.faults`` notices a broker that does not flush; None: not to be made here."""
    began = time.monotonic()
    command = [sys.executable, "-m", "tests.faults", "--mutant", NO_FSYNC, "--cuts", "1", "--seed", str(seed)]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said, _ = await process.communicate()
    lines = said.decode().splitlines() or [""]
    if process.returncode == 2:
        console.print(f"{NO_FSYNC}: skipped: {lines[-1].removeprefix('make faults ')}")
        return None
    broken = [line.removeprefix("BROKEN").strip() for line in lines if line.startswith("BROKEN")]
    where = f"{time.monotonic() - began:.0f} s"
    if process.returncode != 1 or not broken:
        console.print(f"{NO_FSYNC}: NOT noticed in {where}: {lines[-1]}")
        return False
    console.print(f"{NO_FSYNC}: {broken[0]}, {where}")
    return True


async def _try(console: Console, name: str | None, attempt: Trial) -> Verdict | None:
    """What the checker says; None: it could not be carried out. The history stays in a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix=f"chaos-{name or 'unbroken'}-"))
    try:
        history = await trial.run(attempt, folder)
    except (ChildFailed, *trial.FAILURES) as error:
        console.print(f"{name or 'unbroken'}: not carried out: {error!r}; logs in {folder}")
        return None
    history.save(folder / "history.jsonl")
    return check(history)


if __name__ == "__main__":
    typer.run(main)
