"""Somebody who stays with a server that has been cut off from the others, and asks it for runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from uuid import uuid4

import nats
import nats.errors
import nats.js.errors

from runwire.messaging import subjects
from tests.chaos.history import Call

PAUSE = 0.3
"""Seconds between two tries."""


class Minority:
    """Publishes commands to one server and to no other; what it is told goes to ``note``."""

    def __init__(self, chain: int, tasks: list[int], note: Callable[[Call], None]) -> None:
        self._chain = chain
        self._tasks = tasks
        self._note = note
        self.asked = 0
        self.accepted = 0
        """Of those that a server without the others must not promise."""

    async def ask(self, url: str, seconds: float) -> None:
        """Ask for so many seconds."""
        until = time.monotonic() + seconds
        client = await nats.connect(url, allow_reconnect=False, connect_timeout=3, error_cb=_ignore)
        try:
            while time.monotonic() < until:
                await self._publish(client, self._tasks[self.asked % len(self._tasks)])
                await asyncio.sleep(PAUSE)
        finally:
            with suppress(nats.errors.Error, OSError):
                await client.close()
        await asyncio.sleep(max(0.0, until - time.monotonic()))

    async def _publish(self, client: nats.aio.client.Client, task: int) -> None:
        run, sent = str(uuid4()), time.time()
        outcome, status = "unknown", "ack"
        self.asked += 1
        try:
            headers = {subjects.MSG_ID: run}
            await client.jetstream().publish(subjects.command(self._chain, task), b"{}", headers=headers, timeout=1)
        except nats.js.errors.APIError as error:
            status = str(error.err_code)
        except (nats.errors.Error, nats.js.errors.Error, TimeoutError, OSError) as error:
            status = type(error).__name__
        else:
            outcome = "accepted"
            self.accepted += 1
        self._note(
            Call(
                door="bus", what="execute", task=task, run=run, sent=sent, answered=time.time(), outcome=outcome,
                status=f"minority: {status}",
            )
        )  # fmt: skip


async def _ignore(_error: Exception) -> None:
    """What goes wrong is what it is here for."""
