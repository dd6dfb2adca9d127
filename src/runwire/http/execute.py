"""``POST /tasks/{id}/execute``: the main job.

Authenticate, find the task, **register the waiter, then publish** the command, wait for the read model to
show the end of the run. What is answered is therefore what the next GET shows, and an end that comes before
the command's own acknowledgement is not missed.

With an Idempotency-Key the record of the key comes before all that (:mod:`runwire.http.idempotency`). A task
that is busy is an answer (409), unless the caller asks to join that run or to queue for the next.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from runwire import failpoints
from runwire.domain.access import AccessLevel
from runwire.domain.errors import (
    Draining,
    Forbidden,
    KeyReused,
    MalformedKey,
    NotAccepted,
    RunFailed,
    TaskBusy,
    TaskNotFound,
    TooManyOutstanding,
)
from runwire.domain.ids import uuid7
from runwire.domain.lifecycle import Document
from runwire.domain.run import Run, Source
from runwire.domain.task import StateCode
from runwire.failpoints import Point
from runwire.http import idempotency, prefer
from runwire.http.auth import CALLER
from runwire.http.endpoint import PREFER, TASK_ID, Answer, Endpoint
from runwire.http.idempotency import IDEMPOTENCY_KEY, REPLAYED, RunKey
from runwire.http.lookup import find_task, task_id
from runwire.http.prefer import Preference
from runwire.http.query import Query, parse_query
from runwire.http.schemas import ExecuteView, ended_view, execute_view, json_bytes
from runwire.http.services import Services, services
from runwire.http.tracing import TRACE, trace_of
from runwire.http.waiting import Call

PATH = "/tasks/{id}/execute"


class ExecuteQuery(Query):
    """Query parameters of execute."""

    on_error: Annotated[
        Literal["status"] | None,
        Field(description="`status`: answer 500 when the run ends as ERROR, for callers that look at the status only."),
    ] = None
    if_running: Annotated[
        Literal["join", "queue"] | None,
        Field(
            description="When the task is busy, instead of 409: `join` waits for the run it is busy with; `queue` "
            "waits for one's turn, and is 409 when the caller's wait is over first."
        ),
    ] = None


@dataclass(frozen=True)
class Outcome:
    """What became of the call."""

    run: str
    ended: Run | None
    """None: not yet."""
    replayed: bool = False
    """It had ended before the call came: an earlier one with the same key asked for it."""
    joined: bool = False
    """Somebody else asked for it."""


async def execute(request: Request) -> Response:
    """Run the task now, whatever its trigger says; the schedule is neither moved nor consumed."""
    parts = services(request)
    task = task_id(request.path_params["id"])
    principal = await parts.authenticate(request)
    document = await find_task(parts, principal, task, AccessLevel.OPERATOR)
    query = parse_query(request, ExecuteQuery)
    preference = prefer.parse(request.headers.getlist("prefer"))
    key = idempotency.parse_key(request)
    require_open(parts)
    wait = preference.seconds(parts.settings.wait_seconds)
    deadline = asyncio.get_running_loop().time() + wait
    source = Source.BUS if CALLER in request.scope else Source.HTTP
    call = Call(
        request=request, parts=parts, document=document, deadline=deadline, source=source, trace=trace_of(request)
    )
    claimed = None if key is None else await _claim(call, principal.token, key)
    outcome = await _carry_out(call, claimed, query.if_running)
    headers = _headers(document, outcome, preference)
    if outcome.ended is None:
        return await not_yet(parts, document, outcome.run, headers)
    failpoints.reach(Point.BEFORE_ANSWER)
    return _ended(document, outcome.ended, headers, on_error_status=query.on_error == "status")


def require_open(parts: Services) -> None:
    """Raise Draining or NotAccepted unless runs are taken at the moment."""
    if parts.draining:
        raise Draining("This adapter is stopping; try again.")
    parts.pressure.require_room()


async def _claim(call: Call, token: str, key: str) -> RunKey:
    return await idempotency.claim_run(
        call.parts, call.document.task, route=PATH, token=token, key=key, patience=call.patience
    )


async def _carry_out(call: Call, claimed: RunKey | None, if_running: str | None) -> Outcome:
    """Start the run, unless the key stands for one already, and wait for its end."""
    if claimed is not None and claimed.is_joined:
        return await _wait_for_joined(call, claimed.run, claimed)
    run = uuid7() if claimed is None else claimed.run
    with call.parts.waiters.registered(call.document.task.id, run) as end:
        before = await claimed.ended_before() if claimed is not None else None
        if before is not None:
            return Outcome(run, before, replayed=True)
        try:
            await (call.publish_in_turn(run) if if_running == "queue" else call.publish(run))
        except TaskBusy as busy:
            if if_running != "join":
                raise
            busy_with = busy.run
        else:
            return Outcome(run, await call.wait_for_end(run, end))
    return await _join(call, busy_with, claimed)


async def _join(call: Call, run: str, claimed: RunKey | None) -> Outcome:
    """The run the task is busy with is this call's run, too: from now on, where there is a key."""
    if claimed is None:
        return await _wait_for_joined(call, run, None)
    await claimed.stand_for(run)
    return await _wait_for_joined(call, claimed.run, claimed)


