"""Who follows the events of a task or of chains: committed events -> a bounded queue for each follower.

The projector hands over what it has committed, so an event that is seen here is what the next GET shows. A
follower that does not keep up loses its queue, not its place: it reads on from EVENTS itself, after the last
event that it has passed on, and then goes over to the queue again. Resuming after a broken connection is the
same thing, so there is one way to catch up, without gap and without repeat.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing

from runwire.messaging import events
from runwire.messaging.broker import Bus
from runwire.messaging.events import Event
from runwire.messaging.logs import Line
from runwire.readmodel.projection import EventRecord
from runwire.readmodel.tail import ReadLines, Tail

QUEUE_EVENTS = 1000
"""Events that wait for one follower, at most."""
QUEUE_BYTES = 1 << 20
"""Bytes of events that wait for one follower, at most."""
TICK = 0.8
"""Seconds of silence after which a follower is handed None, to look at the clock."""

Key = tuple[str, int]
"""What is followed: ``("task", id)`` or ``("chain", id)``."""


class Follower:
    """One place in the stream of committed events. Made by :meth:`Feed.follow`, to be closed in any case."""

    def __init__(
        self, feed: Feed, keys: tuple[Key, ...], filters: list[str], code: str | None, tail: Tail | None
    ) -> None:
        self._feed = feed
        self._keys = keys
        self._filters = filters
        self._code = code
        self._queue: deque[Event] = deque()
        self._bytes = 0
        self._behind = False
        self._wake = asyncio.Event()
        self.closed = False
        self.tail = tail
        """The lines of the task, where they are followed, too."""
        self.joined = feed.position
        """What was committed when it began to follow: everything later comes by the queue."""

    async def events(self, *, after: int, woken_by_lines: bool = False) -> AsyncGenerator[Event | None, None]:
        """Every event later than sequence ``after``, each once and in order, until somebody closes the follower.

        None: there was nothing for a while; ``woken_by_lines``: or there may be lines. Raises one of UNAVAILABLE when
        EVENTS has to be read and cannot be.
        """
        last = after
        self._behind = self._behind or after < self.joined
        while not self.closed:
            if self._behind:
                until = self._rejoin()
                stretch = events.between(self._feed.bus, self._filters, after=last, until=until)
                async with aclosing(stretch):
                    async for event in stretch:
                        if self.closed:
                            return
                        last = event.sequence
                        yield event
                last = max(last, until)
            elif self._queue:
                event = self._queue.popleft()
                self._bytes -= event.size
                if event.sequence > last:
                    last = event.sequence
                    yield event
            elif not await self.woken() or woken_by_lines:
                yield None

    @property
    def has_events(self) -> bool:
        """Whether an event is waiting to be passed on."""
        return bool(self._queue) or self._behind

    def offer(self, event: Event) -> None:
        """Queue a committed event, or let go of the queue when there is no room."""
        if self._behind or (self._code is not None and event.code != self._code):
            return
        if len(self._queue) >= QUEUE_EVENTS or self._bytes + event.size > QUEUE_BYTES:
            self._behind = True
            self._forget()
        else:
            self._queue.append(event)
            self._bytes += event.size
        self._wake.set()

    def offer_line(self, line: Line) -> None:
        """Queue a committed line of the task."""
        if self.tail is not None:
            self.tail.offer(line)
            self._wake.set()

    def close(self) -> None:
        """Nothing more comes, and nothing is kept. May be called twice."""
        if not self.closed:
            self.closed = True
            self._feed.leave(self, self._keys)
            self._forget()
            if self.tail is not None:
                self.tail.forget()
            self._wake.set()

    def _rejoin(self) -> int:
        """Queue from now on; returns the position up to which the stream itself has to be read."""
        self._forget()
        self._behind = False
        return self._feed.position

    def _forget(self) -> None:
        self._queue.clear()
        self._bytes = 0

    async def woken(self) -> bool:
        """Wait until something happens; False: nothing did for a while."""
        self._wake.clear()
        try:
            async with asyncio.timeout(TICK):
                await self._wake.wait()
        except TimeoutError:
            return False
        return True


class Feed:
    """The followers of one adapter. What nobody follows costs nothing."""

    def __init__(self, bus: Bus, *, position: int, lines: int, read_lines: ReadLines, limit: int) -> None:
        """``position``, ``lines``: sequences of EVENTS and LOGS that are committed; ``limit``: how many may follow."""
        self.bus = bus
        self.lines = lines
        """Last sequence of LOGS that was handed out."""
        self._read_lines = read_lines
        self.position = position
        """Last sequence that was handed out: later ones come by the queues."""
        self._limit = limit
        self._followers: dict[Key, set[Follower]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def is_full(self) -> bool:
        """Whether nobody else may follow."""
        return self._count >= self._limit

    def follow(
        self,
        keys: Iterable[Key],
        filters: list[str],
        *,
        code: str | None = None,
        lines_of: tuple[int, int] | None = None,
    ) -> Follower:
        """Begin to follow tasks or chains. ``filters``: the subjects of the same events; ``code``: only this state.

        ``lines_of``: also the log lines of this task, by chain and id.
        """
        tail = None if lines_of is None else Tail(*lines_of, lambda: self.lines, self._read_lines)
        follower = Follower(self, tuple(keys), filters, code, tail)
        for key in follower._keys:  # noqa: SLF001 - one thing in two classes
            self._followers.setdefault(key, set()).add(follower)
        self._count += 1
        return follower

    def leave(self, follower: Follower, keys: tuple[Key, ...]) -> None:
        """The follower has been closed."""
        self._count -= 1
        for key in keys:
            followers = self._followers[key]
            followers.discard(follower)
            if not followers:
                del self._followers[key]

    def publish(self, records: list[EventRecord]) -> None:
        """These events have just been committed, in this order."""
        if not records:
            return
        if records[0].sequence <= self.position:
            self.close()  # the stream was made anew: no place in the old one means anything
        if self._count:
            for record in records:
                self._hand_out(record)
        self.position = records[-1].sequence

    def publish_lines(self, lines: list[Line], position: int) -> None:
        """These lines have just been committed, in this order, and nothing up to ``position`` comes any more."""
        if position < self.lines:
            self.close()  # the stream was made anew
        self.lines = position
        if self._count:
            for line in lines:
                for follower in self._followers.get(("task", line.task), ()):
                    follower.offer_line(line)

    def close(self) -> None:
        """Everybody stops following."""
        for follower in {follower for followers in self._followers.values() for follower in followers}:
            follower.close()

    def _hand_out(self, record: EventRecord) -> None:
        task = record.document.task
        of_task, of_chain = self._followers.get(("task", task.id)), self._followers.get(("chain", task.chain))
        if of_task or of_chain:
            event = Event(record.sequence, record.document, record.headers, len(record.payload))
            for follower in (*(of_task or ()), *(of_chain or ())):
                follower.offer(event)
