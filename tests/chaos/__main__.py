"""``python -m tests.chaos``: kill, freeze and cut off everything for a while, and see whether a promise was broken.

Exit status 0: none was; 1: the checker found something; 2: too little happened for the run to prove anything, or it
could not be carried out. The last line is the verdict.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks.children import ChildFailed
from tests.chaos import trial
from tests.chaos.checker import Verdict, check
from tests.chaos.history import History
from tests.chaos.trial import Trial

QUICK_SECONDS = 30.0
MOST_SHOWN = 20
"""Violations of which the details are printed."""


def main(
    seed: Annotated[int | None, typer.Option(help="Of the dice; another one each time when not given.")] = None,
    seconds: Annotated[float, typer.Option(min=1, help="How long faults go on.")] = 210,
    http: Annotated[int, typer.Option(min=0, help="Callers over HTTP.")] = 20,
    bus: Annotated[int, typer.Option(min=0, help="Callers on the bus.")] = 6,
    adapters: Annotated[int, typer.Option(min=1)] = 2,
    workers: Annotated[int, typer.Option(min=1)] = 3,
    tasks: Annotated[int, typer.Option(min=2, help="Tasks that are called.")] = 80,
    quick: Annotated[bool, typer.Option("--quick", help=f"{QUICK_SECONDS:g} s of faults.")] = False,
    history: Annotated[Path | None, typer.Option(help="Where the history goes; else beside the logs.")] = None,
    check_file: Annotated[Path | None, typer.Option("--check", help="Judge this history; nothing is run.")] = None,
) -> None:
    """Kill, freeze and cut off everything for a while, and see whether a promise was broken."""
    console = Console(highlight=False, soft_wrap=True)
    if check_file is not None:
        try:
            found = History.load(check_file)
        except (OSError, ValueError) as error:
            console.print(f"{check_file} is no history: {error}")
            sys.exit(2)
        sys.exit(report(console, check(found), found.plan.seed))
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    seed = secrets.randbelow(1_000_000) if seed is None else seed
    console.print(f"seed {seed}, logs and streams in {folder}")
    with telling(console) as tell:
        attempt = Trial(
            seed=seed, seconds=QUICK_SECONDS if quick else seconds, http=http, bus=bus, adapters=adapters,
            workers=workers, tasks=tasks, tell=tell,
        )  # fmt: skip
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                made = runner.run(trial.run(attempt, folder))
        except (ChildFailed, *trial.FAILURES) as error:
            console.print(f"seed {seed}: not carried out: {error!r}")
            sys.exit(2)
    path = history or folder / "history.jsonl"
    made.save(path)
    console.print(f"history: {path}")
    sys.exit(report(console, check(made), seed))


@contextmanager
def telling(console: Console) -> Iterator[Callable[[str], None]]:
    """A line for everything that happens, and on a terminal how long it has been going on."""
    began = time.monotonic()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        shown = progress.add_task("", total=None)

        def tell(line: str) -> None:
            progress.update(shown, description=line)
            console.print(f"{time.monotonic() - began:6.1f}  {line}")

        yield tell


def report(console: Console, verdict: Verdict, seed: int) -> int:
    """Print what was found, the verdict last; returns the exit status."""
    figures = verdict.figures
    console.print(f"faults      {figures.faults.total()}: {_list(figures.faults)}")
    console.print(
        f"calls       {figures.calls:,}: {figures.accepted:,} accepted, {figures.refused:,} refused, "
        f"{figures.unknown:,} unknown to the end; {figures.retried:,} took more than one try"
    )
    console.print(f"runs        {figures.runs:,}: {_list(figures.ends)}")
    console.print(f"schedules   {figures.ticks:,} ticks ran, {figures.skipped:,} are recorded as skipped")
    console.print(
        f"recovery    nothing left {figures.settled:.1f} s after the last fault; "
        f"slowest answer {figures.slowest:.1f} s after the end of its run"
    )
    for violation in verdict.violations[:MOST_SHOWN]:
        console.print(f"VIOLATION   {violation.rule}: {violation.detail}")
    if len(verdict.violations) > MOST_SHOWN:
        console.print(f"            and {len(verdict.violations) - MOST_SHOWN} more")
    for doubt in verdict.doubts:
        console.print(f"DOUBT       {doubt}")
    console.print(f"seed {seed}: {in_short(verdict)}")
    if verdict.violations:
        return 1
    return 2 if verdict.doubts else 0


def in_short(verdict: Verdict) -> str:
    """The verdict in one line."""
    figures = verdict.figures
    what = f"{figures.accepted:,} accepted runs, {figures.faults.total()} faults, {figures.events:,} events"
    if verdict.violations:
        return f"FAILED: {len(verdict.violations)} violations in {what}"
    repeated = f"{figures.repeated:,} actions began more than once"
    kept = "0 lost, 0 ended twice, 0 phantoms, 0 false replies, 0 stuck"
    return f"{'INCONCLUSIVE' if verdict.doubts else 'PASSED'}: {what}; {kept}; {repeated}"


def _list(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in sorted(counts.items(), key=lambda pair: -pair[1])) or "none"


if __name__ == "__main__":
    typer.run(main)
