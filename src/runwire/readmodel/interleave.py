"""Events and log lines of a task as one: the lines of a run come after the event that began it and before its end."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from time import monotonic

from runwire.messaging.events import Event
from runwire.messaging.logs import Line
from runwire.readmodel.feed import Follower
from runwire.readmodel.tail import Tail

PATIENCE = 2.0
"""Seconds that an event waits for the lines before it, and a line for the event that begins its run."""


async def merged(
    follower: Follower, tail: Tail, *, after: int, first: Event | None, run: str | None
) -> AsyncGenerator[Event | Line | None, None]:
    """Events and lines, the lines of a run between its first event and its last. As :meth:`Follower.events`.

    ``first`` comes before all other events; ``run`` is the last one of which there has been an event.
    """
    if first is not None:
        async with aclosing(_lines_before(first, follower, tail)) as lines:
            async for line in lines:
                yield line
        yield first
    known = first.document.run.id if first is not None and first.document.run is not None else run
    stranger_since = 0.0
    async with aclosing(follower.events(after=after, woken_by_lines=True)) as following:
        async for event in following:
            if event is not None:
                async with aclosing(_lines_before(event, follower, tail)) as lines:
                    async for line in lines:
                        yield line
                known = event.document.run.id if event.document.run is not None else known
                yield event
                continue
            found = False
            while (next_line := await tail.next()) is not None and not follower.has_events:
                if next_line.run == known:
                    stranger_since = 0.0
                elif not stranger_since:
                    stranger_since = monotonic()
                if stranger_since and monotonic() - stranger_since < PATIENCE:
                    break
                found = True
                yield tail.take(next_line)
            if not found:
                yield None


async def _lines_before(event: Event, follower: Follower, tail: Tail) -> AsyncGenerator[Line, None]:
    """The lines that the event says have been logged; it does not wait for them for ever."""
    run = event.document.run
    last = run.log_seq if run is not None else 0
    deadline = monotonic() + PATIENCE
    while not follower.closed:
        line = await tail.next()
        if line is not None and line.sequence <= last:
            yield tail.take(line)
        elif line is not None or tail.has_come_to(last) or monotonic() > deadline:
            return
        else:
            await follower.woken()
