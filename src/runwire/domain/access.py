"""Access tokens and what they allow: who calls, and what they may do in a chain.

A *privileged* token is a service's, bound to one chain. An *admin* token is a person's and holds an access
level per chain. Reading needs viewer; executing operator; creating, changing and deleting manager.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from datetime import datetime
from enum import IntEnum, StrEnum
from uuid import uuid4

from pydantic import AwareDatetime

from runwire.domain.errors import Forbidden, TaskNotFound
from runwire.domain.task import Model

TOKEN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""Ids made here are UUIDs; one that the operator presets may be any short name."""


class AccessLevel(IntEnum):
    """What a principal may do in a chain; each level includes those below."""

    VIEWER = 1
    OPERATOR = 2
    MANAGER = 3


class TokenKind(StrEnum):
    """Whose token it is."""

    PRIVILEGED = "privileged"
    ADMIN = "admin"


class AccessToken(Model):
    """An access token as it is kept: the secret's hash, never the secret."""

    id: str
    kind: TokenKind
    digest: str
    """SHA-256 of the secret, hex. The secret has 256 random bits, so a slow hash would add nothing."""
    levels: dict[int, AccessLevel]
    """Access level by chain."""
    active: bool = True
    created: AwareDatetime
    expires: AwareDatetime | None = None

    def accepts(self, secret: str, now: datetime) -> bool:
        """Whether the secret is right and the token is active and not expired; in constant time over the secret."""
        matches = hmac.compare_digest(self.digest, digest(secret))
        return matches and self.active and (self.expires is None or now < self.expires)


class Principal(Model):
    """Who calls: an authenticated token."""

    token: str
    levels: dict[int, AccessLevel]

    def reaches(self, chain: int) -> bool:
        """Whether the token knows of the chain at all."""
        return chain in self.levels

    def require(self, level: AccessLevel, chain: int) -> None:
        """Raise Forbidden unless the principal has the level in the chain."""
        if self.levels.get(chain, 0) < level:
            name = level.name.lower()
            raise Forbidden(f"This needs the access level {name} in chain {chain}.", needs=name)

    def require_task(self, level: AccessLevel, chain: int, task: int) -> None:
        """As :meth:`require`, but a task of a foreign chain looks like a missing one."""
        if not self.reaches(chain):
            raise TaskNotFound(f"There is no task {task}.")
        self.require(level, chain)


def digest(secret: str) -> str:
    """SHA-256 of a secret, hex."""
    return hashlib.sha256(secret.encode()).hexdigest()


def new_credential() -> tuple[str, str]:
    """A fresh (id, secret): a UUID and 256 random bits."""
    return str(uuid4()), secrets.token_urlsafe(32)


def parse_credential(text: str) -> tuple[str, str] | None:
    """``ID:SECRET`` -> (id, secret); None when it is not of that form."""
    token_id, colon, secret = text.partition(":")
    if not colon or not secret or TOKEN_ID.fullmatch(token_id) is None or not secret.isprintable():
        return None
    return token_id, secret
