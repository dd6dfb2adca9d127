"""EVENTS: the one truth. Read a task's last event, append its next one.

**The fence.** Every append names the sequence of the event it was derived from; the broker refuses it when
that is not the task's last event any more. Exactly one writer wins. When the refusal may stem from our own
earlier try (its acknowledgement was lost) the event that won is read back and its id compared.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from array import array
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import uuid4

from nats.errors import MaxPayloadError
from nats.js.api import DeliverPolicy, RawStreamMsg
from nats.js.errors import APIError, NotFoundError

from runwire.domain.errors import BodyTooLarge, Conflict, NotAccepted, Undecodable
from runwire.domain.lifecycle import Change, Document
from runwire.messaging import chains, codec, stretch, subjects
from runwire.messaging.broker import UNAVAILABLE, Bus

log = logging.getLogger("runwire.bus")

WRONG_LAST_SEQUENCE = frozenset({10071, 10164})
"""The broker's error codes for a lost fence: the second comes from clusters."""
STREAM_FULL = frozenset({10077, 10023})
"""The broker's error codes for: no room in the stream (or on its disk)."""
TRIES = 5
"""How often an event whose storing was not confirmed is sent again before the caller is told."""
SMALL_PAGE = 50
"""Messages asked for at once by each of many that read at the same time and at the pace of somebody else."""
AT_ONCE = 64
"""Tasks looked up at the same time when all of a chain are read."""


@dataclass(frozen=True)
class Head:
    """The last event of a task."""

    document: Document
    sequence: int
    event_id: str


@dataclass(frozen=True, eq=False)
class Event:
    """An event as the stream holds it."""

    sequence: int
    document: Document
    headers: Mapping[str, str]
    """The CloudEvents attributes, among others."""
    size: int
    """Bytes of its payload."""

    @property
    def code(self) -> str:
        """The state it brought the task into, ``EDITED``, ``SKIPPED`` or ``DELETED``: the last part of its subject."""
        return subjects.event_code(self.document).upper()


@dataclass(frozen=True)
class Deletion:
    """The event that ended a task."""

    chain: int
    task: int
    sequence: int


async def load(bus: Bus, chain: int, task: int, *, leader: bool = False) -> Head | None:
    """The task's last event; None: there is none.

    By default any replica answers, and may be behind: the fence protects whoever acts on it. ``leader`` asks
    the stream's leader, for decisions that no fence protects. Raises one of UNAVAILABLE.
    """
    return await _last(bus, subjects.events_of(chain, task), leader=leader)


async def latest(bus: Bus, chain: int, task: int) -> Event | None:
    """The task's last event, as the stream's leader has it; None: there is none. Raises one of UNAVAILABLE."""
    try:
        return _stored(await bus.js.get_msg(subjects.EVENTS, subject=subjects.events_of(chain, task)))
    except NotFoundError:
        return None


async def last_sequence(bus: Bus) -> int:
    """Sequence of the last event of all; 0: there was none yet. Raises one of UNAVAILABLE."""
    return (await bus.js.stream_info(subjects.EVENTS)).state.last_seq


async def find(bus: Bus, task: int) -> Head | None:
    """The last event of the task with this id, in whatever chain."""
    return await _last(bus, subjects.events_of_any_chain(task), leader=True)


async def first(bus: Bus, task: int) -> Head | None:
    """The oldest event of the task with this id that is still kept, in whatever chain; None: there is none."""
    try:
        message = await bus.js.get_msg(subjects.EVENTS, seq=1, subject=subjects.events_of_any_chain(task), next=True)
    except NotFoundError:
        return None
    return _head(message)


async def append(bus: Bus, document: Document, *, expected: int, event_id: str, unique_id: bool = False) -> int:
    """Append the task's next document on top of the event with sequence ``expected``; returns its sequence.

    May be repeated with the same ``event_id``: it is stored once. ``unique_id`` widens the fence to all
    chains, so that a new task's id is taken by nobody. Raises Conflict (somebody else was first),
    NotAccepted (the stream is full), BodyTooLarge, or one of UNAVAILABLE (outcome unknown: repeat).
    """
    task = document.task
    fence = subjects.events_of_any_chain(task.id) if unique_id else subjects.events_of(task.chain, task.id)
    headers = codec.event_headers(document, event_id, datetime.now(UTC))
    headers[subjects.EXPECTED_SEQUENCE] = str(expected)
    headers[subjects.EXPECTED_SUBJECT] = fence
    if unique_id and task.chain not in bus.chains:  # a chain is ready for commands when it has its first task
        await chains.ensure(bus, task.chain)
    try:
        ack = await bus.js.publish(subjects.event(document), codec.encode(document), headers=headers)
    except MaxPayloadError:
        raise BodyTooLarge("The task is larger than the broker takes.") from None
    except APIError as error:
        if error.err_code in WRONG_LAST_SEQUENCE:
            return await _read_back(bus, fence, expected, event_id)
        if error.err_code in STREAM_FULL:
            raise NotAccepted("The event stream is full; nothing was stored.") from None
        raise
    return ack.seq


