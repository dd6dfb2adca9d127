"""The connections of bus clients: finding those that have to go, and closing them.

Every server of the cluster is asked which connections it has (CONNZ), and told to close some of them (KICK), through
what nats.conf lets our own account have of the system's. Nothing here waits for an answer: answers are dealt with as
they come, and a question or an order that got lost is made good by the next round.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError

from runwire.messaging import subjects
from runwire.messaging.broker import Bus

log = logging.getLogger("runwire.bus")

PAGE = 1000
"""Connections a server tells of at once."""

EVERYBODY, KICKED = "-", "kicked"
"""What answers are about, where it is not an account's connections."""


@dataclass(frozen=True)
class Connection:
    """A client of the bus that is connected now."""

    account: str
    user: str
    """What it was called when it was let in."""


class Connections:
    """Closes every connection that ``is_unwelcome``, when it comes upon one."""

    def __init__(self, bus: Bus, is_unwelcome: Callable[[Connection], bool]) -> None:
        self._bus = bus
        self._is_unwelcome = is_unwelcome
        self._inbox = bus.nc.new_inbox()
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        """Begin to listen to answers."""
        self._subscription = await self._bus.nc.subscribe(f"{self._inbox}.*.*", cb=self._hear)

    async def stop(self) -> None:
        """Listen no more."""
        if self._subscription is not None:
            with suppress(NatsError):
                await self._subscription.unsubscribe()

    async def look(self, account: str | None = None) -> None:
        """Ask every server for its connections: those of an account, or all. Raises a NatsError when it cannot."""
        await self._ask(subjects.ALL_CONNECTIONS, account, 0)

    async def _ask(self, subject: str, account: str | None, offset: int) -> None:
        question = {"auth": True, "limit": PAGE, "offset": offset} | ({"acc": account} if account else {})
        reply = f"{self._inbox}.{account or EVERYBODY}.{offset}"
        await self._bus.nc.publish(subject, json.dumps(question).encode(), reply=reply)

    async def _hear(self, answer: Msg) -> None:
        if not answer.data:  # the broker's word that nobody listens: its configuration is not ours
            return
        account, offset = answer.subject.rsplit(".", 2)[1:]
        if account == KICKED:
            return
        told = json.loads(answer.data)
        server, found = told["server"]["id"], told.get("data", {}).get("connections") or []
        for connection in found:
            if self._is_unwelcome(_connection(connection)):
                await self._kick(server, connection)
        if len(found) == PAGE:
            which = None if account == EVERYBODY else account
            await self._ask(subjects.CONNECTIONS.format(server), which, int(offset) + PAGE)

    async def _kick(self, server: str, connection: dict[str, Any]) -> None:
        name = connection.get("authorized_user")
        log.info("closing a connection of %s", name, extra={"action": "kicked"})
        order = json.dumps({"cid": connection["cid"]}).encode()
        # A server does nothing when nobody wants to hear of it.
        await self._bus.nc.publish(subjects.KICK.format(server), order, reply=f"{self._inbox}.{KICKED}.0")


def _connection(told: dict[str, Any]) -> Connection:
    return Connection(account=told.get("account", ""), user=told.get("authorized_user", ""))
