"""What the endpoints work with; put together by bootstrap.py when the adapter starts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from starlette.requests import Request

from runwire.artifacts import Links
from runwire.domain.errors import NotAccepted
from runwire.http.auth import Authenticator
from runwire.http.catalogue import Catalogue
from runwire.http.limits import Outstanding, Rates
from runwire.http.lines import Lines
from runwire.messaging.audit import Refusals
from runwire.messaging.broker import Bus
from runwire.messaging.tokens import Uses
from runwire.readmodel.audit import Trail
from runwire.readmodel.feed import Feed
from runwire.readmodel.reader import Reader
from runwire.readmodel.waiters import Milestones, Waiters
from runwire.settings import Settings

LONGEST_LAG = 10.0
"""Seconds the answer to a write waits for this adapter's read model to hold it."""


FULL = 0.85
"""Share of EVENTS beyond which no new runs are taken: the rest is for the ends of those that were accepted."""


@dataclass
class Pressure:
    """How full the streams are; looked at every few seconds."""

    fullest: str = ""
    """The fullest stream."""
    share: float = 0.0
    """How full it is, 0 to 1."""
    events: float = 0.0
    """How full EVENTS is, 0 to 1."""
    missing: str | None = None
    """A stream that is not there, though it has to be."""
    broken: str | None = None
    """Why the broker cannot store anything; None: it can, or nobody knows."""

    def require_room(self) -> None:
        """Raise NotAccepted unless something new can be stored, and what will come of it."""
        if self.broken is not None:
            raise NotAccepted(f"The broker cannot write to its disk ({self.broken}); nothing was stored.")
        if self.events >= FULL:
            raise NotAccepted("The event stream is nearly full; nothing was stored.")


@dataclass
class Services:
    """One adapter's parts."""

    settings: Settings
    bus: Bus
    reader: Reader
    waiters: Waiters
    milestones: Milestones
    feed: Feed
    authenticate: Authenticator
    uses: Uses
    trail: Trail
    refusals: Refusals
    catalogue: Catalogue
    checks: Callable[[], dict[str, str | None]]
    """Name of each readiness check -> what is wrong; None: nothing."""
    server_key: bytes
    """Secret of the installation, from which the names of Idempotency-Keys and their run ids are derived."""
    links: Links
    """Signs and opens download links."""
    lines: Lines = field(default_factory=Lines)
    """Who waits for a turn at a busy task."""
    rates: Rates | None = None
    """None: no rate is limited."""
    outstanding: Outstanding | None = None
    """None: chains may have any number of runs outstanding."""
    downloads: int = 0
    """How many downloads are going on."""
    pressure: Pressure = field(default_factory=Pressure)
    draining: bool = False

    async def until_readable(self, sequence: int) -> None:
        """Wait until the read model holds this event. One that lags makes the answer late, not wrong: it is stored."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LONGEST_LAG):
                await self.milestones.wait(sequence)

    def drain(self) -> None:
        """Take nothing new, let the waiting calls answer with what they know, and end the event streams."""
        self.draining = True
        self.waiters.release_all()
        self.feed.close()


def services(request: Request) -> Services:
    """The adapter's parts, from within a request."""
    found: Services = request.app.state.services
    return found
