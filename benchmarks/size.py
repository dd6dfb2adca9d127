"""The read model at size: ``python -m benchmarks.size``.

Publishes a history of a million tasks and five million runs (``--scale 0.1``: a tenth), has ``runwire rebuild`` read
it, starts an adapter on the result and asks for pages of every kind. Exit status 1 when the 99th percentile of a
kind is over ``--limit-ms``.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import random
import re
import secrets
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import quantiles
from typing import Annotated
from urllib.parse import quote

import typer
import uvloop
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import history
from benchmarks.children import ROOT, ChildFailed, Children, can_connect, free_port
from benchmarks.history import CHAINS, MANY_RUNS, Size
from runwire import embedded
from runwire.domain.access import AccessLevel, AccessToken, TokenKind, digest
from runwire.messaging import streams, tokens
from runwire.messaging.broker import Bus
from runwire.process import die_with_parent
from runwire.settings import load

TASKS, RUNS = 1_000_000, 5_000_000
BYTES_PER_EVENT = 1500
"""Of disk in EVENTS, generously."""
PLAIN_EVENTS = 40_000
"""Events that the plain loop reads: its rate does not depend on how many there are."""
MB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Pages:
    """How long pages of one kind took."""

    name: str
    p50: float
    """Milliseconds."""
    p99: float
    worst: float
    bytes: int
    """Of the largest answer."""


class Stack:
    """The broker with the history in it, and what reads it."""

    def __init__(self, children: Children, folder: Path, size: Size) -> None:
        self.size = size
        self.folder = folder
        self._children = children
        self._port = free_port()
        self._secret = secrets.token_urlsafe(24)
        store_bytes = max(1 << 30, size.events * BYTES_PER_EVENT * 100 // streams.SHARES["EVENTS"])
        broker = embedded.prepare(load(data_dir=folder, nats_sync="2m"))
        self.env = os.environ | {
            "RUNWIRE_NATS_URL": broker.url,
            "RUNWIRE_HTTP_PORT": str(self._port),
            "RUNWIRE_DATA_DIR": str(folder),
            "RUNWIRE_STORE_BYTES": str(store_bytes),
            "RUNWIRE_LOG_LEVEL": "warning",
        }
        self.settings = load(nats_url=broker.url, data_dir=folder, store_bytes=store_bytes)
        children.start("nats-server", broker.argv, broker.env)
        port = int(broker.url.rpartition(":")[2])
        children.wait_for("nats-server", lambda: can_connect(port))

    async def publish(self) -> tuple[float, int]:
        """Fill the streams; returns (seconds, log lines)."""
        bus = Bus(self.settings, "runwire benchmark")
        await bus.connect()
        await streams.provision(bus, self.settings)
        token = AccessToken(
            id="benchmark", kind=TokenKind.ADMIN, digest=digest(self._secret), created=datetime.now(UTC),
            levels=dict.fromkeys(CHAINS, AccessLevel.VIEWER),
        )  # fmt: skip
        await tokens.create(bus, token)
        began = time.perf_counter()
        lines = await history.publish(bus, self.size)
        seconds = time.perf_counter() - began
        await bus.nc.close()
        return seconds, lines

    def plain_rate(self) -> float:
        """Events per second of the plain loop."""
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.plain_loop"], input=str(min(PLAIN_EVENTS, self.size.events)), cwd=ROOT,
            env=self.env, text=True, stdout=subprocess.PIPE, check=True,
        )  # fmt: skip
        return float(done.stdout)

    def rebuild(self) -> tuple[float, float]:
        """(events per second, MB of memory at most) of `runwire rebuild`."""
        process = subprocess.Popen(
            [sys.executable, "-m", "runwire", "rebuild"], cwd=ROOT, env=self.env, text=True, stdout=subprocess.PIPE,
            preexec_fn=die_with_parent(),  # noqa: PLW1509 - one thread
        )  # fmt: skip
        output, _ = process.communicate()
        rate = re.search(r"\(([\d,]+) events/s", output)
        if process.returncode or rate is None:
            raise ChildFailed(f"runwire rebuild ended with status {process.returncode}: {output}")
        memory = re.search(r"([\d,]+) MB of memory", output)
        return float(rate[1].replace(",", "")), float(memory[1].replace(",", "")) if memory else 0.0

    def start_adapter(self) -> None:
        """Start an adapter on the rebuilt file."""
        self._children.start("adapter", [sys.executable, "-m", "runwire", "adapter"], self.env)
        self._children.wait_for("adapter", lambda: can_connect(self._port))

    def memory(self) -> float:
        """Of the adapter, MB resident."""
        status = Path(f"/proc/{self._children.pids['adapter']}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        return int(found[1]) / 1024 if found else 0.0

    def measure(self, name: str, paths: Callable[[], str], calls: int) -> Pages:
        """Ask for so many pages, one after the other."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        headers = {"Authorization": f"Bearer benchmark:{self._secret}"}
        took, largest = [], 0
        for _ in range(calls):
            path = paths()
            began = time.perf_counter()
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            body = answer.read()
            took.append((time.perf_counter() - began) * 1000)
            largest = max(largest, len(body))
            if answer.status != http.HTTPStatus.OK:
                raise ChildFailed(f"GET {path}: {answer.status} {body[:200]!r}")
        connection.close()
        cuts = quantiles(took, n=100)
        return Pages(name=name, p50=cuts[49], p99=cuts[98], worst=max(took), bytes=largest)


