"""Reading a request body, as far as it may go and as long as it may take."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from runwire.domain.errors import BodyTooLarge, MalformedBody, RequestTimeout

LARGEST_BODY = 256 * 1024
"""Bytes of a request body."""
SILENCE_SECONDS = 30.0
"""How long no byte of a body may come."""
BODY_SECONDS = 120.0
"""How long a body may take in all."""


async def read_body(request: Request) -> bytes:
    """The whole body.

    Raises BodyTooLarge as soon as it is known to be, announced or not; RequestTimeout when it does not come in
    time; MalformedBody when the caller hangs up before its end.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > LARGEST_BODY:
        raise BodyTooLarge(f"A body may have {LARGEST_BODY:,} bytes; this one has {int(announced[:20]):,}.")
    now = asyncio.get_running_loop().time
    body, deadline = bytearray(), now() + BODY_SECONDS
    try:
        async with asyncio.timeout(SILENCE_SECONDS) as limit:
            async for chunk in request.stream():
                body += chunk
                if len(body) > LARGEST_BODY:
                    raise BodyTooLarge(f"A body may have {LARGEST_BODY:,} bytes; this one has more.")
                limit.reschedule(min(now() + SILENCE_SECONDS, deadline))
    except TimeoutError:
        raise RequestTimeout("The body did not come in time.") from None
    except ClientDisconnect:
        raise MalformedBody("The body was cut off.") from None
    return bytes(body)
