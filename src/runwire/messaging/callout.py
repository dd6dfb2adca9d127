"""Who may come to the bus: access tokens, the same that open the HTTP API.

The broker asks here (auth callout, ADR-26) about everybody who is none of our own processes. The answer is a token of
ours that says in which account the client is, what it may publish and subscribe to, and until when::

    user ID or ID.CHAIN, password SECRET  ->  the chain's account
        subscribe   tasks.evt.<chain>.>   tasks.dlq.<chain>.>   _INBOX_<id>.>
        publish     api.<chain>.<id>.tasks.*   $SRV.PING   $SRV.INFO
                    what it takes to fetch from the token's own subscriptions (sub-<chain>-<n>-<id>)
        from the level operator on:
        publish     tasks.cmd.<chain>.*.execute
        subscribe   services.<chain>.>   messages.<chain>.>   $SRV.>
        and one reply to each request

Every adapter answers; the broker picks one. A login costs a look into memory and a signature, a refusal less: only so
many of them are answered, and the broker refuses the others by itself when its patience is over.

A token that is changed so that a client would not be let in any more has its connections closed, by every adapter
that hears of it. What none of them heard of is found by a round once a minute, and when an adapter starts.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from nats.js.errors import Error as JetStreamError

from runwire.domain.access import (
    NOBODY,
    AccessLevel,
    AccessToken,
    digest,
    mark_of,
    parse_bus_user,
)
from runwire.domain.errors import Undecodable
from runwire.domain.subscription import pull_names
from runwire.messaging import accounts, subjects
from runwire.messaging.accounts import Accounts
from runwire.messaging.audit import Refusals
from runwire.messaging.broker import UNAVAILABLE, Bus
from runwire.messaging.connections import Connection, Connections
from runwire.messaging.mirror import TokenMirror
from runwire.messaging.tokens import Uses
from runwire.signing import Signer, claims_of

log = logging.getLogger("runwire.bus")

QUEUE = "runwire"
"""The group of all adapters: each login is looked at by one of them."""
LIFETIME = timedelta(hours=6)
"""How long a login is good for at most; then the client has to come again. Half of it at least, so that they do not all
come at the same time."""
MOST_WAITING = 1000
"""Logins that wait for an answer here; what comes on top is left to the broker's patience (2 s)."""
REFUSALS_PER_SECOND = 50
"""Refusals that are answered."""
CATCH_UP = 1.5
"""Seconds a login waits for the tokens to be read: less than the broker waits for the answer."""
MOST_SUBSCRIPTIONS = 1000
"""Of one connection."""
LONGEST_ANSWER = timedelta(days=7)
"""How long a service may take to answer: as long as a task may take."""
SERVICE_QUERIES = "$SRV.>"
"""Where NATS clients ask each other which services they are (ADR-32)."""
LOOK = 0.2
"""Seconds between two looks at what is to be closed."""
SECOND_LOOK = 3.0
"""Seconds after which a change is looked at again: a login may have been on its way while the token changed."""
ROUND = 60.0
"""Seconds between two looks at everybody's connections."""
PROBE = "~probe"
"""What `runwire doctor` calls itself when it tries whether logins are answered; no token's id looks like it."""


@dataclass(frozen=True)
class Login:
    """Somebody at the door."""

    server: str
    key: str
    """The broker's name for the connection; the answer has to name it."""
    user: str
    password: str


@dataclass(frozen=True)
class Grant:
    """A login that is all right."""

    token: AccessToken
    given: str
    """Digest of the secret that was shown."""
    chain: int


