"""Access tokens and what they allow: who calls, and what they may do in a chain.

::

    create -> active <-> inactive         deactivate, activate
                |           |
                '-----------'--> deleted  kept for the audit trail; opens nothing, changes no more

A *privileged* token is a service's, bound to one chain. An *admin* token is a person's and holds an access
level per chain. Reading needs viewer; executing operator; creating, changing and deleting manager. What a token
reaches never changes: who needs something else gets another token.

The functions that change a token take it and return its next version, which says what was changed, by whom and when.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from datetime import datetime, timedelta
from enum import IntEnum, StrEnum
from uuid import uuid4

from pydantic import AwareDatetime

from runwire.domain.errors import Forbidden, TaskNotFound
from runwire.domain.task import Model, whole_seconds

TOKEN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""Ids made here are UUIDs; one that the operator presets may be any short name."""
BUS_USER = re.compile(rf"({TOKEN_ID.pattern})(?:\.([1-9][0-9]{{0,18}}))?")
"""How a client of the bus names its token; with the chain, if the token reaches several."""
MARK_LENGTH = 16
OPERATOR = "operator"
"""Who acts without a token: whoever holds the broker's password owns the installation."""
LIFETIME = timedelta(days=90)
"""How long a token is valid when nobody says; only the first one of an installation has no end."""
LONGEST_OVERLAP = 604_800
"""Seconds that a rotated secret may stay valid beside the new one, at most: a week."""
MOST_CHAINS = 100
"""Chains that one token may reach."""


class AccessLevel(IntEnum):
    """What a principal may do in a chain; each level includes those below."""

    VIEWER = 1
    OPERATOR = 2
    MANAGER = 3


class TokenKind(StrEnum):
    """Whose token it is."""

    PRIVILEGED = "privileged"
    ADMIN = "admin"


class TokenChange(StrEnum):
    """What a version of a token says happened."""

    CREATED = "created"
    EDITED = "edited"
    """Its description was changed."""
    DEACTIVATED = "deactivated"
    ACTIVATED = "activated"
    ROTATED = "rotated"
    DELETED = "deleted"


class PreviousSecret(Model):
    """The secret before the last rotation, for as long as both are valid."""

    digest: str
    until: AwareDatetime


class AccessToken(Model):
    """An access token as it is kept: the secret's hash, never the secret."""

    id: str
    kind: TokenKind
    digest: str
    """SHA-256 of the secret, hex. The secret has 256 random bits, so a slow hash would add nothing."""
    levels: dict[int, AccessLevel]
    """Access level by chain."""
    desc: str = ""
    active: bool = True
    created: AwareDatetime
    expires: AwareDatetime | None = None
    deleted: AwareDatetime | None = None
    previous: PreviousSecret | None = None
    change: TokenChange = TokenChange.CREATED
    """What made this version of the token."""
    by: str = OPERATOR
    """Id of the access token that asked for the change, or OPERATOR."""
    changed: AwareDatetime | None = None
    """When; None: it is as it was created."""

    def accepts(self, secret: str, now: datetime) -> bool:
        """Whether the secret opens the token now: it is right, and the token active, not expired and not deleted."""
        return self.honours(digest(secret), now)

    def honours(self, given: str, now: datetime) -> bool:
        """As :meth:`accepts`, for the digest of a secret; in constant time over both secrets."""
        former, until = (self.previous.digest, self.previous.until) if self.previous else (self.digest, now)
        is_current = hmac.compare_digest(self.digest, given)
        is_former = hmac.compare_digest(former, given) & (now < until)
        return (is_current | is_former) and self.is_valid(now)

    def has_secret(self, mark: str, now: datetime) -> bool:
        """Whether one of its secrets has this mark and opens the token now; for who has shown the secret before."""
        current = self.digest.startswith(mark)
        former = self.previous is not None and self.previous.digest.startswith(mark) and now < self.previous.until
        return (current or former) and self.is_valid(now)

    def end_of(self, given: str) -> datetime | None:
        """When the secret with this digest stops to open the token, as things stand; None: never."""
        ends = [self.expires] if self.expires else []
        if self.previous is not None and given != self.digest:
            ends.append(self.previous.until)
        return min(ends, default=None)

    def chain_of(self, named: int | None) -> int | None:
        """The one chain that a client of the bus is let into: the one it names, or the token's only one.

        None: it reaches several and the client names none, or it does not reach the one that is named.
        """
        if named is None:
            return next(iter(self.levels)) if len(self.levels) == 1 else None
        return named if named in self.levels else None

    def is_valid(self, now: datetime) -> bool:
        """Whether it opens anything at all."""
        return self.active and self.deleted is None and (self.expires is None or now < self.expires)


