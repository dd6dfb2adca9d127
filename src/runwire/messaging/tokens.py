"""Access tokens in a key-value bucket that all adapters share, and when each was last used in another.

A token changes by compare-and-set on its revision, so of two changes at the same time both happen, one after the
other. The bucket's own stream remembers the versions; the audit trail is read from it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

from nats.js.errors import Error as JetStreamError
from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError
from pydantic import ValidationError

from runwire.domain.access import AccessToken
from runwire.domain.errors import NotAccepted, Undecodable
from runwire.domain.task import whole_seconds
from runwire.messaging import subjects
from runwire.messaging.broker import UNAVAILABLE, Bus

log = logging.getLogger("runwire.bus")

TRIES = 8
"""How often a change is tried that somebody else's change, or a broker that does not answer, came in the way of."""
USE_INTERVAL = 60.0
"""Seconds between two writes of when the same token was last used, at least."""
USE_LOOK = 1.0
"""Seconds between two looks at which uses are to be written."""


async def get(bus: Bus, token_id: str) -> AccessToken | None:
    """The token with this id, also a deleted one; None: there is none. Raises one of UNAVAILABLE."""
    found = await _entry(bus, token_id)
    return found[0] if found else None


async def create(bus: Bus, token: AccessToken) -> bool:
    """Store a new token; False: one with this id exists and was left as it is."""
    bucket = await bus.bucket(subjects.TOKENS_BUCKET)
    try:
        await bucket.create(token.id, token.model_dump_json().encode())
    except KeyWrongLastSequenceError:
        return False
    return True


async def create_surely(bus: Bus, token: AccessToken) -> None:
    """Store a new token whose id is fresh, however often it takes to hear of it. Raises NotAccepted."""
    for _ in range(TRIES):
        with suppress(*UNAVAILABLE):
            if await create(bus, token) or await get(bus, token.id) == token:
                return
    raise NotAccepted("The broker did not confirm the token in time; it may or may not have been stored.")


async def change(bus: Bus, token_id: str, next_version: Callable[[AccessToken | None], AccessToken]) -> AccessToken:
    """Bring the token to its next version; returns that.

    ``next_version`` gets the token as it stands (None: there is none), may be called several times, and what it raises
    ends the change; what it returns unchanged is not written. Raises NotAccepted when the outcome stays unknown.
    """
    bucket = await bus.bucket(subjects.TOKENS_BUCKET)
    written: AccessToken | None = None
    for _ in range(TRIES):
        with suppress(*UNAVAILABLE, KeyWrongLastSequenceError):
            found = await _entry(bus, token_id)
            if written is not None and found is not None and found[0] == written:
                return written  # an earlier try of ours whose acknowledgement was lost
            version = next_version(found[0] if found else None)
            if found is None or version == found[0]:
                return version
            written = version
            await bucket.update(token_id, version.model_dump_json().encode(), last=found[1])
            return version
    raise NotAccepted("The broker did not confirm the change in time; it may or may not have been made.")


async def list_all(bus: Bus) -> list[AccessToken]:
    """Every token, deleted ones too, in the order they were created. Raises one of UNAVAILABLE."""
    return sorted(
        (AccessToken.model_validate_json(value) for value in (await bus.entries(subjects.TOKENS_BUCKET)).values()),
        key=lambda token: (token.created, token.id),
    )


async def last_uses(bus: Bus) -> dict[str, datetime]:
    """When each token was last used, to a minute or so, by token id."""
    uses = await bus.entries(subjects.TOKEN_USE_BUCKET)
    return {token_id: datetime.fromisoformat(value.decode()) for token_id, value in uses.items()}


async def last_use(bus: Bus, token_id: str) -> datetime | None:
    """When the token was last used, to a minute or so; None: never, as far as is known."""
    bucket = await bus.bucket(subjects.TOKEN_USE_BUCKET)
    try:
        return datetime.fromisoformat(((await bucket.get(token_id)).value or b"").decode())
    except KeyNotFoundError:
        return None


def decode(payload: bytes) -> AccessToken:
    """The token in an entry of the bucket. Raises Undecodable."""
    try:
        return AccessToken.model_validate_json(payload)
    except ValidationError as invalid:
        raise Undecodable(str(invalid.errors(include_url=False, include_input=False)[0]["msg"])) from None


class Uses:
    """When the tokens were last used through this adapter; written in the background, never by a request."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._seen: dict[str, datetime] = {}
        """Not written yet."""
        self._written: dict[str, float] = {}
        """Monotonic time of the last write of each token that was used within USE_INTERVAL."""

    def saw(self, token_id: str, now: datetime) -> None:
        """The token was used."""
        self._seen[token_id] = now

    def latest(self, token_id: str) -> datetime | None:
        """The use that is not written yet."""
        seen = self._seen.get(token_id)
        return seen and whole_seconds(seen)

    async def keep_written(self) -> None:
        """Write what is due, for as long as the adapter runs."""
        while True:
            await asyncio.sleep(USE_LOOK)
            try:
                await self.write(everything=False)
            except (*UNAVAILABLE, JetStreamError) as error:
                log.debug("uses of tokens wait: %r", error, extra={"action": "token_use_waits"})

    async def write(self, *, everything: bool) -> None:
        """Write the uses that are due, or all. Raises one of UNAVAILABLE; what was not written is kept."""
        now = time.monotonic()
        self._written = {token_id: at for token_id, at in self._written.items() if now - at < USE_INTERVAL}
        due = [token_id for token_id in self._seen if everything or token_id not in self._written]
        bucket = await self._bus.bucket(subjects.TOKEN_USE_BUCKET)
        for token_id in due:
            seen = self._seen[token_id]
            await bucket.put(token_id, whole_seconds(seen).isoformat().encode())
            self._written[token_id] = now
            if self._seen[token_id] == seen:
                del self._seen[token_id]


async def _entry(bus: Bus, token_id: str) -> tuple[AccessToken, int] | None:
    """The token and its revision."""
    bucket = await bus.bucket(subjects.TOKENS_BUCKET)
    try:
        entry = await bucket.get(token_id)
    except KeyNotFoundError:
        return None
    return AccessToken.model_validate_json(entry.value or b""), entry.revision or 0
