"""Tells the adapters which actions this worker knows, for as long as it runs (:mod:`runwire.messaging.actions`)."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import socket
from collections.abc import Callable
from datetime import datetime

from nats.js.errors import Error as JetStreamError

from runwire import __version__
from runwire.app import Action, App
from runwire.messaging import actions
from runwire.messaging.actions import ActionEntry
from runwire.messaging.broker import UNAVAILABLE, Bus
from runwire.messaging.streams import ACTIONS_KEPT, LARGEST_ACTION
from runwire.parameters import enforced, shown

log = logging.getLogger("runwire.worker")

REFRESH = ACTIONS_KEPT / 3
"""Seconds between two announcements."""

RETRY = 2.0
"""Seconds to the next try when the broker did not take it."""

NOT_LISTED = "action %r is not listed, and new tasks are not checked by it: %s"


class Announcer:
    """Publishes the actions of an app, now and every few minutes."""

    def __init__(self, bus: Bus, app: App, *, clock: Callable[[], datetime], refresh: float = REFRESH) -> None:
        """``clock`` tells the time in UTC; ``refresh`` is in seconds."""
        self._bus = bus
        self._clock = clock
        self._refresh = refresh
        self._worker = f"{socket.gethostname()}/{os.getpid()}-{secrets.token_hex(4)}"
        self._task: asyncio.Task[None] | None = None
        described = (self._described(action) for action in app.actions.values())
        self._entries = [entry for entry in described if entry is not None]

    def _described(self, action: Action) -> ActionEntry | None:
        """What there is to tell of an action; None: it cannot be told, which is said here. It works all the same."""
        try:
            entry = ActionEntry(
                name=action.name,
                description=action.description,
                parameters=shown(action.parameters),
                accepts=enforced(action.parameters),
                worker=self._worker,
                version=__version__,
                when=self._clock(),
            )
            size = len(_encoded(entry))
        except Exception as error:  # noqa: BLE001 - what a user's types raise when they are asked for their schema
            log.warning(NOT_LISTED, action.name, repr(error), extra={"action": "action_not_listed"})
            return None
        if size > LARGEST_ACTION:
            reason = f"its description and schemas have {size:,} bytes, at most {LARGEST_ACTION:,} can be published"
            log.warning(NOT_LISTED, action.name, reason, extra={"action": "action_not_listed"})
            return None
        return entry

    async def start(self) -> None:
        """Begin; a broker that does not take it keeps nobody waiting."""
        self._task = asyncio.create_task(self._keep_announced())

    async def stop(self) -> None:
        """Say nothing more. What was said stands until its time is over: other workers may serve it, too."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _keep_announced(self) -> None:
        is_new = True
        while True:
            try:
                await self._announce(is_new=is_new)
            except (*UNAVAILABLE, JetStreamError) as error:
                log.debug("actions are not announced: %r", error, extra={"action": "not_announced"})
                await asyncio.sleep(RETRY)
            else:
                is_new = False
                await asyncio.sleep(self._refresh * random.uniform(0.8, 1))  # noqa: S311 - not all at once

    async def _announce(self, *, is_new: bool) -> None:
        """Put the entries. Later on, one that a newer worker has put otherwise is left to that one while it lasts."""
        found = {} if is_new else {entry.name: entry for entry in await actions.listed(self._bus)}
        for entry in self._entries:
            there = found.get(entry.name)
            if there is None or there.worker == self._worker or there.says_the_same(entry):
                await actions.put(self._bus, entry.name, _encoded(entry.model_copy(update={"when": self._clock()})))


def _encoded(entry: ActionEntry) -> bytes:
    return entry.model_dump_json().encode()
