"""Access tokens in a key-value bucket that all adapters share."""

from __future__ import annotations

from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError

from runwire.domain.access import AccessToken
from runwire.messaging import subjects
from runwire.messaging.broker import Bus


async def get(bus: Bus, token_id: str) -> AccessToken | None:
    """The token with this id; None: there is none. Raises one of UNAVAILABLE."""
    bucket = await bus.bucket(subjects.TOKENS_BUCKET)
    try:
        entry = await bucket.get(token_id)
    except KeyNotFoundError:
        return None
    return AccessToken.model_validate_json(entry.value or b"")


async def create(bus: Bus, token: AccessToken) -> bool:
    """Store a new token; False: one with this id exists and was left as it is."""
    bucket = await bus.bucket(subjects.TOKENS_BUCKET)
    try:
        await bucket.create(token.id, token.model_dump_json().encode())
    except KeyWrongLastSequenceError:
        return False
    return True
