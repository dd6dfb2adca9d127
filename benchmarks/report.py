"""Rounds -> medians -> a table for people and JSON for programs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from rich import box
from rich.table import Table

from benchmarks.load import GENERATOR, Measured
from benchmarks.stack import FLOOR, SYSTEM


@dataclass
class Point:
    """One line of the table: what was measured in each round."""

    sync: str
    callers: int
    system: list[Measured] = field(default_factory=list)
    floor: list[Measured] = field(default_factory=list)

    @property
    def rates(self) -> list[float]:
        """Runs per second, by round."""
        return [_rate(measured) for measured in self.system]

    @property
    def ratio(self) -> float:
        """System to floor; both were measured one right after the other."""
        pairs = zip(self.system, self.floor, strict=True)
        return median(_rate(system) / _rate(floor) if floor.calls else 0.0 for system, floor in pairs)

    @property
    def errors(self) -> Counter[str]:
        """What went wrong, and how often."""
        errors: Counter[str] = Counter()
        for name, rounds in (("system", self.system), ("floor", self.floor)):
            for measured in rounds:
                errors.update({f"{name}: {text}": count for text, count in measured.errors.items()})
        return errors


def table(points: list[Point]) -> Table:
    """Medians over the rounds, one line per point."""
    lines = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for title in ("fsync", "callers", "runs/s", "min-max", "p50\nms", "p99\nms", "CPU s/\n1,000", "adapter",
                  "worker", "nats-\nserver", "gene-\nrator", "floor\nreq/s", "floor\np50 ms", "system/\nfloor",
                  "others", "errors"):  # fmt: skip
        lines.add_column(title, justify="left" if title == "fsync" else "right", no_wrap=True)
    for point in points:
        cpu = _cpu(point.system, SYSTEM)
        lines.add_row(
            "off" if point.sync != "always" else "on",
            str(point.callers),
            f"{median(point.rates):,.0f}",
            f"{min(point.rates):,.0f}-{max(point.rates):,.0f}",
            f"{median(measured.p50 for measured in point.system):.2f}",
            f"{median(measured.p99 for measured in point.system):.2f}",
            *(f"{cpu[name]:.2f}" for name in ("total", *SYSTEM, GENERATOR)),
            f"{median(map(_rate, point.floor)):,.0f}",
            f"{median(measured.p50 for measured in point.floor):.2f}",
            f"{point.ratio:.1%}",
            f"{median(measured.others for measured in point.system):.0%}",
            str(point.errors.total()),
            end_section=point.callers == max(other.callers for other in points),
        )
    return lines


def as_json(points: list[Point]) -> list[dict[str, Any]]:
    """The same numbers, and each round's."""
    return [
        {
            "sync_interval": point.sync,
            "callers": point.callers,
            "system": _summary(point.system, SYSTEM),
            "floor": _summary(point.floor, FLOOR),
            "ratio": point.ratio,
            "errors": dict(point.errors),
        }
        for point in points
    ]


def _summary(rounds: list[Measured], processes: tuple[str, ...]) -> dict[str, Any]:
    return {
        "per_second": median(map(_rate, rounds)),
        "per_second_by_round": [_rate(measured) for measured in rounds],
        "p50_ms": median(measured.p50 for measured in rounds),
        "p99_ms": median(measured.p99 for measured in rounds),
        "cpu_seconds_per_1000": _cpu(rounds, processes),
        "others_by_round": [measured.others for measured in rounds],
    }


def _cpu(rounds: list[Measured], processes: tuple[str, ...]) -> dict[str, float]:
    """CPU seconds per 1,000 calls by process; ``total`` is without the generator."""

    def per_1000(names: tuple[str, ...]) -> float:
        return median(sum(measured.cpu[name] for name in names) * 1000 / max(measured.calls, 1) for measured in rounds)

    return {"total": per_1000(processes)} | {name: per_1000((name,)) for name in (*processes, GENERATOR)}


def _rate(measured: Measured) -> float:
    return measured.calls / measured.seconds
