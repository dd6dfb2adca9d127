"""Slots, deliveries, heartbeats and acknowledgements: the only place that settles commands with the broker.

No command is asked for before a slot is free for it. From its arrival on every command gets a sign of life
each third of ``ack_wait``; when those stop, because the process died or its event loop is blocked, the broker
gives the command to another worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field

from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from runwire.domain.errors import Undecodable
from runwire.domain.run import Command
from runwire.messaging import codec, deadletters, subjects
from runwire.messaging.broker import UNAVAILABLE, Bus
from runwire.messaging.pull import Puller
from runwire.settings import Settings
from runwire.worker.executor import Dead, Disposition, Executor, Later, Settled, Silence

log = logging.getLogger("runwire.worker")

LAST_WORDS = 5.0
"""Seconds that runs may take to hand themselves back before the process ends without them."""


@dataclass
class Delivery:
    """A command in this worker's hands; ``message`` is its newest delivery."""

    message: Msg
    task: asyncio.Task[None] | None = field(default=None, repr=False)


class Consumer:
    """Takes commands as slots are free, has them executed, and settles them."""

    def __init__(self, bus: Bus, executor: Executor, settings: Settings) -> None:
        """Nothing is asked for before :meth:`start`."""
        self._bus = bus
        self._executor = executor
        self._slots = settings.worker_slots
        self._heartbeat_interval = settings.ack_wait / 3
        self._grace = settings.grace_seconds
        self._puller = Puller(bus, on_message=self._receive, on_reset=self._refill)
        self._deliveries: dict[int, Delivery] = {}
        self._refill_due = False
        self._draining = False
        self._heart: asyncio.Task[None] | None = None
        self._errands: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin to take commands."""
        await self._puller.start()
        self._puller.consume(subjects.COMMANDS, subjects.WORKERS)
        self._heart = asyncio.create_task(self._beat())
        await self._refill()

    async def stop(self) -> None:
        """Take nothing new, let the runs finish within the grace period, hand back what is left."""
        self._draining = True
        await self._puller.stop()
        await self._wait(self._grace)
        self._executor.hand_back()
        await self._wait(LAST_WORDS)
        if self._heart is not None:
            self._heart.cancel()

    async def _wait(self, seconds: float) -> None:
        tasks = [delivery.task for delivery in self._deliveries.values() if delivery.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)

    def _receive(self, message: Msg) -> None:
        sequence = message.metadata.sequence.stream
        known = self._deliveries.get(sequence)
        if known is not None:
            known.message = message  # redelivered to us while we are at it: go on, with the newer delivery
        elif self._draining or len(self._deliveries) >= self._slots:
            self._run_errand(message.nak())
        else:
            delivery = Delivery(message)
            self._deliveries[sequence] = delivery
            delivery.task = asyncio.create_task(self._process(sequence, delivery))

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
                await _acknowledge(message)
            case Later(seconds):
                await _nak(message, seconds)
            case Dead(reason, detail):
                await deadletters.publish(self._bus, message, reason=reason, detail=detail)
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

    def _refill_soon(self) -> None:
        """Ask for as many commands as there are free slots; once for all slots that come free in one turn."""
        if not self._refill_due and not self._draining:
            self._refill_due = True
            asyncio.get_running_loop().call_soon(lambda: self._run_errand(self._refill()))

    async def _refill(self) -> None:
        self._refill_due = False
        free = self._slots - len(self._deliveries) - self._puller.outstanding
        if free > 0 and not self._draining:
            with contextlib.suppress(NatsError):  # while the broker is away; its return resets the puller
                await self._puller.request(free)

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
