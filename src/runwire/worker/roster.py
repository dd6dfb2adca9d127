"""Which chains a worker serves: every one that has a consumer on COMMANDS, and those that ought to.

The broker tells of a new consumer at once. Whatever it could not tell (the worker was not connected, somebody
deleted a consumer, a command for a chain that nobody has heard of) is found by looking, every SWEEP seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from nats.js.errors import APIError
from nats.js.errors import Error as JetStreamError

from runwire.messaging import chains, subjects
from runwire.messaging.broker import UNAVAILABLE, Bus

log = logging.getLogger("runwire.worker")

SWEEP = 2.0
"""Seconds between two looks; one costs a request, or two when something is queued."""
SUBJECTS_PER_SECOND = 10_000
"""Queued commands that may be looked through for chains without a consumer; more of them: less often."""


class Roster:
    """The chains there are. ``on_chains`` is told of new ones, ``on_stray`` of commands whose subject names none."""

    def __init__(
        self,
        bus: Bus,
        *,
        on_chains: Callable[[Collection[int]], None],
        on_stray: Callable[[str], Awaitable[None]],
    ) -> None:
        self._bus = bus
        self._on_chains = on_chains
        self._on_stray = on_stray
        self._known: set[int] = set()
        self._consumers = -1
        self._next_look = 0.0
        self._subscription: Subscription | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._errands: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Find the chains there are, and go on watching. Raises one of UNAVAILABLE; then it may be called again."""
        if self._subscription is None:
            self._subscription = await self._bus.nc.subscribe(subjects.CONSUMER_CREATED, cb=self._created)
        await self.refresh()
        await self._look()
        self._sweeper = asyncio.create_task(self._sweep())

    async def stop(self) -> None:
        """Watch no longer. May be called twice."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for errand in self._errands:
            errand.cancel()
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            with contextlib.suppress(NatsError):
                await subscription.unsubscribe()

    async def refresh(self) -> None:
        """Afterwards every chain that is known or listed has its consumer, configured as this worker needs it.

        Raises one of UNAVAILABLE.
        """
        self._consumers = (await chains.census(self._bus)).consumers
        found = await chains.listed(self._bus)
        for chain in self._known | found.keys():
            if not found.get(chain, False):
                await self._adopt(chain)
        self._serve(found.keys())

    async def _adopt(self, chain: int) -> bool:
        try:
            await chains.adopt(self._bus, chain)
        except UNAVAILABLE:
            raise
        except APIError as error:
            log.error("no consumer for chain %d: %s", chain, error.description, extra={"action": "no_consumer"})
            return False
        return True

    def _serve(self, found: Collection[int]) -> None:
        new = set(found) - self._known
        if new:
            self._known |= new
            self._on_chains(sorted(new))

    async def _created(self, message: Msg) -> None:
        """The broker has a new consumer: serve it now, and see to its configuration then."""
        chain = subjects.chain_of_workers(message.subject.rpartition(".")[2])
        if chain is not None:
            self._consumers += chain not in self._known
            self._serve({chain})
            errand = asyncio.create_task(self._configure(chain))
            self._errands.add(errand)
            errand.add_done_callback(self._errands.discard)

    async def _configure(self, chain: int) -> None:
        try:
            await self._adopt(chain)
        except (*UNAVAILABLE, JetStreamError):
            self._consumers = -1  # the next look sees to it

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP)
            try:
                await self._look()
            except (*UNAVAILABLE, NatsError, JetStreamError) as error:
                log.debug("cannot look for chains: %r", error, extra={"action": "roster_waits"})

    async def _look(self) -> None:
        """Find consumers that came or went unnoticed, and commands without one."""
        census = await chains.census(self._bus)
        if census.consumers != self._consumers:
            await self.refresh()
        now = asyncio.get_running_loop().time()
        if not census.commands or now < self._next_look:
            return
        self._next_look = now + census.commands / SUBJECTS_PER_SECOND
        orphans = await chains.orphans(self._bus, self._known)
        self._serve([chain for chain in sorted(orphans.chains) if await self._adopt(chain)])
        for subject in sorted(orphans.subjects):
            await self._on_stray(subject)
