"""Waiting within a call: for the end of a run, or for one's turn; as long as the caller does."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import Request

from runwire.domain.errors import Draining, TaskBusy, TaskNotFound
from runwire.domain.lifecycle import Document
from runwire.domain.run import Run, Source
from runwire.domain.trace import Trace
from runwire.http.services import Services
from runwire.messaging import commands, deadletters
from runwire.messaging.broker import UNAVAILABLE

T = TypeVar("T")

PUBLISH_PATIENCE = 10.0
"""Seconds a broker that does not answer is asked again before the caller is told that nothing is known."""
LISTEN_AFTER = 1.0
"""Seconds of waiting after which it is worth noticing that the caller has hung up."""
LOOK_AGAIN = 1.0
"""Seconds after which whoever is next at a busy task tries again, told or not: a lost wake-up costs no more."""
ENDED_ALREADY = 0.02
"""Seconds until a task is tried again that is busy with a run which has ended: its worker is about to say so."""


async def wait_until(request: Request, what: asyncio.Future[T], deadline: float) -> T | None:
    """Wait for a future until ``deadline`` (loop time); None: it is over, or the caller has hung up."""
    loop = asyncio.get_running_loop()
    await asyncio.wait((what,), timeout=min(deadline - loop.time(), LISTEN_AFTER))
    if not what.done() and loop.time() < deadline:
        hung_up = asyncio.create_task(_hung_up(request))
        both: tuple[asyncio.Future[Any], asyncio.Future[Any]] = (what, hung_up)
        try:
            await asyncio.wait(both, timeout=deadline - loop.time(), return_when=asyncio.FIRST_COMPLETED)
        finally:
            hung_up.cancel()
    return what.result() if what.done() else None


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


@dataclass(frozen=True, kw_only=True)
class Call:
    """One execute call, and how long it may take."""

    request: Request
    parts: Services
    document: Document
    """The task as it was when the call came."""
    deadline: float
    """Loop time until which the caller wants to wait."""
    source: Source = Source.HTTP
    """The door that the call came in by."""
    trace: Trace | None = None
    """The trace that the caller is in."""
    reason: str | None = None
    """Why the run is asked for."""

    @property
    def time_left(self) -> float:
        """Seconds the caller still wants to wait; not positive when that is over."""
        return self.deadline - asyncio.get_running_loop().time()

    @property
    def patience(self) -> float:
        """Seconds to spend on a broker that does not answer."""
        return min(max(self.time_left, 1.0), PUBLISH_PATIENCE)

    async def publish(self, run: str) -> None:
        """Ask for the run; afterwards that is durable. Raises TaskBusy, TooManyOutstanding or NotAccepted."""
        task, outstanding = self.document.task, self.parts.outstanding
        with await outstanding.admit(task.chain) if outstanding else nullcontext():
            await commands.publish(
                self.parts.bus,
                task.chain,
                task.id,
                run,
                source=self.source,
                patience=self.patience,
                reason=self.reason,
                trace=self.trace,
            )

    async def publish_in_turn(self, run: str) -> None:
        """Ask for the run as soon as the task is free, after those who were here before.

        Raises TaskBusy when the caller's time is over first, and Draining: then nothing was accepted.
        """
        if self.time_left <= 0 or self.parts.waiters.is_full:
            await self.publish(run)
            return
        with self.parts.lines.joined(self.document.task.id) as turn:
            if await wait_until(self.request, turn, self.deadline) is None:
                await self._leave_line(run)
                return
            while True:
                self._require_not_draining()
                try:
                    await self.publish(run)
                except TaskBusy as busy:
                    if self.time_left <= 0 or await self.request.is_disconnected():
                        raise
                    await self._until_ended(busy.run)
                else:
                    return

    async def wait_for_end(self, run: str, end: asyncio.Future[Run | None]) -> Run | None:
        """The end of the run; None: not before the deadline. ``end`` is its waiter. Raises TaskNotFound."""
        ended = None
        if not self.parts.waiters.is_full:
            ended = await wait_until(self.request, end, self.deadline)
        return ended or await self._look_again(run)

    async def ended(self, run: str) -> Run | None:
        """The run, if this adapter's read model shows it as ended."""
        known = await self.parts.reader.run(self.document.task.id, run)
        return known if known is not None and known.is_final else None

    async def _until_ended(self, run: str) -> None:
        """Return when the run has ended, or it is time to look whether it has."""
        with self.parts.waiters.registered(self.document.task.id, run) as end:
            if await self.ended(run):
                await asyncio.sleep(ENDED_ALREADY)
                return
            await asyncio.wait((end,), timeout=min(max(self.time_left, 0), LOOK_AGAIN))
            if end.done():
                end.exception()  # however it ended, or that it never will: it is in nobody's way any more

    async def _leave_line(self, run: str) -> None:
        """The caller's time is over before its turn came: say what the task is busy with; at worst by a last try."""
        self._require_not_draining()
        task = self.document.task
        holder = await commands.outstanding(self.parts.bus, task.chain, task.id)
        if holder is not None or await self.request.is_disconnected():
            raise TaskBusy(commands.run_of(holder) if holder is not None else run)
        await self.publish(run)

    def _require_not_draining(self) -> None:
        if self.parts.draining:
            raise Draining("This adapter is stopping; nothing was accepted.")

    async def _look_again(self, run: str) -> Run | None:
        """The wait is over: read back, so that a wake-up that got lost is not a wrong answer."""
        ended = await self.ended(run)
        if ended is not None:
            return ended
        task = self.document.task
        try:
            dead = await deadletters.last(self.parts.bus, task.chain, task.id)
        except UNAVAILABLE:
            return None
        if dead is not None and dead.run == run:
            raise TaskNotFound(dead.detail)
        return None
