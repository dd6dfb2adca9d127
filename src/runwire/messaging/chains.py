"""The chains' consumers on COMMANDS: ``workers-<chain>``, one for each chain that has ever had a task.

A chain with a consumer of its own never waits behind the queue of another. Who creates a chain's first task,
or publishes its first command through us, makes sure of the consumer; the broker tells the workers of it
(an advisory). A command that a client of the bus publishes for a chain nobody has heard of stands in COMMANDS
with no consumer: workers look for those every few seconds (:func:`orphans`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass

from nats.js.errors import APIError, NotFoundError

from runwire.domain.errors import NotAccepted
from runwire.messaging import streams, subjects
from runwire.messaging.broker import REQUEST_TIMEOUT, UNAVAILABLE, Bus

OVERLAP = 10100
"""The broker's error code for: another consumer's filter covers these subjects."""
PAGE = 256
"""Consumers the broker lists at once."""
SUBJECTS_PAGE = 100_000
"""Subjects the broker lists at once."""
TOTAL = re.compile(rb'"total": ?(\d+)')
TOKEN = re.compile(rb'"tasks\.cmd\.([^."*]+)\.')
"""The chain's part of a command's subject, in the broker's list of subjects."""


@dataclass(frozen=True)
class Census:
    """What COMMANDS holds."""

    commands: int
    consumers: int


@dataclass(frozen=True)
class Orphans:
    """Commands that no consumer covers."""

    chains: set[int]
    """Chains without a consumer."""
    subjects: set[str]
    """Subjects that name no chain at all."""


async def ensure(bus: Bus, chain: int, *, timeout: float = REQUEST_TIMEOUT) -> None:
    """Afterwards the chain has its consumer; looked up once per process. One that is there is left as it is.

    Raises NotAccepted when the broker refuses it, or one of UNAVAILABLE.
    """
    try:
        await bus.js.consumer_info(subjects.COMMANDS, subjects.workers(chain), timeout=timeout)
    except NotFoundError:
        try:
            await adopt(bus, chain, timeout=timeout)
        except UNAVAILABLE:
            raise
        except APIError as error:
            raise NotAccepted(f"The broker refused a queue for chain {chain}: {error.description}.") from None
    bus.chains.add(chain)


async def adopt(bus: Bus, chain: int, *, timeout: float = REQUEST_TIMEOUT) -> None:
    """Afterwards the chain has its consumer, configured as this process is. Raises APIError or one of UNAVAILABLE."""
    config = streams.workers_config(bus.settings, chain)
    try:
        await bus.js.add_consumer(subjects.COMMANDS, config, timeout=timeout)
    except APIError as error:
        if error.err_code != OVERLAP:
            raise
        # A worker of an earlier version has started meanwhile, and has brought the shared one back.
        await bus.js.delete_consumer(subjects.COMMANDS, subjects.SHARED_WORKERS)
        await bus.js.add_consumer(subjects.COMMANDS, config, timeout=timeout)


async def listed(bus: Bus) -> dict[int, bool]:
    """Every chain with a consumer, and whether its ``ack_wait`` is this process's. Raises one of UNAVAILABLE."""
    found: dict[int, bool] = {}
    offset = 0
    while page := await bus.js.consumers_info(subjects.COMMANDS, offset):
        for info in page:
            chain = subjects.chain_of_workers(info.name)
            if chain is not None:
                found[chain] = info.config.ack_wait == bus.settings.ack_wait
        offset += len(page)
        if len(page) < PAGE:
            break
    return found


async def census(bus: Bus) -> Census:
    """How much there is, in one cheap request. Raises NotFoundError (no stream) or one of UNAVAILABLE."""
    state = (await bus.js.stream_info(subjects.COMMANDS)).state
    return Census(commands=state.messages, consumers=state.consumer_count)


async def outstanding(bus: Bus, chain: int, *, timeout: float = REQUEST_TIMEOUT) -> int:
    """Commands of the chain that are queued, running or waiting for a retry. Raises one of UNAVAILABLE."""
    try:
        info = await bus.js.consumer_info(subjects.COMMANDS, subjects.workers(chain), timeout=timeout)
    except NotFoundError:
        return 0
    return (info.num_pending or 0) + (info.num_ack_pending or 0)


async def orphans(bus: Bus, known: Collection[int]) -> Orphans:
    """Commands whose chains are not among the known ones; reads every outstanding subject. Raises UNAVAILABLE.

    Only the chains are picked out of the answer: with 100,000 commands queued it has four megabytes.
    """
    found = Orphans(set(), set())
    offset, total = 0, 1
    while offset < total:
        question = json.dumps({"subjects_filter": subjects.ALL_COMMANDS, "offset": offset}).encode()
        answer = await bus.nc.request(f"$JS.API.STREAM.INFO.{subjects.COMMANDS}", question, timeout=REQUEST_TIMEOUT)
        tokens = {token.decode(errors="replace") for token in TOKEN.findall(answer.data)}
        chains = {token: subjects.id_of_token(token) for token in tokens}
        found.chains.update(chain for chain in chains.values() if chain is not None and chain not in known)
        if None in chains.values():
            named = json.loads(answer.data)["state"].get("subjects") or {}
            found.subjects.update(name for name in named if subjects.id_of_token(name.split(".")[2]) is None)
        seen = TOTAL.search(answer.data)
        total = int(seen[1]) if seen else 0
        offset += SUBJECTS_PAGE
    return found
