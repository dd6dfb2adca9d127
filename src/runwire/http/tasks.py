"""``/tasks``: create, list, get."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated
from uuid import uuid4

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from runwire.domain import lifecycle
from runwire.domain.access import AccessLevel
from runwire.domain.errors import Conflict, Draining, Forbidden, IdTaken, NotAccepted, TaskNotFound
from runwire.domain.lifecycle import Definition, Document
from runwire.domain.task import MAX_ID, StateCode
from runwire.http.body import read_body
from runwire.http.endpoint import TASK_ID, Answer, Endpoint
from runwire.http.execute import FULL
from runwire.http.lookup import find_task, readable_chains, task_id
from runwire.http.paging import PAGING, page_headers
from runwire.http.query import Page, Query, parse_query
from runwire.http.schemas import TaskBody, TaskView, json_bytes, parse_task, task_view
from runwire.http.services import Services, services
from runwire.messaging import events, ids
from runwire.messaging.broker import UNAVAILABLE
from runwire.readmodel.reader import TaskFilter

TRIES = 5
"""How often an event whose storing was not confirmed is sent again."""
LONGEST_LAG = 10.0
"""Seconds the answer to a create waits for this adapter's read model to hold the task."""
LONGEST_LEAP = 4096
"""Ids skipped at once where users have chosen a stretch of ids themselves."""


class TasksQuery(Page):
    """Query parameters of the list."""

    status: Annotated[StateCode | None, Field(description="Only tasks in this state.")] = None
    action: Annotated[str | None, Field(max_length=200, description="Only tasks with this action.")] = None
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
    definition = body.definition()
    if not principal.reaches(definition.chain):
        raise Forbidden(f"This token does not reach chain {definition.chain}.", needs="manager")
    principal.require(AccessLevel.MANAGER, definition.chain)
    if parts.draining:
        raise Draining("This adapter is stopping; try again.")
    if parts.pressure.events >= FULL:
        raise NotAccepted("The event stream is nearly full; nothing was stored.")
    document, sequence = await _store(parts, definition, body.id, by=principal.token)
    with suppress(TimeoutError):  # a read model that lags makes the answer late, not wrong: the task is stored
        async with asyncio.timeout(LONGEST_LAG):
            await parts.milestones.wait(sequence)
    task = document.task
    return Response(
        json_bytes(task_view(task, [])),
        201,
        {"Location": f"/tasks/{task.id}", "Cache-Control": "no-store"},
        "application/json",
    )


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
    return Response(
        json_bytes([task_view(found.document.task, found.logs) for found in tasks]), 200, headers, "application/json"
    )


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
        if head is None:
            raise TaskNotFound(f"There is no task {task}.")
        view = task_view(head.document.task, [])
    else:
        view = task_view(found.document.task, found.logs)
    return Response(json_bytes(view), 200, {"Cache-Control": "no-store"}, "application/json")


async def _store(parts: Services, definition: Definition, wanted: int | None, *, by: str) -> tuple[Document, int]:
    """Append the first event of the task under the wanted id, or under the counter's next one that is free."""
    leap = 1
    while True:
        number = wanted or await ids.next_id(parts.bus, step=leap)
        document = lifecycle.create(definition, number, datetime.now(UTC), by=by)
        try:
            return document, await _append_first(parts, document)
        except Conflict:
            if wanted:
                raise IdTaken(f"A task with the id {wanted} exists.") from None
            leap = min(leap * 2, LONGEST_LEAP)


async def _append_first(parts: Services, document: Document) -> int:
    """The task's first event; the fence over all chains keeps its id unique."""
    event_id = uuid4().hex
    for _ in range(TRIES):
        try:
            return await events.append(parts.bus, document, expected=0, event_id=event_id, unique_id=True)
        except UNAVAILABLE:
            continue
    raise NotAccepted("The broker did not confirm the task in time; it may or may not have been stored.")


LOCATION = {"Location": {"schema": {"type": "string"}, "description": "The task, for GET."}}
ENDPOINTS = (
    Endpoint(
        method="POST", path="/tasks", handle=create_task, body=TaskBody,
        answers={201: Answer(text="Created.", model=TaskView, headers=LOCATION)},
        problems=(Forbidden, IdTaken, NotAccepted, Draining),
    ),
    Endpoint(
        method="GET", path="/tasks", handle=list_tasks, query=TasksQuery,
        answers={200: Answer(text="A page of tasks.", model=list[TaskView], headers=PAGING)},
        problems=(Forbidden,),
    ),
    Endpoint(
        method="GET", path="/tasks/{id}", handle=get_task, query=TaskQuery,
        parameters=(TASK_ID,),
        answers={200: Answer(text="The task.", model=TaskView)},
        problems=(Forbidden, TaskNotFound),
    ),
)  # fmt: skip
