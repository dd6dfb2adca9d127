"""COMMANDS: publish an execute command and know what became of it.

The broker keeps one command per task at most and refuses a second with error 10077. That alone does not
say why (another run, the same run, a run that has just ended, or a full stream), so it is looked into here.
"""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime
from enum import Enum, auto
from uuid import uuid4

from nats.js.api import RawStreamMsg
from nats.js.errors import APIError, NotFoundError

from runwire import failpoints
from runwire.domain import lifecycle
from runwire.domain.errors import NotAccepted, TaskBusy, Undecodable
from runwire.domain.lifecycle import has_ended
from runwire.domain.run import Command, Run, Source, Tick
from runwire.domain.trace import Trace
from runwire.failpoints import Point
from runwire.messaging import chains, codec, events, subjects
from runwire.messaging.broker import REQUEST_TIMEOUT, UNAVAILABLE, Bus
from runwire.messaging.majority import has_majority

GRACE = 0.002
"""Seconds after which a refused command is tried once more before it is looked into."""
REFUSED = 10077
"""The broker's error code for: one for this subject is there already, or the stream is full."""
TOO_LARGE = 10054
"""The broker's error code for: larger than the stream takes."""
IN_FLIGHT = 10158
"""The broker's error code for: the same message id is being stored right now (clusters)."""


UNCONFIRMED = "The broker did not confirm the run in time; it may or may not have been accepted."


class _Verdict(Enum):
    """What one try came to."""

    STORED = auto()
    AGAIN = auto()
    """Not known; after a pause."""
    REFUSED = auto()
    """Something is in the way."""
    FREE = auto()
    """What stood in the way is gone: at once."""
    FORGED = auto()
    """The message id belongs to somebody else's command: with a fresh one."""


async def publish(
    bus: Bus,
    chain: int,
    task: int,
    run: str,
    *,
    source: Source,
    patience: float,
    tick: Tick | None = None,
    reason: str | None = None,
    trace: Trace | None = None,
) -> None:
    """Store the command that starts ``run``; afterwards it is durable. May be repeated with the same run id.

    For up to ``patience`` seconds a broker that does not answer is asked again. Raises TaskBusy (another run is
    outstanding, and this one is not to be) or NotAccepted (not known to be stored).
    """
    deadline = asyncio.get_running_loop().time() + patience
    headers = {subjects.MSG_ID: run, subjects.RUN_ID: run, subjects.RUN_SOURCE: source.value}
    if tick is not None:
        headers[subjects.RUN_TICK] = codec.encode_tick(tick)
    if trace is not None:
        headers |= trace.headers()
    body = codec.encode_command(reason)
    pause = 0.02
    refused = unknown = False
    while True:
        try:
            verdict = await _try(bus, chain, task, run, body=body, headers=headers, deadline=deadline)
        except UNAVAILABLE:
            verdict, unknown = _Verdict.AGAIN, True
        if verdict is _Verdict.REFUSED and not refused:
            refused = True  # most often the acknowledgement of the last run is on its way: no need to look
            await asyncio.sleep(GRACE)
            continue
        if verdict is _Verdict.REFUSED:
            try:
                verdict = await _who_is_in_the_way(bus, chain, task, run)
            except UNAVAILABLE:
                verdict = _Verdict.AGAIN
            except TaskBusy:
                if unknown:  # an earlier try may still be on its way, and be stored once the task is free
                    raise NotAccepted(UNCONFIRMED) from None
                raise
        if verdict is _Verdict.STORED:
            return
        if verdict is _Verdict.FORGED:
            headers[subjects.MSG_ID] = uuid4().hex
        if asyncio.get_running_loop().time() + pause > deadline:
            raise NotAccepted(UNCONFIRMED)
        await asyncio.sleep(pause if verdict is _Verdict.AGAIN else 0)
        pause = min(pause * 2, 0.5)


async def outstanding(bus: Bus, chain: int, task: int) -> RawStreamMsg | None:
    """The command of the task that is queued or running; None: there is none."""
    try:
        return await bus.js.get_msg(subjects.COMMANDS, subject=subjects.command(chain, task))
    except NotFoundError:
        return None


