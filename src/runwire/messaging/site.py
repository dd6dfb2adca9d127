"""What all processes of one installation share: a secret key, and how its first start went."""

from __future__ import annotations

import secrets
from contextlib import suppress

from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError
from pydantic import BaseModel

from runwire.domain.access import AccessToken
from runwire.messaging import subjects
from runwire.messaging.broker import Bus

SERVER_KEY, FIRST_START = "server-key", "first-start"


class FirstStart(BaseModel):
    """What the first start creates; written before it is done, so that a crash in between is made good."""

    token: AccessToken
    done: bool = False


async def server_key(bus: Bus) -> bytes:
    """32 random bytes that stay the same for the life of the installation, on every adapter."""
    bucket = await bus.bucket(subjects.SETTINGS_BUCKET)
    with suppress(KeyWrongLastSequenceError):  # it was made before, by us or by another adapter
        await bucket.create(SERVER_KEY, secrets.token_bytes(32))
    return bytes((await bucket.get(SERVER_KEY)).value or b"")


async def first_start(bus: Bus, plan: FirstStart) -> FirstStart:
    """The one plan of the installation's first start: ``plan``, unless there has been one before."""
    bucket = await bus.bucket(subjects.SETTINGS_BUCKET)
    try:
        await bucket.create(FIRST_START, plan.model_dump_json().encode())
    except KeyWrongLastSequenceError:
        return FirstStart.model_validate_json((await bucket.get(FIRST_START)).value or b"")
    return plan


async def first_start_seen(bus: Bus) -> FirstStart | None:
    """How the first start went; None: there has been none."""
    bucket = await bus.bucket(subjects.SETTINGS_BUCKET)
    try:
        return FirstStart.model_validate_json((await bucket.get(FIRST_START)).value or b"")
    except KeyNotFoundError:
        return None


async def first_start_done(bus: Bus, plan: FirstStart) -> None:
    """Nothing of the first start is left to do."""
    bucket = await bus.bucket(subjects.SETTINGS_BUCKET)
    await bucket.put(FIRST_START, plan.model_copy(update={"done": True}).model_dump_json().encode())
