"""The samples of a soak as one SVG file: a panel for each figure, a line for each process."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from xml.sax.saxutils import escape

from tests.chaos.samples import Figure, Sample, Series, series

WIDTH, HEIGHT = 760, 190
"""Of a panel."""
LEFT, RIGHT, TOP, BOTTOM = 60, 150, 30, 28
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b")
TICKS = 5
LONGEST_LINE = 1500
"""Points of a line."""


def draw(samples: Collection[Sample], lasting: Collection[str], faults: Collection[float], title: str) -> str:
    """The picture. ``lasting``: whose lines are thick; ``faults``: when something was done, in seconds."""
    figures = [figure for figure in Figure if any(sample.figure is figure for sample in samples)]
    processes = sorted({sample.process for sample in samples})
    colours = {process: COLOURS[number % len(COLOURS)] for number, process in enumerate(processes)}
    end = max((sample.at for sample in samples), default=1.0)
    panels = []
    for number, figure in enumerate(figures):
        panel = "".join(_panel(figure, samples, lasting, faults, colours, end))
        panels.append(f'<g transform="translate(0,{40 + number * HEIGHT})">{panel}</g>')
    height = 40 + HEIGHT * len(figures)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="{LEFT}" y="22" font-size="14">{escape(title)}</text>{"".join(panels)}</svg>\n'
    )


def _panel(
    figure: Figure,
    samples: Collection[Sample],
    lasting: Collection[str],
    faults: Collection[float],
    colours: dict[str, str],
    end: float,
) -> Iterator[str]:
    lines = {key: points for key, points in series(samples).items() if key[0] is figure}
    top = _round_up(max(value for points in lines.values() for _, value in points))
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(at: float, value: float) -> tuple[float, float]:
        return LEFT + at / end * width, TOP + (1 - value / top) * height

    yield f'<text x="{LEFT}" y="{TOP - 8}" font-weight="bold">{escape(figure.value)}</text>'
    for number in range(TICKS):
        value = top * number / (TICKS - 1)
        _, y = place(0, value)
        yield f'<path d="M{LEFT} {y:.1f}h{width}" stroke="#ddd"/>'
        yield f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
        at = end * number / (TICKS - 1)
        x, _ = place(at, 0)
        yield f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{at / 60:.1f} min</text>'
    marks = "".join(f"M{place(at, 0)[0]:.1f} {TOP + height}v-5" for at in faults if 0 <= at <= end)
    yield f'<path d="{marks}" stroke="#999"/>'
    named: list[str] = []
    for (_, process, _pid), points in sorted(lines.items()):
        path = "L".join("{:.1f} {:.1f}".format(*place(*point)) for point in _thinned(points))
        thick = 1.8 if process in lasting else 0.7
        yield f'<path d="M{path}" fill="none" stroke="{colours[process]}" stroke-width="{thick}"/>'
        if process not in named:
            named.append(process)
    for number, process in enumerate(named):
        y, weight = TOP + 10 + 16 * number, "bold" if process in lasting else "normal"
        x = WIDTH - RIGHT + 14
        yield f'<path d="M{x} {y - 4}h16" stroke="{colours[process]}" stroke-width="3"/>'
        yield f'<text x="{x + 22}" y="{y}" font-weight="{weight}">{escape(process)}</text>'


def _thinned(points: Series) -> Series:
    return points[:: max(1, len(points) // LONGEST_LINE)]


def _round_up(value: float) -> float:
    """The next of 1, 2, 4, 8, 10, 20, ...: a scale whose quarters are easy to read."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 8, 10) if value <= step * power)
