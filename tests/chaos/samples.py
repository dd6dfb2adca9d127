"""What the processes of a soak take up, looked at every few seconds from outside."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import httpx

from runwire.messaging.broker import UNAVAILABLE, Bus
from tests.chaos.stack import BROKER, Stack

INTERVAL = 3.0
"""Seconds between two looks."""
PATIENCE = 2.0
"""Seconds a process may take to answer; one that is frozen does not."""
MIB = 1 << 20


class Figure(StrEnum):
    """What is looked at."""

    MEMORY = "memory, MiB"
    """Resident."""
    DESCRIPTORS = "descriptors"
    THREADS = "threads"
    WAITING = "waiting calls"
    """Of an adapter, by its own account."""
    WAL = "WAL, MiB"
    """Of an adapter's SQLite file."""
    STORE = "store, MiB"
    """Of all streams of the broker."""


@dataclass(frozen=True)
class Sample:
    """One figure of one process at one moment."""

    at: float
    """Seconds since the soak began."""
    process: str
    pid: int
    figure: Figure
    value: float


Series = list[tuple[float, float]]
"""(at, value), in order of time."""


def series(samples: Iterable[Sample]) -> dict[tuple[Figure, str, int], Series]:
    """The samples by figure, process and process id: a process that was started again begins anew."""
    found: dict[tuple[Figure, str, int], Series] = defaultdict(list)
    for sample in samples:
        found[sample.figure, sample.process, sample.pid].append((sample.at, sample.value))
    return found


class Sampler:
    """Looks at the processes of a stack until it is stopped."""

    def __init__(self, stack: Stack, bus: Bus) -> None:
        """``bus``: a connection of its own, past all proxies."""
        self.samples: list[Sample] = []
        self.began = time.monotonic()
        self._stack = stack
        self._bus = bus
        self._http = httpx.AsyncClient(trust_env=False, timeout=PATIENCE)
        self._rounds: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._rounds = asyncio.create_task(self._make_rounds())

    async def stop(self) -> None:
        """Look no more."""
        if self._rounds is not None:
            self._rounds.cancel()
        await self._http.aclose()

    async def waiting(self, adapter: str) -> int | None:
        """How many calls an adapter takes for waiting; None: it does not say."""
        with suppress(httpx.HTTPError, KeyError, ValueError):
            answer = await self._http.get(f"{self._stack.adapters[adapter]}/readyz?verbose")
            return int(answer.json()["waiting"])
        return None

    async def _make_rounds(self) -> None:
        while True:
            began = time.monotonic()
            for name, pid in self._stack.pids.items():
                with suppress(OSError, StopIteration):  # it has just ended
                    self._look_at(name, pid)
            waiting = await asyncio.gather(*(self.waiting(name) for name in self._stack.adapters))
            for name, count in zip(self._stack.adapters, waiting, strict=True):
                self._note(name, Figure.WAITING, count)
            with suppress(*UNAVAILABLE):
                async with asyncio.timeout(PATIENCE):
                    account = await self._bus.js.account_info()
                    self._note(BROKER, Figure.STORE, account.storage / MIB)
            await asyncio.sleep(max(0.0, INTERVAL - (time.monotonic() - began)))

    def _look_at(self, name: str, pid: int) -> None:
        process = Path(f"/proc/{pid}")
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        if "VmRSS" not in status:  # it has ended, and nobody has asked how
            return
        self._note(name, Figure.MEMORY, int(status["VmRSS"].split()[0]) / 1024, pid)
        self._note(name, Figure.THREADS, int(status["Threads"]), pid)
        self._note(name, Figure.DESCRIPTORS, sum(1 for _ in (process / "fd").iterdir()), pid)
        if name in self._stack.adapters:
            log = self._stack.read_model(name).with_name("readmodel.db-wal")
            self._note(name, Figure.WAL, log.stat().st_size / MIB if log.exists() else 0.0, pid)

    def _note(self, process: str, figure: Figure, value: float | None, pid: int | None = None) -> None:
        if value is not None:
            pid = pid or self._stack.pids[process]
            self.samples.append(Sample(time.monotonic() - self.began, process, pid, figure, float(value)))
