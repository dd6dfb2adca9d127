"""``PATCH`` and ``DELETE /tasks/{id}``: change a task's definition, or end it for good."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from runwire import failpoints
from runwire.domain import lifecycle
from runwire.domain.access import AccessLevel
from runwire.domain.errors import (
    Conflict,
    Draining,
    Forbidden,
    MalformedIfMatch,
    NotAccepted,
    NotRunning,
    Stale,
    TaskBusy,
    TaskNotFound,
)
from runwire.domain.lifecycle import Change, Document
from runwire.failpoints import Point
from runwire.http.body import read_body
from runwire.http.endpoint import TASK_ID, Answer, Endpoint
from runwire.http.etag import ETAG, IF_MATCH, IfMatch, etag, if_match
from runwire.http.lookup import find_task, task_id
from runwire.http.query import Query, parse_query
from runwire.http.schemas import TaskPatch, TaskView, json_bytes, parse_patch, patched, task_view
from runwire.http.services import Services, services
from runwire.http.trigger_schemas import TASK_NOTE, task_note
from runwire.messaging import cancellation, commands, events
from runwire.messaging.broker import Bus
from runwire.messaging.events import Head

ROUNDS = 50
"""How often a lost race is followed by another look before the caller is told to come again."""
LOG_ENTRIES = 10
"""Log entries in the answer: as many as a GET shows by default."""


class DeleteQuery(Query):
    """Query parameters of a deletion."""

    force: Annotated[bool, Field(description="Cancel the task's run first, if it is queued or running.")] = False


async def edit_task(request: Request) -> Response:
    """Change a task by a JSON merge patch (RFC 7396). A run that has begun goes on by what it began with."""
    parts = services(request)
    task = task_id(request.path_params["id"])
    principal = await parts.authenticate(request)
    document = await find_task(parts, principal, task, AccessLevel.MANAGER)
    condition = if_match(request)
    patch = parse_patch(await read_body(request))
    _refuse_when_stopping(parts)
    parts.pressure.require_room()
    chain = document.task.chain
    for _ in range(ROUNDS):
        head = await _load(parts.bus, chain, task)
        condition.require(head.document.task.version)
        definition = patched(head.document.task, patch)
        if definition.target != head.document.task.target:  # what was stored once is never refused
            parts.catalogue.check(definition.target)
        edited = lifecycle.edit(head.document, definition, by=principal.token, now=datetime.now(UTC))
        if _says_the_same(head.document, edited):
            return await _answer(parts, head.document, {})
        try:
            sequence = await events.append_confirmed(parts.bus, edited, expected=head.sequence)
        except Conflict:
            continue  # the same changes, to what it is now
        await parts.until_readable(sequence)
        return await _answer(parts, edited, task_note(edited, now=datetime.now(UTC)))
    raise NotAccepted("The task kept changing; nothing was stored.")


async def delete_task(request: Request) -> Response:
    """Delete a task, for good; refused while it is queued or running, unless forced. Needs manager."""
    parts = services(request)
    query = parse_query(request, DeleteQuery)
    task = task_id(request.path_params["id"])
    principal = await parts.authenticate(request)
    document = await find_task(parts, principal, task, AccessLevel.MANAGER)
    condition = if_match(request)
    _refuse_when_stopping(parts)
    await parts.until_readable(
        await _delete(parts.bus, document.task.chain, task, condition, force=query.force, by=principal.token)
    )
    return Response(status_code=204, headers={"Cache-Control": "no-store"})


async def _delete(bus: Bus, chain: int, task: int, condition: IfMatch, *, force: bool, by: str) -> int:
    """Append the task's last event; returns its sequence."""
    cancelled = 0
    for _ in range(ROUNDS):
        head = await _load(bus, chain, task)
        version = head.document.task.version
        if version != cancelled:  # what the caller's own cancel made of it is what the caller has seen
            condition.require(version)
        # Read after the event: a command that comes later either moves the fence or finds the task deleted.
        busy = await _outstanding(bus, head.document)
        if busy is not None and not force:
            raise TaskBusy(busy)
        try:
            if busy is None:
                failpoints.reach(Point.BEFORE_DELETION)
                return await events.append_confirmed(
                    bus, lifecycle.delete(head.document, by=by), expected=head.sequence
                )
            ended = await cancellation.cancel(bus, chain, task, by=by)
        except (Conflict, NotRunning):
            continue
        if ended.document.task.version == version + 1:
            cancelled = version + 1
    raise NotAccepted("The task kept changing; it was not deleted.")


async def _load(bus: Bus, chain: int, task: int) -> Head:
    """The task's last event, for a writer. Raises TaskNotFound."""
    head = await events.load(bus, chain, task, leader=True)
    if head is None or head.document.change is Change.DELETED:
        raise TaskNotFound(f"There is no task {task}.")
    return head


async def _outstanding(bus: Bus, document: Document) -> str | None:
    """The run that the task is busy with, queued or running."""
    if document.run is not None and not document.run.is_final:
        return document.run.id
    held = await commands.outstanding(bus, document.task.chain, document.task.id)
    if held is None or lifecycle.has_ended(document, commands.run_of(held)):
        return None
    return commands.run_of(held)


def _says_the_same(document: Document, edited: Document) -> bool:
    return edited.task == document.task.model_copy(update={"version": edited.task.version})


def _refuse_when_stopping(parts: Services) -> None:
    if parts.draining:
        raise Draining("This adapter is stopping; try again.")


async def _answer(parts: Services, document: Document, note: dict[str, str]) -> Response:
    """The task at this version, with its newest log entries."""
    task = document.task
    shown = await parts.reader.task(task.id, log_limit=LOG_ENTRIES, log_offset=0)
    view = task_view(document, shown.logs if shown else [], now=datetime.now(UTC))
    headers = {"ETag": etag(task.version), "Cache-Control": "no-store"} | note
    return Response(json_bytes(view), 200, headers, "application/json")


ENDPOINTS = (
    Endpoint(
        method="PATCH", path="/tasks/{id}", handle=edit_task,
        parameters=(TASK_ID, IF_MATCH),
        body=TaskPatch, body_types=("application/merge-patch+json", "application/json"),
        answers={200: Answer(text="The task, as it is now.", model=TaskView, headers=ETAG | TASK_NOTE)},
        problems=(Forbidden, TaskNotFound, MalformedIfMatch, Stale, NotAccepted, Draining),
    ),
    Endpoint(
        method="DELETE", path="/tasks/{id}", handle=delete_task, query=DeleteQuery,
        parameters=(TASK_ID, IF_MATCH),
        answers={204: Answer(text="There is no such task any more.")},
        problems=(Forbidden, TaskNotFound, TaskBusy, MalformedIfMatch, Stale, NotAccepted, Draining),
    ),
)  # fmt: skip
