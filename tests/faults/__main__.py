"""``python -m tests.faults``: what needs root. Cut the power, fill disks, take memory and descriptors away, and so on.

Exit status 0: no promise was broken; 1: one was; 2: a fault could not be made, so nothing is known. A line for each
fault says what it came to, the last line is the verdict.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from rich.console import Console

from benchmarks.children import ChildFailed
from tests.chaos import trial
from tests.chaos.__main__ import telling
from tests.faults import clocks, disks, ground, limits, partitions, power
from tests.faults.ground import Unfit
from tests.faults.judge import MOST_SHOWN, Options, Outcome

ALWAYS, NO_FSYNC = "always", "2m"
NEEDED = ("unshare", "ip", "mount", "umount")
"""Programs that every fault needs."""


@dataclass(frozen=True)
class Made:
    """A fault that can be made."""

    make: Callable[[Options], Coroutine[Any, Any, Outcome]]
    tools: tuple[str, ...] = ()


FAULTS = {
    "power-cut": Made(power.power_cut, power.TOOLS),
    "broker-disk": Made(disks.broker_disk),
    "read-model-disk": Made(disks.read_model_disk),
    "memory": Made(limits.memory),
    "descriptors": Made(limits.descriptors, ("prlimit",)),
    "partition": Made(partitions.partition, partitions.TOOLS),
    "clock": Made(clocks.clock, ("cc",)),
}


def main(
    names: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(FAULTS)}; all when none is given.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the dice; another one each time when not given.")] = None,
    cuts: Annotated[int, typer.Option(min=1, help="How often the power goes.")] = 20,
    mutant: Annotated[
        str | None, typer.Option(help="no-fsync: a broker that acknowledges before it flushes; the power cut tells.")
    ] = None,
) -> None:
    """Make faults that need root, and see whether a promise was broken."""
    console = Console(highlight=False, soft_wrap=True)
    chosen = names or (["power-cut"] if mutant else list(FAULTS))
    if unknown := sorted(set(chosen) - FAULTS.keys()) or ([mutant] if mutant not in {None, "no-fsync"} else []):
        console.print(f"there is no {unknown[0]!r}; there are {', '.join(FAULTS)}, and the mutant no-fsync")
        sys.exit(2)
    try:
        ground.require({*NEEDED, *(tool for name in chosen for tool in FAULTS[name].tools)})
        ground.enter()
    except Unfit as unfit:
        console.print(f"make faults {unfit}")
        sys.exit(2)
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    seed = secrets.randbelow(1_000_000) if seed is None else seed
    console.print(f"seed {seed}, logs and histories in {folder}")
    with telling(console) as tell:
        options = Options(seed=seed, cuts=cuts, sync=NO_FSYNC if mutant else ALWAYS, folder=folder, tell=tell)
        statuses = {name: _status(console, name, options) for name in chosen}
    worst = max(statuses.values(), key=(0, 2, 1).index)  # a broken promise says more than a fault that was not made
    listed = ", ".join(name for name, status in statuses.items() if status == worst)
    word = {0: "PASSED", 1: "FAILED", 2: "INCONCLUSIVE"}[worst]
    console.print(f"seed {seed}: {word}: {listed}")
    sys.exit(worst)


def _status(console: Console, name: str, options: Options) -> int:
    """Make a fault and say what it came to; 0, 1 or 2 as the program's exit status."""
    began = time.monotonic()
    options.tell(f"{name}: begins")
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            outcome = runner.run(FAULTS[name].make(options))
    except (Unfit, ChildFailed, *trial.FAILURES) as error:
        console.print(f"{name:<16}NOT MADE: {error!r}, {time.monotonic() - began:.0f} s")
        return 2
    figures = ", ".join(outcome.figures)
    for broken in outcome.broken[:MOST_SHOWN]:
        console.print(f"BROKEN          {broken}")
    verdict = f"FAILED, {len(outcome.broken)} times" if outcome.broken else "passed"
    console.print(f"{name:<16}{verdict}: {figures}, {time.monotonic() - began:.0f} s")
    return 1 if outcome.broken else 0


if __name__ == "__main__":
    typer.run(main)
