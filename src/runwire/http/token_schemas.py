"""Bodies of requests and answers about access tokens, with examples."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel, Strict, field_validator

from runwire.domain.access import (
    LONGEST_OVERLAP,
    MOST_CHAINS,
    AccessLevel,
    AccessToken,
    TokenChange,
    TokenKind,
)
from runwire.domain.errors import (
    InvalidFields,
)
from runwire.domain.task import INTEGRAL, ChainId
from runwire.http.json_body import parse_json
from runwire.http.schemas import NO_NUL, Instant, instant

LONGEST_DESC = 500
"""Characters of a description."""
VARIANT = re.compile(r"^/(privileged|admin)(?=/|$)|/\[key\]$")

LevelName = Literal["viewer", "operator", "manager"]
ChainKey = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,15}$")]
"""A chain as the name of a JSON member."""
Expiry = Annotated[
    Instant | None, Field(description="When it stops being valid; in the future. Left out: 90 days from now.")
]

EXAMPLE_TOKEN: dict[str, Any] = {
    "id": "0b7e6f0e-3f0c-4c4e-9a53-5d3b8f6f2a11",
    "kind": "privileged",
    "levels": {"1764": "operator"},
    "desc": "The billing service",
    "active": True,
    "created": "2026-05-26T14:35:00Z",
    "expires": "2026-08-24T14:35:00Z",
    "deleted": None,
    "last_used": "2026-05-26T15:00:00Z",
    "previous_until": None,
    "change": "created",
    "changed": "2026-05-26T14:35:00Z",
    "by": "5c0d1f3c-8b1f-4d57-8f0e-2f1b0d8f7a02",
}
EXAMPLE_SECRET = "k1JxXo0eYkq9vQy8m2uWb0m3cN5sT7rA4pLzHdGfE6I"  # noqa: S105 - opens nothing


class Grant(BaseModel):
    """What every new token has."""

    model_config = ConfigDict(extra="forbid")

    desc: Annotated[str, Field(max_length=LONGEST_DESC, description="What it is for.", json_schema_extra=NO_NUL)] = ""
    expires: Expiry = None

    @field_validator("desc")
    @classmethod
    def _no_nul(cls, text: str) -> str:
        return _without_nul(text)


class PrivilegedTokenBody(Grant):
    """A service's token, bound to one chain."""

    kind: Literal["privileged"]
    chain: ChainId
    level: LevelName = "operator"

    def granted(self) -> dict[int, AccessLevel]:
        """Access level by chain."""
        return {self.chain: AccessLevel[self.level.upper()]}


class AdminTokenBody(Grant):
    """A person's token, with an access level per chain."""

    kind: Literal["admin"]
    levels: Annotated[
        dict[ChainKey, LevelName], Field(min_length=1, max_length=MOST_CHAINS, description="Access level by chain.")
    ]

    def granted(self) -> dict[int, AccessLevel]:
        """Access level by chain."""
        return {int(chain): AccessLevel[level.upper()] for chain, level in self.levels.items()}


class AccessTokenBody(RootModel[Annotated[PrivilegedTokenBody | AdminTokenBody, Field(discriminator="kind")]]):
    """A new access token. Id and secret are made here; what it reaches never changes."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"kind": "privileged", "chain": 1764, "level": "operator", "desc": "The billing service"},
                {"kind": "admin", "levels": {"1764": "manager"}, "desc": "Ada"},
            ]
        }
    )


class AccessTokenPatch(BaseModel):
    """Changes of an access token; what is left out, or null, stays as it is."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"active": False}]})

    active: Annotated[Annotated[bool, Strict()] | None, Field(description="false: it opens nothing.")] = None
    desc: Annotated[
        Annotated[str, Field(max_length=LONGEST_DESC, json_schema_extra=NO_NUL)] | None,
        Field(description="What it is for."),
    ] = None

    @field_validator("desc")
    @classmethod
    def _no_nul(cls, text: str | None) -> str | None:
        return text and _without_nul(text)


class RotationBody(BaseModel):
    """How the secret is exchanged."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"overlap": 3600}]})

    overlap: Annotated[
        int,
        Strict(),
        Field(ge=0, le=LONGEST_OVERLAP, description="Seconds that the old secret stays valid beside the new one."),
        INTEGRAL,
    ] = 3600
    expires: Expiry = None


class AccessTokenView(BaseModel):
    """An access token, without its secret."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_TOKEN]})

    id: str
    kind: TokenKind
    levels: Annotated[dict[str, LevelName], Field(description="Access level by chain; the chains you may see.")]
    desc: str
    active: bool
    created: datetime
    expires: Annotated[datetime | None, Field(description="null: never.")]
    deleted: Annotated[datetime | None, Field(description="null: it is not.")]
    last_used: Annotated[datetime | None, Field(description="To a minute or so; null: never.")]
    previous_until: Annotated[
        datetime | None, Field(description="Until when the secret before the last rotation is valid; null: it is not.")
    ]
    change: Annotated[TokenChange, Field(description="What was changed last.")]
    changed: Annotated[datetime, Field(description="When that was.")]
    by: Annotated[str, Field(description="Who changed it: the id of an access token, or `operator`.")]


class SecretView(AccessTokenView):
    """An access token with its secret, which is shown this once."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [EXAMPLE_TOKEN | {"secret": EXAMPLE_SECRET, "token": f"{EXAMPLE_TOKEN['id']}:{EXAMPLE_SECRET}"}]
        }
    )

    secret: str
    token: Annotated[str, Field(description="`ID:SECRET`, as it goes behind `Authorization: Bearer`.")]


def token_view(token: AccessToken, chains: Iterable[int], last_used: datetime | None = None) -> dict[str, Any]:
    """The token as the API shows it to somebody who may see these chains; never a secret, nor its hash."""
    shown = set(chains)
    return {
        "id": token.id,
        "kind": token.kind.value,
        "levels": {str(chain): level.name.lower() for chain, level in sorted(token.levels.items()) if chain in shown},
        "desc": token.desc,
        "active": token.active,
        "created": instant(token.created),
        "expires": instant(token.expires),
        "deleted": instant(token.deleted),
        "last_used": instant(last_used),
        "previous_until": instant(token.previous.until if token.previous else None),
        "change": token.change.value,
        "changed": instant(token.changed or token.created),
        "by": token.by,
    }


def parse_new(body: bytes) -> PrivilegedTokenBody | AdminTokenBody:
    """The new token in a request body. Raises MalformedBody or InvalidFields."""
    try:
        return parse_json(body, AccessTokenBody).root
    except InvalidFields as invalid:  # pydantic's places name the variant and the part of a member, a pointer must not
        raise InvalidFields(
            [replace(error, pointer=VARIANT.sub("", error.pointer or "")) for error in invalid.errors]
        ) from None


def _without_nul(text: str) -> str:
    if "\x00" in text:
        msg = "must not contain NUL"
        raise ValueError(msg)
    return text
