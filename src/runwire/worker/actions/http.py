"""``http``: sends a request and looks at the answer: its status decides, its body is the result.

What a task may say is in :mod:`.http_request`, whom it may reach and how it is sent in :mod:`runwire.outgoing`.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import socket
import ssl
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import INTERNAL_SERVER_ERROR, responses
from typing import Any

import httpcore
import httpx
from pydantic import JsonValue

from runwire import __version__
from runwire.app import Context, Handler
from runwire.domain.addresses import Exceptions
from runwire.domain.errors import Fail, Retry
from runwire.domain.run import ErrorCode
from runwire.domain.task import LogLevel
from runwire.outgoing.exchange import (
    CONNECT_SECONDS,
    BadRedirect,
    Exchange,
    ForbiddenRedirect,
    Request,
    Response,
    TooLarge,
)
from runwire.outgoing.guard import Forbidden, Guard, Resolver, look_up
from runwire.outgoing.url import checked_url
from runwire.worker.actions.http_request import HEADER_VALUE, HttpRequest, limited
from runwire.worker.actions.pointer import Nowhere, pointed_at

KEPT_HEADERS = ("content-type", "etag", "last-modified", "location", "retry-after")
"""What of the answer's headers is in the result."""
LONGEST_HEADER = 1000
WORTH_ANOTHER_TRY = {408, 425, 429}
"""And every 5xx."""
LONGEST_EXCERPT = 500
"""Characters of an unexpected answer that go into the log."""
SECRET = re.compile(r"secret://([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)")
"""In a header: the content of a secret of this name."""
CHARSETS = {"iso-8859-1": "latin-1", "latin1": "latin-1", "windows-1252": "cp1252"}
"""What is read otherwise than as UTF-8."""


def http_action(exceptions: Exceptions, most_bytes: int, *, resolve: Resolver = look_up) -> Handler:
    """The action for a worker that lets these exceptions in and reads bodies of up to ``most_bytes``."""
    exchange = Exchange(Guard(exceptions, resolve=resolve))

    async def http(params: HttpRequest, ctx: Context) -> dict[str, Any]:
        """Send an HTTP request: ``{status, headers, body}``, or ``values`` instead of ``body`` with ``extract``."""
        began = time.monotonic()
        response = await _answer(exchange, params, ctx)
        host = params.url.partition("?")[0].split("/")[2]  # paths and queries have been known to hold secrets
        ctx.log(f"{params.method} {host}: {response.status} in {time.monotonic() - began:.3f} s")
        if not params.expects(response.status):
            raise _unexpected(response, ctx)
        return _result(params, response)

    http.__annotations__["params"] = limited(most_bytes)  # what it is checked against, here and in the catalogue
    return http


async def _answer(exchange: Exchange, params: HttpRequest, ctx: Context) -> Response:
    """What the server says, or why nothing is known of it, as Fail or Retry."""
    request = _request(params, ctx)
    try:
        async with asyncio.timeout(params.seconds):
            return await exchange.fetch(
                request, redirects=params.redirects, most=params.max_bytes, is_expected=params.expects
            )
    except TimeoutError:
        raise Retry(f"There was no answer within {params.seconds:g} s.", code=ErrorCode.TIMEOUT) from None
    except ForbiddenRedirect:
        message = "The server redirected to an address that may not be called."
        raise Fail(ErrorCode.FORBIDDEN_ADDRESS, message) from None
    except Forbidden:
        raise Fail(ErrorCode.FORBIDDEN_ADDRESS, f"{request.url.host} may not be called.") from None
    except TooLarge:
        message = f"The answer has more than {params.max_bytes:,} bytes."
        raise Fail(ErrorCode.RESPONSE_TOO_LARGE, message) from None
    except BadRedirect as error:
        raise Fail(ErrorCode.INVALID_RESPONSE, str(error)) from None
    except httpcore.ConnectTimeout:
        raise Retry(
            f"There was no connection within {CONNECT_SECONDS:g} s.", code=ErrorCode.CONNECTION_FAILED
        ) from None
    except (httpcore.NetworkError, httpcore.RemoteProtocolError, ssl.SSLError) as error:
        raise Retry(f"The connection failed: {_reason(error)}.", code=ErrorCode.CONNECTION_FAILED) from None


def _request(params: HttpRequest, ctx: Context) -> Request:
    """The request with what it has besides: who sends it, which run it is of, what its body is."""
    content, kind = _content(params.body)
    ours = {"User-Agent": f"runwire/{__version__}", "Accept": "*/*", "Idempotency-Key": ctx.run_id} | kind
    given = {name: _with_secrets(name, value, ctx) for name, value in params.headers.items()}
    theirs = {name.lower() for name in given}
    if "traceparent" not in theirs:
        ours |= ctx.trace_headers
    headers = {name: value for name, value in ours.items() if name.lower() not in theirs} | given
    return Request(method=params.method, url=checked_url(params.url), headers=tuple(headers.items()), content=content)


