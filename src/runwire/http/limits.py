"""Limits, each off unless it is set: calls per token and per chain, outstanding runs per chain.

Calls are counted in this adapter's memory, over a window that moves (the ``limits`` package): with several
adapters each counts its own share, so a limit for all is divided by their number. A call counts for its token,
and for the chain of its task; one that names no task counts for every chain of its token. What is counted is told
in the headers ``RateLimit-Policy`` and ``RateLimit`` (draft-ietf-httpapi-ratelimit-headers).

A refusal is told a tenth of a second late: callers that ask again the moment they are refused would keep the adapter
busy with refusing (32 of them made another chain's calls take 13 times as long; this way they slow nobody).

Outstanding runs are what COMMANDS holds for the chain, whoever asked for them: the broker's word, at most
a quarter of a second old, and what this adapter has added since. Commands on the bus are never refused; they wait
their turn among the chain's own.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from runwire.domain.access import Principal
from runwire.domain.errors import RateLimited, TooManyOutstanding
from runwire.http.auth import Authenticator
from runwire.messaging import chains
from runwire.messaging.broker import UNAVAILABLE, Bus
from runwire.settings import Settings

if TYPE_CHECKING:  # only who limits pays for it: it takes 80 ms to import
    from limits import RateLimitItem

BELIEVED = 0.25
"""Seconds the number of outstanding runs is believed."""
PATIENCE = 1.0
"""Seconds the broker may take to say how many there are."""
DOUBTED = 0.05
"""The same, before a call is refused because of it: runs may have ended meanwhile."""


PAUSE = 0.1
"""Seconds a call that is over its rate waits for its refusal."""
MOST_PAUSING = 1000
"""Calls that may wait so at once; further ones are refused on the spot."""


@dataclass(frozen=True)
class Standing:
    """How a call stands with one limit."""

    policy: str
    """``token`` or ``chain``."""
    quota: int
    window: int
    """Seconds."""
    remaining: int
    reset: int
    """Seconds until there is room for one more, if there is none; else until the oldest call is forgotten."""


_standings: ContextVar[tuple[Standing, ...]] = ContextVar("standings", default=())
"""Of the call that is being answered: every call has a context of its own."""


def headers() -> dict[str, str]:
    """What the answer to this call says about rates; empty when none are limited."""
    standings = _standings.get()
    if not standings:
        return {}
    return {
        "RateLimit-Policy": ", ".join(f'"{s.policy}";q={s.quota};w={s.window}' for s in standings),
        "RateLimit": ", ".join(f'"{s.policy}";r={s.remaining};t={s.reset}' for s in standings),
    }


class Rates:
    """Counts calls. None of this is asked when no rate is limited."""

    def __init__(self, settings: Settings) -> None:
        """As the settings say; they have been validated."""
        from limits import parse  # noqa: PLC0415
        from limits.storage import MemoryStorage  # noqa: PLC0415
        from limits.strategies import MovingWindowRateLimiter  # noqa: PLC0415

        self._pausing = 0
        self._window = MovingWindowRateLimiter(MemoryStorage())
        self._per_token = parse(settings.rate_per_token) if settings.rate_per_token else None
        self._per_chain = parse(settings.rate_per_chain) if settings.rate_per_chain else None

    async def count(self, request: Request, principal: Principal) -> None:
        """A call of this principal has come. Raises RateLimited."""
        _standings.set(())
        if self._per_token is not None:
            await self._count("token", self._per_token, principal.token)
        if self._per_chain is not None and (len(principal.levels) == 1 or not _names_task(request)):
            for chain in principal.levels:
                await self._count("chain", self._per_chain, str(chain))

    async def count_task(self, principal: Principal, chain: int) -> None:
        """A call is about a task of this chain; counted here when the token alone did not tell. Raises RateLimited."""
        if self._per_chain is not None and len(principal.levels) > 1:
            await self._count("chain", self._per_chain, str(chain))

    async def _count(self, policy: str, rate: RateLimitItem, who: str) -> None:
        taken = self._window.hit(rate, policy, who)
        stats = self._window.get_window_stats(rate, policy, who)
        reset = max(1, math.ceil(stats.reset_time - time.time()))
        standing = Standing(policy, rate.amount, rate.get_expiry(), stats.remaining if taken else 0, reset)
        told = {known.policy: known for known in _standings.get()}
        if policy not in told or standing.remaining < told[policy].remaining:  # of several chains the tightest
            told[policy] = standing
        _standings.set(tuple(told.values()))
        if not taken:
            await self._pause()
            message = f"This {policy} may make {rate.amount} calls in {rate.get_expiry()} s, and has made them."
            raise RateLimited(message, retry_after=reset)

    async def _pause(self) -> None:
        """Let a refused caller wait: one that asks again at once would keep the adapter busy with refusing it."""
        if self._pausing < MOST_PAUSING:
            self._pausing += 1
            try:
                await asyncio.sleep(PAUSE)
            finally:
                self._pausing -= 1


class CountingAuthenticator(Authenticator):
    """Counts the calls it has authenticated, before anything else is done for them."""

    def __init__(self, *parts: Any, rates: Rates) -> None:
        """``parts``: those of an Authenticator."""
        super().__init__(*parts)
        self._rates = rates

    async def __call__(self, request: Request) -> Principal:
        """Who calls. Raises RateLimited, and what an Authenticator raises."""
        principal = await super().__call__(request)
        await self._rates.count(request, principal)
        return principal


def _names_task(request: Request) -> bool:
    return "id" in request.path_params and request.url.path.startswith("/tasks/")


@dataclass
class _Count:
    """The outstanding runs of a chain, as far as they are known."""

    known: int = 0
    at: float = -math.inf
    """When that was asked (loop time)."""
    added: int = 0
    """Commands stored by this adapter since."""
    coming: int = 0
    """Commands this adapter is about to store."""
    asking: asyncio.Task[None] | None = None

    @property
    def total(self) -> int:
        return self.known + self.added + self.coming


class Outstanding:
    """Keeps a chain from having more than so many runs queued or running."""

    def __init__(self, bus: Bus, most: int) -> None:
        self._bus = bus
        self._most = most
        self._counts: dict[int, _Count] = {}

    async def admit(self, chain: int) -> AbstractContextManager[None]:
        """Room for one more run of the chain, for as long as the admission is entered.

        Raises TooManyOutstanding.
        """
        count = self._counts.setdefault(chain, _Count())
        now = asyncio.get_running_loop().time()
        if now - count.at > (BELIEVED if count.total < self._most else DOUBTED):
            await self._ask(chain, count)
        if count.total >= self._most:
            raise TooManyOutstanding(
                f"Chain {chain} has {self._most} runs queued or running, and may not have more.", retry_after=1
            )
        count.coming += 1  # nothing is awaited between the look and this
        return _admitted(count)

    async def _ask(self, chain: int, count: _Count) -> None:
        """Ask the broker; calls that come meanwhile share its answer."""
        if count.asking is None:
            count.asking = asyncio.create_task(self._update(chain, count))
        await asyncio.shield(count.asking)

    async def _update(self, chain: int, count: _Count) -> None:
        """A broker that does not answer leaves the number as it was: publishing the command waits for it to be back."""
        began, before = asyncio.get_running_loop().time(), count.added
        try:
            with suppress(*UNAVAILABLE):
                count.known = await chains.outstanding(self._bus, chain, timeout=PATIENCE)
                count.added -= before
            count.at = began
        finally:
            count.asking = None


@contextmanager
def _admitted(count: _Count) -> Iterator[None]:
    try:
        yield
        count.added += 1
    finally:
        count.coming -= 1
