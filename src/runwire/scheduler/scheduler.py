"""Everything a worker process does for schedules, as one thing to start and to stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

from runwire.messaging.broker import Bus
from runwire.scheduler.forwarder import Forwarder
from runwire.scheduler.reconciler import keep_reconciled
from runwire.scheduler.setter import Setter
from runwire.settings import Settings


def _now() -> datetime:
    return datetime.now(UTC)


class Scheduler:
    """Setter, forwarder and reconciler of one process."""

    def __init__(self, bus: Bus, settings: Settings, *, clock: Callable[[], datetime] = _now) -> None:
        """Nothing runs before :meth:`start`. ``clock`` tells the time in UTC."""
        self._bus = bus
        self._clock = clock
        self._setter = Setter(bus, settings, clock=clock)
        self._forwarder = Forwarder(bus, settings, clock=clock)
        self._reconciler: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to set and to forward alarms."""
        await self._forwarder.start()
        await self._setter.start()
        self._reconciler = asyncio.create_task(keep_reconciled(self._bus, clock=self._clock))

    async def stop(self) -> None:
        """Hand over to the other workers. May be called before :meth:`start`, and twice."""
        if self._reconciler is not None:
            self._reconciler.cancel()
        await self._setter.stop()
        await self._forwarder.stop()
