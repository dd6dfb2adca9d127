"""Who waits for a turn at a busy task: first come, first served, among the callers of one adapter."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class Lines:
    """One line per task that somebody waits for."""

    def __init__(self) -> None:
        """Nobody waits."""
        self._by_task: dict[int, deque[asyncio.Future[bool]]] = {}

    def __len__(self) -> int:
        return len(self._by_task)

    @contextmanager
    def joined(self, task: int) -> Iterator[asyncio.Future[bool]]:
        """A place at the end of the line; the future is True as soon as it is one's turn.

        The place is given up when the block is left, however that happens, and the next one's turn comes.
        """
        place: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        line = self._by_task.setdefault(task, deque())
        line.append(place)
        _call_first(line)
        try:
            yield place
        finally:
            line.remove(place)
            if line:
                _call_first(line)
            else:
                del self._by_task[task]


def _call_first(line: deque[asyncio.Future[bool]]) -> None:
    if not line[0].done():
        line[0].set_result(True)
