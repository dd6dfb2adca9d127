"""Writes the end of each run that was asked for with an Idempotency-Key into the record of that key.

From then on the record is kept for 24 hours, however long the run took, and the answer can be given again even
when the history has lost the run. Every adapter does this with every end its projector comes by, so that it
happens whichever of them is there to see it; what has been done already is left alone.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from datetime import timedelta

from runwire.domain.errors import Conflict, NotAccepted
from runwire.domain.run import Run
from runwire.http.idempotency import name_behind, time_left, without_result
from runwire.messaging import keys
from runwire.messaging.broker import UNAVAILABLE, Bus
from runwire.messaging.keys import RunRecord

log = logging.getLogger("runwire.http")

PREFIX = "key-"
LONGEST_BACKLOG = 20_000
"""Ends in memory; more are left to the other adapters, and to the read model. Only a rebuild gets there."""
AT_ONCE = 32
"""Records looked at together."""
PAUSE = 1.0
"""Seconds to a broker that does not answer."""
PATIENCE = 2.0
"""Seconds a stopping adapter takes for what is left, at most."""


class KeyKeeper:
    """Keeps the records of one adapter's ended runs."""

    def __init__(self, bus: Bus, server_key: bytes) -> None:
        """``server_key``: the installation's secret, which key names derive from."""
        self._bus = bus
        self._server_key = server_key
        self._backlog: dict[str, Run] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; what :meth:`ended` hears of is worked off in the background."""
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Finish what is left, within PATIENCE."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        with suppress(*UNAVAILABLE):
            async with asyncio.timeout(PATIENCE):
                while self._backlog:
                    await self._keep_some()

    def ended(self, run: Run) -> None:
        """A run has ended; most were asked for without a key, and are none of our business."""
        if not run.id.startswith(PREFIX) or len(self._backlog) >= LONGEST_BACKLOG:
            return
        name = name_behind(self._server_key, run.task, run.id)
        if name is not None and time_left(run) > timedelta():
            self._backlog[name] = run
            self._wake.set()

    async def _work(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._backlog:
                try:
                    await self._keep_some()
                except UNAVAILABLE as error:
                    log.debug("keys wait for the broker: %r", error, extra={"action": "keeper_waits"})
                    await asyncio.sleep(PAUSE)

    async def _keep_some(self) -> None:
        some = list(self._backlog.items())[:AT_ONCE]
        outcomes = await asyncio.gather(*(self._keep(name, run) for name, run in some), return_exceptions=True)
        away: BaseException | None = None
        for (name, run), outcome in zip(some, outcomes, strict=True):
            if isinstance(outcome, UNAVAILABLE):
                away = outcome
                continue
            if isinstance(outcome, Exception):
                log.error("the end of run %s is not kept: %r", run.id, outcome, extra={"action": "keeper_failed"})
            if self._backlog.get(name) is run:
                del self._backlog[name]
        if away is not None:
            raise away

    async def _keep(self, name: str, run: Run) -> None:
        """The record of the run's key gets the end. One that is about another run is left alone."""
        record = RunRecord(request=str(run.task), run=run.id, ended=without_result(run))
        ttl = time_left(run).total_seconds()
        kept = await keys.lookup(self._bus, name, RunRecord)
        with suppress(Conflict, NotAccepted):  # another adapter was faster; there is no room
            if kept is None:  # the run took longer than its record was kept
                await keys.remember(self._bus, name, record, ttl=ttl, patience=PAUSE)
            elif kept.record.run == run.id and kept.record.ended is None:
                await keys.overwrite(self._bus, name, record, expected=kept.sequence, ttl=ttl)