NOBODY = AccessToken.model_validate(
    {
        "id": "",
        "kind": "privileged",
        "digest": hashlib.sha256().hexdigest(),
        "levels": {},
        "active": False,
        "created": "2026-01-01T00:00:00Z",
    }
)
"""Compared with when the id is unknown, so that a refusal takes as long as for a wrong secret."""


class Principal(Model):
    """Who calls: an authenticated token."""

    token: str
    levels: dict[int, AccessLevel]
    secret_digest: str = ""
    """Which of the token's secrets it was: the one before a rotation is valid for a while only."""

    def reaches(self, chain: int) -> bool:
        """Whether the token knows of the chain at all."""
        return chain in self.levels

    @property
    def managed(self) -> tuple[int, ...]:
        """The chains it is manager of, in ascending order."""
        return tuple(sorted(chain for chain, level in self.levels.items() if level >= AccessLevel.MANAGER))

    def require(self, level: AccessLevel, chain: int) -> None:
        """Raise Forbidden unless the principal has the level in the chain."""
        if self.levels.get(chain, 0) < level:
            name = level.name.lower()
            raise Forbidden(
                f"This needs the access level {name} in chain {chain}.",
                needs=name,
                chain=chain if self.reaches(chain) else None,
            )

    def require_task(self, level: AccessLevel, chain: int, task: int) -> None:
        """As :meth:`require`, but a task of a foreign chain looks like a missing one."""
        if not self.reaches(chain):
            raise TaskNotFound(f"There is no task {task}.", chain=chain)
        self.require(level, chain)


# --- token -> next token -------------------------------------------------------------------------------


def create_token(
    token_id: str,
    secret: str,
    *,
    kind: TokenKind,
    levels: dict[int, AccessLevel],
    by: str,
    now: datetime,
    expires: datetime | None,
    desc: str = "",
) -> AccessToken:
    """A new token. ``expires`` None: never."""
    now = whole_seconds(now)
    return AccessToken(
        id=token_id,
        kind=kind,
        digest=digest(secret),
        levels=levels,
        desc=desc,
        created=now,
        expires=expires and whole_seconds(expires),
        change=TokenChange.CREATED,
        by=by,
        changed=now,
    )


def describe(token: AccessToken, desc: str, *, by: str, now: datetime) -> AccessToken:
    """The token under another description; itself when that is the one it has."""
    return token if desc == token.desc else _next(token, TokenChange.EDITED, by, now, desc=desc)


def set_active(token: AccessToken, active: bool, *, by: str, now: datetime) -> AccessToken:
    """The token switched on or off; itself when it is so already."""
    if active == token.active:
        return token
    return _next(token, TokenChange.ACTIVATED if active else TokenChange.DEACTIVATED, by, now, active=active)


def rotate(
    token: AccessToken, secret: str, *, overlap: timedelta, expires: datetime, by: str, now: datetime
) -> AccessToken:
    """The token with a new secret and a new end. The secret it had stays valid for ``overlap``; an earlier one ends."""
    until = whole_seconds(now + overlap)
    return _next(
        token,
        TokenChange.ROTATED,
        by,
        now,
        digest=digest(secret),
        previous=PreviousSecret(digest=token.digest, until=until) if overlap else None,
        expires=whole_seconds(expires),
    )


def delete(token: AccessToken, *, by: str, now: datetime) -> AccessToken:
    """The token is no more, but for the audit trail."""
    return _next(token, TokenChange.DELETED, by, now, active=False, deleted=whole_seconds(now), previous=None)


def _next(token: AccessToken, change: TokenChange, by: str, now: datetime, **fields: object) -> AccessToken:
    return token.model_copy(update={"change": change, "by": by, "changed": whole_seconds(now), **fields})


# --- secrets -------------------------------------------------------------------------------------------


def digest(secret: str) -> str:
    """SHA-256 of a secret, hex."""
    return hashlib.sha256(secret.encode()).hexdigest()


def new_credential() -> tuple[str, str]:
    """A fresh (id, secret): a UUID and 256 random bits."""
    return str(uuid4()), secrets.token_urlsafe(32)


def mark_of(given: str) -> str:
    """What tells a token's secrets apart without opening anything: the beginning of the digest."""
    return given[:MARK_LENGTH]


def parse_bus_user(text: str) -> tuple[str, int | None] | None:
    """What a client of the bus calls itself, ``ID`` or ``ID.CHAIN`` -> (id, chain); None when it is neither."""
    found = BUS_USER.fullmatch(text)
    return (found[1], int(found[2]) if found[2] else None) if found else None


def parse_credential(text: str) -> tuple[str, str] | None:
    """``ID:SECRET`` -> (id, secret); None when it is not of that form."""
    token_id, colon, secret = text.partition(":")
    if not colon or not secret or TOKEN_ID.fullmatch(token_id) is None or not secret.isprintable():
        return None
    return token_id, secret
