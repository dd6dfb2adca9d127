"""Who waits for a run to end, or for the read model to reach a position. Memory of one adapter, nothing more."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from runwire.domain.run import Run

Key = tuple[int, str]
"""(task, run)."""


class Waiters:
    """Futures by run. A waiter is registered before the run is asked for, so that no end is missed."""

    def __init__(self, limit: int) -> None:
        """``limit``: how many may wait at once."""
        self._limit = limit
        self._by_run: dict[Key, list[asyncio.Future[Run | None]]] = {}
        self._count = 0
        self.on_ended: list[Callable[[Run], None]] = []
        """Each is called with every run that has ended, whether anybody waits for it or not."""

    def __len__(self) -> int:
        return self._count

    @property
    def is_full(self) -> bool:
        """Whether nobody else may wait."""
        return self._count >= self._limit

    @contextmanager
    def registered(self, task: int, run: str) -> Iterator[asyncio.Future[Run | None]]:
        """Wait for the end of a run: the future gets the ended run, or None when there is nothing more to wait for.

        It is taken off the list when the block is left, however that happens.
        """
        future: asyncio.Future[Run | None] = asyncio.get_running_loop().create_future()
        key = (task, run)
        self._by_run.setdefault(key, []).append(future)
        self._count += 1
        try:
            yield future
        finally:
            self._count -= 1
            waiting = self._by_run[key]
            waiting.remove(future)
            if not waiting:
                del self._by_run[key]

    def ended(self, run: Run) -> None:
        """Wake whoever waits for this run."""
        for callback in self.on_ended:
            callback(run)
        for future in self._by_run.get((run.task, run.id), ()):
            if not future.done():
                future.set_result(run)

    def gone(self, task: int, run: str, error: Exception) -> None:
        """The run will never be: tell whoever waits for it."""
        for future in self._by_run.get((task, run), ()):
            if not future.done():
                future.set_exception(error)

    def release_all(self) -> None:
        """Everybody stops waiting: the adapter goes down."""
        for futures in self._by_run.values():
            for future in futures:
                if not future.done():
                    future.set_result(None)


class Milestones:
    """Futures by stream position: who has written an event waits here until it can be read."""

    def __init__(self) -> None:
        """Nothing is reached yet."""
        self.reached = 0
        self._heap: list[tuple[int, int, asyncio.Future[None]]] = []
        self._tiebreak = itertools.count()

    async def wait(self, sequence: int) -> None:
        """Return when the position is reached."""
        if sequence <= self.reached:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._heap, (sequence, next(self._tiebreak), future))
        await future

    def advance(self, sequence: int) -> None:
        """The position is reached: wake whoever waits for it or for an earlier one."""
        self.reached = sequence
        while self._heap and self._heap[0][0] <= sequence:
            future = heapq.heappop(self._heap)[2]
            if not future.done():
                future.set_result(None)
