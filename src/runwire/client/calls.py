"""What the methods do that have one answer, and those that go through pages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote as urlquote
from uuid import uuid4

import httpx

from runwire.client.errors import NotFinished, Problem
from runwire.client.models import Line, Result, Run, RunError, Subscription, Task, View
from runwire.client.steps import POLL, Call, Emit, Pause, Steps, Terms, ask

PAGE = 1000
"""Rows that are asked for at once: as many as adapters give."""
TURN, QUEUE_POLL = 5, 600
"""Seconds that a call waits for its turn: until it is known to be accepted, or until its end. Who comes back after a
shorter wait stands behind those who stayed."""
LOOK_AGAIN = 1.0
"""Seconds between two looks at something that does not say when it changes."""

TaskRef = int | Task
"""A task, or its id."""
SubscriptionRef = str | Subscription
"""A subscription, or its id."""


def task_path(task: TaskRef) -> str:
    """Where a task is."""
    return f"/tasks/{task.id if isinstance(task, Task) else task}"


# --- runs ----------------------------------------------------------------------------------------------------


def execute(
    terms: Terms,
    task: TaskRef,
    *,
    wait: float | None,
    idempotency_key: str | None,
    if_running: str | None,
    raise_on_error: bool,
) -> Steps[Result]:
    """Run the task and wait for the end.

    A repeated call has the key of the first: whatever became of that one, there is one run. An adapter that says
    "not yet" names the run, which is then waited for; one that does not know it is asked again by the key.
    """
    until = terms.after(wait)
    longest = QUEUE_POLL if if_running == "queue" else POLL
    call = _execute_call(task, idempotency_key, if_running, longest)
    while True:
        answer = yield from _accepted(terms, call, until)
        run = answer.headers["run-id"]
        try:
            ended = yield from _until_ended(terms, task, run, until)
        except Problem as problem:
            if problem.code != "run_not_found":
                raise
            ended = None
        if ended is not None or answer.status_code == httpx.codes.OK:
            result = _result_of_answer(task, answer) if ended is None else _result(ended)
            replayed = idempotency_key is not None and "idempotency-replayed" in answer.headers
            result = result.model_copy(update={"replayed": replayed, "joined": "run-joined" in answer.headers})
            return result.raise_on_error() if raise_on_error else result
        yield Pause(LOOK_AGAIN)


def start(
    terms: Terms, task: TaskRef, *, wait: float | None, idempotency_key: str | None, if_running: str | None
) -> Steps[str]:
    """Have the task run; the id of the run, as soon as it is accepted."""
    call = _execute_call(task, idempotency_key, if_running, TURN if if_running == "queue" else 0)
    answer = yield from _accepted(terms, call, terms.after(wait))
    return str(answer.headers["run-id"])


def wait_for(terms: Terms, task: TaskRef, run: str, *, wait: float | None, raise_on_error: bool) -> Steps[Result]:
    """How the run ended."""
    ended = yield from _until_ended(terms, task, run, terms.after(wait))
    return _result(ended).raise_on_error() if raise_on_error else _result(ended)


def _execute_call(task: TaskRef, key: str | None, if_running: str | None, wait: int) -> Call:
    return Call(
        method="POST",
        path=f"{task_path(task)}/execute",
        params={"if_running": if_running},
        headers={"Idempotency-Key": quoted(key)},
        wait=wait,
    )


def _accepted(terms: Terms, call: Call, until: float) -> Steps[httpx.Response]:
    """The answer that names the run: 200 or 202. A turn that did not come is asked for again."""
    while True:
        try:
            return (yield from ask(call, terms, until=until))
        except Problem as problem:
            in_line = problem.code == "task_busy" and call.params["if_running"] == "queue"
            if not in_line or terms.clock() + LOOK_AGAIN > until:
                raise
        yield Pause(LOOK_AGAIN)


def _until_ended(terms: Terms, task: TaskRef, run: str, until: float) -> Steps[Run]:
    """The run when it has ended. Raises NotFinished at ``until``."""
    call = Call(method="GET", path=f"{task_path(task)}/runs/{run}", wait=POLL)
    while True:
        asked = terms.clock()
        found = Run.model_validate_json((yield from ask(call, terms, until=until, run=run)).content)
        if found.finished is not None:
            return found
        if terms.clock() >= until:
            raise NotFinished(f"Run {run} of task {found.task} has not ended yet: {found.code}.", run=run)
        if terms.clock() - asked < LOOK_AGAIN:  # an adapter that is stopping, or full, does not wait
            yield Pause(min(LOOK_AGAIN, until - terms.clock()))


def _result(run: Run) -> Result:
    return Result.model_validate(
        {
            "task": run.task,
            "run": run.id,
            "code": run.code,
            "value": run.result,
            "error": run.error,
            "started": run.started,
            "finished": run.finished,
        }
    )


def _result_of_answer(task: TaskRef, answer: httpx.Response) -> Result:
    """What execute's own answer tells, of a run that the history has lost."""
    state, error = answer.json(), answer.headers.get("task-error")
    return Result.model_validate(
        {
            "task": task.id if isinstance(task, Task) else task,
            "run": answer.headers["run-id"],
            "code": state["code"],
            "value": None,
            "error": None if error is None else RunError(code=error, message=""),
            "started": state["last_run_date"],
            "finished": state["last_modified"],
        }
    )


