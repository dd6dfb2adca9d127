"""Takes events for the web hooks from the broker, has them sent, and settles them.

All workers do it, and share the events of each hook among them. Every hook has a few events in hand at a time, of its
own: one that is slow, or down, delays no other. What fails comes again after a pause, which the broker keeps, so that a
worker which dies or is replaced takes nothing with it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as BusSubscription
from nats.errors import Error as NatsError
from nats.js.errors import Error as JetStreamError

from runwire.domain.addresses import parse_exceptions
from runwire.domain.errors import NotAccepted
from runwire.domain.subscription import HOOK_NAME, Subscription
from runwire.messaging import deadletters, subjects, subscriptions
from runwire.messaging.broker import UNAVAILABLE, Bus
from runwire.messaging.pull import Requests
from runwire.outgoing.exchange import Exchange
from runwire.outgoing.guard import Guard
from runwire.webhooks.delivery import (
    Delivered,
    Failed,
    Gone,
    Patience,
    Verdict,
    deliver,
    event_id_of,
    is_wanted,
    structured,
    trace_headers_of,
)

log = logging.getLogger("runwire.webhooks")

IN_HAND = 4
"""Events of one hook that this worker sends at the same time."""
REQUEST_SECONDS = 30.0
"""How long a request for events stands open."""
ROUND = 30.0
"""Seconds between two looks at which hooks there are; the broker tells of most changes at once."""
SETTLING = 0.1
"""Seconds that changes are waited for before looking: they come in swarms."""
LAST_WORDS = 2.0
"""Seconds that a stopping worker waits for receivers at most: its runs need the rest of its time."""
AFTER_GONE = 60.0
"""Seconds after which an event comes again whose receiver is gone, if anybody asks for it then: longer than requests
stand open."""
LOOKED_AT = 32
"""Hooks that are looked at again in each round, whether anybody told of a change or not."""


@dataclass
class Hook:
    """A web hook that this worker takes events for."""

    subscription: Subscription
    number: int
    asked: int = 0
    """Events that are asked for and have not come."""
    in_hand: int = 0
    open: bool = True


class WebHooks:
    """The sender of one worker."""

    def __init__(self, bus: Bus, *, patience: Patience | None = None, exchange: Exchange | None = None) -> None:
        """``exchange``: how requests are sent, if not to the addresses that RUNWIRE_HTTP_ALLOW says."""
        self._bus = bus
        self._patience = patience or Patience()
        self._exchange = exchange or Exchange(Guard(parse_exceptions(bus.settings.http_allow)))
        self._grace = min(bus.settings.grace_seconds, LAST_WORDS)
        self._requests = Requests(
            bus, subjects.EVENTS, on_message=self._receive, on_returned=self._returned, on_lost=self._lost
        )
        self._hooks: dict[str, Hook] = {}
        self._by_number: dict[int, Hook] = {}
        self._made = 0
        self._changed = asyncio.Event()
        self._told: list[BusSubscription] = []
        self._stale: set[str] = set()
        self._keeper: asyncio.Task[None] | None = None
        self._sending: set[asyncio.Task[None]] = set()
        self._asking: set[asyncio.Task[None]] = set()
        self._stopping = False

    async def start(self) -> None:
        """Begin to send."""
        await self._requests.start()
        self._bus.on_reconnect.append(self._begin_anew)
        for subject, note in (
            (subjects.SUBSCRIPTION_CHANGES, self._note_change),
            (subjects.HOOK_CHANGES, self._note_stale),
        ):
            self._told.append(await self._bus.nc.subscribe(subject, cb=note))
        self._changed.set()
        self._keeper = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """Take nothing new, let what is being sent end within LAST_WORDS, give the rest back."""
        self._stopping = True
        if self._begin_anew in self._bus.on_reconnect:
            self._bus.on_reconnect.remove(self._begin_anew)
        if self._keeper is not None:
            self._keeper.cancel()
        for told in self._told:
            with suppress(NatsError):
                await told.unsubscribe()
        await self._requests.stop()
        if self._sending:
            await asyncio.wait(self._sending, timeout=self._grace)
        for task in [*self._sending]:
            task.cancel()
        await asyncio.gather(*self._sending, return_exceptions=True)

    # --- which hooks there are -------------------------------------------------------------------------

    async def _note_change(self, advisory: Msg) -> None:
        if HOOK_NAME.fullmatch(advisory.subject.rpartition(".")[2]):
            self._changed.set()

    async def _note_stale(self, note: Msg) -> None:
        self._stale.add(note.data.decode(errors="replace"))
        self._changed.set()

    async def _keep(self) -> None:
        """Know the hooks, for as long as the worker runs."""
        while True:
            try:
                async with asyncio.timeout(ROUND * random.uniform(0.8, 1.2)):  # noqa: S311 - jitter
                    await self._changed.wait()
            except TimeoutError:
                self._stale.update([*self._hooks][:LOOKED_AT])  # those that were looked at longest ago
            await asyncio.sleep(SETTLING)
            self._changed.clear()
            try:
                await self._look()
            except (*UNAVAILABLE, NatsError, JetStreamError) as error:
                log.debug("web hooks: %r", error, extra={"action": "hooks_unknown"})

    async def _look(self) -> None:
        there = await subscriptions.hooks(self._bus)
        for name in self._hooks.keys() - there:
            self._drop(self._hooks[name])
        stale = (self._stale & there) | (there - self._hooks.keys())
        self._stale.clear()
        self._stale |= stale  # until each has been looked at: the broker may go away meanwhile
        for name in stale:
            standing = await subscriptions.find(self._bus, name)
            self._stale.discard(name)
            if standing is not None:
                self._know(standing.subscription)
        for hook in self._hooks.values():
            self._refill(hook)

    def _know(self, subscription: Subscription) -> None:
        """Have the hook as it is now, behind all others."""
        known = self._hooks.pop(subscription.id, None)
        if known is not None:
            known.subscription, known.open = subscription, subscription.disabled is None
            self._hooks[subscription.id] = known
            return
        self._made += 1
        hook = Hook(subscription, self._made, open=subscription.disabled is None)
        self._hooks[subscription.id] = self._by_number[hook.number] = hook

    def _drop(self, hook: Hook) -> None:
        hook.open = False
        self._hooks.pop(hook.subscription.id, None)
        self._by_number.pop(hook.number, None)

    # --- their events ----------------------------------------------------------------------------------

    async def _begin_anew(self) -> None:
        """The broker is back, and has forgotten all requests."""
        self._requests.forget()
        self._stale.update(self._hooks)
        for hook in self._hooks.values():
            hook.asked = 0
        self._changed.set()

    def _lost(self, number: int) -> None:
        """Requests may be gone, and the consumer with them."""
        hook = self._by_number.get(number)
        if hook is not None:
            hook.asked = 0
            self._changed.set()

    def _returned(self, number: int, count: int) -> None:
        hook = self._by_number.get(number)
        if hook is not None:
            hook.asked = max(0, hook.asked - count)
            self._refill(hook)

    def _refill(self, hook: Hook) -> None:
        """Ask for as many events as can be sent."""
        count = IN_HAND - hook.in_hand - hook.asked
        if count <= 0 or not hook.open or self._stopping:
            return
        hook.asked += count
        self._spawn(self._asking, self._ask(hook, count))

    async def _ask(self, hook: Hook, count: int) -> None:
        try:
            await self._requests.ask(hook.number, hook.subscription.id, count, seconds=REQUEST_SECONDS)
        except NatsError:  # the connection is gone; all begins anew when it is back
            hook.asked = 0

    def _receive(self, message: Msg) -> None:
        hook = self._hooks.get(message.metadata.consumer)
        if hook is None or not hook.open or self._stopping:
            self._spawn(self._asking, _quietly(message.nak(delay=None if self._stopping else AFTER_GONE)))
            return
        hook.asked = max(0, hook.asked - 1)
        hook.in_hand += 1
        self._spawn(self._sending, self._process(hook, message))

    async def _process(self, hook: Hook, message: Msg) -> None:
        try:
            await self._settle(hook, message, await self._send(hook, message))
        except asyncio.CancelledError:
            await _quietly(message.nak())
            raise
        except (*UNAVAILABLE, NatsError, JetStreamError, NotAccepted) as error:
            log.info("left to redelivery: %r", error, extra={"action": "interrupted"})
        except Exception:
            log.exception("left to redelivery: event for %s", hook.subscription.id, extra={"action": "broken"})
        finally:
            hook.in_hand -= 1
            self._refill(hook)

    async def _send(self, hook: Hook, message: Msg) -> Verdict:
        """Send an event, if the hook is for it."""
        if not is_wanted(hook.subscription, message.data):
            return Delivered()
        headers = message.headers or {}
        body = structured(headers, message.data, message.metadata.sequence.stream)
        attempt = message.metadata.num_delivered or 1
        return await deliver(
            self._exchange, hook.subscription, event_id_of(headers), body, seconds=self._patience.seconds,
            trace_headers=trace_headers_of(headers, hook.subscription.id, attempt),
        )  # fmt: skip

    async def _settle(self, hook: Hook, message: Msg, verdict: Verdict) -> None:
        name, attempt = hook.subscription.id, message.metadata.num_delivered or 1
        match verdict:
            case Delivered():
                await message.ack()
            case Gone():
                hook.open = False
                await message.nak(delay=AFTER_GONE)
                await subscriptions.disable(self._bus, name, now=datetime.now(UTC))
                log.warning("web hook %s is gone: nothing is sent to it", name, extra={"action": "hook_gone"})
            case Failed(detail=detail) if attempt >= self._patience.attempts:
                await deadletters.bury_event(self._bus, message, subscription=name, detail=detail)
                await message.ack()
                log.warning("web hook %s: given up: %s", name, detail, extra={"action": "hook_gave_up"})
            case Failed(detail=detail):
                await message.nak(delay=self._patience.pause(attempt))
                log.info("web hook %s: %s, attempt %d", name, detail, attempt, extra={"action": "hook_failed"})

    def _spawn(self, group: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        group.add(task)
        task.add_done_callback(group.discard)


async def _quietly(work: Awaitable[None]) -> None:
    with suppress(*UNAVAILABLE, NatsError, JetStreamError):
        await work
