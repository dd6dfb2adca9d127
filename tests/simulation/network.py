"""What is between a process and the broker: every message waits until a rule says what becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import nats.errors
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from runwire.messaging import subjects
from runwire.settings import Settings
from tests.simulation.broker import Broker
from tests.simulation.clock import Loop

AT_ONCE = "tasks.log."
"""What passes without a rule: log lines are no part of any race."""


@dataclass(eq=False)
class Flight:
    """A message on its way to the broker. Without ``reply`` nobody waits for an answer, or nobody does any more."""

    sender: Link
    subject: str
    data: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    reply: asyncio.Future[Msg] | None = None
    act: Callable[[], None] | None = None
    """What an acknowledgement does at the broker; None: it is a request."""

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for the answer."""
        return self.reply is not None and not self.reply.done() and not self.sender.is_dead

    @property
    def writes(self) -> bool:
        """Whether it changes anything at the broker."""
        return self.act is not None or self.subject.startswith("tasks.") or "DELETE" in self.subject


class Network:
    """All messages on their way."""

    def __init__(self, loop: Loop, broker: Broker) -> None:
        self.loop, self.broker = loop, broker
        self.flights: list[Flight] = []
        self.late: list[Flight] = []
        """Their senders have given up, or are dead; they may still arrive."""
        self.stored: list[Callable[[str], None]] = []
        """Each is told the subject of every message that a stream has taken."""

    def send(self, flight: Flight) -> None:
        """Put it on its way."""
        if flight.subject.startswith(AT_ONCE):
            self.arrive(flight)
        else:
            self.flights.append(flight)

    def arrive(self, flight: Flight, *, behind: int = 0) -> Msg | None:
        """It reaches the broker; returns the answer, which :meth:`reply` hands over."""
        for place in (self.flights, self.late):
            if flight in place:
                place.remove(flight)
        if flight.act is not None:
            flight.act()
            return None
        answer = self.broker.answer(flight.subject, flight.data, flight.headers, self.loop.now(), behind=behind)
        if flight.subject.startswith(AT_ONCE) and flight.reply is not None:
            flight.reply.set_result(answer)
        if flight.subject.startswith("tasks.evt.") and b'"seq"' in answer.data:
            for hear in self.stored:
                hear(flight.subject)
        return answer

    def reply(self, flight: Flight, answer: Msg | None) -> None:
        """The answer reaches whoever waits for it; None: it never does, and they find that out."""
        if not flight.is_awaited or flight.reply is None:
            return
        if answer is None:
            flight.reply.set_exception(nats.errors.TimeoutError())
        else:
            flight.reply.set_result(answer)

    def lose(self, flight: Flight) -> None:
        """It never arrives."""
        self.flights.remove(flight)
        self.reply(flight, None)

    def delay(self, flight: Flight) -> None:
        """Its sender gives up; it may arrive at any later time."""
        self.flights.remove(flight)
        self.late.append(flight)
        self.reply(flight, None)

    def cut_off(self, sender: Link) -> None:
        """The sender is dead; what it had sent may still arrive."""
        sender.is_dead = True
        for flight in [flight for flight in self.flights if flight.sender is sender]:
            self.flights.remove(flight)
            self.late.append(flight)


class Link:
    """A process's connection: as much of a :class:`~runwire.messaging.broker.Bus` as the protocol uses."""

    def __init__(self, network: Network, name: str, settings: Settings, chain: int) -> None:
        self.network, self.name, self.settings = network, name, settings
        self.is_dead = False
        self.is_clustered = False
        self.chains = {chain}
        self.on_reconnect: list[Callable[[], Awaitable[None]]] = []
        self.hears: list[tuple[str, Callable[[Msg], Awaitable[None]]]] = []
        self.nc = self
        self.js = JetStreamContext(self, timeout=5)

    async def request(
        self, subject: str, payload: bytes = b"", timeout: float = 5, headers: dict[str, Any] | None = None
    ) -> Msg:
        """As nats-py's; how long it takes is up to the rules."""
        reply: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        if self.is_dead:
            raise nats.errors.TimeoutError
        self.network.send(Flight(self, subject, payload, headers or {}, reply))
        return await reply

    async def subscribe(self, subject: str, cb: Callable[[Msg], Awaitable[None]]) -> Any:
        """As nats-py's; only what comes of EVENTS is heard."""
        self.hears.append((subject, cb))

        async def unsubscribe() -> None:
            self.hears.remove((subject, cb))

        return SimpleNamespace(unsubscribe=unsubscribe)

    def new_inbox(self) -> str:
        """As nats-py's."""
        return f"_INBOX.{self.name}"

    def acknowledge(self, act: Callable[[], None]) -> None:
        """Send something that nobody answers."""
        if not self.is_dead:
            self.network.send(Flight(self, subjects.COMMANDS, act=act))
