"""``/tasks``: create, list, get."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from runwire.domain.access import AccessLevel
from runwire.domain.errors import Draining, Forbidden, IdTaken, KeyReused, MalformedKey, NotAccepted, TaskNotFound
from runwire.domain.lifecycle import Change
from runwire.domain.task import MAX_ID, StateCode
from runwire.http import creation, idempotency
from runwire.http.body import read_body
from runwire.http.endpoint import TASK_ID, Answer, Endpoint
from runwire.http.etag import ETAG, etag
from runwire.http.idempotency import IDEMPOTENCY_KEY, REPLAYED
from runwire.http.lookup import find_task, readable_chains, task_id
from runwire.http.paging import PAGING, page_headers
from runwire.http.query import Page, Query, parse_query
from runwire.http.schemas import TaskBody, TaskView, json_bytes, listed_view, parse_task, task_view
from runwire.http.services import services
from runwire.http.trigger_schemas import TASK_NOTE, task_note
from runwire.messaging import events
from runwire.readmodel.reader import TaskFilter


class TasksQuery(Page):
    """Query parameters of the list."""

    status: Annotated[StateCode | None, Field(description="Only tasks in this state.")] = None
    action: Annotated[str | None, Field(min_length=1, max_length=200, description="Only tasks with this action.")] = (
        None
    )
    campaign_id: Annotated[int | None, Field(ge=-MAX_ID, le=MAX_ID, description="Only tasks of this campaign.")] = None
    chain: Annotated[int | None, Field(ge=1, le=MAX_ID, description="Only this one of the token's chains.")] = None


class TaskQuery(Query):
    """Query parameters of one task."""

    log_limit: Annotated[int, Field(ge=0, le=1000, description="Log entries to show.")] = 10
    offset: Annotated[int, Field(ge=0, le=MAX_ID, description="Newest log entries to leave out.")] = 0


async def create_task(request: Request) -> Response:
    """Create a task: READY. Needs manager."""
    parts = services(request)
    principal = await parts.authenticate(request)
    body = parse_task(await read_body(request))
    key = idempotency.parse_key(request)
    if not principal.reaches(body.chain):
        raise Forbidden(f"This token does not reach chain {body.chain}.", needs="manager")
    principal.require(AccessLevel.MANAGER, body.chain)
    if parts.draining:
        raise Draining("This adapter is stopping; try again.")
    parts.pressure.require_room()
    if key is None:
        created = await creation.create(parts, body, by=principal.token)
    else:
        created = await creation.create_once(parts, body, key, by=principal.token)
    await parts.until_readable(created.sequence)
    task = created.document.task
    now = datetime.now(UTC)
    if created.replayed:  # the task as it was created, whatever time it is by now
        now = task.state.created_date
    headers = {"Location": f"/tasks/{task.id}", "ETag": etag(task.version), "Cache-Control": "no-store"}
    if created.replayed:
        headers["Idempotency-Replayed"] = "true"
    headers |= task_note(created.document, now=now)
    return Response(json_bytes(task_view(created.document, [], now=now)), 201, headers, "application/json")


async def list_tasks(request: Request) -> Response:
    """The tasks of the token's chains, sorted by id. Needs viewer."""
    parts = services(request)
    query = parse_query(request, TasksQuery)
    principal = await parts.authenticate(request)
    which = TaskFilter(
        chains=readable_chains(principal, query.chain),
        code=query.status,
        action=query.action,
        campaign=query.campaign_id,
    )
    tasks, total = await parts.reader.tasks(which, limit=query.limit, offset=query.offset)
    headers = page_headers(request, limit=query.limit, offset=query.offset, total=total)
    now = datetime.now(UTC)
    return Response(json_bytes([listed_view(found, now=now) for found in tasks]), 200, headers, "application/json")


async def get_task(request: Request) -> Response:
    """The whole task. Needs viewer."""
    parts = services(request)
    query = parse_query(request, TaskQuery)
    task = task_id(request.path_params["id"])
    principal = await parts.authenticate(request)
    await find_task(parts, principal, task, AccessLevel.VIEWER)
    found = await parts.reader.task(task, log_limit=query.log_limit, log_offset=query.offset)
    if found is None:  # created through another adapter a moment ago
        head = await events.find(parts.bus, task)
        if head is None or head.document.change is Change.DELETED:
            raise TaskNotFound(f"There is no task {task}.")
        view = task_view(head.document, [], now=datetime.now(UTC))
    else:
        view = task_view(found.document, found.logs, now=datetime.now(UTC))
    headers = {"ETag": etag(view["version"]), "Cache-Control": "no-store"}
    if found is not None and found.progress is not None and view["state"]["code"] == StateCode.INPROGRESS:
        fraction = found.progress["fraction"]
        if fraction is not None:
            headers["Task-Progress"] = f"{fraction:g}"
    return Response(json_bytes(view), 200, headers, "application/json")


LOCATION = {"Location": {"schema": {"type": "string"}, "description": "The task, for GET."}}
TASK_PROGRESS = {
    "Task-Progress": {
        "schema": {"type": "number", "minimum": 0, "maximum": 1},
        "description": "How far the run in progress says it has come; absent when it has not said.",
    }
}
ENDPOINTS = (
    Endpoint(
        method="POST", path="/tasks", handle=create_task, body=TaskBody,
        parameters=(IDEMPOTENCY_KEY,),
        answers={201: Answer(text="Created.", model=TaskView, headers=LOCATION | ETAG | REPLAYED | TASK_NOTE)},
        problems=(Forbidden, IdTaken, MalformedKey, KeyReused, NotAccepted, Draining),
    ),
    Endpoint(
        method="GET", path="/tasks", handle=list_tasks, query=TasksQuery,
        answers={200: Answer(text="A page of tasks.", model=list[TaskView], headers=PAGING)},
        problems=(Forbidden,),
    ),
    Endpoint(
        method="GET", path="/tasks/{id}", handle=get_task, query=TaskQuery,
        parameters=(TASK_ID,),
        answers={200: Answer(text="The task.", model=TaskView, headers=ETAG | TASK_PROGRESS)},
        problems=(Forbidden, TaskNotFound),
    ),
)  # fmt: skip
