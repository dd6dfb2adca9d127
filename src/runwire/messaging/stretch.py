"""A stretch of a stream, read once and in order, at the reader's pace: a page of messages in memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import Error as JetStreamError

from runwire.messaging.broker import UNAVAILABLE, Bus
from runwire.messaging.pull import Puller

PAGE = 500
"""Messages asked for at once."""
PAUSE = 0.5
"""Seconds until a broker that is away is asked again."""


async def read_surely(bus: Bus, stream: str, filters: list[str], *, start: int = 1) -> AsyncGenerator[Msg, None]:
    """Every message of a stream that matches at the moment of the call, from sequence ``start`` on.

    A broker that is away is waited for.
    """
    last, until = start - 1, None
    while True:
        try:
            if until is None:
                until = (await bus.js.stream_info(stream)).state.last_seq
            async with contextlib.aclosing(read(bus, stream, filters, start=last + 1, until=until)) as messages:
                async for message in messages:
                    last = message.metadata.sequence.stream
                    yield message
        except UNAVAILABLE:
            await asyncio.sleep(PAUSE)
        else:
            return


async def read(
    bus: Bus,
    stream: str,
    filters: list[str],
    *,
    start: int = 1,
    until: int,
    page: int = PAGE,
    policy: DeliverPolicy = DeliverPolicy.BY_START_SEQUENCE,
    headers_only: bool = False,
) -> AsyncGenerator[Msg, None]:
    """The messages of a stream that match, from sequence ``start`` to ``until``; at most a page of them in memory.

    By another ``policy`` ``start`` says nothing. ``headers_only``: without their payloads.

    Raises TimeoutError when the broker goes away in between: half a history is not passed off as a whole.
    """
    queue: asyncio.Queue[Msg | None] = asyncio.Queue()

    async def give_up() -> None:
        queue.put_nowait(None)

    consumer = await bus.js.add_consumer(
        stream,
        ConsumerConfig(
            deliver_policy=policy,
            opt_start_seq=start if policy is DeliverPolicy.BY_START_SEQUENCE else None,
            ack_policy=AckPolicy.NONE,
            filter_subjects=filters,
            headers_only=headers_only or None,
            inactive_threshold=60.0,
            mem_storage=True,
            num_replicas=1,
        ),
    )
    puller = Puller(bus, on_message=queue.put_nowait, on_reset=give_up)
    await puller.start()
    try:
        puller.consume(stream, consumer.name)
        left = consumer.num_pending or 0
        while left:
            await puller.request(page)
            for _ in range(min(page, left)):
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
        with contextlib.suppress(*UNAVAILABLE, NatsError, JetStreamError):
            await bus.js.delete_consumer(stream, consumer.name)