def kinds(size: Size, run_ids: list[tuple[int, str]]) -> dict[str, Callable[[], str]]:
    """Every kind of page, and how to ask for one: somewhere else each time."""
    dice = random.Random(3)
    long = history.long_histories(size)

    def run() -> str:
        task, run_id = dice.choice(run_ids)
        return f"/tasks/{task}/runs/{run_id}"

    def logged() -> str:
        task = dice.choice(long)
        return f"/tasks/{task}/runs/{history.run_id(task, dice.randrange(history.RUNS_WITH_LINES))}"

    rewards = quote("bulk issue rewards")
    return {
        "list: all chains": lambda: f"/tasks?offset={100 * dice.randrange(20)}",
        "list: one chain": lambda: f"/tasks?chain={dice.choice(list(CHAINS))}",
        "list: by status": lambda: f"/tasks?status={dice.choice(['DONE', 'ERROR', 'READY'])}&chain=1",
        "list: by action": lambda: f"/tasks?action={rewards}&offset={100 * dice.randrange(50)}",
        "list: by campaign": lambda: f"/tasks?campaign_id={dice.randrange(1, 1001)}",
        "list: rare action and status": lambda: f"/tasks?action=audit%20once&status=ERROR&chain={dice.randrange(1, 4)}",
        "list: campaign, action, status": lambda: (
            f"/tasks?campaign_id={dice.randrange(1, 1001)}&action={rewards}&status=DONE"
        ),
        "list: offset 10,000": lambda: f"/tasks?chain=1&offset=10000&limit={dice.choice([10, 100])}",
        "list: offset 10,000, all chains, by action": lambda: "/tasks?action=export&offset=10000",
        "list: none match": lambda: f"/tasks?status=INPROGRESS&action={rewards}",
        "list: limit 1,000": lambda: f"/tasks?chain=1&limit=1000&offset={1000 * dice.randrange(5)}",
        "get: a task": lambda: f"/tasks/{dice.randrange(1, size.tasks + 1)}",
        "runs: first page": lambda: f"/tasks/{dice.randrange(1, size.tasks + 1)}/runs",
        "runs: of a long history": lambda: f"/tasks/{dice.choice(long)}/runs?offset={dice.randrange(MANY_RUNS - 50)}",
        "runs: limit 1,000": lambda: f"/tasks/{dice.choice(long)}/runs?limit=1000",
        "runs: one": run,
        "logs: of a run": lambda: f"{logged()}/logs?limit=100",
        "logs: of a task, deep": lambda: f"/tasks/{dice.choice(long)}?log_limit=100&offset={dice.randrange(4000)}",
    }


def some_runs(path: Path, count: int) -> list[tuple[int, str]]:
    """(task, run) of runs with a long history, and of others."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        rows = connection.execute("SELECT task, id FROM run ORDER BY task, id LIMIT ?", (count,)).fetchall()
    return [(task, run) for task, run in rows]


def report(console: Console, pages: list[Pages], limit: float) -> None:
    """One line per kind."""
    lines = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    lines.add_column("page")
    for title in ("p50 ms", "p99 ms", "worst ms", "KB"):
        lines.add_column(title, justify="right")
    for kind in pages:
        slow = f" > {limit:g}" if kind.p99 > limit else ""
        lines.add_row(
            kind.name, f"{kind.p50:.1f}", f"{kind.p99:.1f}{slow}", f"{kind.worst:.1f}", f"{kind.bytes / 1024:,.0f}"
        )
    console.print(lines)


def main(
    scale: Annotated[float, typer.Option(min=0.001, help="1: a million tasks, five million runs.")] = 1.0,
    calls: Annotated[int, typer.Option(min=100, help="Pages of each kind.")] = 500,
    limit_ms: Annotated[float, typer.Option(help="What the 99th percentile may take.")] = 50,
    json_path: Annotated[Path | None, typer.Option("--json", help="Where to put the numbers.")] = None,
) -> None:
    """Measure, and print what came of it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    size = Size(tasks=round(TASKS * scale), runs=round(RUNS * scale))
    out, err = Console(width=100), Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="runwire-size-") as name, Children() as children:
        stack = Stack(children, Path(name), size)
        err.print(f"publishing {size.tasks:,} tasks and {size.runs:,} runs ...")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            seconds, lines = runner.run(stack.publish())
        out.print(f"{size.tasks:,} tasks, {size.runs:,} runs, {lines:,} log lines (published in {seconds:.0f} s)\n")
        plain = stack.plain_rate()
        rate, rebuild_memory = stack.rebuild()
        path = stack.settings.read_model_path
        out.print(f"rebuild       {rate:,.0f} events/s; a plain loop {plain:,.0f}: {rate / plain:.1f} times that")
        out.print(
            f"              {rebuild_memory:,.0f} MB of memory at most; the file has {path.stat().st_size / MB:,.0f} MB"
        )
        stack.start_adapter()
        before = stack.memory()
        pages = []
        for kind, paths in kinds(size, some_runs(path, 5000)).items():
            err.print(f"asking: {kind} ...")
            pages.append(stack.measure(kind, paths, calls))
        after = stack.memory()
        out.print(f"adapter       {before:,.0f} MB when it began, {after:,.0f} MB after {calls * len(pages):,} calls\n")
        report(out, pages, limit_ms)
        if json_path is not None:
            figures = {"events_per_second": rate, "plain_events_per_second": plain, "file_bytes": path.stat().st_size,
                       "rebuild_mb": rebuild_memory, "adapter_mb": [before, after]}  # fmt: skip
            json_path.write_text(json.dumps({**asdict(size), **figures, "pages": [asdict(p) for p in pages]}, indent=1))
    slow = [kind.name for kind in pages if kind.p99 > limit_ms]
    if slow:
        err.print(f"slower than {limit_ms:g} ms at the 99th percentile: {', '.join(slow)}")
        sys.exit(1)


if __name__ == "__main__":
    typer.run(main)
