"""``POST /tasks/{id}/cancel``: end the task's run, queued or running, whether or not a worker is alive."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from runwire.domain import run as runs
from runwire.domain.access import AccessLevel
from runwire.domain.errors import Draining, Forbidden, NotAccepted, NotRunning, TaskNotFound
from runwire.domain.run import ErrorCode
from runwire.http.endpoint import TASK_ID, Answer, Endpoint
from runwire.http.execute import RUN_HEADERS, TASK_ERROR
from runwire.http.lookup import find_task, task_id
from runwire.http.query import Query, parse_query
from runwire.http.schemas import ExecuteView, ended_view, json_bytes
from runwire.http.services import services
from runwire.messaging import cancellation


class CancelQuery(Query):
    """Query parameters of a cancel."""

    run: Annotated[
        str | None,
        Field(pattern=f"^{runs.RUN_ID.pattern}$", description="Only if this is the run that is queued or running."),
    ] = None


async def cancel_run(request: Request) -> Response:
    """Cancel the task's run, queued or running: it ends as ERROR `cancelled`, and its worker stops. Needs operator."""
    parts = services(request)
    query = parse_query(request, CancelQuery)
    task = task_id(request.path_params["id"])
    principal = await parts.authenticate(request)
    document = await find_task(parts, principal, task, AccessLevel.OPERATOR)
    if parts.draining:
        raise Draining("This adapter is stopping; try again.")
    ended = await cancellation.cancel(parts.bus, document.task.chain, task, by=principal.token, run=query.run)
    await parts.until_readable(ended.sequence)
    run = ended.document.run
    if run is None:
        raise NotRunning("The task is neither queued nor running.")
    headers = {
        "Run-Id": run.id,
        "Location": f"/tasks/{task}/runs/{run.id}",
        "Task-State": run.code.value,
        "Task-Error": ErrorCode.CANCELLED.value,
        "Cache-Control": "no-store",
    }
    return Response(json_bytes(ended_view(run, ended.document.task.state)), 200, headers, "application/json")


ENDPOINTS = (
    Endpoint(
        method="POST", path="/tasks/{id}/cancel", handle=cancel_run, query=CancelQuery,
        parameters=(TASK_ID,),
        answers={200: Answer(text="The run has ended.", model=ExecuteView, headers=RUN_HEADERS | TASK_ERROR)},
        problems=(Forbidden, TaskNotFound, NotRunning, NotAccepted, Draining),
    ),
)  # fmt: skip