async def append_surely(bus: Bus, document: Document, *, expected: int, event_id: str) -> int:
    """As :func:`append`, until the outcome is known: waits for a broker that is away and for room in the stream."""
    pause = 0.05
    while True:
        try:
            return await append(bus, document, expected=expected, event_id=event_id)
        except (*UNAVAILABLE, NotAccepted):
            await asyncio.sleep(pause)
            pause = min(pause * 2, 2.0)


async def append_confirmed(
    bus: Bus, document: Document, *, expected: int, event_id: str | None = None, unique_id: bool = False
) -> int:
    """As :func:`append`, tried TRIES times while the outcome is unknown. Raises Conflict or NotAccepted.

    ``event_id`` None: one of its own.
    """
    event_id = event_id or uuid4().hex
    for _ in range(TRIES):
        try:
            return await append(bus, document, expected=expected, event_id=event_id, unique_id=unique_id)
        except UNAVAILABLE:
            continue
    raise NotAccepted("The broker did not confirm the change in time; it may or may not have been stored.")


async def fullness(bus: Bus) -> float:
    """How much of its size the stream takes, 0 to 1. Raises NotFoundError or one of UNAVAILABLE."""
    info = await bus.js.stream_info(subjects.EVENTS)
    limit = info.config.max_bytes or 0
    return info.state.bytes / limit if limit > 0 else 0.0


async def schedules(bus: Bus) -> AsyncIterator[tuple[tuple[int, int], Document | None]]:
    """(chain, task) of every task, with the document that created, edited or deleted it; None: without a schedule.

    In stream order, and a task comes up to once for each of the three: the last one counts. What has become of the
    task since then is not in it. Raises one of UNAVAILABLE.
    """
    last = await last_sequence(bus)
    policy = DeliverPolicy.LAST_PER_SUBJECT
    async for message in stretch.read(bus, subjects.EVENTS, subjects.DEFINITIONS, until=last, policy=policy):
        with contextlib.suppress(Undecodable):
            # Most tasks have no schedule, and to see that takes a tenth of the time of a whole document.
            document = codec.decode(message.data) if codec.has_schedule(message.data) else None
            yield subjects.parse(message.subject), document


async def ended_runs(bus: Bus, chain: int) -> AsyncGenerator[Document, None]:
    """The final document of every run of the chain that the stream holds at the moment of the call, oldest first."""
    last = await last_sequence(bus)
    async with contextlib.aclosing(history(bus, subjects.ended_runs_of(chain), until=last)) as found:
        async for event in found:
            yield event.document


async def history(bus: Bus, filters: list[str], *, until: int) -> AsyncGenerator[Event, None]:
    """The events that match, from the first that is kept up to ``until``; a broker that is away is waited for."""
    last = 0
    while True:
        try:
            events = between(bus, filters, after=last, until=until, page=stretch.PAGE)
            async with contextlib.aclosing(events):
                async for event in events:
                    last = event.sequence
                    yield event
        except UNAVAILABLE:
            await asyncio.sleep(stretch.PAUSE)
        else:
            return


async def tasks_of(bus: Bus, chain: int) -> AsyncGenerator[Document, None]:
    """The last document of every task of the chain that is not deleted, by id, each as it is when it is read.

    The ids are kept in memory, 8 bytes each, and of the documents a few. A broker that is away is waited for.
    """
    ids = await _task_ids(bus, chain)
    for start in range(0, len(ids), AT_ONCE):
        heads = await asyncio.gather(*(_load_surely(bus, chain, task) for task in ids[start : start + AT_ONCE]))
        for head in heads:
            if head is not None and head.document.change is not Change.DELETED:
                yield head.document


async def _task_ids(bus: Bus, chain: int) -> array[int]:
    """The ids of the chain's tasks, and of its deleted ones for as long as they are known, in ascending order."""
    # A task begins as READY: of that subject there is one last event for each.
    subject, policy = subjects.events_of_chain(chain, "ready"), DeliverPolicy.LAST_PER_SUBJECT
    while True:
        found = array("q")
        try:
            until = await last_sequence(bus)
            messages = stretch.read(bus, subjects.EVENTS, [subject], until=until, policy=policy, headers_only=True)
            async with contextlib.aclosing(messages):
                async for message in messages:
                    found.append(subjects.parse(message.subject)[1])
        except UNAVAILABLE:
            await asyncio.sleep(stretch.PAUSE)
        else:
            return array("q", sorted(found))


