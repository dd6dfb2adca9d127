"""Reading a request body, as far as it may go."""

from __future__ import annotations

from starlette.requests import Request

from runwire.domain.errors import BodyTooLarge

LARGEST_BODY = 256 * 1024
"""Bytes of a request body."""


async def read_body(request: Request) -> bytes:
    """The whole body. Raises BodyTooLarge as soon as it is known to be, announced or not."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > LARGEST_BODY:
        raise BodyTooLarge(f"A body may have {LARGEST_BODY:,} bytes; this one has {int(announced[:20]):,}.")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_BODY:
            raise BodyTooLarge(f"A body may have {LARGEST_BODY:,} bytes; this one has more.")
    return bytes(body)
