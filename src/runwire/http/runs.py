"""``/tasks/{id}/runs/{run}``: one run, wherever it stands."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from runwire.domain.access import AccessLevel
from runwire.domain.errors import Forbidden, RunNotFound, TaskNotFound
from runwire.domain.lifecycle import Document
from runwire.domain.run import PUBLIC_FIELDS, Source
from runwire.domain.task import StateCode, whole_seconds
from runwire.http import prefer
from runwire.http.endpoint import PREFER, RUN_ID, TASK_ID, Answer, Endpoint
from runwire.http.execute import wait_until
from runwire.http.lookup import find_task, run_id, task_id
from runwire.http.schemas import RunView, instant, json_bytes
from runwire.http.services import Services, services
from runwire.messaging import commands, deadletters, events, subjects


async def get_run(request: Request) -> Response:
    """One run; with `Prefer: wait=N` the answer comes when it has ended, or after N seconds. Needs viewer."""
    parts = services(request)
    task, run = task_id(request.path_params["id"]), run_id(request.path_params["run"])
    principal = await parts.authenticate(request)
    document = await find_task(parts, principal, task, AccessLevel.VIEWER)
    preference = prefer.parse(request.headers.getlist("prefer"))
    deadline = asyncio.get_running_loop().time() + preference.seconds(0)
    with parts.waiters.registered(task, run) as end:
        view = await _view(parts, document, run)
        if view["finished"] is None and not parts.waiters.is_full and not parts.draining:
            await wait_until(request, end, deadline)
            view = await _view(parts, document, run)
    headers = {"Run-Id": run, "Task-State": view["code"], "Cache-Control": "no-store", "Vary": "Prefer"}
    if view["error"] and view["finished"]:
        headers["Task-Error"] = view["error"]["code"]
    return Response(json_bytes(view), 200, headers | preference.applied, "application/json")


async def _view(parts: Services, document: Document, run: str) -> dict[str, Any]:
    """The run: from the read model, while it is queued from COMMANDS, else from EVENTS. Raises RunNotFound."""
    task = document.task
    known = await parts.reader.run(task.id, run)
    if known is not None:
        return known.public()
    queued = await commands.outstanding(parts.bus, task.chain, task.id)
    if queued is not None and commands.run_of(queued) == run:
        source = (queued.headers or {}).get(subjects.RUN_SOURCE, Source.BUS)
        accepted = instant(whole_seconds(queued.time)) if queued.time else None
        return dict.fromkeys(PUBLIC_FIELDS) | {
            "id": run,
            "task": task.id,
            "chain": task.chain,
            "code": StateCode.READY.value,
            "attempt": 0,
            "source": source,
            "accepted": accepted,
        }
    head = await events.load(parts.bus, task.chain, task.id, leader=True)
    if head is not None and head.document.run is not None and head.document.run.id == run:
        return head.document.run.public()
    dead = await deadletters.last(parts.bus, task.chain, task.id)
    if dead is not None and dead.run == run:
        raise RunNotFound(f"The command of run {run} could not be carried out: {dead.detail}")
    raise RunNotFound(f"Task {task.id} has no run {run}.")


ENDPOINTS = (
    Endpoint(
        method="GET", path="/tasks/{id}/runs/{run}", handle=get_run, tag="runs",
        parameters=(TASK_ID, RUN_ID, PREFER),
        answers={200: Answer(text="The run.", model=RunView)},
        problems=(Forbidden, TaskNotFound, RunNotFound),
    ),
)  # fmt: skip
