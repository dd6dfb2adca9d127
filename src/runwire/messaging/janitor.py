"""What is thrown away after its time: the events of tasks that were deleted long ago.

Everything else goes by itself, as its stream is told how old a message may get. Every adapter sweeps; two at
once do no harm.
"""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from nats.js.errors import Error as JetStreamError

from runwire.domain.errors import Undecodable
from runwire.messaging import events
from runwire.messaging.broker import UNAVAILABLE, Bus
from runwire.messaging.streams import AUDIT_DAYS

log = logging.getLogger("runwire.bus")

DELETED_DAYS = AUDIT_DAYS
"""Days the events of a deleted task are kept, and its id stays taken: as long as it is known who deleted it."""
INTERVAL = 3600.0
"""Seconds between two sweeps."""
AT_ONCE = 1000
"""Deleted tasks one sweep forgets at most."""


async def keep_swept(bus: Bus) -> None:
    """Sweep now and then, for as long as the process runs; adapters that were started together take turns."""
    while True:
        await asyncio.sleep(random.uniform(0.1, 1.0) * INTERVAL)  # noqa: S311 - jitter, not a secret
        with suppress(*UNAVAILABLE, JetStreamError, Undecodable):
            count = await sweep(bus, now=datetime.now(UTC))
            if count:
                log.info("forgot %d deleted tasks", count, extra={"action": "swept"})


async def sweep(bus: Bus, *, now: datetime) -> int:
    """Forget the tasks that were deleted more than DELETED_DAYS before ``now``; returns how many.

    Raises one of UNAVAILABLE.
    """
    deletions = await events.deleted_before(bus, now - timedelta(days=DELETED_DAYS), limit=AT_ONCE)
    for deletion in deletions:
        await events.purge_deleted(bus, deletion)
    return len(deletions)
