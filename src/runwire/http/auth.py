"""Authorization header -> Principal."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime

from starlette.requests import Request

from runwire.domain.access import NOBODY, AccessToken, Principal, digest, parse_credential
from runwire.domain.errors import Unauthenticated
from runwire.messaging import tokens
from runwire.messaging.broker import Bus
from runwire.messaging.tokens import Uses

CACHE_SECONDS = 4.0
"""How long a token is believed without asking the bucket again: a change is in force everywhere within 5 s."""
CACHE_SIZE = 10_000
NAMED_TOKEN = "runwire.token"  # noqa: S105 - a name
"""Where the ASGI scope has the :class:`AccessToken` that the call names, whether its secret was right or not."""
CALLER = "runwire.caller"
"""Where the ASGI scope has the :class:`Caller` of a call that came over the bus; nothing of HTTP gets there."""


@dataclass(frozen=True)
class Caller:
    """Who calls over the bus. The broker has seen the secret, and cuts the connection when it is good no more."""

    token: str
    chain: int
    """The chain that the client has logged in to."""


class Authenticator:
    """Checks access tokens; remembers them for a few seconds."""

    def __init__(self, bus: Bus, uses: Uses | None = None) -> None:
        """Over the bucket that all adapters share. ``uses`` is told of every call that was authenticated."""
        self._bus = bus
        self._uses = uses or Uses(bus)
        self._cache: OrderedDict[str, tuple[float, AccessToken]] = OrderedDict()

    async def __call__(self, request: Request) -> Principal:
        """Who calls. Raises Unauthenticated, or one of UNAVAILABLE when the bucket cannot be asked."""
        if CALLER in request.scope:
            return await self._vouched_for(request, request.scope[CALLER])
        header = request.headers.get("authorization", "")
        scheme, _, text = header.partition(" ")
        credential = parse_credential(text.strip()) if scheme.lower() == "bearer" else None
        if credential is None:
            raise Unauthenticated(attempted=bool(header))
        token_id, secret = credential
        known = await self._token(token_id)
        if known is not None:
            request.scope[NAMED_TOKEN] = known
        token, given, now = known or NOBODY, digest(secret), datetime.now(UTC)
        if not token.honours(given, now):
            raise Unauthenticated(attempted=True)
        self._uses.saw(token.id, now)
        return Principal(token=token.id, levels=token.levels, secret_digest=given)

    async def _vouched_for(self, request: Request, caller: Caller) -> Principal:
        """The same for a client of the bus, which is in one chain. Raises as :meth:`__call__`."""
        token, now = await self._token(caller.token), datetime.now(UTC)
        if token is None or not token.is_valid(now) or caller.chain not in token.levels:
            raise Unauthenticated(attempted=True)
        request.scope[NAMED_TOKEN] = token
        self._uses.saw(token.id, now)
        levels = {caller.chain: token.levels[caller.chain]}
        return Principal(token=token.id, levels=levels, secret_digest=token.digest)

    async def still_valid(self, principal: Principal) -> bool:
        """Whether the principal's token may still do what it could when it was authenticated.

        For calls that go on for long; within CACHE_SECONDS of a change the old answer is possible. Raises one of
        UNAVAILABLE.
        """
        token = await self._token(principal.token)
        return (
            token is not None
            and token.honours(principal.secret_digest, datetime.now(UTC))
            and all(token.levels.get(chain, 0) >= level for chain, level in principal.levels.items())
        )

    def renew(self, token: AccessToken) -> None:
        """The token was changed through this adapter: from now on this is how it stands."""
        self._remember(token, time.monotonic())

    async def _token(self, token_id: str) -> AccessToken | None:
        known = self._cache.get(token_id)
        if known is not None and time.monotonic() - known[0] < CACHE_SECONDS:
            return known[1]
        asked = time.monotonic()
        token = await tokens.get(self._bus, token_id)
        newer = self._cache.get(token_id)
        if newer is not None and newer[0] > asked:  # renewed while the bucket was asked
            return newer[1]
        if token is None:
            self._cache.pop(token_id, None)
            return None
        self._remember(token, asked)
        return token

    def _remember(self, token: AccessToken, at: float) -> None:
        self._cache[token.id] = (at, token)
        self._cache.move_to_end(token.id)
        if len(self._cache) > CACHE_SIZE:
            self._cache.popitem(last=False)
