"""``request``: asks a service of the chain; its reply is the run's result.

The service gets the payload as it is, and answers with a JSON object, with nothing, or with an error (NATS ADR-32).
It may be written in any language: it needs a NATS client.
"""

from __future__ import annotations

import re
import time
from asyncio import timeout
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from pydantic_core import from_json, to_json

from runwire.app import Context, Handler
from runwire.domain.errors import Fail, Retry
from runwire.domain.ids import LONGEST_SUBJECT_NAME, SUBJECT_NAME
from runwire.domain.run import ErrorCode

SubjectName = Annotated[str, Field(pattern=f"^{SUBJECT_NAME}$", max_length=LONGEST_SUBJECT_NAME)]
LONGEST_WAIT = 604_800
"""Seconds; also the longest timeout of a task."""
LATER = {"408", "429"}
"""The error codes from 400 to 499 after which it is worth trying again (RFC 9110 section 15.5.9, RFC 6585)."""


@dataclass(frozen=True)
class Reply:
    """What a service answered."""

    body: bytes
    error: str | None = None
    """What it says went wrong; None: nothing did."""
    error_code: str = ""
    """Its code for that, most often a number as HTTP has them."""


Ask = Callable[[Context, str, bytes, datetime], Awaitable[Reply]]
"""Asks a service of the run's chain: (context, service, payload, when nobody waits any more) -> its reply.

Raises Retry when there is none to be had.
"""


class Request(BaseModel):
    """Parameters of ``request``."""

    model_config = ConfigDict(extra="forbid")

    service: SubjectName
    """Which service of the chain, such as ``invoices.render``."""
    payload: dict[str, JsonValue] = {}
    """What it gets."""
    seconds: Annotated[float, Field(gt=0, le=LONGEST_WAIT)] | None = None
    """How long an attempt waits for the reply; None: as long as the task's ``timeout`` lets it."""


class ErrorBody(BaseModel):
    """What a service may say about its error in the body of the reply."""

    code: Annotated[str, Field(pattern="^[a-z0-9_]{1,64}$")] = ErrorCode.SERVICE_ERROR
    message: str | None = None
    retry_after: Annotated[float, Field(ge=0)] | None = None
    """Seconds."""


def request_action(ask: Ask) -> Handler:
    """The action over this way to ask."""

    async def request(params: Request, ctx: Context) -> dict[str, JsonValue] | None:
        """Ask a service of the chain, in whatever language it is written; its reply is the result."""
        until = ctx.deadline
        if params.seconds is not None:
            until = min(until, datetime.now(UTC) + timedelta(seconds=params.seconds))
        began = time.monotonic()
        try:
            async with timeout(params.seconds):
                reply = await ask(ctx, params.service, to_json(params.payload), until)
        except TimeoutError:
            message = f"{params.service} did not answer within {params.seconds:g} s."
            raise Retry(message, code=ErrorCode.TIMEOUT) from None
        ctx.log(f"{params.service} answered after {time.monotonic() - began:.3f} s")
        if reply.error is not None:
            raise failure(params.service, reply)
        return result(params.service, reply.body)

    return request


def failure(service: str, reply: Reply) -> Retry | Fail:
    """How the run fails when the service says that it failed."""
    try:
        about = ErrorBody.model_validate_json(reply.body)
    except ValidationError:
        about = ErrorBody()
    headers = " ".join(filter(None, (reply.error_code, reply.error)))
    message = f"{service}: {about.message or headers or 'failed'}"
    if is_final(reply.error_code):
        return Fail(about.code, message)
    return Retry(message, code=about.code, after=about.retry_after)


def is_final(error_code: str) -> bool:
    """Whether the same request would fail again: it is at fault itself, as HTTP numbers such errors."""
    return re.fullmatch("4[0-9][0-9]", error_code) is not None and error_code not in LATER


def result(service: str, body: bytes) -> dict[str, JsonValue] | None:
    """The run's result. Raises Fail."""
    if not body:
        return None
    try:
        found = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise Fail(ErrorCode.INVALID_RESULT, f"{service} answered with what is no JSON: {error}") from None
    if found is not None and not isinstance(found, dict):
        raise Fail(ErrorCode.INVALID_RESULT, f"{service} answered with JSON that is no object.")
    return found