async def _load_surely(bus: Bus, chain: int, task: int) -> Head | None:
    while True:
        try:
            return await load(bus, chain, task)
        except UNAVAILABLE:
            await asyncio.sleep(stretch.PAUSE)


async def between(
    bus: Bus, filters: list[str], *, after: int, until: int, page: int = SMALL_PAGE
) -> AsyncGenerator[Event, None]:
    """The events that match, from the one after sequence ``after`` up to ``until``, in order; a page in memory.

    A consumer may live on a replica that is a little behind and takes its own end for that of the stream, so the
    leader is asked for what is left. Raises one of UNAVAILABLE.
    """
    last = after
    if last >= until:
        return
    pages = stretch.read(bus, subjects.EVENTS, filters, start=after + 1, until=until, page=page)
    async with contextlib.aclosing(pages) as messages:
        async for message in messages:
            last = message.metadata.sequence.stream
            event = _decoded(last, message.subject, message.data, message.headers)
            if event is not None:
                yield event
    while last < until:
        found = await asyncio.gather(*(_next(bus, subject, last + 1) for subject in filters))
        left = [(stored.seq or 0, stored) for stored in found if stored is not None and (stored.seq or 0) <= until]
        if not left:
            return
        last, stored = min(left, key=lambda pair: pair[0])
        event = _decoded(last, stored.subject, stored.data, stored.headers)
        if event is not None:
            yield event


async def _next(bus: Bus, subject: str, sequence: int) -> RawStreamMsg | None:
    """The first message on the subject from this sequence on; None: there is none yet."""
    try:
        return await bus.js.get_msg(subjects.EVENTS, seq=sequence, subject=subject, next=True)
    except NotFoundError:
        return None


def _stored(message: RawStreamMsg) -> Event:
    data = message.data or b""
    return Event(message.seq or 0, codec.decode(data), message.headers or {}, len(data))


def _decoded(sequence: int, subject: str | None, data: bytes | None, headers: Mapping[str, str] | None) -> Event | None:
    """The event; None when it is garbled: the projector skips it, too, and says so in the log."""
    try:
        return Event(sequence, codec.decode(data or b""), headers or {}, len(data or b""))
    except Undecodable as undecodable:
        log.debug("skipped an event on %s: %s", subject, undecodable, extra={"action": "undecodable"})
        return None


async def deleted_before(bus: Bus, instant: datetime, *, limit: int) -> list[Deletion]:
    """The oldest deletions that the stream still knows of, as far as they happened before ``instant``."""
    found: list[Deletion] = []
    last = await last_sequence(bus)
    async for message in stretch.read(bus, subjects.EVENTS, [subjects.ALL_DELETIONS], until=last):
        if message.metadata.timestamp >= instant or len(found) == limit:
            break
        found.append(Deletion(*subjects.parse(message.subject), message.metadata.sequence.stream))
    return found


async def purge_deleted(bus: Bus, deletion: Deletion) -> None:
    """Forget a deleted task: its events and its log lines. May be repeated, by several processes at once.

    Only what stood there up to the deletion goes: an id that was taken again meanwhile is left alone. Its log lines go
    first, and only while the deletion is the last event of that id: then nobody else can have written any.
    """
    lines, of_task = subjects.log(deletion.chain, deletion.task), subjects.events_of(deletion.chain, deletion.task)
    logged: dict[str, int] = {}
    for subject in (lines, subjects.progress(deletion.chain, deletion.task)):
        with contextlib.suppress(NotFoundError):
            logged[subject] = (await bus.js.get_msg(subjects.LOGS, subject=subject)).seq or 0
    head = await find(bus, deletion.task)
    if head is not None and head.sequence == deletion.sequence:
        for subject, last in logged.items():
            await bus.js.purge_stream(subjects.LOGS, subject=subject, seq=last + 1)
    await bus.js.purge_stream(subjects.EVENTS, subject=of_task, seq=deletion.sequence + 1)


async def _last(bus: Bus, subject: str, *, leader: bool) -> Head | None:
    try:
        message = await bus.js.get_msg(subjects.EVENTS, subject=subject, direct=not leader)
    except NotFoundError:
        return None
    return _head(message)


def _head(message: RawStreamMsg) -> Head:
    headers = message.headers or {}
    return Head(
        document=codec.decode(message.data or b""),
        sequence=message.seq or 0,
        event_id=headers.get(subjects.EVENT_ID, ""),
    )


async def _read_back(bus: Bus, fence: str, expected: int, event_id: str) -> int:
    """The fence refused: was it our own event that got there first? Others may stand on top of it by now."""
    winner = await _next(bus, fence, expected + 1)
    if winner is not None and (winner.headers or {}).get(subjects.EVENT_ID) == event_id:
        return winner.seq or 0
    raise Conflict("Somebody else changed the task first.")
