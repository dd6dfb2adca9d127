"""The broker's clock: what is due, late or over is decided by it alone.

When a command was accepted and when an alarm rings are times of the broker's. A machine whose own clock is wrong, or
jumps, would take ticks for missed that are still to come, end runs that have just begun, and put a retry off for days.
"""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from nats.errors import Error as NatsError

from runwire.messaging import subjects
from runwire.messaging.broker import REQUEST_TIMEOUT, UNAVAILABLE, Bus

INTERVAL = 5.0
"""Seconds between two looks at it."""
SLOW = 0.1
"""Seconds after which an answer says less than what is known already."""


class BrokerClock:
    """Tells the broker's time, in UTC: behind it by what an answer takes to come, and never ahead of it."""

    def __init__(self, bus: Bus) -> None:
        """Tells this machine's time before :meth:`start`."""
        self._bus = bus
        self._known: tuple[datetime, float] | None = None
        """What the time was, and when that was heard."""
        self._following: asyncio.Task[None] | None = None

    def __call__(self) -> datetime:
        """The time; jumps of this machine's clock do not count."""
        if self._known is None:
            return datetime.now(UTC)
        then, heard = self._known
        return then + timedelta(seconds=_elapsed() - heard)

    async def start(self) -> None:
        """Look, and go on looking. Raises SetupError."""
        await self._bus.until_available(self._look)
        self._following = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        """Look no more. May be called before :meth:`start`."""
        if self._following is not None:
            self._following.cancel()

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL)
            with suppress(*UNAVAILABLE, NatsError):
                await self._look()

    async def _look(self) -> None:
        asked = _elapsed()
        answer = await self._bus.nc.request(f"$JS.API.STREAM.INFO.{subjects.COMMANDS}", timeout=REQUEST_TIMEOUT)
        heard = _elapsed()
        if self._known is None or heard - asked < SLOW:
            with suppress(ValueError, LookupError):  # the stream is gone: somebody else says so
                self._known = datetime.fromisoformat(json.loads(answer.data)["ts"]), heard


def _elapsed() -> float:
    """Seconds since some moment, those in which the machine slept included where the system counts them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
