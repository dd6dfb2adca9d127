"""Every error as problem details (RFC 9457): the one table from error to status."""

from __future__ import annotations

import json
import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from runwire.domain import errors
from runwire.domain.errors import FieldError, RequestError
from runwire.http import limits
from runwire.http.etag import etag
from runwire.messaging.broker import UNAVAILABLE

log = logging.getLogger("runwire.http")

TYPES = "/problems/"
"""Prefix of the ``type`` of every problem; what follows is the code with dashes. A relative reference (RFC 9457
section 3.1.1): it is the same on every adapter, and leads to the section about it on the adapter that answered."""

TABLE: dict[type[RequestError], tuple[int, str]] = {
    errors.BadRequest: (400, "Bad request"),
    errors.MalformedId: (400, "Malformed id"),
    errors.MalformedKey: (400, "Malformed Idempotency-Key"),
    errors.MalformedEventId: (400, "Malformed Last-Event-ID"),
    errors.MalformedIfMatch: (400, "Malformed If-Match"),
    errors.MalformedBody: (400, "Malformed body"),
    errors.MalformedHost: (400, "Malformed Host"),
    errors.Unauthenticated: (401, "Not authenticated"),
    errors.Forbidden: (403, "Not allowed"),
    errors.LinkInvalid: (403, "Invalid link"),
    errors.TaskNotFound: (404, "No such task"),
    errors.RunNotFound: (404, "No such run"),
    errors.TokenNotFound: (404, "No such access token"),
    errors.DeadLetterNotFound: (404, "No such dead letter"),
    errors.SubscriptionNotFound: (404, "No such subscription"),
    errors.ProblemNotFound: (404, "No such problem"),
    errors.RequestTimeout: (408, "Too slow"),
    errors.TaskBusy: (409, "Task is busy"),
    errors.NotRunning: (409, "Nothing to cancel"),
    errors.IdTaken: (409, "Id is taken"),
    errors.OwnToken: (409, "Your own token"),
    errors.NotACommand: (409, "Not a command"),
    errors.ReplyTooLarge: (413, "Reply too large"),
    errors.NotAWebHook: (409, "Not a web hook"),
    errors.TooManySubscriptions: (409, "Too many subscriptions"),
    errors.Stale: (412, "Task has changed"),
    errors.NoDownload: (409, "Nothing to download"),
    errors.LinkExpired: (410, "Link expired"),
    errors.FileGone: (410, "File gone"),
    errors.BodyTooLarge: (413, "Too large"),
    errors.TargetTooLong: (414, "Target too long"),
    errors.RangeUnsatisfiable: (416, "Range not satisfiable"),
    errors.InvalidFields: (422, "Invalid fields"),
    errors.KeyReused: (422, "Idempotency-Key was used before"),
    errors.RateLimited: (429, "Too many calls"),
    errors.TooManyOutstanding: (429, "Too many outstanding runs"),
    errors.HeadersTooLarge: (431, "Headers too large"),
    errors.RunFailed: (500, "Task failed"),
    errors.NotAccepted: (503, "Not known to be stored"),
    errors.BrokerAway: (503, "Broker unavailable"),
    errors.Draining: (503, "Stopping"),
    errors.TooManyStreams: (503, "Too many streams"),
    errors.TooManyDownloads: (503, "Too many downloads"),
    errors.TooManyConnections: (503, "Too many connections"),
}
RETRY_AFTER = "2"
"""Seconds after which a 503 is worth another try."""


def type_of(code: str) -> str:
    """The ``type`` of the problems with this code."""
    return TYPES + code.replace("_", "-")


def problem(
    request: Request, status: int, code: str, title: str, detail: str, extra: dict[str, Any] | None = None
) -> Response:
    """A problem details answer; ``extra`` may bring ``headers`` and further members, which win over these."""
    members = dict(extra or {})
    headers = members.pop("headers", {})
    body = {
        "type": type_of(code),
        "title": title,
        "status": status,
        "detail": detail,
        "instance": request.url.path,
        "code": code,
        **members,
    }
    return Response(
        json.dumps(body),
        status,
        {"Cache-Control": "no-store", **limits.headers(), **headers},
        media_type="application/problem+json",
    )


def install(app: FastAPI) -> None:
    """Answer every error of the app with problem details."""
    app.add_exception_handler(RequestError, answer)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(Exception, _unexpected)
    for error in UNAVAILABLE:
        app.add_exception_handler(error, _unavailable)


async def answer(request: Request, error: Exception) -> Response:
    """The answer to a call that failed so."""
    if not isinstance(error, RequestError):
        raise error
    status, title = TABLE[type(error)]
    return problem(request, status, error.code, title, str(error), _extras(error))


def _extras(error: RequestError) -> dict[str, Any]:
    """What some errors say beside their sentence."""
    match error:
        case errors.Unauthenticated(attempted=attempted):
            challenge = 'Bearer realm="runwire"' + (', error="invalid_token"' if attempted else "")
            return {"headers": {"WWW-Authenticate": challenge}}
        case errors.Forbidden(needs=needs):
            return {
                "headers": {"WWW-Authenticate": f'Bearer realm="runwire", error="insufficient_scope", scope="{needs}"'}
            }
        case errors.InvalidFields(errors=complaints):
            return {"errors": [_field(complaint) for complaint in complaints]}
        case errors.TaskBusy(run=run):
            return {"run": run, "headers": {"Run-Id": run}}
        case errors.Stale(version=version):
            return {"version": version, "headers": {"ETag": etag(version)}}
        case errors.RequestTimeout():
            return {"headers": {"Connection": "close"}}  # the rest of the request may still be on its way
        case errors.RangeUnsatisfiable(size=size):
            return {"headers": {"Content-Range": f"bytes */{size}"}}
        case errors.RunFailed(facts=facts, headers=headers):
            return {**facts, "headers": headers}
        case errors.RateLimited(retry_after=seconds) | errors.TooManyOutstanding(retry_after=seconds):
            return {"headers": {"Retry-After": str(seconds)}}
        case (
            errors.NotAccepted()
            | errors.BrokerAway()
            | errors.Draining()
            | errors.TooManyStreams()
            | errors.TooManyDownloads()
        ):
            return {"headers": {"Retry-After": RETRY_AFTER}}
    return {}


def _field(error: FieldError) -> dict[str, str]:
    place = {"pointer": error.pointer} if error.pointer is not None else {"parameter": error.parameter or ""}
    return {"detail": error.detail, **place}


async def _http_exception(request: Request, error: Exception) -> Response:
    """What the framework itself answers: no such path, another method."""
    if not isinstance(error, HTTPException):
        raise error
    phrase = HTTPStatus(error.status_code).phrase
    code = phrase.lower().replace(" ", "_")
    return problem(request, error.status_code, code, phrase, str(error.detail), {"headers": dict(error.headers or {})})


async def _unavailable(request: Request, _error: Exception) -> Response:
    return await answer(request, errors.BrokerAway("The broker does not answer; try again."))


async def _unexpected(request: Request, error: Exception) -> Response:
    """Nobody's business but the log's."""
    log.error("%s %s", request.method, request.url.path, exc_info=error, extra={"action": "unexpected"})
    return problem(request, 500, "internal", "Internal error", "Something went wrong here; the log knows more.")
