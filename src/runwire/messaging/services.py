"""What a run has to do with the services of its chain: requests to them, and messages for them.

Core NATS: nothing is stored, and whoever is not there hears nothing. Services are in the account of their chain;
``nats.conf`` says how they and our processes hear each other. What goes wrong comes out as :class:`Retry`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime

import nats.errors
from nats.aio.msg import Msg

from runwire.app import Context
from runwire.domain.errors import Retry
from runwire.domain.run import ErrorCode
from runwire.messaging import subjects
from runwire.messaging.broker import REQUEST_TIMEOUT, UNAVAILABLE, Bus


async def request(bus: Bus, ctx: Context, service: str, payload: bytes, *, until: datetime) -> Msg:
    """The first reply of a service of the run's chain, however long that takes; ``until`` is only passed on to it.

    Raises Retry: ``no_responders`` when nobody is there, ``connection_lost`` when the reply may have got lost.
    """
    subject = subjects.service(ctx.chain, service)
    headers = {**_headers(ctx), subjects.RUN_DEADLINE: _instant(until)}
    answer: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
    try:
        async with _inbox(bus, answer) as inbox:
            await bus.nc.publish(subject, payload, reply=inbox, headers=headers)
            reply = await answer
    except UNAVAILABLE:
        message = f"The connection to the broker broke before {service} had answered."
        raise Retry(message, code=ErrorCode.CONNECTION_LOST) from None
    if not reply.data and (reply.headers or {}).get(subjects.STATUS) == subjects.NO_RESPONDERS:
        raise Retry(f"Nobody listens to {subject}.", code=ErrorCode.NO_RESPONDERS)
    return reply


async def publish(bus: Bus, ctx: Context, name: str, payload: bytes) -> str:
    """Hand the broker a message for the services of the run's chain that listen now; returns its subject.

    Raises Retry, ``connection_lost``, when the broker did not confirm that it has it.
    """
    subject = subjects.message(ctx.chain, name)
    try:
        _check_connected(bus)
        await bus.nc.publish(subject, payload, headers=_headers(ctx))
        await bus.nc.flush(timeout=REQUEST_TIMEOUT)  # type: ignore[arg-type]  # fractions work
    except UNAVAILABLE:
        message = f"The broker did not confirm that it has the message for {subject}."
        raise Retry(message, code=ErrorCode.CONNECTION_LOST) from None
    return subject


@asynccontextmanager
async def _inbox(bus: Bus, answer: asyncio.Future[Msg]) -> AsyncIterator[str]:
    """A subject for one reply, which ``answer`` gets; it ends with one of UNAVAILABLE when the connection breaks.

    A subscription of its own, and not nats-py's one for all replies: when it ends, the broker forgets the request.
    Otherwise it would remember each that is not answered for as long as an answer may take.
    """

    async def hear(message: Msg) -> None:
        if not answer.done():
            answer.set_result(message)

    _check_connected(bus)
    subject = subjects.reply(secrets.token_hex(16))
    subscription = await bus.nc.subscribe(subject, cb=hear)
    try:
        with bus.while_connected(answer):
            yield subject
    finally:
        with suppress(nats.errors.Error):
            await subscription.unsubscribe()


def _check_connected(bus: Bus) -> None:
    """Raise one of UNAVAILABLE when the broker is away: nats-py would keep the message, and send it whenever."""
    if not bus.is_connected:
        raise nats.errors.ConnectionReconnectingError


def _headers(ctx: Context) -> dict[str, str]:
    """What a service learns about the run."""
    return ctx.trace_headers | {
        subjects.RUN_ID: ctx.run_id,
        subjects.RUN_ATTEMPT: str(ctx.attempt),
        subjects.TASK_ID: str(ctx.task),
        subjects.CHAIN_ID: str(ctx.chain),
    }


def _instant(instant: datetime) -> str:
    return f"{instant.astimezone(UTC).replace(tzinfo=None).isoformat(timespec='milliseconds')}Z"
