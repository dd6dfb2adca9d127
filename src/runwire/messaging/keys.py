"""KEYS: what an Idempotency-Key stands for, remembered for a day.

One record per key, under a name that is derived from it: neither the key nor anything else a user wrote is
part of a subject. Of two who want to be first one wins, whichever adapters they came by (the expected last
sequence 0), and the broker drops a record when its time is over.

A plain stream and no key-value bucket: nats-py's buckets cannot create a key again after it has expired.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Generic, TypeVar

from nats.js.errors import APIError, NotFoundError
from pydantic import AwareDatetime

from runwire import failpoints
from runwire.domain.errors import Conflict, NotAccepted
from runwire.domain.run import Run
from runwire.domain.task import Model
from runwire.failpoints import Point
from runwire.messaging import subjects
from runwire.messaging.broker import REQUEST_TIMEOUT, UNAVAILABLE, Bus
from runwire.messaging.events import STREAM_FULL, WRONG_LAST_SEQUENCE


class Record(Model):
    """What every record says."""

    request: str
    """What the key was used for: the same key with another request is refused."""


class RunRecord(Record):
    """The run that a key of ``execute`` stands for. ``request`` is the task."""

    run: str
    ended: Run | None = None
    """Its end, without the result: the answer can be given again when the history has lost the run."""


class TaskRecord(Record):
    """The task that a key of ``POST /tasks`` stands for. ``request`` is a hash of the body."""

    task: int
    created: AwareDatetime
    """When it was, or will be: the task can be made again from the same body, id and time, to the byte."""
    sequence: int | None = None
    """EVENTS sequence of the task's first event; None: not known to be stored."""


R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Kept(Generic[R]):
    """A record as it is stored."""

    record: R
    sequence: int
    """Its position in KEYS: what the next version of it is expected to follow."""
    fresh: bool = False
    """Whether this very call was the first with the key."""


async def remember(bus: Bus, name: str, record: R, *, ttl: float, patience: float) -> Kept[R]:
    """Store what the key stands for, unless it stands for something already; returns what it stands for.

    ``ttl`` in seconds, at least 1. May be repeated. For up to ``patience`` seconds a broker that does not answer
    is asked again. Raises NotAccepted: nothing was stored that anything hangs on.
    """
    deadline = asyncio.get_running_loop().time() + patience
    pause = 0.02
    while True:
        timeout = max(0.1, min(REQUEST_TIMEOUT, deadline - asyncio.get_running_loop().time()))
        try:
            stored = await _first(bus, name, record, ttl=ttl, timeout=timeout)
        except UNAVAILABLE:
            stored = None
        if stored is not None:
            return stored
        if asyncio.get_running_loop().time() + pause > deadline:
            raise NotAccepted("The broker did not confirm the Idempotency-Key in time; nothing was started.")
        await asyncio.sleep(pause)
        pause = min(pause * 2, 0.5)


async def lookup(bus: Bus, name: str, kind: type[R]) -> Kept[R] | None:
    """What the key stands for; None: nothing. Raises one of UNAVAILABLE."""
    try:
        message = await bus.js.get_msg(subjects.KEYS, subject=subjects.key(name))
    except NotFoundError:
        return None
    return Kept(kind.model_validate_json(message.data or b""), message.seq or 0)


async def overwrite(bus: Bus, name: str, record: R, *, expected: int, ttl: float) -> Kept[R]:
    """Put another record in the place of the one with sequence ``expected``; its time starts anew.

    Raises Conflict (it is not that one any more), NotAccepted (no room) or one of UNAVAILABLE (outcome unknown).
    """
    try:
        return await _store(bus, name, record, expected=expected, ttl=ttl)
    except APIError as error:
        if error.err_code in WRONG_LAST_SEQUENCE:
            raise Conflict("The Idempotency-Key stands for something else by now.") from None
        if error.err_code in STREAM_FULL:
            raise NotAccepted("The stream of Idempotency-Keys is full.") from None
        raise


async def _first(bus: Bus, name: str, record: R, *, ttl: float, timeout: float) -> Kept[R] | None:
    """The first record of the key, stored just now or before; None: it expired in between."""
    try:
        return await _store(bus, name, record, expected=0, ttl=ttl, timeout=timeout)
    except APIError as error:
        if error.err_code not in WRONG_LAST_SEQUENCE | STREAM_FULL:
            raise
        kept = await lookup(bus, name, type(record))
        if kept is None and error.err_code in STREAM_FULL:
            raise NotAccepted("The stream of Idempotency-Keys is full; nothing was stored.") from None
        return kept


async def _store(
    bus: Bus, name: str, record: R, *, expected: int, ttl: float, timeout: float = REQUEST_TIMEOUT
) -> Kept[R]:
    headers = {subjects.EXPECTED_SEQUENCE: str(expected), subjects.TTL: f"{max(1, round(ttl))}s"}
    body = record.model_dump_json().encode()
    ack = await bus.js.publish(subjects.key(name), body, headers=headers, timeout=timeout)
    failpoints.reach(Point.KEY_STORED)
    return Kept(record, ack.seq, fresh=expected == 0)
