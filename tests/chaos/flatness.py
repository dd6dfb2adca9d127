"""Whether a figure grows: pure.

A figure of a process goes up and down, and jumps when something is done to it, so single values say little. The time
after the warm-up is cut into pieces, each piece stands for its median, and the slope is the median of the slopes of
all pairs of pieces (Theil-Sen): what a third of the time is beside the line does not move it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from statistics import median

from tests.chaos.samples import Figure, Sample, Series, series
from tests.chaos.stack import BROKER

PIECES = 40
"""At most, whatever the soak's length."""
FEWEST_PIECES = 8
"""Below them nothing can be said."""
WARM_UP = 0.25
"""Share of the time that is not looked at: pools fill, caches and code are loaded."""
LONGEST_WARM_UP = 600.0
"""Seconds of it, at most."""


@dataclass(frozen=True)
class Bound:
    """How far a figure may rise, by its slope: so much in all, and so much more in every hour."""

    rise: float
    per_hour: float = 0.0


BOUNDS = {
    Figure.MEMORY: Bound(10, per_hour=4),
    Figure.DESCRIPTORS: Bound(6),
    Figure.THREADS: Bound(3),
    Figure.WAITING: Bound(4),
    Figure.WAL: Bound(2),
}
OF_BROKER = {
    # It keeps the record of each Idempotency-Key for a day: some 40,000 an hour are meant to stay.
    Figure.MEMORY: Bound(48, per_hour=32),
    Figure.STORE: Bound(32, per_hour=96),
}
MOST_WAL = 64.0
"""MiB that a read model's WAL never exceeds."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What became of one figure of one process."""

    process: str
    figure: Figure
    first: float
    """Median of the first third after the warm-up."""
    last: float
    """Median of the last third."""
    most: float
    rise: float
    """By the slope, over all of the time after the warm-up."""
    allowed: float
    is_known: bool
    """Whether there are enough samples to say anything."""

    @property
    def is_flat(self) -> bool:
        """Whether it keeps within its bounds."""
        return self.rise <= self.allowed and (self.figure is not Figure.WAL or self.most <= MOST_WAL)


def judge(samples: Collection[Sample], lasting: Iterable[str], seconds: float) -> list[Finding]:
    """The figures of the processes that lived from the beginning to the end of so many seconds."""
    found = series(samples)
    return list(_findings(found, list(lasting), seconds))


def restarted(samples: Iterable[Sample], lasting: Iterable[str]) -> list[str]:
    """Of the processes that were to live all the time, those that have not."""
    pids: dict[str, set[int]] = {}
    for sample in samples:
        pids.setdefault(sample.process, set()).add(sample.pid)
    return [name for name in lasting if len(pids.get(name, ())) != 1]


def slope(points: Series) -> float:
    """The median of the slopes of all pairs; 0 when there are none."""
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in combinations(points, 2) if b[0] > a[0]]
    return median(slopes) if slopes else 0.0


def _findings(found: dict[tuple[Figure, str, int], Series], lasting: list[str], seconds: float) -> Iterator[Finding]:
    begin = min(seconds * WARM_UP, LONGEST_WARM_UP)
    for (figure, process, _pid), points in sorted(found.items()):
        bound = (BOUNDS | OF_BROKER if process == BROKER else BOUNDS).get(figure)
        if process not in lasting or bound is None:
            continue
        pieces = list(_pieces([point for point in points if point[0] >= begin], begin, seconds))
        values = [value for _, value in pieces] or [0.0]
        third = max(1, len(values) // 3)
        yield Finding(
            process=process,
            figure=figure,
            first=median(values[:third]),
            last=median(values[-third:]),
            most=max(value for _, value in points),
            rise=slope(pieces) * (seconds - begin),
            allowed=bound.rise + bound.per_hour * (seconds - begin) / 3600,
            is_known=len(pieces) >= FEWEST_PIECES,
        )


def _pieces(points: Series, begin: float, end: float) -> Iterator[tuple[float, float]]:
    length = (end - begin) / PIECES
    for number in range(PIECES):
        low, high = begin + number * length, begin + (number + 1) * length
        values = [value for at, value in points if low <= at < high]
        if values:
            yield (low + high) / 2, median(values)
