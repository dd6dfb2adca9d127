"""A quiet chain beside a noisy one: ``python -m benchmarks.fairness``.

A caller of the quiet chain executes a task at a steady pace, while the noisy chain makes noise: calls over HTTP
as fast as it can (with a rate per chain set), thousands of commands on the bus, runs that last for an hour. The same
caller is measured alone right before each noise, so that both numbers come from the same minute. Exit status 1 when
a quiet call was not answered with 200 and code DONE.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Annotated, Any
from uuid import uuid4

import typer

from benchmarks.children import ChildFailed, Children
from benchmarks.load import Spec
from benchmarks.stack import CHAIN, Stack, start
from runwire.domain import lifecycle
from runwire.domain.access import AccessLevel, AccessToken, TokenKind, digest
from runwire.domain.lifecycle import Definition
from runwire.domain.task import Target
from runwire.messaging import chains, events, subjects, tokens
from runwire.messaging.broker import Bus
from runwire.settings import load

QUIET, NOISY = 2, CHAIN
QUIET_TASK, FIRST_NOISY = 1, 100_000
QUIET_TOKEN = "quiet:quiet-benchmark-secret"
RATE = "100/second"
CALLERS = 32
"""Connections of the noisy chain that call as fast as they are answered."""
ENDLESS = 200
"""Runs that last for an hour: more than three times the slots."""
AT_ONCE = 200
"""Publishes in flight."""


@dataclass
class Series:
    """Milliseconds of the quiet calls."""

    taken: list[float] = field(default_factory=list)
    errors: int = 0

    def at(self, share: float) -> float:
        """A percentile."""
        ordered = sorted(self.taken)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


@dataclass
class Noise:
    """What the noisy chain does, and how the quiet one fares with and without it."""

    name: str
    alone: Series = field(default_factory=Series)
    beside: Series = field(default_factory=Series)
    heard: str = ""
    """What came of the noise itself."""


def main(
    seconds: Annotated[float, typer.Option(min=0.5, help="Seconds a measurement lasts, in each round.")] = 5.0,
    rounds: Annotated[int, typer.Option(min=1, help="How often alone and beside are measured in turn.")] = 2,
    pace: Annotated[float, typer.Option(min=0.0, help="Milliseconds from one quiet call to the next.")] = 20.0,
    commands: Annotated[int, typer.Option(min=100, help="Commands of the noisy chain on the bus.")] = 20_000,
    sync: Annotated[str, typer.Option(help="When the broker flushes to disk: always, or 2m.")] = "2m",
) -> None:
    """Measure a quiet chain's POST /tasks/{id}/execute alone and beside three kinds of noise."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for name in [name for name in os.environ if name.startswith("RUNWIRE_")]:
        del os.environ[name]
    with tempfile.TemporaryDirectory(prefix="runwire-benchmark-") as folder, Children() as children:
        try:
            stack = start(children, Path(folder), sync=sync, tasks=0, settings={"RUNWIRE_RATE_PER_CHAIN": RATE})
            asyncio.run(_prepare(stack, commands))
            noises = _measure(stack, seconds=seconds, rounds=rounds, pace=pace / 1000, commands=commands)
        except ChildFailed as failed:
            sys.exit(f"benchmarks.fairness: {failed}")
    print(_table(noises))
    if any(noise.alone.errors or noise.beside.errors for noise in noises):
        sys.exit(1)


def _measure(stack: Stack, *, seconds: float, rounds: int, pace: float, commands: int) -> list[Noise]:
    """The three noises one after the other; the endless one last, as it does not end."""

    def quiet(series: Series) -> None:
        _call_quietly(stack.port, series, seconds=seconds, pace=pace)

    flood = Noise(f"HTTP flood, {CALLERS} callers, {RATE}")
    queue = Noise(f"{commands:,} commands on the bus")
    endless = Noise(f"{ENDLESS} runs of an hour")
    _call_quietly(stack.port, Series(), seconds=1.0, pace=pace)  # warm-up
    for number in range(1, rounds + 1):
        _progress(f"round {number} of {rounds}: {flood.name}")
        quiet(flood.alone)
        with _flooding(stack, seconds=seconds + 2, tell=lambda text: setattr(flood, "heard", text)):
            time.sleep(0.5)
            quiet(flood.beside)
    for number in range(1, rounds + 1):
        _progress(f"round {number} of {rounds}: {queue.name}")
        quiet(queue.alone)
        asyncio.run(_queue(stack, range(FIRST_NOISY, FIRST_NOISY + commands)))
        before = asyncio.run(_outstanding(stack))
        quiet(queue.beside)
        left = asyncio.run(_outstanding(stack))
        queue.heard = f"{before:,} queued, {left:,} left"
        _wait_for(lambda: asyncio.run(_outstanding(stack)) == 0)
    for _ in range(rounds):
        quiet(endless.alone)
    asyncio.run(_queue(stack, _endless(commands)))
    time.sleep(1)
    for number in range(1, rounds + 1):
        _progress(f"round {number} of {rounds}: {endless.name}")
        quiet(endless.beside)
    endless.heard = f"{asyncio.run(_outstanding(stack))} running or queued"
    return [flood, queue, endless]


