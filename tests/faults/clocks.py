"""The clocks of our processes jump, by days, while the broker's goes on.

A library that is loaded before all others (``clock.c``) adds to the wall clock what a file says, so that it jumps in
the middle of whatever is going on. What measures how long things take goes on as ever, as on a machine whose clock is
set. (libfaketime does the same, and slows every look at the time down so much that all else gets late.)
"""

from __future__ import annotations

import asyncio
import random
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.children import Children
from tests.chaos.history import Fault
from tests.chaos.stack import BROKER, Stack
from tests.chaos.trial import Note, Trial
from tests.faults.ground import run
from tests.faults.judge import Options, Outcome, tried

SOURCE = Path(__file__).with_name("clock.c")
JUMP = 2 * 86_400
"""Seconds."""
LASTING = (3.0, 6.0)
"""Seconds for which a clock is wrong, from and to."""
PAUSE = (1.0, 2.0)
FORWARD, BACK = "two days on for", "two days back for"


def kinds() -> list[str]:
    """Every jump there is."""
    return [f"{way} {role}" for way in (FORWARD, BACK) for role in ("adapter", "worker")]


class Jumping(Stack):
    """Every adapter and worker has a clock that can be set."""

    def __init__(self, children: Children, folder: Path) -> None:
        self._library = folder / "clock.so"
        run("cc", "-shared", "-fPIC", "-O2", "-o", self._library, SOURCE, "-ldl")
        super().__init__(children, folder, adapters=2, workers=2)
        for role in ("adapter", "worker"):
            for name in self.named(role):
                self._set(name, 0)

    @contextmanager
    def wrong(self, name: str, seconds: int) -> Iterator[None]:
        """Its clock is wrong by so much until the block is left."""
        self._set(name, seconds)
        try:
            yield
        finally:
            self._set(name, 0)

    def _set(self, name: str, seconds: int) -> None:
        with self._clock(name).open("r+b" if self._clock(name).exists() else "wb") as clock:
            clock.write(struct.pack("@q", seconds))  # in place: it is mapped into their memory

    def _clock(self, name: str) -> Path:
        return self._folder / f"{name}.clock"

    def _env(self, name: str) -> dict[str, str]:
        env = super()._env(name)
        if name == BROKER or not self._clock(name).exists():
            return env
        return env | {"LD_PRELOAD": str(self._library), "FAULTS_CLOCK": str(self._clock(name))}


@dataclass(frozen=True, kw_only=True)
class Jumps(Trial):
    """One clock after the other jumps, and back."""

    def stack(self, children: Children, folder: Path) -> Stack:
        """With clocks that can be set."""
        return Jumping(children, folder)

    async def make_faults(self, stack: Stack, note: Note) -> None:
        """Every kind twice."""
        if not isinstance(stack, Jumping):
            raise TypeError(stack)
        dice = random.Random(self.seed)
        planned = [*self.kinds] * 2
        dice.shuffle(planned)
        for kind in planned:
            await asyncio.sleep(dice.uniform(*PAUSE))
            seconds = dice.uniform(*LASTING)
            way, _, role = kind.rpartition(" ")
            name = dice.choice(stack.named(role))
            note(Fault(what=kind, whom=name, at=time.time(), seconds=round(seconds, 3)))
            with stack.wrong(name, JUMP if way == FORWARD else -JUMP):
                await asyncio.sleep(seconds)


async def clock(options: Options) -> Outcome:
    """Waits, heartbeats and runs go on, and no schedule runs early."""
    attempt = Jumps(seed=options.seed, seconds=45, kinds=kinds(), fewest_per_second=2, tell=options.tell)
    return await tried(attempt, options, "clock")
