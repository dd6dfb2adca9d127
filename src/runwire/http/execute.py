"""``POST /tasks/{id}/execute``: the main job.

Authenticate, find the task, **register the waiter, then publish** the command, wait for the read model to
show the end of the run. What is answered is therefore what the next GET shows, and an end that comes before
the command's own acknowledgement is not missed.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import re
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from runwire.domain.access import AccessLevel, Principal
from runwire.domain.errors import (
    Draining,
    Forbidden,
    MalformedKey,
    NotAccepted,
    RunFailed,
    TaskBusy,
    TaskNotFound,
)
from runwire.domain.ids import uuid7
from runwire.domain.lifecycle import Document
from runwire.domain.run import Run, Source
from runwire.domain.task import StateCode
from runwire.http import prefer
from runwire.http.endpoint import PREFER, TASK_ID, Answer, Endpoint, header_parameter
from runwire.http.lookup import find_task, task_id
from runwire.http.prefer import Preference
from runwire.http.query import Query, parse_query
from runwire.http.schemas import ExecuteView, ended_view, execute_view, json_bytes
from runwire.http.services import Services, services
from runwire.messaging import commands, deadletters
from runwire.messaging.broker import UNAVAILABLE

PATH = "/tasks/{id}/execute"
PUBLISH_PATIENCE = 10.0
"""Seconds a broker that does not answer is asked again before the caller is told that nothing is known."""
FULL = 0.85
"""Share of EVENTS beyond which no new runs are taken: the rest is for the ends of those that were accepted."""
LISTEN_AFTER = 1.0
"""Seconds of waiting after which it is worth noticing that the caller has hung up."""
KEY = re.compile(r'"([\x20-\x21\x23-\x7e]{1,255})"|([\x21\x23-\x7e]{1,255})')
"""An Idempotency-Key: a structured-field string, or the bare characters of one."""


class ExecuteQuery(Query):
    """Query parameters of execute."""

    on_error: Annotated[
        Literal["status"] | None,
        Field(description="`status`: answer 500 when the run ends as ERROR, for callers that look at the status only."),
    ] = None


async def execute(request: Request) -> Response:
    """Run the task now, whatever its trigger says; the schedule is neither moved nor consumed."""
    parts = services(request)
    task = task_id(request.path_params["id"])
    principal = await parts.authenticate(request)
    document = await find_task(parts, principal, task, AccessLevel.OPERATOR)
    on_error_status = parse_query(request, ExecuteQuery).on_error == "status"
    preference = prefer.parse(request.headers.getlist("prefer"))
    key = _idempotency_key(request)
    run = _run_id(parts, principal, document, key)
    if parts.draining:
        raise Draining("This adapter is stopping; try again.")
    if parts.pressure.events >= FULL:
        raise NotAccepted("The event stream is nearly full; nothing was stored.")

    wait = preference.seconds(parts.settings.wait_seconds)
    deadline = asyncio.get_running_loop().time() + wait
    with parts.waiters.registered(task, run) as end:
        ended = await _ended_before(parts, task, run) if key else None
        replayed = ended is not None
        if ended is None:
            chain = document.task.chain
            await commands.publish(
                parts.bus, chain, task, run, source=Source.HTTP, patience=min(max(wait, 1.0), PUBLISH_PATIENCE)
            )
            if not parts.waiters.is_full:
                ended = await wait_until(request, end, deadline)
            if ended is None:
                ended = await _look_again(parts, document, run)
    headers = _headers(document, run, preference)
    if replayed:
        headers["Idempotency-Replayed"] = "true"
    if ended is None:
        return await _not_yet(parts, document, run, headers)
    return _ended(document, ended, headers, on_error_status=on_error_status)


async def wait_until(request: Request, end: asyncio.Future[Run | None], deadline: float) -> Run | None:
    """Wait for the end of the run until ``deadline`` (loop time); None: it is over, or the caller has hung up."""
    loop = asyncio.get_running_loop()
    await asyncio.wait((end,), timeout=min(deadline - loop.time(), LISTEN_AFTER))
    if not end.done() and loop.time() < deadline:
        hung_up = asyncio.create_task(_hung_up(request))
        both: tuple[asyncio.Future[Any], asyncio.Future[Any]] = (end, hung_up)
        try:
            await asyncio.wait(both, timeout=deadline - loop.time(), return_when=asyncio.FIRST_COMPLETED)
        finally:
            hung_up.cancel()
    return end.result() if end.done() else None


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _idempotency_key(request: Request) -> str | None:
    header = request.headers.get("idempotency-key")
    if header is None:
        return None
    match = KEY.fullmatch(header.strip())
    if match is None:
        raise MalformedKey("An Idempotency-Key has 1 to 255 visible ASCII characters.")
    return match[1] or match[2]


def _run_id(parts: Services, principal: Principal, document: Document, key: str | None) -> str:
    """A fresh run id; or, for a caller with a key, the one and only that belongs to it. Nobody can guess either."""
    if key is None:
        return uuid7()
    task = document.task
    scope = f"execute\n{task.chain}\n{task.id}\n{principal.token}\n{key}"
    mac = hmac.digest(parts.server_key, scope.encode(), hashlib.sha256)
    return "key-" + base64.urlsafe_b64encode(mac[:24]).decode()


async def _ended_before(parts: Services, task: int, run: str) -> Run | None:
    known = await parts.reader.run(task, run)
    return known if known is not None and known.is_final else None


async def _look_again(parts: Services, document: Document, run: str) -> Run | None:
    """The wait is over: read back, so that a wake-up that got lost is not a wrong answer."""
    ended = await _ended_before(parts, document.task.id, run)
    if ended is not None:
        return ended
    try:
        dead = await deadletters.last(parts.bus, document.task.chain, document.task.id)
    except UNAVAILABLE:
        return None
    if dead is not None and dead.run == run:
        raise TaskNotFound(dead.detail)
    return None


def _headers(document: Document, run: str, preference: Preference) -> dict[str, str]:
    return {
        "Run-Id": run,
        "Location": f"/tasks/{document.task.id}/runs/{run}",
        "Cache-Control": "no-store",
        "Vary": "Prefer",
        **preference.applied,
    }


def _ended(document: Document, run: Run, headers: dict[str, str], *, on_error_status: bool) -> Response:
    body = ended_view(run, document.task.state.created_date)
    headers["Task-State"] = run.code.value
    if run.error is not None:
        headers["Task-Error"] = run.error.code
        if on_error_status:
            # The four documented fields win: here `code` is the task's ERROR, the problem is told by its `type`.
            facts: dict[str, Any] = {"error": run.error.model_dump(), **body}
            raise RunFailed(f"{run.error.code}: {run.error.message}", facts=facts, headers=headers)
    return Response(json_bytes(body), 200, headers, "application/json")


async def _not_yet(parts: Services, document: Document, run: str, headers: dict[str, str]) -> Response:
    """202: where the run stands at this moment."""
    latest = await parts.reader.document(document.task.id) or document
    state = latest.task.state
    running = latest.run is not None and latest.run.id == run
    code = state.code if running else StateCode.READY
    headers |= {"Task-State": code.value, "Retry-After": "1"}
    body = execute_view(code, state.last_run_date, state.last_modified, state.created_date)
    return Response(json_bytes(body), 202, headers, "application/json")


IDEMPOTENCY_KEY = header_parameter(
    "Idempotency-Key",
    "Calls with the same key start one run, and all get its end. For the call that got no answer.",
    {"type": "string", "pattern": r'^("[ !#-~]{1,255}"|[!#-~]{1,255})$'},
    "order-17",
)
RUN_HEADERS = {
    "Run-Id": {"schema": {"type": "string"}, "description": "The run."},
    "Task-State": {"schema": {"type": "string"}, "description": "State of the run: READY, INPROGRESS, DONE or ERROR."},
    "Location": {"schema": {"type": "string"}, "description": "The run, for GET."},
}
TASK_ERROR = {"Task-Error": {"schema": {"type": "string"}, "description": "Why it ended as ERROR: a stable code."}}
RETRY_AFTER = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds until it is worth asking."}}

ENDPOINTS = (
    Endpoint(
        method="POST", path=PATH, handle=execute,
        parameters=(TASK_ID, PREFER, IDEMPOTENCY_KEY),
        query=ExecuteQuery,
        answers={
            200: Answer(text="The run has ended.", model=ExecuteView, headers=RUN_HEADERS | TASK_ERROR),
            202: Answer(
                text="The wait is over, the run is not.", model=ExecuteView, headers=RUN_HEADERS | RETRY_AFTER
            ),
        },
        problems=(Forbidden, TaskNotFound, TaskBusy, MalformedKey, RunFailed, NotAccepted, Draining),
    ),
)  # fmt: skip
