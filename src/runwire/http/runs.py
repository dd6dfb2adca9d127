"""``/tasks/{id}/runs``: the runs of a task, one of them wherever it stands, and what it logged."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from runwire.domain import lifecycle
from runwire.domain.access import AccessLevel
from runwire.domain.errors import Forbidden, RunNotFound, TaskNotFound
from runwire.domain.lifecycle import Document
from runwire.domain.run import Run, RunCode
from runwire.domain.task import MAX_ID
from runwire.http import prefer
from runwire.http.endpoint import PREFER, RUN_ID, TASK_ID, Answer, Endpoint
from runwire.http.lookup import find_task, run_id, task_id
from runwire.http.paging import PAGING, page_headers
from runwire.http.query import Page, Query, parse_query
from runwire.http.schemas import LogPageView, RunView, json_bytes, progress_view
from runwire.http.services import Services, services
from runwire.http.waiting import wait_until
from runwire.messaging import commands, deadletters, events
from runwire.messaging.broker import UNAVAILABLE
from runwire.readmodel.reader import is_of


class RunsQuery(Page):
    """Query parameters of the list."""

    limit: Annotated[int, Field(ge=1, le=1000, description="How many, at most.")] = 50
    code: Annotated[RunCode | None, Field(description="Only runs in this state.")] = None


class LinesQuery(Query):
    """Query parameters of a run's log."""

    after: Annotated[int, Field(ge=0, le=MAX_ID, description="Only lines after this one: `next` of the last call.")] = 0
    limit: Annotated[int, Field(ge=1, le=1000, description="How many, at most.")] = 100


async def list_runs(request: Request) -> Response:
    """The runs of a task, newest first. Needs viewer."""
    parts = services(request)
    task = task_id(request.path_params["id"])
    principal = await parts.authenticate(request)
    document = await find_task(parts, principal, task, AccessLevel.VIEWER)
    query = parse_query(request, RunsQuery)
    current = [view for view in await _current(parts, document) if query.code in {None, view["code"]}]
    ended, total = await parts.reader.runs(
        task,
        code=query.code,
        limit=query.limit,
        offset=max(0, query.offset - len(current)),
    )
    report = await parts.reader.report(task)
    page = [with_progress(view, report) for view in [*current[query.offset :], *ended][: query.limit]]
    headers = page_headers(request, limit=query.limit, offset=query.offset, total=total + len(current))
    return Response(json_bytes(page), 200, headers, "application/json")


async def get_run(request: Request) -> Response:
    """One run; with `Prefer: wait=N` the answer comes when it has ended, or after N seconds. Needs viewer."""
    parts = services(request)
    task, run = task_id(request.path_params["id"]), run_id(request.path_params["run"])
    principal = await parts.authenticate(request)
    document = await find_task(parts, principal, task, AccessLevel.VIEWER)
    preference = prefer.parse(request.headers.getlist("prefer"))
    deadline = asyncio.get_running_loop().time() + preference.seconds(0)
    with parts.waiters.registered(task, run) as end:
        view, _ = await _find(parts, document, run)
        if view["finished"] is None and not parts.waiters.is_full and not parts.draining:
            await wait_until(request, end, deadline)
            view, _ = await _find(parts, document, run)
    view = with_progress(view, await parts.reader.report(task))
    headers = {"Run-Id": run, "Task-State": view["code"], "Cache-Control": "no-store", "Vary": "Prefer"}
    if view["error"] and view["finished"]:
        headers["Task-Error"] = view["error"]["code"]
    return Response(json_bytes(view), 200, headers | preference.applied, "application/json")


