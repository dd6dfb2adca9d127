"""EVENTS: the one truth. Read a task's last event, append its next one.

**The fence.** Every append names the sequence of the event it was derived from; the broker refuses it when
that is not the task's last event any more. Exactly one writer wins. When the refusal may stem from our own
earlier try (its acknowledgement was lost) the last event is read back and its id compared.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime

from nats.aio.msg import Msg
from nats.errors import MaxPayloadError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, RawStreamMsg
from nats.js.errors import APIError, NotFoundError

from runwire.domain.errors import BodyTooLarge, Conflict, NotAccepted
from runwire.domain.lifecycle import Document
from runwire.messaging import codec, subjects
from runwire.messaging.broker import UNAVAILABLE, Bus
from runwire.messaging.pull import Puller

WRONG_LAST_SEQUENCE = frozenset({10071, 10164})
"""The broker's error codes for a lost fence: the second comes from clusters."""
STREAM_FULL = frozenset({10077, 10023})
"""The broker's error codes for: no room in the stream (or on its disk)."""
PAGE = 500
"""Messages asked for at once when a stretch of the stream is read."""


@dataclass(frozen=True)
class Head:
    """The last event of a task."""

    document: Document
    sequence: int
    event_id: str


async def load(bus: Bus, chain: int, task: int, *, leader: bool = False) -> Head | None:
    """The task's last event; None: there is none.

    By default any replica answers, and may be behind: the fence protects whoever acts on it. ``leader`` asks
    the stream's leader, for decisions that no fence protects. Raises one of UNAVAILABLE.
    """
    return await _last(bus, subjects.events_of(chain, task), leader=leader)


async def find(bus: Bus, task: int) -> Head | None:
    """The last event of the task with this id, in whatever chain."""
    return await _last(bus, subjects.events_of_any_chain(task), leader=True)


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
    try:
        ack = await bus.js.publish(subjects.event(document), codec.encode(document), headers=headers)
    except MaxPayloadError:
        raise BodyTooLarge("The task is larger than the broker takes.") from None
    except APIError as error:
        if error.err_code in WRONG_LAST_SEQUENCE:
            return await _read_back(bus, fence, event_id)
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


async def ended_runs(bus: Bus, chain: int) -> AsyncIterator[Document]:
    """The final document of every run of the chain that the stream holds at the moment of the call, oldest first."""
    last = (await bus.js.stream_info(subjects.EVENTS)).state.last_seq
    async for message in _read(bus, subjects.ended_runs_of(chain), until=last):
        yield codec.decode(message.data)


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


async def _read_back(bus: Bus, fence: str, event_id: str) -> int:
    """The fence refused: was it our own event that got there first?"""
    head = await _last(bus, fence, leader=True)
    if head is not None and head.event_id == event_id:
        return head.sequence
    raise Conflict("Somebody else changed the task first.")


async def _read(bus: Bus, filters: list[str], *, until: int) -> AsyncIterator[Msg]:
    """The messages of EVENTS that match, up to sequence ``until``; at most PAGE of them in memory.

    Raises TimeoutError when the broker goes away in between: half a history is not passed off as a whole.
    """
    queue: asyncio.Queue[Msg | None] = asyncio.Queue()

    async def give_up() -> None:
        queue.put_nowait(None)

    consumer = await bus.js.add_consumer(
        subjects.EVENTS,
        ConsumerConfig(
            deliver_policy=DeliverPolicy.ALL,
            ack_policy=AckPolicy.NONE,
            filter_subjects=filters,
            inactive_threshold=60.0,
            mem_storage=True,
            num_replicas=1,
        ),
    )
    puller = Puller(bus, on_message=queue.put_nowait, on_reset=give_up)
    await puller.start()
    try:
        puller.consume(subjects.EVENTS, consumer.name)
        left = consumer.num_pending or 0
        while left:
            await puller.request(PAGE)
            for _ in range(min(PAGE, left)):
                message = await asyncio.wait_for(queue.get(), timeout=10)
                if message is None:
                    msg = "the broker went away while the history was read"
                    raise TimeoutError(msg)
                if message.metadata.sequence.stream > until:
                    return
                yield message
                left = message.metadata.num_pending
                if not left:
                    return
    finally:
        await puller.stop()
