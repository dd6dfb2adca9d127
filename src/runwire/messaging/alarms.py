"""SCHEDULES: one alarm per task, which the broker publishes again when its time has come.

The broker is the alarm clock (``Nats-Schedule: @at``): it survives a restart of everything, rings late rather than
never, and not before its time. Its own repeating schedules are not used: what falls into the time of a crash is lost
there. An alarm names the sequence of the one it replaces, so of two who set one at the same time one wins.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import UTC, datetime

from nats.aio.msg import Msg
from nats.js.api import RawStreamMsg
from nats.js.errors import APIError, NotFoundError

from runwire.domain.errors import Conflict, Undecodable
from runwire.domain.ticks import Alarm
from runwire.messaging import codec, subjects
from runwire.messaging.broker import REQUEST_TIMEOUT, Bus
from runwire.messaging.events import WRONG_LAST_SEQUENCE

PAGE = 500
"""Alarms read by one request."""


@dataclass(frozen=True)
class Pending:
    """An alarm that has not rung yet."""

    chain: int
    task: int
    alarm: Alarm | None
    """None: it is garbled."""
    rings_at: datetime | None
    sequence: int


async def pending(bus: Bus, chain: int, task: int) -> Pending | None:
    """The alarm of a task; None: there is none, or it has rung. Raises one of UNAVAILABLE."""
    try:
        message = await bus.js.get_msg(subjects.SCHEDULES, subject=subjects.alarm(chain, task))
    except NotFoundError:
        return None
    return _pending(message)


async def put(bus: Bus, chain: int, task: int, alarm: Alarm, *, at: datetime, expected: int) -> None:
    """Set the alarm in the place of the one with sequence ``expected`` (0: there is none). It rings ``at``, not before.

    Raises Conflict (it is another one by now) or one of UNAVAILABLE (outcome unknown: look, and repeat).
    """
    headers = {
        subjects.SCHEDULE: f"@at {at.astimezone(UTC).replace(tzinfo=None).isoformat(timespec='microseconds')}Z",
        subjects.SCHEDULE_TARGET: subjects.due(chain, task),
        subjects.EXPECTED_SEQUENCE: str(expected),
    }
    try:
        await bus.js.publish(subjects.alarm(chain, task), codec.encode_alarm(alarm), headers=headers)
    except APIError as error:
        if error.err_code in WRONG_LAST_SEQUENCE:
            raise Conflict("Somebody else has set the alarm of the task.") from None
        raise


async def remove(bus: Bus, found: Pending) -> None:
    """Take exactly this alarm away; it may have rung meanwhile. Raises one of UNAVAILABLE."""
    with contextlib.suppress(NotFoundError, APIError):
        await bus.js.delete_msg(subjects.SCHEDULES, found.sequence)


async def rung(bus: Bus) -> set[tuple[int, int]]:
    """(chain, task) of the alarms that have rung and that somebody has in hand, up to 100,000. Raises UNAVAILABLE."""
    info = await bus.js.stream_info(subjects.SCHEDULES, subjects_filter=subjects.ALL_DUE)
    return {subjects.parse(subject) for subject in info.state.subjects or {}}


async def every(bus: Bus) -> AsyncGenerator[Pending, None]:
    """Every alarm that was set before the call and has not rung; a page in memory.

    Read directly from the stream: a consumer that sees alarms could take them away. Raises one of UNAVAILABLE.
    """
    inbox = bus.nc.new_inbox()
    answers: asyncio.Queue[Msg] = asyncio.Queue()

    async def hear(message: Msg) -> None:
        answers.put_nowait(message)

    last = (await bus.js.stream_info(subjects.SCHEDULES)).state.last_seq
    subscription = await bus.nc.subscribe(inbox, cb=hear)
    try:
        sequence = 1
        while sequence <= last:
            question = {"seq": sequence, "next_by_subj": subjects.ALL_ALARMS, "batch": PAGE}
            request = f"$JS.API.DIRECT.GET.{subjects.SCHEDULES}"
            await bus.nc.publish(request, json.dumps(question).encode(), reply=inbox)
            found = 0
            while True:
                message = await asyncio.wait_for(answers.get(), timeout=REQUEST_TIMEOUT)
                headers = message.headers or {}
                if "Status" in headers:  # 204: the end of this page; 404: there are no more
                    break
                found += 1
                sequence = int(headers["Nats-Sequence"]) + 1
                yield _read(headers["Nats-Subject"], message.data, headers, sequence - 1)
            if not found:
                return
    finally:
        await subscription.unsubscribe()


def _pending(message: RawStreamMsg) -> Pending:
    return _read(message.subject or "", message.data or b"", message.headers or {}, message.seq or 0)


def _read(subject: str, payload: bytes, headers: dict[str, str], sequence: int) -> Pending:
    chain, task = subjects.parse(subject)
    alarm, rings_at = None, None
    with contextlib.suppress(Undecodable):
        alarm = codec.decode_alarm(payload)
    with contextlib.suppress(ValueError):
        rings_at = datetime.fromisoformat(headers.get(subjects.SCHEDULE, "").removeprefix("@at "))
    return Pending(chain, task, alarm, rings_at, sequence)