async def get_run_logs(request: Request) -> Response:
    """What a run has logged, line by line: ask again with `after` until it is final. Needs viewer."""
    parts = services(request)
    task, run = task_id(request.path_params["id"]), run_id(request.path_params["run"])
    principal = await parts.authenticate(request)
    document = await find_task(parts, principal, task, AccessLevel.VIEWER)
    query = parse_query(request, LinesQuery)
    _, known = await _find(parts, document, run)  # before its lines: what has ended by now can only miss none
    lines, read_up_to = await parts.reader.lines(task, run, after=query.after, limit=query.limit)
    last = lines[-1][0] if lines else query.after
    has_all = known is not None and known.is_final and read_up_to >= known.log_seq and len(lines) < query.limit
    page = {
        "lines": [
            {"line": line, "date": entry["date"], "level": entry["level"], "message": entry["message"]}
            for line, entry in lines
        ],
        "next": last,
        "final": has_all,
    }
    return Response(json_bytes(page), 200, {"Cache-Control": "no-store"}, "application/json")


def with_progress(run: dict[str, Any], report: dict[str, Any] | None) -> dict[str, Any]:
    """A run as it is shown, with how far its latest attempt says it has come."""
    return run | {"progress": progress_view(report) if report is not None and is_of(run, report) else None}


async def _current(parts: Services, document: Document) -> list[dict[str, Any]]:
    """The run that is queued and the one that is in progress, as far as there are.

    While the broker is away nobody knows of a queued one.
    """
    latest = await parts.reader.document(document.task.id) or document
    running = latest.run if latest.run is not None and not latest.run.is_final else None
    current = [] if running is None else [running.public()]
    with suppress(*UNAVAILABLE):
        queued = await _queued(parts, latest)
        is_new = queued is not None and (running is None or running.id != queued["id"])
        if queued is not None and is_new and not lifecycle.has_ended(latest, queued["id"]):
            current.insert(0, queued)
    return current


async def _find(parts: Services, document: Document, run: str) -> tuple[dict[str, Any], Run | None]:
    """The run as it is shown, and as it is known unless it is queued. Raises RunNotFound.

    From the read model, while it is queued from COMMANDS, else from EVENTS.
    """
    task = document.task
    known = await parts.reader.run(task.id, run)
    if known is not None:
        return known.public(), known
    queued = await _queued(parts, document)
    if queued is not None and queued["id"] == run:
        return queued, None
    head = await events.load(parts.bus, task.chain, task.id, leader=True)
    if head is not None and head.document.run is not None and head.document.run.id == run:
        return head.document.run.public(), head.document.run
    dead = await deadletters.last(parts.bus, task.chain, task.id)
    if dead is not None and dead.run == run:
        raise RunNotFound(f"The command of run {run} could not be carried out: {dead.detail}")
    raise RunNotFound(f"Task {task.id} has no run {run}.")


async def _queued(parts: Services, document: Document) -> dict[str, Any] | None:
    """The run that the task's command in COMMANDS asks for, as it is shown before a worker has it."""
    task = document.task
    command = await commands.outstanding(parts.bus, task.chain, task.id)
    return None if command is None else commands.queued_run(command).public()


ENDPOINTS = (
    Endpoint(
        method="GET", path="/tasks/{id}/runs", handle=list_runs, tag="runs", query=RunsQuery,
        parameters=(TASK_ID,),
        answers={200: Answer(text="A page of runs, newest first.", model=list[RunView], headers=PAGING)},
        problems=(Forbidden, TaskNotFound),
    ),
    Endpoint(
        method="GET", path="/tasks/{id}/runs/{run}", handle=get_run, tag="runs",
        parameters=(TASK_ID, RUN_ID, PREFER),
        answers={200: Answer(text="The run.", model=RunView)},
        problems=(Forbidden, TaskNotFound, RunNotFound),
    ),
    Endpoint(
        method="GET", path="/tasks/{id}/runs/{run}/logs", handle=get_run_logs, tag="runs", query=LinesQuery,
        parameters=(TASK_ID, RUN_ID),
        answers={200: Answer(text="A stretch of the run's log.", model=LogPageView)},
        problems=(Forbidden, TaskNotFound, RunNotFound),
    ),
)  # fmt: skip