def _with_secrets(name: str, value: str, ctx: Context) -> str:
    """A header's value with the secrets that it names; only the chain's own, as the task says where they go.

    Raises Fail.
    """
    filled = SECRET.sub(lambda found: ctx.chain_secret(found[1]), value)
    if not HEADER_VALUE.fullmatch(filled):
        raise Fail(ErrorCode.INVALID_PARAMETERS, f"/target/headers/{name}: a secret in it is no line of visible ASCII.")
    return filled


def _content(body: JsonValue) -> tuple[bytes | None, dict[str, str]]:
    """The body as it is sent, and its Content-Type."""
    if body is None:
        return None, {}
    if isinstance(body, str):
        return body.encode(), {"Content-Type": "text/plain; charset=utf-8"}
    return json.dumps(body, separators=(",", ":")).encode(), {"Content-Type": "application/json"}


def _unexpected(response: Response, ctx: Context) -> Exception:
    """The error of an answer whose status is no success; its log has the beginning of what the server says."""
    excerpt = " ".join(_text(response).split())[:LONGEST_EXCERPT]
    if excerpt and not _is_compressed(response):
        ctx.log(f"the answer begins with: {excerpt}", LogLevel.WARNING)
    status = response.status
    phrase = f" ({responses[status]})" if status in responses else ""
    after = f" after {response.redirects} redirects" if response.redirects else ""
    message = f"The server answered {status}{phrase}{after}."
    if status not in WORTH_ANOTHER_TRY and status < INTERNAL_SERVER_ERROR:
        return Fail(ErrorCode.UNEXPECTED_STATUS, message)
    return Retry(message, after=_retry_after(response.headers), code=ErrorCode.UNEXPECTED_STATUS)


def _retry_after(headers: httpx.Headers) -> float | None:
    """Seconds to wait, of a number of them or a date (RFC 9110 section 10.2.3)."""
    text = headers.get("retry-after", "").strip()
    if re.fullmatch("[0-9]{1,9}", text):
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _result(params: HttpRequest, response: Response) -> dict[str, JsonValue]:
    if _is_compressed(response):
        raise Fail(ErrorCode.INVALID_RESPONSE, "The answer is compressed, which was not asked for.")
    kept = {name: response.headers[name] for name in KEPT_HEADERS if name in response.headers}
    headers: dict[str, JsonValue] = {name: value for name, value in kept.items() if len(value) <= LONGEST_HEADER}
    result: dict[str, JsonValue] = {"status": response.status, "headers": headers}
    if params.extract is None:
        return result | {"body": _body(response)}
    return result | {"values": _values(params.extract, response)}


def _is_compressed(response: Response) -> bool:
    return response.headers.get("content-encoding", "").strip().lower() not in {"", "identity"}


def _body(response: Response) -> JsonValue:
    """JSON when it says it is, and is; text else; None when there is nothing."""
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json" or kind.endswith("+json"):
        try:
            return _json(response.body)
        except ValueError:
            pass
    return _text(response) or None


def _values(extract: dict[str, str], response: Response) -> JsonValue:
    try:
        body = _json(response.body)
    except ValueError:
        raise Fail(ErrorCode.INVALID_RESPONSE, "The answer is no JSON.") from None
    try:
        return {name: pointed_at(body, pointer) for name, pointer in extract.items()}
    except Nowhere as nowhere:
        raise Fail(ErrorCode.INVALID_RESPONSE, f"The answer has nothing at {nowhere}.") from None


def _json(body: bytes) -> JsonValue:
    """Raises ValueError."""
    try:
        found: JsonValue = json.loads(body, parse_float=_finite, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return found


def _finite(number: str) -> float:
    value = float(number)
    return value if math.isfinite(value) else _refuse(number)


def _refuse(number: str) -> float:
    raise ValueError(f"{number} is no JSON value")


def _text(response: Response) -> str:
    """The body as text; what does not fit its charset is U+FFFD."""
    found = re.search(r"charset=\"?([A-Za-z0-9._-]+)", response.headers.get("content-type", ""))
    return response.body.decode(CHARSETS.get(found[1].lower(), "utf-8") if found else "utf-8", errors="replace")


def _reason(error: BaseException) -> str:
    """What the system or the check of the certificate says, as far down as there is something; never an address."""
    reason = str(error) or "it broke"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return cause.verify_message
        if isinstance(cause, OSError) and cause.errno:  # its own text may have the address in it
            reason = str(cause.strerror) if isinstance(cause, socket.gaierror) else os.strerror(cause.errno)
        cause = cause.__cause__ or cause.__context__
    return reason.rstrip(".")
