"""Tokens as NATS wants them: JSON Web Tokens that are signed with an nkey (Ed25519).

With them an adapter tells the broker who a client is (:mod:`runwire.messaging.callout`). The broker believes whoever
signs with the key whose public half is in its configuration.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import secrets
import time
from collections.abc import Mapping
from typing import Any

import nkeys  # type: ignore[import-untyped]

from runwire.domain.errors import SetupError, Undecodable

HEADER = {"typ": "JWT", "alg": "ed25519-nkey"}


class Signer:
    """Signs with one key."""

    def __init__(self, seed: str) -> None:
        """``seed``: the secret half, as :func:`new_seed` makes it. Raises SetupError when it is none."""
        try:
            _, secret = nkeys.decode_seed(seed.encode())
            is_key = _encoded(secret) == seed  # an account's, and its checksum is right
        except (nkeys.NkeysError, binascii.Error, ValueError):
            is_key = False
        if not is_key:
            msg = "RUNWIRE_BUS_KEY is no key of an account; `runwire bus-key` makes one"
            raise SetupError(msg)
        self._key = nkeys.from_seed(seed.encode())
        self.public_key: str = self._key.public_key.decode()
        self._header = _base64(json.dumps(HEADER).encode())

    def sign(self, claims: Mapping[str, Any]) -> str:
        """A token that says so, issued by us and now."""
        issued = {"iss": self.public_key, "iat": int(time.time()), "jti": secrets.token_hex(16)}
        text = f"{self._header}.{_base64(json.dumps({**issued, **claims}).encode())}"
        return f"{text}.{_base64(self._key.sign(text.encode()))}"


def new_seed() -> str:
    """A fresh key's secret half."""
    return _encoded(os.urandom(32))


def claims_of(token: bytes) -> dict[str, Any]:
    """What a token says. Its signature is not looked at. Raises Undecodable."""
    try:
        part = token.split(b".")[1]
        claims = json.loads(base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4)))
    except (IndexError, ValueError):
        msg = "this is no token"
        raise Undecodable(msg) from None
    if not isinstance(claims, dict):
        msg = "a token's claims are an object"
        raise Undecodable(msg)
    return claims


def _encoded(secret: bytes) -> str:
    seed: bytes = nkeys.encode_seed(secret, nkeys.PREFIX_BYTE_ACCOUNT)
    return seed.decode()


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