async def is_held(bus: Bus, command: Command) -> bool:
    """Whether COMMANDS still holds this very command: then its run has not ended."""
    try:
        message = await bus.js.get_msg(subjects.COMMANDS, seq=command.sequence)
    except NotFoundError:
        return False
    return message.subject == subjects.command(command.chain, command.task)


def run_of(message: RawStreamMsg) -> str:
    """The run id that a stored command asks for."""
    return codec.run_of_command(message.headers, message.data or b"", message.seq or 0)


def queued_run(message: RawStreamMsg) -> Run:
    """The run that a stored command asks for, as long as no worker has claimed it; also of one that is garbled."""
    subject, body, sequence = message.subject or "", message.data or b"", message.seq or 0
    accepted = message.time or datetime.now(UTC)
    try:
        command = codec.decode_command(subject, body, message.headers, sequence=sequence, delivery=0, accepted=accepted)
    except Undecodable:
        chain, task = subjects.parse(subject)
        command = Command(
            chain=chain,
            task=task,
            run=run_of(message),
            source=codec.source_of_command(message.headers),
            accepted=accepted,
            sequence=sequence,
            delivery=0,
        )
    return lifecycle.queued(command)


async def remove(bus: Bus, message: RawStreamMsg) -> None:
    """Take exactly this command out of COMMANDS, wherever it is: queued, with a worker, or gone already."""
    with contextlib.suppress(APIError):  # it was acknowledged in between
        await bus.js.delete_msg(subjects.COMMANDS, message.seq or 0)


async def _try(
    bus: Bus, chain: int, task: int, run: str, *, body: bytes, headers: dict[str, str], deadline: float
) -> _Verdict:
    timeout = max(0.1, min(REQUEST_TIMEOUT, deadline - asyncio.get_running_loop().time()))
    if chain not in bus.chains:
        await chains.ensure(bus, chain, timeout=timeout)
    failpoints.reach(Point.BEFORE_COMMAND)
    try:
        ack = await bus.js.publish(subjects.command(chain, task), body, headers=headers, timeout=timeout)
    except APIError as error:
        if error.err_code == REFUSED:
            return _Verdict.REFUSED
        if error.err_code == IN_FLIGHT:
            return _Verdict.AGAIN
        raise
    failpoints.reach(Point.COMMAND_STORED)
    if not ack.duplicate or await _is_ours(bus, chain, task, run, ack.seq):
        return _Verdict.STORED
    return _Verdict.FORGED


async def _who_is_in_the_way(bus: Bus, chain: int, task: int, run: str) -> _Verdict:
    """Look into a refusal: our own run, one that has ended and is only still to be removed, or another one."""
    holder = await outstanding(bus, chain, task)
    if holder is None:
        await _raise_if_full(bus)
        return _Verdict.FREE
    holding = run_of(holder)
    if holding == run:
        return _Verdict.STORED
    head = await events.load(bus, chain, task, leader=True)
    document = head.document if head else None
    if has_ended(document, run):  # ours came and went; the broker has forgotten its message id in a crash
        return _Verdict.STORED
    if not has_ended(document, holding):
        if bus.is_clustered and not has_majority(await bus.js.stream_info(subjects.COMMANDS)):
            return _Verdict.AGAIN  # another server leads by now, and may have taken the command at which this one shied
        raise TaskBusy(holding)
    # Its worker has concluded it, and the acknowledgement is on its way or was lost. Exactly this command goes.
    await remove(bus, holder)
    return _Verdict.FREE


async def _is_ours(bus: Bus, chain: int, task: int, run: str, sequence: int) -> bool:
    """The broker has seen the message id before: is what it saw our command?"""
    try:
        message = await bus.js.get_msg(subjects.COMMANDS, seq=sequence)
    except NotFoundError:
        head = await events.load(bus, chain, task, leader=True)
        return (
            head is not None
            and head.document.run is not None
            and (head.document.run.id == run or run in head.document.recent_runs)
        )
    return message.subject == subjects.command(chain, task) and run_of(message) == run


async def _raise_if_full(bus: Bus) -> None:
    info = await bus.js.stream_info(subjects.COMMANDS)
    limit = info.config.max_bytes or -1
    if 0 < limit <= info.state.bytes + codec.LARGEST_DOCUMENT:
        raise NotAccepted("The command stream is full; nothing was stored.")
