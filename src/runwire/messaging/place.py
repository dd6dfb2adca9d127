"""Where a message stands in its stream and in its consumer: the numbers that a reader in order needs.

They are in the reply subject of every message that a consumer delivers (ADR-15), and reading just them takes a
tenth of the time that nats-py's ``Msg.metadata`` does.
"""

from __future__ import annotations

from typing import NamedTuple

from nats.aio.msg import Msg

WITHOUT_DOMAIN = 9
"""Parts of the reply subject ``$JS.ACK.<stream>.<consumer>.<deliveries>.<sequence>.<sequence in the consumer>.<time>.
<pending>``; where the broker has a domain two more stand before the stream, and a random one at the end."""


class Place(NamedTuple):
    """Where a message stands."""

    consumer: str
    sequence: int
    """In the stream."""
    delivered: int
    """In the consumer: the next message is +1, or something was lost."""
    pending: int
    """How many the consumer had behind it when it was sent."""


def place_of(message: Msg) -> Place:
    """Where the message stands. It has to come from a consumer."""
    parts = message.reply.split(".")
    first = 2 if len(parts) == WITHOUT_DOMAIN else 4
    return Place(parts[first + 1], int(parts[first + 3]), int(parts[first + 4]), int(parts[first + 6]))
