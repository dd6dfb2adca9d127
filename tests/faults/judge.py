"""What a fault came to: judged by the checker of ``tests.chaos``, or by conditions that it states itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos import trial
from tests.chaos.checker import check
from tests.chaos.trial import Trial

MOST_SHOWN = 10
"""Broken promises of one fault that are told."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is asked for."""

    seed: int
    cuts: int
    """Of the power."""
    sync: str
    """When the broker flushes to disk."""
    folder: Path
    """Where logs and histories go; empty."""
    tell: Callable[[str], None]
    """Called with each thing that happens."""


@dataclass(kw_only=True)
class Outcome:
    """The verdict on one fault."""

    figures: list[str] = field(default_factory=list)
    """What there was, in words."""
    broken: list[str] = field(default_factory=list)
    """What should not have been."""

    def expect(self, *, that: bool, otherwise: str) -> None:
        """Remember it as broken, unless it is so."""
        if not that:
            self.broken.append(otherwise)


async def tried(attempt: Trial, options: Options, name: str) -> Outcome:
    """Run a trial and have its history checked; the history stays in the folder. Raises what a trial raises."""
    folder = options.folder / name
    folder.mkdir(parents=True, exist_ok=True)
    history = await trial.run(attempt, folder)
    history.save(folder / "history.jsonl")
    verdict = check(history)
    figures = verdict.figures
    broken = [f"{violation.rule}: {violation.detail}" for violation in verdict.violations]
    return Outcome(
        figures=[
            f"{figures.accepted:,} accepted runs",
            f"{figures.faults.total()} faults",
            f"{figures.events:,} events",
            f"{figures.repeated:,} actions began more than once",
        ],
        broken=broken + [f"it proves nothing: {doubt}" for doubt in verdict.doubts],
    )
