"""The execute path against its floor: ``python -m benchmarks.execute``.

For each way of flushing to disk everything is started anew; then every number of callers is measured in turn,
the floor and the system one right after the other, and all of that ``--rounds`` times. Exit status 1 when any
call was not answered with 200 and code DONE.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import tempfile
import time
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.children import ChildFailed, Children
from benchmarks.load import Measured
from benchmarks.report import Point, as_json, table
from benchmarks.stack import Stack, start

WIDTH = 132
"""Columns the table needs; a narrower terminal wraps its lines."""


class Fsync(StrEnum):
    """Whether the broker flushes to disk before it acknowledges."""

    OFF = "off"
    ON = "on"
    BOTH = "both"


SYNC_INTERVALS = {Fsync.OFF: ["2m"], Fsync.ON: ["always"], Fsync.BOTH: ["2m", "always"]}


def main(
    callers: Annotated[str, typer.Option(help="Numbers of concurrent callers, comma-separated.")] = "1,16,64",
    fsync: Annotated[Fsync, typer.Option(help="Broker flushes before it acknowledges.")] = Fsync.BOTH,
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds a measurement lasts, in each round.")] = 3.0,
    warm_up: Annotated[float, typer.Option(min=0.0, help="Seconds before each measurement.")] = 0.5,
    rounds: Annotated[int, typer.Option(min=1, help="How often everything is measured; medians are shown.")] = 3,
    *,
    quick: Annotated[bool, typer.Option("--quick", help="One round of 1 s: a first look, in about 25 s.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the numbers here.")] = None,
) -> None:
    """Measure POST /tasks/{id}/execute: runs per second, latency and CPU per run, beside the floor of this machine."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if quick:
        seconds, warm_up, rounds = 1.0, 0.3, 1
    numbers = _numbers(callers)
    for name in [name for name in os.environ if name.startswith("RUNWIRE_")]:
        del os.environ[name]  # settings of the user's installation
    points: list[Point] = []
    disk = _fsync_ms()
    try:
        for sync in SYNC_INTERVALS[fsync]:
            points += _measure(sync, numbers, seconds=seconds, warm_up=warm_up, rounds=rounds)
    except ChildFailed as failure:
        sys.exit(f"benchmark: {failure}")
    about = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "fsync_ms": disk,
        "seconds": seconds,
        "rounds": rounds,
    }
    console = Console()
    console.width = max(console.width, WIDTH)
    console.print(
        f"{about['date']}, {about['machine']}, an fsync takes {disk:.2f} ms; {rounds} x {seconds:g} s per point"
    )
    console.print(table(points))
    if json_file is not None:
        json_file.write_text(json.dumps(about | {"points": as_json(points)}, indent=2) + "\n")
    errors = [error for point in points for error in point.errors.items()]
    for text, count in errors[:20]:
        print(f"error, {count} times: {text}", file=sys.stderr)
    if errors:
        raise typer.Exit(1)


def _measure(sync: str, numbers: list[int], *, seconds: float, warm_up: float, rounds: int) -> list[Point]:
    """All points of one way of flushing. Raises ChildFailed."""
    points = [Point(sync, callers) for callers in numbers]
    with tempfile.TemporaryDirectory(prefix="runwire-benchmark-") as folder, Children() as children:
        _progress(f"sync_interval {sync}: starting nats-server, adapter, worker and the floor")
        stack = start(children, Path(folder), sync=sync, tasks=max(numbers))
        first = stack.measure_system(max(numbers), warm_up=0.5, seconds=0.1)  # every task runs, every cache is filled
        if first.errors:
            raise ChildFailed(f"the first calls were not answered with DONE: {first.errors}")
        for number in range(1, rounds + 1):
            for point in points:
                _measure_point(stack, point, seconds=seconds, warm_up=warm_up)
                system, floor = point.system[-1], point.floor[-1]
                _progress(
                    f"sync_interval {sync}, round {number} of {rounds}, {point.callers} callers: "
                    f"{_told(system)}; floor {_told(floor)}"
                )
    return points


def _measure_point(stack: Stack, point: Point, *, seconds: float, warm_up: float) -> None:
    point.floor.append(stack.measure_floor(point.callers, warm_up=warm_up, seconds=seconds))
    point.system.append(stack.measure_system(point.callers, warm_up=warm_up, seconds=seconds))


def _told(measured: Measured) -> str:
    errors = sum(measured.errors.values())
    return f"{measured.calls / measured.seconds:,.0f}/s, p50 {measured.p50:.2f} ms" + (
        f", {errors} ERRORS" if errors else ""
    )


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        msg = "must be positive numbers, comma-separated"
        raise typer.BadParameter(msg, param_hint="--callers")
    return numbers


def _fsync_ms() -> float:
    """What a flush of a small append costs where the broker will keep its streams; far below 0.1 ms: no disk there."""
    taken = []
    with tempfile.TemporaryFile(prefix="runwire-benchmark-") as file:
        for _ in range(50):
            file.write(bytes(1024))
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            taken.append(time.perf_counter() - began)
    return median(taken) * 1000


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    typer.run(main)
