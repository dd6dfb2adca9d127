"""What all processes of one installation share: secret keys, and how its first start went."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta

from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError
from pydantic import AwareDatetime, BaseModel, TypeAdapter

from runwire.domain.access import AccessToken
from runwire.messaging import subjects
from runwire.messaging.broker import Bus

SERVER_KEY, FIRST_START, SIGNING_KEYS = "server-key", "first-start", "signing-keys"

KEY_LIFE = timedelta(days=30)
"""How long a signing key is used for new links."""
KEY_OVERLAP = timedelta(days=1)
"""How long a signing key stays known after it was replaced: longer than a link is good and an adapter unaware."""


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


async def server_key_seen(bus: Bus) -> bytes | None:
    """The same, as far as it has been made; None: it has not."""
    bucket = await bus.bucket(subjects.SETTINGS_BUCKET)
    try:
        return bytes((await bucket.get(SERVER_KEY)).value or b"")
    except KeyNotFoundError:
        return None


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


class SigningKey(BaseModel):
    """One of the secrets that download links are signed with."""

    secret: str
    created: AwareDatetime


async def signing_keys(bus: Bus, now: datetime) -> list[SigningKey]:
    """The keys of download links, newest first, the same on every adapter.

    Made when first asked for; when the newest is KEY_LIFE old another is put in front. Adapters that do so at the
    same time agree on one. Raises one of UNAVAILABLE.
    """
    bucket = await bus.bucket(subjects.SETTINGS_BUCKET)
    while True:
        try:
            entry = await bucket.get(SIGNING_KEYS)
        except KeyNotFoundError:
            known, revision = [], None
        else:
            known, revision = _KEY_LIST.validate_json(entry.value or b"[]"), entry.revision
        wanted = renewed(known, now, new_secret=lambda: secrets.token_urlsafe(32))
        if wanted == known:
            return known
        with suppress(KeyWrongLastSequenceError):  # another adapter was first: take what it made
            if revision is None:
                await bucket.create(SIGNING_KEYS, _KEY_LIST.dump_json(wanted))
            else:
                await bucket.update(SIGNING_KEYS, _KEY_LIST.dump_json(wanted), last=revision)
            return wanted


def renewed(known: list[SigningKey], now: datetime, *, new_secret: Callable[[], str]) -> list[SigningKey]:
    """The keys as they should be: the newest younger than KEY_LIFE, none that was replaced KEY_OVERLAP ago."""
    keys = known
    if not keys or now - keys[0].created >= KEY_LIFE:
        keys = [SigningKey(secret=new_secret(), created=now), *keys]
    replaced = [keys[0].created, *(key.created for key in keys[:-1])]
    return [key for key, since in zip(keys, replaced, strict=True) if key is keys[0] or now - since < KEY_OVERLAP]


_KEY_LIST = TypeAdapter(list[SigningKey])
