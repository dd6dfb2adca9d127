"""The callers: keep-alive connections, each of which asks again the moment it has its answer.

Runs in a process of its own (``python -m benchmarks.load``, a :class:`Spec` as JSON on stdin, a :class:`Measured`
on stdout). It has to cost far less than what it measures, so there is no HTTP library: a request is bytes made
once, and of an answer only the status, Content-Length and ``"code":"DONE"`` are looked at.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from itertools import cycle
from pathlib import Path
from time import perf_counter
from typing import cast

import uvloop

LAST_ANSWERS = 70.0
"""Seconds the last answers may take: longer than an execute call waits."""
CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
GENERATOR = "generator"
"""The name of this process among those whose CPU time is measured."""
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What to ask, and for how long."""

    port: int
    token: str
    """``ID:SECRET``."""
    tasks: list[list[int]]
    """One list per caller: the tasks it executes, in turn."""
    warm_up: float
    """Seconds before the measurement begins."""
    seconds: float
    """Seconds it lasts."""
    pids: dict[str, int]
    """Processes whose CPU time is measured."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What came of it."""

    seconds: float
    calls: int
    """Calls that were answered with DONE within the measurement."""
    p50: float
    """Milliseconds."""
    p99: float
    """Milliseconds."""
    cpu: dict[str, float]
    """CPU seconds that each process took, this one included."""
    others: float
    """What share of the machine's CPU others took meanwhile, other machines on the same host included (steal)."""
    errors: dict[str, int]
    """Anything but 200 with code DONE, warm-up included: what it was -> how often."""


@dataclass
class Tally:
    """What the callers have counted."""

    measuring: bool = False
    stopping: bool = False
    latencies: list[float] = field(default_factory=list)
    """Seconds, of calls that ended well within the measurement."""
    errors: Counter[str] = field(default_factory=Counter)

    def answered(self, answer: bytes, latency: float) -> None:
        """Count an answer."""
        if not answer.startswith(b"HTTP/1.1 200 ") or b'"code":"DONE"' not in answer:
            head, _, body = answer.partition(b"\r\n\r\n")
            status = head.partition(b"\r")[0]
            self.errors[f"{status.decode()} {body[:200].decode(errors='replace')}"] += 1
        elif self.measuring:
            self.latencies.append(latency)


class Caller(asyncio.Protocol):
    """One connection; ``closed`` is done when it has its last answer."""

    def __init__(self, requests: list[bytes], tally: Tally) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._requests = cycle(requests)
        self._tally = tally
        self._buffer = b""
        self._asked = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the first time."""
        self._transport = cast("asyncio.Transport", transport)
        self._ask()

    def data_received(self, data: bytes) -> None:
        """An answer, or a piece of one."""
        answer = self._buffer + data
        head = answer.find(b"\r\n\r\n")
        length = CONTENT_LENGTH.search(answer, 0, head + 2) if head >= 0 else None
        if head < 0 or (length and len(answer) < head + 4 + int(length[1])):
            self._buffer = answer
            return
        self._buffer = b""
        self._tally.answered(answer, perf_counter() - self._asked)
        if self._tally.stopping:
            self._transport.close()
        else:
            self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        """After the last answer; anything earlier is an error."""
        if not self._tally.stopping:
            self._tally.errors[f"the connection was lost: {exc}"] += 1
        self.closed.set_result(None)

    def _ask(self) -> None:
        self._asked = perf_counter()
        self._transport.write(next(self._requests))


async def measure(spec: Spec) -> Measured:
    """Let the callers call; measure after the warm-up."""
    tally = Tally()
    loop = asyncio.get_running_loop()
    callers = []
    for tasks in spec.tasks:
        requests = [_request(task, spec.token) for task in tasks]
        _, caller = await loop.create_connection(lambda r=requests: Caller(r, tally), "127.0.0.1", spec.port)  # type: ignore[misc]
        callers.append(caller)
    pids = spec.pids | {GENERATOR: os.getpid()}
    await asyncio.sleep(spec.warm_up)
    tally.measuring, before, busy, began = True, _cpu(pids), _busy(), perf_counter()
    await asyncio.sleep(spec.seconds)
    tally.measuring, after, busy, seconds = False, _cpu(pids), _busy() - busy, perf_counter() - began
    cpu = {name: after[name] - before[name] for name in pids}
    tally.stopping = True
    _, waiting = await asyncio.wait([caller.closed for caller in callers], timeout=LAST_ANSWERS)
    if waiting:
        tally.errors[f"no answer within {LAST_ANSWERS:g} s"] += len(waiting)
    latencies = sorted(tally.latencies)
    return Measured(
        seconds=seconds,
        calls=len(latencies),
        p50=_percentile(latencies, 0.50) * 1000,
        p99=_percentile(latencies, 0.99) * 1000,
        cpu=cpu,
        others=max(0.0, busy - sum(cpu.values())) / (seconds * (os.cpu_count() or 1)),
        errors=dict(tally.errors),
    )


def _request(task: int, token: str) -> bytes:
    return (
        f"POST /tasks/{task}/execute HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Authorization: Bearer {token}\r\nContent-Length: 0\r\n\r\n"
    ).encode()


def _cpu(pids: dict[str, int]) -> dict[str, float]:
    """CPU seconds each process has used so far: user and system, all threads (proc(5), fields 14 and 15)."""
    used = {}
    for name, pid in pids.items():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        used[name] = (int(fields[11]) + int(fields[12])) / TICKS
    return used


def _busy() -> float:
    """CPU seconds used so far by everybody (proc(5), /proc/stat): user, nice, system, irq, softirq, steal."""
    user, nice, system, _idle, _iowait, *interrupts_and_steal = Path("/proc/stat").read_text().split()[1:9]
    return sum(map(int, (user, nice, system, *interrupts_and_steal))) / TICKS


def _percentile(ordered: list[float], share: float) -> float:
    """The smallest value that this share of them does not exceed; 0 when there are none."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def main() -> None:
    """Read the Spec, measure, write the Measured."""
    spec = Spec(**json.load(sys.stdin))
    gc.disable()  # it lives for seconds
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            measured = runner.run(measure(spec))
    except OSError as error:  # nobody listens, or a measured process is gone
        sys.exit(f"benchmarks.load: {error}")
    json.dump(asdict(measured), sys.stdout)


if __name__ == "__main__":
    main()
