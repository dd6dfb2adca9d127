"""Whether the broker's disk takes what is written.

A stream of nats-server that was refused a write stays broken until the server is started again, even when there is
room by then: it answers nobody who publishes to it. (Tried with 2.15: of a full disk, and of one that fails.)
"""

from __future__ import annotations

import json
from contextlib import suppress

from nats.aio.client import Client
from nats.errors import Error as NatsError

from runwire.messaging import subjects

TIMEOUT = 2.0
"""Seconds a server may take to look at its streams."""
WRITE_ERROR = "write error: "
"""What stands before the system's words in the server's."""


async def write_error(client: Client) -> str | None:
    """What became of a write that failed, in the system's words; None: all is well, or nobody tells.

    The first server that answers is believed: to be asked where streams have one copy.
    """
    with suppress(TimeoutError, NatsError, ValueError):
        answer = await client.request(subjects.HEALTH, timeout=TIMEOUT)
        told = str(json.loads(answer.data)["data"].get("error", ""))
        _, found, words = told.partition(WRITE_ERROR)
        return words.rpartition(": ")[2] if found else None  # what comes before is the path of a file
    return None
