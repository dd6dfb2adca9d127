"""The HTTP API for clients of the bus: a request there is a call here, made within this process.

::

    api.<chain>.<token>.tasks.create     POST /tasks                  the payload is the body
    api.<chain>.<token>.tasks.list       GET  /tasks?...
    api.<chain>.<token>.tasks.get        GET  /tasks/{id}?...
    api.<chain>.<token>.tasks.execute    POST /tasks/{id}/execute?...
    api.<chain>.<token>.tasks.cancel     POST /tasks/{id}/cancel

A request is a JSON object with the ``id`` of the path and the parameters of the query; its headers are those of the
call. Who calls stands in the subject, and the broker has seen to it that it is true: a login may publish to the
subjects of its own token and chain only (:mod:`~runwire.messaging.callout`). What the token may do is looked up for
each call, as over HTTP.

All adapters answer (a NATS service, ADR-32), each request is answered by one of them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import quote, urlencode

from fastapi import FastAPI
from nats.errors import Error as NatsError
from nats.micro import add_service
from nats.micro.request import Request as Question
from nats.micro.service import EndpointStats, Service
from starlette.requests import Request
from starlette.types import Message

from runwire import __version__
from runwire.domain.errors import MalformedBody, ReplyTooLarge, RequestError, TooManyConnections
from runwire.http import cancel, execute, problems, tasks
from runwire.http.auth import CALLER, Caller
from runwire.http.endpoint import Endpoint
from runwire.http.json_body import read_json
from runwire.messaging import subjects
from runwire.messaging.broker import UNAVAILABLE, Bus

log = logging.getLogger("runwire.http")

HEADERS = 16_384
"""Bytes of a reply that are kept for its headers."""
QUEUE = "runwire-api"
"""The group of all adapters."""
MOST_CALLS = 1000
"""Calls of one chain that one adapter may have in hand, most of them waiting."""
LAST_WORDS = 5.0
"""Seconds that calls may take to be answered when the adapter stops; those that wait are told so at once."""
STATUS = "Http-Status"
REQUEST_HEADERS = ("prefer", "idempotency-key", "traceparent", "tracestate")
"""Headers of a request that mean something."""
NOT_TOLD = {"content-length", "cache-control", "vary", "link", "www-authenticate"}
"""Headers of an answer that mean something over HTTP only."""
SPELLED = {"etag": "ETag", "ratelimit": "RateLimit", "ratelimit-policy": "RateLimit-Policy"}
"""Names whose capitals are not where they are in others: on the bus, they count."""
FAILED = 400
"""Statuses from here on are errors."""


@dataclass(frozen=True)
class Operation:
    """Something that can be asked for."""

    name: str
    """The end of its subject, behind ``tasks.``."""
    endpoint: Endpoint

    @property
    def subject(self) -> str:
        """Where all chains' requests come in."""
        return subjects.api("*", "*", f"tasks.{self.name}")


def _operation(name: str, method: str, path: str) -> Operation:
    known = (*tasks.ENDPOINTS, *execute.ENDPOINTS, *cancel.ENDPOINTS)
    return Operation(name, next(found for found in known if (found.method, found.path) == (method, path)))


OPERATIONS = (
    _operation("create", "POST", "/tasks"),
    _operation("list", "GET", "/tasks"),
    _operation("get", "GET", "/tasks/{id}"),
    _operation("execute", "POST", execute.PATH),
    _operation("cancel", "POST", "/tasks/{id}/cancel"),
)


@dataclass
class Answer:
    """What the call was answered with."""

    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def told(self) -> dict[str, str]:
        """The headers of the reply."""
        told = {SPELLED.get(name, name.title()): value for name, value in self.headers.items() if name not in NOT_TOLD}
        told[STATUS] = str(self.status)
        if self.status >= FAILED:
            told[subjects.SERVICE_ERROR_CODE] = str(self.status)
            told[subjects.SERVICE_ERROR] = " ".join(json.loads(self.body or b"{}").get("detail", "").split())
        return told