def cancel(terms: Terms, task: TaskRef, run: str | None) -> Steps[str]:
    """End the run; its id. Sent again only when it is certain that it had no effect."""
    call = Call(method="POST", path=f"{task_path(task)}/cancel", params={"run": run})
    answer = yield from ask(call, terms, repeatable=False)
    return str(answer.headers["run-id"])


def get_run(terms: Terms, task: TaskRef, run: str) -> Steps[Run]:
    """One run as it stands."""
    answer = yield from ask(Call(method="GET", path=f"{task_path(task)}/runs/{run}"), terms)
    return Run.model_validate_json(answer.content)


def logs(terms: Terms, task: TaskRef, run: str, *, after: int, follow: bool) -> Steps[None]:
    """The lines of a run's log; with ``follow`` until it has ended."""
    while True:
        call = Call(method="GET", path=f"{task_path(task)}/runs/{run}/logs", params={"after": after, "limit": PAGE})
        page = (yield from ask(call, terms)).json()
        for line in page["lines"]:
            yield Emit(Line.model_validate({**line, "run": run}))
        after = page["next"]
        is_full = len(page["lines"]) == PAGE
        if page["final"] or not (follow or is_full):
            return
        if not is_full:
            yield Pause(LOOK_AGAIN)


# --- tasks ---------------------------------------------------------------------------------------------------


def create(terms: Terms, body: Mapping[str, Any], key: str | None) -> Steps[Task]:
    """The new task. A repeated call has the key of the first."""
    call = Call(method="POST", path="/tasks", json=body, headers={"Idempotency-Key": quoted(key)})
    return Task.model_validate_json((yield from ask(call, terms)).content)


def get(terms: Terms, task: TaskRef, log_limit: int) -> Steps[Task]:
    """The task as it stands."""
    answer = yield from ask(Call(method="GET", path=task_path(task), params={"log_limit": log_limit}), terms)
    return Task.model_validate_json(answer.content)


def update(terms: Terms, task: TaskRef, changes: Mapping[str, Any]) -> Steps[Task]:
    """The task with these changes."""
    call = Call(method="PATCH", path=task_path(task), json=changes, headers=_precondition(task))
    # Repeated after it took effect, a change that is bound to a version would be refused.
    return Task.model_validate_json((yield from ask(call, terms, repeatable=not isinstance(task, Task))).content)


def delete(terms: Terms, task: TaskRef, *, force: bool) -> Steps[None]:
    """Delete the task."""
    params = {"force": "true" if force else None}
    call = Call(method="DELETE", path=task_path(task), params=params, headers=_precondition(task))
    yield from ask(call, terms, repeatable=False)


# --- subscriptions -------------------------------------------------------------------------------------------


def subscribe(terms: Terms, wanted: Mapping[str, Any]) -> Steps[Subscription]:
    """The new subscription. Sent again only when it is certain that it was not made."""
    body = {name: value for name, value in wanted.items() if value is not None and value != ()}
    call = Call(method="POST", path="/subscriptions", json=body)
    return Subscription.model_validate_json((yield from ask(call, terms, repeatable=False)).content)


def get_subscription(terms: Terms, subscription: SubscriptionRef) -> Steps[Subscription]:
    """The subscription as it stands."""
    answer = yield from ask(Call(method="GET", path=_subscription_path(subscription)), terms)
    return Subscription.model_validate_json(answer.content)


def rotate_subscription(terms: Terms, subscription: SubscriptionRef, overlap: int) -> Steps[Subscription]:
    """The web hook with a new secret. Sent again only when it is certain that it had no effect."""
    call = Call(method="POST", path=f"{_subscription_path(subscription)}/rotate", json={"overlap": overlap})
    return Subscription.model_validate_json((yield from ask(call, terms, repeatable=False)).content)


def resume_subscription(terms: Terms, subscription: SubscriptionRef) -> Steps[Subscription]:
    """The web hook, in use again."""
    call = Call(method="POST", path=f"{_subscription_path(subscription)}/resume")
    return Subscription.model_validate_json((yield from ask(call, terms)).content)


def unsubscribe(terms: Terms, subscription: SubscriptionRef) -> Steps[None]:
    """End the subscription."""
    yield from ask(Call(method="DELETE", path=_subscription_path(subscription)), terms, repeatable=False)


def _subscription_path(subscription: SubscriptionRef) -> str:
    name = subscription.id if isinstance(subscription, Subscription) else subscription
    return f"/subscriptions/{urlquote(name, safe='')}"


# --- what they share -----------------------------------------------------------------------------------------


def _precondition(task: TaskRef) -> dict[str, str]:
    return {"If-Match": f'"{task.version}"'} if isinstance(task, Task) else {}


def quoted(key: str | None) -> str:
    """The key as a structured-field string (RFC 8941 section 3.3.3); None: a new one."""
    escaped = (uuid4().hex if key is None else key).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def pages(terms: Terms, path: str, model: type[View], params: Mapping[str, Any], limit: int | None) -> Steps[None]:
    """The rows of a list, page by page; ``limit`` None: all."""
    left = math.inf if limit is None else limit
    offset = 0
    while left > 0:
        size = int(min(PAGE, left))
        call = Call(method="GET", path=path, params={**params, "limit": size, "offset": offset})
        rows = (yield from ask(call, terms)).json()
        for row in rows:
            yield Emit(model.model_validate(row))
        if len(rows) < size:
            return
        offset += size
        left -= size
