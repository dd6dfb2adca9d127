"""The log lines of a task, and what its runs report of their progress, for somebody who follows the task.

As with events (:mod:`.feed`): committed lines come by a bounded queue, and who does not keep up, or comes back, reads
on from where he was; here from the read model, which has the same lines on every adapter.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

from runwire.messaging.logs import Line

QUEUE_LINES = 1000
"""Lines that wait for one follower, at most."""
QUEUE_BYTES = 1 << 20
"""Bytes of lines that wait for one follower, at most."""
PAGE = 200
"""Lines that are read at once."""

ReadLines = Callable[[int, int, int, int], Awaitable[list[Line]]]
"""(task, after, until, limit) -> lines and reports, in order."""


class Tail:
    """One place among the lines of a task."""

    def __init__(self, chain: int, task: int, position: Callable[[], int], read: ReadLines) -> None:
        """``position``: up to where lines have been offered to every tail there was."""
        self._chain, self._task = chain, task
        self.joined = position()
        """What was committed when it began: everything later comes by the queue."""
        self._position = position
        self._read = read
        self._queue: deque[Line] = deque()
        self._bytes = 0
        self._page: deque[Line] = deque()
        self._until = 0
        """What comes after the last line up to here is read."""
        self._behind = False
        self.last = self.joined
        """The last line that was taken."""

    def begin(self, *, after: int) -> None:
        """Go on after this line; to be called once, before anything is taken."""
        self.last, self._until = after, self.joined

    def offer(self, line: Line) -> None:
        """Queue a committed line, or let go of the queue when there is no room."""
        if self._behind or line.chain != self._chain:  # the id has been taken again by another chain
            return
        if len(self._queue) >= QUEUE_LINES or self._bytes + len(line.payload) > QUEUE_BYTES:
            self._behind = True
            self.forget()
        else:
            self._queue.append(line)
            self._bytes += len(line.payload)

    def forget(self) -> None:
        """Keep nothing in memory."""
        self._queue.clear()
        self._bytes = 0

    def has_come_to(self, sequence: int) -> bool:
        """Whether there is no line up to this one that may still come."""
        return self._position() >= sequence

    async def next(self) -> Line | None:
        """The next line, which stays until it is taken; None: there is none yet."""
        while True:
            if self._page:
                return self._page[0]
            if self.last < self._until:
                self._page.extend(await self._read(self._task, self.last, self._until, PAGE))
                if not self._page:
                    self.last = self._until
            elif self._behind:
                self.forget()
                self._behind, self._until = False, self._position()
            elif self._queue and self._queue[0].sequence <= self.last:
                self._drop_first()
            else:
                return self._queue[0] if self._queue else None

    def take(self, line: Line) -> Line:
        """Take the line that came next."""
        if self._page:
            self._page.popleft()
        elif self._queue and self._queue[0] is line:
            self._drop_first()
        self.last = line.sequence
        return line

    def _drop_first(self) -> None:
        self._bytes -= len(self._queue.popleft().payload)
