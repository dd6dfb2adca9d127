"""Slots, deliveries, heartbeats and acknowledgements: the only place that settles commands with the broker.

Every chain has a consumer of its own on COMMANDS (:mod:`runwire.worker.roster` finds them), and slots are shared
fairly among chains (:mod:`runwire.worker.slots`); no command is asked for before there is a slot for it, but the
first one of a quiet chain. From its arrival on every command gets a sign of life
each third of ``ack_wait``; when those stop, because the process died or its event loop is blocked, the broker
gives the command to another worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
from collections.abc import Collection
from dataclasses import dataclass, field

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from nats.js.errors import Error as JetStreamError

from runwire import failpoints
from runwire.domain.errors import Undecodable
from runwire.domain.run import Command
from runwire.failpoints import Point
from runwire.messaging import codec, deadletters, subjects
from runwire.messaging.broker import UNAVAILABLE, Bus
from runwire.messaging.pull import EXPIRES, Requests
from runwire.settings import Settings
from runwire.worker.executor import Dead, Disposition, Executor, Later, Settled, Silence
from runwire.worker.roster import Roster
from runwire.worker.slots import FairSlots, Share

log = logging.getLogger("runwire.worker")

LAST_WORDS = 5.0
"""Seconds that runs may take to hand themselves back before the process ends without them."""
PROMPT = 1.0
"""Seconds a request may take that should be answered at once; longer means that another worker was quicker."""
LISTENING = 100
"""Requests for quiet chains a second, about; with more than a thousand of them each request stands open for longer."""


@dataclass
class Delivery:
    """A command in this worker's hands; ``message`` is its newest delivery."""

    message: Msg
    chain: int
    task: asyncio.Task[None] | None = field(default=None, repr=False)


