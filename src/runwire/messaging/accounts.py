"""Which of the broker's accounts belongs to which chain.

The broker's configuration holds a pool of them, all alike (nats.conf); a chain is given one when a client of it first
comes to the bus, and keeps it. All adapters share the one list in the settings bucket, which changes by
compare-and-set: so no account ever has two chains, and no chain two accounts.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re

from nats.errors import NoRespondersError
from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError
from pydantic import TypeAdapter

from runwire.messaging import subjects
from runwire.messaging.broker import REQUEST_TIMEOUT, Bus

log = logging.getLogger("runwire.bus")

KEY = "bus-accounts"
"""Of the list in the settings bucket."""
NAME = re.compile(r"B[0-9]{1,6}")
"""What the accounts of the pool are called."""


class Accounts:
    """The accounts of the chains, as far as they have been asked for."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._known: dict[int, str] = {}
        self._lock = asyncio.Lock()

    async def give(self, chain: int) -> str | None:
        """The chain's account, from now on if it had none; None: all are taken. Raises one of UNAVAILABLE."""
        if chain not in self._known:
            async with self._lock:
                await self._take(chain)
        return self._known.get(chain)

    async def find(self, chain: int) -> str | None:
        """The chain's account; None: it has none yet. Raises one of UNAVAILABLE."""
        if chain not in self._known:
            self._known, _ = await taken(self._bus)
        return self._known.get(chain)

    async def _take(self, chain: int) -> None:
        bucket = await self._bus.bucket(subjects.SETTINGS_BUCKET)
        while True:
            self._known, revision = await taken(self._bus)
            if chain in self._known:
                return
            free = await pool(self._bus) - set(self._known.values())
            if not free:
                text = "no account is left for chain %d: add some to nats.conf"
                log.error(text, chain, extra={"action": "no_account"})
                return
            account = min(free, key=_number)
            wanted = _LIST.dump_json(self._known | {chain: account})
            try:
                if revision is None:
                    await bucket.create(KEY, wanted)
                else:
                    await bucket.update(KEY, wanted, last=revision)
            except KeyWrongLastSequenceError:  # another adapter was first: see what it made of it
                continue
            self._known[chain] = account
            log.info("chain %d has account %s on the bus", chain, account, extra={"action": "account"})
            return


async def taken(bus: Bus) -> tuple[dict[int, str], int | None]:
    """(account by chain, revision of the list; None: there is none yet). Raises one of UNAVAILABLE."""
    bucket = await bus.bucket(subjects.SETTINGS_BUCKET)
    try:
        entry = await bucket.get(KEY)
    except KeyNotFoundError:
        return {}, None
    return _LIST.validate_json(entry.value or b"{}"), entry.revision


async def pool(bus: Bus) -> set[str]:
    """The accounts for chains that the broker's configuration has; empty: it is not ours, or an old one."""
    try:
        answer = await bus.nc.request(subjects.ACCOUNTS, timeout=REQUEST_TIMEOUT)
    except NoRespondersError:
        return set()
    names = json.loads(answer.data).get("data", {}).get("accounts") or []
    return {name for name in names if NAME.fullmatch(name)}


def _number(account: str) -> int:
    return int(account[1:])


_LIST = TypeAdapter(dict[int, str])