async def _wait_for_joined(call: Call, run: str, claimed: RunKey | None) -> Outcome:
    """Wait for the end of a run that somebody else asked for. Raises TaskBusy when it could not be carried out."""
    with call.parts.waiters.registered(call.document.task.id, run) as end:
        before = await claimed.ended_before() if claimed is not None else await call.ended(run)
        try:
            ended = before or await call.wait_for_end(run, end)
        except TaskNotFound:  # said of a garbled command, for one: the task is there, and may be free now
            if claimed is not None:
                await claimed.release()
            raise TaskBusy(run) from None
    if claimed is not None and ended is not None:
        await claimed.keep(ended)
    return Outcome(run, ended, joined=True, replayed=claimed is not None and before is not None)


def _headers(document: Document, outcome: Outcome, preference: Preference) -> dict[str, str]:
    headers = {
        "Run-Id": outcome.run,
        "Location": f"/tasks/{document.task.id}/runs/{outcome.run}",
        "Cache-Control": "no-store",
        "Vary": "Prefer",
        **preference.applied,
    }
    if outcome.replayed:
        headers["Idempotency-Replayed"] = "true"
    if outcome.joined:
        headers["Run-Joined"] = "true"
    return headers


def _ended(document: Document, run: Run, headers: dict[str, str], *, on_error_status: bool) -> Response:
    body = ended_view(run, document.task.state)
    headers["Task-State"] = run.code.value
    if run.error is not None:
        headers["Task-Error"] = run.error.code
        if on_error_status:
            # The four documented fields win: here `code` is the task's ERROR, the problem is told by its `type`.
            facts: dict[str, Any] = {"error": run.error.model_dump(), **body}
            raise RunFailed(f"{run.error.code}: {run.error.message}", facts=facts, headers=headers)
    return Response(json_bytes(body), 200, headers, "application/json")


async def not_yet(parts: Services, document: Document, run: str, headers: dict[str, str]) -> Response:
    """202: where the run stands at this moment."""
    latest = await parts.reader.document(document.task.id) or document
    state = latest.task.state
    running = latest.run is not None and latest.run.id == run
    code = state.code if running else StateCode.READY
    headers |= {"Task-State": code.value, "Retry-After": "1"}
    body = execute_view(code, state.last_run_date, state.last_modified, state.created_date)
    return Response(json_bytes(body), 202, headers, "application/json")


RUN_HEADERS = {
    "Run-Id": {"schema": {"type": "string"}, "description": "The run."},
    "Task-State": {"schema": {"type": "string"}, "description": "State of the run: READY, INPROGRESS, DONE or ERROR."},
    "Location": {"schema": {"type": "string"}, "description": "The run, for GET."},
    "Run-Joined": {
        "schema": {"type": "string", "enum": ["true"]},
        "description": "The task was busy, and with `if_running=join` this is the run it was busy with.",
    },
}
TASK_ERROR = {"Task-Error": {"schema": {"type": "string"}, "description": "Why it ended as ERROR: a stable code."}}
RETRY_AFTER = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds until it is worth asking."}}

ENDPOINTS = (
    Endpoint(
        method="POST", path=PATH, handle=execute,
        parameters=(TASK_ID, PREFER, IDEMPOTENCY_KEY, *TRACE),
        query=ExecuteQuery,
        answers={
            200: Answer(text="The run has ended.", model=ExecuteView, headers=RUN_HEADERS | REPLAYED | TASK_ERROR),
            202: Answer(
                text="The wait is over, the run is not.", model=ExecuteView, headers=RUN_HEADERS | RETRY_AFTER
            ),
        },
        problems=(
            Forbidden, TaskNotFound, TaskBusy, MalformedKey, KeyReused, TooManyOutstanding, RunFailed, NotAccepted,
            Draining,
        ),
    ),
)  # fmt: skip