class BusDoor:
    """Answers the requests of bus clients for as long as it is entered."""

    def __init__(self, app: FastAPI, bus: Bus) -> None:
        self._app = app
        self._bus = bus
        self._service: Service | None = None
        self._calls: set[asyncio.Task[None]] = set()
        self._in_hand: Counter[int] = Counter()
        self._failed: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        """Begin to answer."""
        self._service = await add_service(
            self._bus.nc, name="runwire", version=__version__, queue_group=QUEUE,
            description="Runs tasks on demand and answers with what became of them.", stats_handler=self._stats,
        )  # fmt: skip
        for operation in OPERATIONS:
            await self._service.add_endpoint(
                name=f"tasks-{operation.name}", subject=operation.subject, handler=self._handler(operation),
                metadata={"call": f"{operation.endpoint.method} {operation.endpoint.path}"},
            )  # fmt: skip
        await self._bus.nc.flush()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Take no more, and answer what has been taken."""
        if self._service is not None and self._bus.is_connected:
            with suppress(*UNAVAILABLE, NatsError):
                await self._service.stop()
        if self._calls:
            await asyncio.wait(self._calls, timeout=LAST_WORDS)
        for call in self._calls:
            call.cancel()

    def _handler(self, operation: Operation) -> Any:
        async def take(question: Question) -> None:
            """Nothing is waited for here: the next question comes when this returns."""
            call = asyncio.create_task(self._answer(operation, question))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

        return take

    async def _answer(self, operation: Operation, question: Question) -> None:
        chain, token = subjects.parse_api(question.subject)
        self._in_hand[chain] += 1
        try:
            answer = await self._call(operation, question, Caller(token=token, chain=chain))
        finally:
            self._in_hand[chain] -= 1
        self._failed[operation.name] += answer.status >= FAILED
        with suppress(*UNAVAILABLE, NatsError, ValueError):  # it may have asked for no reply
            await question.respond(answer.body, answer.told())

    async def _call(self, operation: Operation, question: Question, caller: Caller) -> Answer:
        scope = _scope(operation, question, caller)
        answer = Answer()
        body = question.data
        try:
            if self._in_hand[caller.chain] > MOST_CALLS:
                raise TooManyConnections(f"Chain {caller.chain} has {MOST_CALLS} calls in hand here.")
            if operation.endpoint.body is None:
                scope |= _target(operation, body)
                body = b""
        except RequestError as error:
            request = Request({**scope, "app": self._app})
            await (await problems.answer(request, error))(scope, _receiver(body), _sender(answer))
            return answer
        try:
            await self._app(scope, _receiver(body), _sender(answer))
        except Exception:  # passed on by the app after it has been logged and answered
            if not answer.body:
                log.exception("%s %s", operation.endpoint.method, scope["path"], extra={"action": "unexpected"})
        if len(answer.body) > self._bus.nc.max_payload - HEADERS:
            answer = Answer()
            too_large = ReplyTooLarge("The answer does not fit into a message; ask for less at once.")
            request = Request({**scope, "app": self._app})
            await (await problems.answer(request, too_large))(scope, _receiver(b""), _sender(answer))
        return answer

    def _stats(self, endpoint: EndpointStats) -> dict[str, int]:
        """What `$SRV.STATS` cannot know, as no question is waited for: errors, and how many calls are in hand."""
        return {"errors": self._failed[endpoint.name.removeprefix("tasks-")], "in_hand": self._in_hand.total()}


def _scope(operation: Operation, question: Question, caller: Caller) -> dict[str, Any]:
    """The call as ASGI has it."""
    given = {name.lower(): value for name, value in (question.headers or {}).items()}
    headers = [(name.encode(), given[name].encode()) for name in REQUEST_HEADERS if name in given]
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": operation.endpoint.method,
        "scheme": "http",
        "path": operation.endpoint.path,
        "raw_path": operation.endpoint.path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": headers,
        "server": ("bus", None),
        CALLER: caller,
    }


def _target(operation: Operation, payload: bytes) -> dict[str, Any]:
    """Path and query of the call that the payload stands for. Raises MalformedBody."""
    given = read_json(payload) if payload.strip() else {}
    if not isinstance(given, dict):
        raise MalformedBody("A request is a JSON object.")
    texts = {name: _text(name, value) for name, value in given.items() if value is not None}
    path = operation.endpoint.path
    if "{id}" in path:
        # No id at all is refused like one that is none.
        path = path.replace("{id}", re.sub(r"[^0-9]", "-", texts.pop("id", "")) or "-")
    return {"path": path, "raw_path": path.encode(), "query_string": urlencode(texts, quote_via=quote).encode()}


def _text(name: str, value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str() | int() | float():
            return str(value)
    raise MalformedBody(f"{name[:80]!r} is neither text nor number nor truth value.")


def _receiver(body: bytes) -> Any:
    """What reads the body; afterwards, the caller never hangs up: nobody would tell."""
    events = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if events:
            return events.pop()
        await asyncio.Event().wait()
        raise AssertionError

    return receive


def _sender(answer: Answer) -> Any:
    """What takes the answer down."""

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = _decoded(dict(message["headers"]))
        elif message["type"] == "http.response.body":
            answer.body += message.get("body", b"")

    return send


def _decoded(headers: Mapping[bytes, bytes]) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers.items()}