class Callout:
    """Answers the broker's questions, and closes connections whose token is no longer good for them."""

    def __init__(
        self, bus: Bus, signer: Signer, *, server_key: bytes, uses: Uses, refusals: Refusals,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:  # fmt: skip
        """``clock`` tells the time in UTC."""
        self._bus = bus
        self._signer = signer
        self._uses = uses
        self._refusals = refusals
        self._clock = clock
        self._mirror = TokenMirror(bus)
        self._accounts = Accounts(bus)
        self._connections = Connections(bus, self._is_unwelcome)
        self._probe = digest(probe_secret(server_key))
        self._subscription: Subscription | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._due: dict[tuple[int | None, int], float] = {}
        """When to look at a chain's connections (None: everybody's), by chain and which look it is."""
        self._answered = (0, 0)
        """(second, refusals answered in it)."""

    async def start(self) -> None:
        """Begin to answer."""
        self._mirror.on_change.append(self._changed)
        self._mirror.on_current.append(lambda: self._look_later(None, 0, 0.0))
        await self._connections.start()
        await self._mirror.start()
        self._subscription = await self._bus.nc.subscribe(
            subjects.LOGINS, queue=QUEUE, cb=self._answer, pending_msgs_limit=MOST_WAITING
        )
        self._keeper = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """Leave it to the other adapters."""
        if self._keeper is not None:
            self._keeper.cancel()
        if self._subscription is not None:
            with suppress(NatsError):
                await self._subscription.unsubscribe()
        await self._connections.stop()
        await self._mirror.stop()

    # --- logins ----------------------------------------------------------------------------------------

    async def _answer(self, question: Msg) -> None:
        with suppress(Undecodable, TimeoutError, *UNAVAILABLE, NatsError, JetStreamError):
            login = parse_login(question.data)
            await self._mirror.current(timeout=CATCH_UP)
            if login.user == PROBE:
                client = await self._probing(login)
            else:
                grant = self._admit(login)
                client = await self._client(login, grant) if grant else None
            if client is not None or self._may_refuse():
                await question.respond(self._signed(login, client))

    def _admit(self, login: Login) -> Grant | None:
        """What a login may do; None: it is refused. Every refusal takes the same way."""
        now = self._clock()
        named = parse_bus_user(login.user)
        token = self._mirror.get(named[0]) if named else None
        given = digest(login.password)
        chain = token.chain_of(named[1]) if named and token else None
        if (token or NOBODY).honours(given, now) and token and chain is not None:
            self._uses.saw(token.id, now)
            return Grant(token, given, chain)
        self._note_refusal(token, now)
        return None

    def _note_refusal(self, token: AccessToken | None, now: datetime) -> None:
        if token is None:
            self._refusals.note_unknown()
        else:
            self._refusals.note(
                token.levels, token=token.id, method="CONNECT", route="bus", code="unauthenticated", now=now
            )

    async def _client(self, login: Login, grant: Grant) -> str | None:
        """The token that lets the client in; None: there is no account for its chain."""
        account = await self._accounts.give(grant.chain)
        if account is None:
            return None
        now = self._clock()
        ends = [now + LIFETIME * random.uniform(0.5, 1)]  # noqa: S311 - jitter
        if (end := grant.token.end_of(grant.given)) is not None:
            ends.append(end)
        user = f"{grant.token.id}/{mark_of(grant.given)}"
        return self._user(login, account, user, permissions(grant.token, grant.chain), min(ends))

    async def _probing(self, login: Login) -> str | None:
        """A token for who only wants to know whether it gets one; it opens nothing."""
        if not hmac.compare_digest(self._probe, digest(login.password)):
            return None
        names = await accounts.pool(self._bus)
        if not names:
            return None
        nothing = {"deny": [">"]}
        rights = {"pub": nothing, "sub": nothing}
        return self._user(login, min(names), PROBE, rights, self._clock() + timedelta(seconds=60))

    def _user(self, login: Login, account: str, name: str, rights: dict[str, Any], end: datetime) -> str:
        return self._signer.sign(
            {
                "aud": account,
                "sub": login.key,
                "name": name,
                "exp": int(end.timestamp()),
                "nats": {
                    "type": "user",
                    "version": 2,
                    **rights,
                    "subs": MOST_SUBSCRIPTIONS,
                    "data": -1,
                    "payload": -1,
                    "allowed_connection_types": ["STANDARD", "WEBSOCKET"],
                },
            }
        )

    def _signed(self, login: Login, client: str | None) -> bytes:
        """The answer: the client's token, or that there is none for it."""
        outcome = {"error": "refused"} if client is None else {"jwt": client}
        answer = {"type": "authorization_response", "version": 2, **outcome}
        return self._signer.sign({"aud": login.server, "sub": login.key, "nats": answer}).encode()

    def _may_refuse(self) -> bool:
        """Whether another refusal is answered in this second."""
        second = int(asyncio.get_running_loop().time())
        count = self._answered[1] + 1 if self._answered[0] == second else 1
        self._answered = (second, count)
        return count <= REFUSALS_PER_SECOND

    # --- connections -----------------------------------------------------------------------------------

    def _changed(self, before: AccessToken | None, token: AccessToken) -> None:
        looks = {}
        if before is not None:  # else it is new; or just read for the first time, and then everybody is looked at
            looks = {0: 0.0, 1: SECOND_LOOK}
        if token.previous is not None:
            looks[hash(token.id)] = (token.previous.until - self._clock()).total_seconds()
        for chain in token.levels:
            for look, seconds in looks.items():
                self._look_later(chain, look, seconds)

    def _look_later(self, chain: int | None, look: int, seconds: float) -> None:
        self._due[chain, look] = asyncio.get_running_loop().time() + seconds

    async def _keep(self) -> None:
        """Look at the connections that have to be looked at, for as long as the adapter runs."""
        self._look_later(None, 0, 0.0)
        while True:
            await asyncio.sleep(LOOK)
            now = asyncio.get_running_loop().time()
            for key in [key for key, at in self._due.items() if at <= now]:
                with suppress(TimeoutError, *UNAVAILABLE, NatsError, JetStreamError):
                    await self._look(key[0])
                    if self._due.get(key, now) <= now:
                        self._due.pop(key, None)
            if (None, 0) not in self._due:
                self._look_later(None, 0, ROUND)

    async def _look(self, chain: int | None) -> None:
        if chain is None:
            await self._connections.look()
        elif (account := await self._accounts.find(chain)) is not None:
            await self._connections.look(account)

    def _is_unwelcome(self, connection: Connection) -> bool:
        """Whether its token, or the secret of it that it was opened with, has stopped to be good for it."""
        token_id, slash, mark = connection.user.partition("/")
        if not slash or not accounts.NAME.fullmatch(connection.account) or not self._mirror.is_current:
            return False
        token = self._mirror.get(token_id)
        return token is None or not token.has_secret(mark, self._clock())


def permissions(token: AccessToken, chain: int) -> dict[str, Any]:
    """What a client with this token may publish and subscribe to, in the claims of its login.

    These alone keep it to its chain: the accounts of all chains see the same subjects of ours.
    """
    heard = [subjects.whole_chain(chain), subjects.dead_letters_of(chain), subjects.inbox_of(token.id)]
    pulled = [subject for name in pull_names(chain, token.id) for subject in subjects.pulling(name)]
    asked = [subjects.api_of(chain, token.id), *subjects.OURSELVES, *pulled]
    if token.levels[chain] < AccessLevel.OPERATOR:
        return {"pub": {"allow": asked}, "sub": {"allow": heard}}
    return {
        "pub": {"allow": [*asked, subjects.commands_of(chain)]},
        "sub": {"allow": [*heard, subjects.services_of(chain), subjects.messages_of(chain), SERVICE_QUERIES]},
        "resp": {"max": 1, "ttl": int(LONGEST_ANSWER.total_seconds() * 1e9)},
    }


def parse_login(question: bytes) -> Login:
    """The login that the broker asks about. Raises Undecodable."""
    try:
        asked = claims_of(question)["nats"]
        options = asked["connect_opts"]
        return Login(
            server=str(asked["server_id"]["id"]),
            key=str(asked["user_nkey"]),
            user=str(options.get("user", "")),
            password=str(options.get("pass", "")),
        )
    except (KeyError, TypeError, AttributeError):
        msg = "this is no question about a login"
        raise Undecodable(msg) from None


def probe_secret(server_key: bytes) -> str:
    """The password of PROBE: known to whoever may read the settings bucket."""
    return hmac.digest(server_key, b"bus probe", "sha256").hex()