def _call_quietly(port: int, series: Series, *, seconds: float, pace: float) -> None:
    """One caller of the quiet chain, for so long."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=70)
    until = time.perf_counter() + seconds
    while (began := time.perf_counter()) < until:
        connection.request("POST", f"/tasks/{QUIET_TASK}/execute", headers={"Authorization": f"Bearer {QUIET_TOKEN}"})
        answer = connection.getresponse()
        body = answer.read()
        series.taken.append((time.perf_counter() - began) * 1000)
        if answer.status != http.HTTPStatus.OK or b'"code":"DONE"' not in body:
            series.errors += 1
            _progress(f"{answer.status} {body[:200].decode(errors='replace')}")
        time.sleep(max(0.0, began + pace - time.perf_counter()))
    connection.close()


@contextmanager
def _flooding(stack: Stack, *, seconds: float, tell: Callable[[str], None]) -> Any:
    """Callers of the noisy chain in a process of their own, while the block runs."""
    spec = Spec(
        port=stack.port,
        token=stack.token,
        tasks=[[FIRST_NOISY + number] for number in range(CALLERS)],
        warm_up=0.0,
        seconds=seconds,
        pids={},
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.load"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdin is not None
        process.stdin.write(json.dumps(asdict(spec)))
        process.stdin.close()
        yield
        assert process.stdout is not None
        heard = json.loads(process.stdout.read())
        refused = sum(count for text, count in heard["errors"].items() if " 429 " in text)
        tell(f"{heard['calls'] / heard['seconds']:,.0f} runs/s, {refused / heard['seconds']:,.0f}/s refused")
    finally:
        process.kill()
        process.wait()


# --- on the bus ---------------------------------------------------------------------------------------------


async def _connect(stack: Stack) -> Bus:
    bus = Bus(load(nats_url=stack.url), "runwire benchmark")
    await bus.connect()
    return bus


async def _prepare(stack: Stack, commands: int) -> None:
    """The quiet chain's token and task, and every task of the noisy one."""
    bus = await _connect(stack)
    name, _, secret = QUIET_TOKEN.partition(":")
    await tokens.create(
        bus,
        AccessToken(
            id=name,
            kind=TokenKind.ADMIN,
            digest=digest(secret),
            levels={QUIET: AccessLevel.OPERATOR},
            created=datetime.now(UTC),
        ),
    )
    await _create(bus, QUIET, QUIET_TASK, {"action": "noop"})
    for batch in _batches(range(FIRST_NOISY, FIRST_NOISY + commands)):
        await asyncio.gather(*(_create(bus, NOISY, task, {"action": "noop"}) for task in batch))
    for batch in _batches(_endless(commands)):
        await asyncio.gather(*(_create(bus, NOISY, task, {"action": "sleep", "seconds": 3600}) for task in batch))
    await bus.nc.close()
    _progress(f"{commands + ENDLESS + 1:,} tasks")


async def _create(bus: Bus, chain: int, task: int, target: dict[str, Any]) -> None:
    definition = Definition(
        chain=chain, desc="for the benchmark", target=Target.model_validate(target), trigger={}, timeout=7200
    )
    document = lifecycle.create(definition, task, datetime.now(UTC))
    await events.append(bus, document, expected=0, event_id=uuid4().hex, unique_id=True)


async def _queue(stack: Stack, tasks: range) -> None:
    bus = await _connect(stack)
    for batch in _batches(tasks):
        await asyncio.gather(
            *(bus.js.publish(subjects.command(NOISY, task), b"{}", headers={subjects.MSG_ID: uuid4().hex})
              for task in batch)
        )  # fmt: skip
    await bus.nc.close()


async def _outstanding(stack: Stack) -> int:
    bus = await _connect(stack)
    found = await chains.outstanding(bus, NOISY)
    await bus.nc.close()
    return found


def _endless(commands: int) -> range:
    return range(FIRST_NOISY + commands, FIRST_NOISY + commands + ENDLESS)


def _batches(tasks: range) -> list[range]:
    return [tasks[start : start + AT_ONCE] for start in range(0, len(tasks), AT_ONCE)]


# --- what is told -------------------------------------------------------------------------------------------


def _table(noises: list[Noise]) -> str:
    lines = [
        f"{'':<38}{'alone, ms':>16}{'beside, ms':>20}{'times alone':>18}",
        f"{'noise':<38}{'p50':>8}{'p99':>8}{'p50':>12}{'p99':>8}{'p50':>11}{'p99':>7}{'calls':>8}{'errors':>8}  noise",
    ]
    for noise in noises:
        alone, beside = noise.alone, noise.beside
        lines.append(
            f"{noise.name:<38}{median(alone.taken):>8.2f}{alone.at(0.99):>8.2f}"
            f"{median(beside.taken):>12.2f}{beside.at(0.99):>8.2f}"
            f"{median(beside.taken) / median(alone.taken):>11.1f}{beside.at(0.99) / alone.at(0.99):>7.1f}"
            f"{len(beside.taken):>8}{alone.errors + beside.errors:>8}  {noise.heard}"
        )
    return "\n".join(lines)


def _wait_for(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.2)


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    typer.run(main)
