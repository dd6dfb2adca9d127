"""Pull consumers that never have more messages in hand than were asked for.

nats-py's own ``fetch`` costs a round trip per call and waits for a batch to fill up; here the requests
stand open at the broker and messages arrive the moment they exist. :meth:`Puller.request` opens room for
so many messages; the broker sends at most that many. :class:`Requests` does the same for any number of consumers
over one subscription, and leaves it to its owner how many of each.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from nats.js.errors import Error as JetStreamError

from runwire.messaging.broker import UNAVAILABLE, Bus

log = logging.getLogger("runwire.bus")

EXPIRES = 10.0
"""Seconds after which the broker gives an unused request back. A frozen process attracts messages no longer."""
HEARTBEAT = 1.0
"""Seconds after which the broker gives a sign of life for a request that stands open and has nothing to bring."""
SILENCE = 3.0
"""Seconds without a word, while requests are open, after which they count as forgotten: who had them has died."""


class Puller:
    """Requests to one consumer, and what comes back.

    ``on_message`` gets every message. ``on_reset`` is awaited when the open requests are gone (the broker was
    restarted, the consumer deleted): the owner looks after its consumer and calls :meth:`request` again.
    """

    def __init__(self, bus: Bus, *, on_message: Callable[[Msg], None], on_reset: Callable[[], Awaitable[None]]) -> None:
        self._bus = bus
        self._on_message = on_message
        self._on_reset = on_reset
        self._inbox = bus.nc.new_inbox()
        self._generation = 0
        self._subject = ""
        self._subscription: Subscription | None = None
        self._heard = 0.0
        self._resetting = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self.outstanding = 0
        """Messages asked for that have not come yet."""

    async def start(self) -> None:
        """Begin to listen; requests may follow."""
        self._subscription = await self._bus.nc.subscribe(f"{self._inbox}.*", cb=self._receive)
        self._bus.on_reconnect.append(self.reset)
        self._spawn(self._watch())

    async def stop(self) -> None:
        """Ask for nothing more. What is on its way still reaches ``on_message``. May be called twice."""
        if self.reset in self._bus.on_reconnect:
            self._bus.on_reconnect.remove(self.reset)
        self._generation += 1
        for task in self._tasks:
            task.cancel()
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            with contextlib.suppress(NatsError, TimeoutError):
                await subscription.drain()

    def consume(self, stream: str, consumer: str) -> None:
        """From now on request from this consumer; earlier requests are forgotten."""
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._generation += 1
        self.outstanding = 0

    async def request(self, count: int) -> None:
        """Make room for ``count`` more messages."""
        self.outstanding += count
        self._heard = asyncio.get_running_loop().time()
        wanted = {"batch": count, "expires": int(EXPIRES * 1e9), "idle_heartbeat": int(HEARTBEAT * 1e9)}
        body = json.dumps(wanted).encode()
        await self._bus.nc.publish(self._subject, body, reply=f"{self._inbox}.{self._generation}")

    async def reset(self) -> None:
        """Forget the open requests and let the owner begin anew; tries until it works."""
        async with self._resetting:
            self._generation += 1
            self.outstanding = 0
            while True:
                try:
                    await self._on_reset()
                except UNAVAILABLE:
                    await asyncio.sleep(0.2)
                except JetStreamError as error:  # somebody has deleted the stream, or changed it
                    log.error("cannot ask for messages: %s", error, extra={"action": "pull_reset"})
                    await asyncio.sleep(2.0)
                else:
                    return

    async def _receive(self, message: Msg) -> None:
        self._heard = asyncio.get_running_loop().time()
        status = message.headers.get("Status") if message.headers and not message.reply else None
        if status is None:
            self.outstanding = max(0, self.outstanding - 1)
            self._on_message(message)
        elif message.subject == f"{self._inbox}.{self._generation}":
            await self._receive_status(status, message.headers or {})

    async def _receive_status(self, status: str, headers: dict[str, str]) -> None:
        """The broker gives requests back (408: unused in time; 409, 503: it or the consumer went away)."""
        returned = headers.get("Nats-Pending-Messages")
        if status == "408" and returned is not None:
            self.outstanding = max(0, self.outstanding - int(returned))
            await self.request(int(returned))
        elif status != "100":
            log.debug(
                "requests returned: %s %s", status, headers.get("Description", ""), extra={"action": "pull_reset"}
            )
            self._spawn(self._reset_later())

    async def _reset_later(self) -> None:
        await asyncio.sleep(0.1)
        await self.reset()

    async def _watch(self) -> None:
        """Requests that the broker has lost without saying so are asked for again."""
        while True:
            await asyncio.sleep(SILENCE / 4)
            if self.outstanding and asyncio.get_running_loop().time() - self._heard > SILENCE:
                await self.reset()

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class Requests:
    """Open requests to many consumers of one stream, each known by a number.

    ``on_message`` gets every message, ``on_returned`` how many requests of a consumer came back unused, and
    ``on_lost`` the number of a consumer whose requests may be gone, as it or its broker went away.

    In a cluster a consumer has a leader, and requests die with it; who takes its place tells so (an advisory). Signs of
    life, as for a :class:`Puller`, would be too many: there may be thousands of consumers that nothing comes from.
    """

    def __init__(
        self,
        bus: Bus,
        stream: str,
        *,
        on_message: Callable[[Msg], None],
        on_returned: Callable[[int, int], None],
        on_lost: Callable[[int], None],
    ) -> None:
        self._bus = bus
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}"
        self._elections = f"$JS.EVENT.ADVISORY.CONSUMER.LEADER_ELECTED.{stream}.*"
        self._on_message = on_message
        self._on_returned = on_returned
        self._on_lost = on_lost
        self._inbox = bus.nc.new_inbox()
        self._generation = 0
        self._due: dict[int, float] = {}
        """When the last request of a consumer has to be back, used or not (loop time)."""
        self._numbers: dict[str, int] = {}
        """Of the consumers that were ever asked."""
        self._subscriptions: list[Subscription] = []
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to listen; requests may follow."""
        self._subscriptions = [
            await self._bus.nc.subscribe(f"{self._inbox}.*.*", cb=self._receive),
            await self._bus.nc.subscribe(self._elections, cb=self._elected),
        ]
        self._watch = asyncio.create_task(self._watch_for_lost())

    async def stop(self) -> None:
        """Ask for nothing more. What is on its way still reaches ``on_message``. May be called twice."""
        self._generation += 1
        if self._watch is not None:
            self._watch.cancel()
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            with contextlib.suppress(NatsError, TimeoutError):
                await subscription.drain()

    async def ask(self, number: int, consumer: str, count: int, *, seconds: float) -> None:
        """Make room for ``count`` more messages of a consumer, for so many seconds."""
        self._numbers[consumer] = number
        self._due[number] = asyncio.get_running_loop().time() + seconds + EXPIRES
        body = b'{"batch":%d,"expires":%d}' % (count, int(seconds * 1e9))
        reply = f"{self._inbox}.{self._generation}.{number}"
        await self._bus.nc.publish(f"{self._subject}.{consumer}", body, reply=reply)

    def forget(self) -> None:
        """All open requests are gone: the connection was."""
        self._generation += 1
        self._due.clear()

    async def _receive(self, message: Msg) -> None:
        status = message.headers.get("Status") if message.headers and not message.reply else None
        if status is None:
            self._on_message(message)
            return
        generation, number = message.subject.rsplit(".", 2)[1:]
        if int(generation) != self._generation or status == "100":
            return
        returned = (message.headers or {}).get("Nats-Pending-Messages")
        if status == "408" and returned is not None:
            self._on_returned(int(number), int(returned))
        else:
            log.debug("requests lost: %s %s", status, message.headers, extra={"action": "pull_reset"})
            self._on_lost(int(number))

    async def _elected(self, advisory: Msg) -> None:
        """A consumer has another leader, who knows of no request that the one before had."""
        number = self._numbers.get(advisory.subject.rpartition(".")[2])
        if number in self._due:
            self._on_lost(number)

    async def _watch_for_lost(self) -> None:
        """Requests that the broker has lost without saying so."""
        while True:
            await asyncio.sleep(EXPIRES / 2)
            now = asyncio.get_running_loop().time()
            for number in [number for number, due in self._due.items() if due < now]:
                del self._due[number]
                self._on_lost(number)
