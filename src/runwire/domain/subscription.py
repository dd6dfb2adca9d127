"""Subscriptions: who wants to get which events, each at least once, however long they are away.

A *pull* subscription belongs to an access token: clients of the bus that log in with it fetch the events. A
*web hook* belongs to a chain: the events are sent to its URL, signed as Standard Webhooks says
(https://github.com/standard-webhooks/standard-webhooks, spec/standard-webhooks.md).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from datetime import datetime, timedelta
from enum import StrEnum

from pydantic import AwareDatetime

from runwire.domain.access import TOKEN_ID
from runwire.domain.task import Model, whole_seconds

SLOTS = 10
"""Pull subscriptions that a token may have in a chain: their names stand in its login, whether they exist or not."""
MOST_TASKS, MOST_FILTERS = 100, 200
"""Tasks one subscription may name, and pairs of task and code."""
SECRET_PREFIX = "whsec_"  # noqa: S105 - says that what follows is one

SUBSCRIPTION_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")
"""What every id looks like; which ones there can be, the next two tell."""
PULL_NAME = re.compile(rf"sub-([1-9][0-9]{{0,15}})-([0-9])-({TOKEN_ID.pattern})")
HOOK_NAME = re.compile(r"hook-([1-9][0-9]{0,15})-([0-9a-f]{16})")


class SubscriptionKind(StrEnum):
    """How the events get there."""

    PULL = "pull"
    WEB_HOOK = "web_hook"


class EventCode(StrEnum):
    """What an event is about: the last part of its subject."""

    READY = "ready"
    INPROGRESS = "inprogress"
    DONE = "done"
    ERROR = "error"
    EDITED = "edited"
    SKIPPED = "skipped"
    DELETED = "deleted"


class Subscription(Model):
    """A subscription as it is kept."""

    id: str
    """Also the name of its consumer on EVENTS."""
    kind: SubscriptionKind
    chain: int
    token: str
    """Id of the access token that made it; a pull subscription can only be used with this one."""
    desc: str = ""
    tasks: tuple[int, ...] = ()
    """Only events of these; none: of all."""
    codes: tuple[EventCode, ...] = ()
    """Only these; none: all."""
    actions: tuple[str, ...] = ()
    """Web hooks: only events of tasks whose target has one of these actions; none: of all."""
    from_sequence: int | None = None
    from_time: AwareDatetime | None = None
    """Where it began; neither: with the first event after it was made."""
    created: AwareDatetime
    mark: str
    """Made up for this one: two that are alike otherwise, at the same time, are still two."""
    url: str | None = None
    secret: str | None = None
    """What web hooks are signed with; given away once, when it is made."""
    previous_secret: str | None = None
    """The secret before the last rotation; None: there was none."""
    previous_until: AwareDatetime | None = None
    """Events are signed with it, too, until then."""
    disabled: AwareDatetime | None = None
    """When the receiver said that it is gone for good (410); None: it is in use."""


def pull_name(chain: int, slot: int, token: str) -> str:
    """The id of a pull subscription; ``slot`` is 0 to SLOTS - 1."""
    return f"sub-{chain}-{slot}-{token}"


def pull_names(chain: int, token: str) -> list[str]:
    """Every id that a pull subscription of the token in the chain can have."""
    return [pull_name(chain, slot, token) for slot in range(SLOTS)]


def new_hook_name(chain: int) -> str:
    """A fresh id for a web hook."""
    return f"hook-{chain}-{secrets.token_hex(8)}"


def chain_of(name: str) -> int | None:
    """The chain of the subscription with this id; None: it is no id of one."""
    found = PULL_NAME.fullmatch(name) or HOOK_NAME.fullmatch(name)
    return int(found[1]) if found else None


def owner_of(name: str) -> str | None:
    """The token that may use the pull subscription with this id; None: it is none."""
    found = PULL_NAME.fullmatch(name)
    return found[3] if found else None


# --- signatures ----------------------------------------------------------------------------------------


def new_secret() -> str:
    """A fresh secret for signatures: 256 random bits."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def rotate(hook: Subscription, secret: str, *, overlap: timedelta, now: datetime) -> Subscription:
    """The web hook with another secret; the present one signs beside it for the overlap, one before that no more."""
    return hook.model_copy(
        update={
            "secret": secret,
            "previous_secret": hook.secret if overlap else None,
            "previous_until": whole_seconds(now + overlap) if overlap else None,
        }
    )


def signatures(hook: Subscription, message_id: str, at: datetime, body: bytes) -> str:
    """The value of ``webhook-signature``: one signature, or two with a space between them while a rotation lasts."""
    secrets_ = [hook.secret]
    if hook.previous_until is not None and at < hook.previous_until:
        secrets_.append(hook.previous_secret)
    return " ".join(signature(secret or "", message_id, at, body) for secret in secrets_)


def signature(secret: str, message_id: str, at: datetime, body: bytes) -> str:
    """What proves that the body comes from who has the secret, and when it was sent."""
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    signed = f"{message_id}.{int(at.timestamp())}.".encode() + body
    return f"v1,{base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()}"