class Consumer:
    """Takes commands as slots are free, has them executed, and settles them."""

    def __init__(self, bus: Bus, executor: Executor, settings: Settings) -> None:
        """Nothing is asked for before :meth:`start`."""
        self._bus = bus
        self._executor = executor
        self._slots = FairSlots(settings.worker_slots)
        self._heartbeat_interval = settings.ack_wait / 3
        self._grace = settings.grace_seconds
        self._requests = Requests(
            bus, subjects.COMMANDS, on_message=self._receive, on_returned=self._returned, on_lost=self._lost
        )
        self._roster = Roster(bus, on_chains=self._serve, on_stray=self._bury)
        self._roll_call: Subscription | None = None
        self._lost_chains: set[int] = set()
        self._deliveries: dict[int, Delivery] = {}
        self._refill_due = False
        self._draining = False
        self._heart: asyncio.Task[None] | None = None
        self._errands: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin to take commands."""
        await self._bus.until_available(self._executor.start)
        await self._requests.start()
        self._bus.on_reconnect.append(self._begin_anew)
        await self._bus.until_available(self._roster.start)
        self._roll_call = await self._bus.nc.subscribe(subjects.ROLL_CALL, cb=self._answer_roll_call)
        self._heart = asyncio.create_task(self._beat())
        await self._refill()

    async def stop(self) -> None:
        """Take nothing new, let the runs finish within the grace period, hand back what is left."""
        self._draining = True
        if self._begin_anew in self._bus.on_reconnect:
            self._bus.on_reconnect.remove(self._begin_anew)
        if self._roll_call is not None:
            with contextlib.suppress(NatsError):
                await self._roll_call.unsubscribe()
            self._roll_call = None
        await self._roster.stop()
        await self._requests.stop()
        await self._wait(self._grace)
        self._executor.hand_back()
        await self._wait(LAST_WORDS)
        await self._executor.stop()
        if self._heart is not None:
            self._heart.cancel()

    async def _wait(self, seconds: float) -> None:
        tasks = [delivery.task for delivery in self._deliveries.values() if delivery.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)

    def _receive(self, message: Msg) -> None:
        metadata = message.metadata
        sequence = metadata.sequence.stream
        chain = subjects.chain_of_workers(metadata.consumer) or 0
        known = self._deliveries.get(sequence)
        if known is not None:
            known.message = message  # redelivered to us while we are at it: go on, with the newer delivery
            self._slots.repeated(chain)
        elif self._draining or not self._slots.arrived(chain, more=metadata.num_pending or 0):
            self._run_errand(message.nak())
        else:
            delivery = Delivery(message, chain)
            self._deliveries[sequence] = delivery
            delivery.task = asyncio.create_task(self._process(sequence, delivery))
        self._refill_soon()

    async def _process(self, sequence: int, delivery: Delivery) -> None:
        try:
            disposition = await self._dispose(delivery.message)
            await self._settle(delivery.message, disposition)
        except UNAVAILABLE as error:
            log.info("left to redelivery: %r", error, extra={"action": "interrupted"})
        except Exception:
            log.exception("left to redelivery: command %d", sequence, extra={"action": "broken"})
        finally:
            del self._deliveries[sequence]
            self._slots.ended(delivery.chain)
            self._refill_soon()

    async def _dispose(self, message: Msg) -> Disposition:
        """What becomes of a command."""
        try:
            return await self._executor.execute(_decode(message))
        except Undecodable as undecodable:
            return Dead("undecodable", str(undecodable))

    async def _settle(self, message: Msg, disposition: Disposition) -> None:
        """Tell the broker, once, what became of the command."""
        match disposition:
            case Settled():
                failpoints.reach(Point.BEFORE_ACKNOWLEDGEMENT)
                await _acknowledge(message)
            case Later(seconds):
                await _nak(message, seconds)
            case Dead(reason, detail):
                await deadletters.publish(self._bus, message, reason=reason, detail=detail)
                failpoints.reach(Point.DEAD_LETTER_STORED)
                log.warning("dead letter %s %s: %s", message.subject, reason, detail, extra={"action": "dead_letter"})
                await _acknowledge(message)
            case Silence(why):
                log.info("silent on %s: %s", message.subject, why, extra={"action": "silent"})

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_interval)
            for delivery in list(self._deliveries.values()):
                with contextlib.suppress(NatsError):
                    await delivery.message.in_progress()

    # --- requests ------------------------------------------------------------------------------------

    def _serve(self, chains: Collection[int]) -> None:
        for chain in chains:
            self._slots.share(chain)
        self._refill_soon()

    def _returned(self, chain: int, count: int) -> None:
        self._slots.returned(chain, count)
        self._refill_soon()

    def _refill_soon(self) -> None:
        """Send the requests that are due; once for all that becomes due in one turn."""
        if not self._refill_due and not self._draining:
            self._refill_due = True
            asyncio.get_running_loop().call_soon(lambda: self._run_errand(self._refill()))

    async def _refill(self) -> None:
        self._refill_due = False
        if self._draining:
            return
        for chain, count in self._slots.due():
            seconds = self._patience(self._slots.share(chain))
            with contextlib.suppress(NatsError):  # while the broker is away; when it is back all begins anew
                await self._requests.ask(chain, subjects.workers(chain), count, seconds=seconds)

    def _patience(self, share: Share) -> float:
        """Seconds a request may stand open."""
        if share.promised:
            return PROMPT
        if share.weight:
            return EXPIRES
        return max(EXPIRES, len(self._slots) / LISTENING) * random.uniform(0.75, 1)  # noqa: S311 - not all at once

    def _lost(self, chain: int) -> None:
        """The consumer has gone, or its requests have: make sure of the one and send the others again."""
        if not self._slots.share(chain).open or self._draining:
            return
        if not self._lost_chains:
            self._run_errand(self._recover())
        self._lost_chains.add(chain)

    async def _begin_anew(self) -> None:
        """The connection was lost, and with it every open request."""
        self._requests.forget()
        for chain in self._slots.chains:
            self._lost(chain)

    async def _recover(self) -> None:
        await asyncio.sleep(0.1)
        while not self._draining:
            try:
                await self._roster.refresh()
            except (*UNAVAILABLE, NatsError, JetStreamError):
                await asyncio.sleep(0.2)
            else:
                break
        lost, self._lost_chains = self._lost_chains, set()
        for chain in lost:
            self._slots.lost(chain)
        self._refill_soon()

    async def _bury(self, subject: str) -> None:
        """A command that no chain's consumer covers."""
        await deadletters.bury(self._bus, subject, reason="undecodable", detail=f"{subject!r} names no chain")

    async def _answer_roll_call(self, call: Msg) -> None:
        with contextlib.suppress(NatsError):
            await call.respond(json.dumps({"slots": self._slots.slots, "used": self._slots.used}).encode())

    def _run_errand(self, errand: object) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(errand)  # type: ignore[call-overload]
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)


def _decode(message: Msg) -> Command:
    metadata = message.metadata
    return codec.decode_command(
        message.subject,
        message.data,
        message.headers,
        sequence=metadata.sequence.stream,
        delivery=metadata.num_delivered,
        accepted=metadata.timestamp,
    )


async def _acknowledge(message: Msg) -> None:
    """Unconfirmed: if it gets lost the command comes again and is seen to have finished, as it would in any case."""
    with contextlib.suppress(NatsError):
        await message.ack()


async def _nak(message: Msg, seconds: float) -> None:
    with contextlib.suppress(NatsError):
        await message.nak(delay=seconds or None)
