"""The FastAPI application: which endpoints there are, and what each can answer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from runwire.http import problems
from runwire.http.execute import execute
from runwire.http.health import livez, readyz
from runwire.http.runs import get_run
from runwire.http.schemas import ExecuteView, Problem, RunView, TaskBody, TaskView
from runwire.http.tasks import create_task, get_task, list_tasks

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]

SECURITY: list[dict[str, list[str]]] = [{"AccessToken": []}]
PREFER = {
    "name": "Prefer",
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
    "description": "`wait=N`: seconds to wait for the end of the run; `respond-async`: do not wait (RFC 7240).",
    "example": "wait=10",
}
RUN_HEADERS = {
    "Run-Id": {"schema": {"type": "string"}, "description": "The run."},
    "Task-State": {"schema": {"type": "string"}, "description": "State of the run: READY, INPROGRESS, DONE or ERROR."},
    "Location": {"schema": {"type": "string"}, "description": "The run, for GET."},
}
TASK_ERROR = {"Task-Error": {"schema": {"type": "string"}, "description": "Why it ended as ERROR: a stable code."}}


class _Execute:
    """The endpoint as a bare ASGI app, which Starlette calls without further wrapping."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await execute(Request(scope, receive, send))
        await response(scope, receive, send)


def build_app(lifespan: Lifespan, *, version: str) -> FastAPI:
    """The app; ``lifespan`` puts the :class:`~runwire.http.services.Services` into ``app.state``."""
    app = FastAPI(
        title="runwire",
        version=version,
        summary="Runs tasks on demand over a message bus and answers with what became of them.",
        lifespan=lifespan,
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # it looks into the environment at every call
        swagger_ui_parameters={"persistAuthorization": True},
    )
    problems.install(app)
    path_id = _path("id", "integer", "Id of the task.")
    _route(app, "POST", "/tasks", create_task, {201: (TaskView, "Created.")}, [400, 401, 403, 409, 413, 422, 503],
           body=TaskBody)  # fmt: skip
    _route(app, "GET", "/tasks", list_tasks, {200: (list[TaskView], "A page of tasks.")}, [401, 403, 422, 503])
    _route(app, "GET", "/tasks/{id}", get_task, {200: (TaskView, "The task.")}, [400, 401, 403, 404, 422, 503],
           parameters=[path_id])  # fmt: skip
    _route(
        app, "POST", "/tasks/{id}/execute", execute,
        {200: (ExecuteView, "The run has ended."), 202: (ExecuteView, "The wait is over, the run is not.")},
        [400, 401, 403, 404, 409, 422, 500, 503],
        parameters=[path_id, PREFER, IDEMPOTENCY_KEY, ON_ERROR],
        headers={200: RUN_HEADERS | TASK_ERROR, 202: RUN_HEADERS | {"Retry-After": {"schema": {"type": "integer"}}}},
    )  # fmt: skip
    _route(app, "GET", "/tasks/{id}/runs/{run}", get_run, {200: (RunView, "The run.")}, [400, 401, 403, 404, 503],
           parameters=[path_id, _path("run", "string", "Id of the run."), PREFER])  # fmt: skip
    # The same endpoint for everybody but the documentation: FastAPI's way to an endpoint costs more CPU than all
    # that execute does in this process (measured: 160 to 215 us of it against 25 to 50 us).
    app.router.routes.insert(0, Route("/tasks/{id}/execute", _Execute(), methods=["POST"]))
    app.add_api_route("/livez", livez, methods=["GET"], tags=["health"], summary="Alive")
    app.add_api_route("/readyz", readyz, methods=["GET"], tags=["health"], summary="Ready")
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]  # FastAPI's documented way to extend it
    return app


IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": 257},
    "description": "Calls with the same key start one run, and all get its end. For the call that got no answer.",
}
ON_ERROR = {
    "name": "on_error",
    "in": "query",
    "required": False,
    "schema": {"type": "string", "enum": ["status"]},
    "description": "`status`: answer 500 when the run ends as ERROR, for callers that look at the status only.",
}
PROBLEM_TEXTS = {
    400: "Malformed id, header or body.",
    401: "No valid access token.",
    403: "The token's access level does not allow it.",
    404: "No such task or run for this token.",
    409: "The task is busy, or its id is taken.",
    413: "Too large.",
    422: "Invalid fields; `errors` points at each.",
    500: "The run ended as ERROR, and `on_error=status` was asked for.",
    503: "Not known to be stored, or the broker is away: try again with the same Idempotency-Key.",
}


def _route(
    app: FastAPI,
    method: str,
    path: str,
    endpoint: Callable[..., Any],
    answers: dict[int, tuple[Any, str]],
    failures: list[int],
    /,
    *,
    parameters: list[dict[str, Any]] | None = None,
    headers: dict[int, dict[str, Any]] | None = None,
    body: type[BaseModel] | None = None,
) -> None:
    """Add an endpoint that reads its path, headers and body itself, and document what it takes and answers.

    FastAPI's own argument handling costs more than all the rest of an execute call on this side.
    """
    responses: dict[int | str, dict[str, Any]] = {
        status: {"model": model, "description": text, "headers": (headers or {}).get(status, {})}
        for status, (model, text) in answers.items()
    }
    responses |= {status: _problem_answer(status) for status in failures}
    extra: dict[str, Any] = {"security": SECURITY}
    if parameters:
        extra["parameters"] = parameters
    if body is not None:
        schema = {"$ref": f"#/components/schemas/{body.__name__}"}
        extra["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    app.add_api_route(
        path,
        endpoint,
        methods=[method],
        status_code=min(answers),
        responses=responses,
        response_model=None,
        openapi_extra=extra,
        tags=["tasks"],
        summary=(endpoint.__doc__ or "").partition(".")[0],
        operation_id=endpoint.__name__,
    )


def _problem_answer(status: int) -> dict[str, Any]:
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {"description": PROBLEM_TEXTS[status], "content": content}


def _path(name: str, kind: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": kind}, "description": description}


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document, with the bodies that the endpoints read themselves and the security scheme."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        components = document.setdefault("components", {})
        schemas = components.setdefault("schemas", {})
        for model in (Problem, TaskBody):
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(schema.pop("$defs", {}))
            schemas[model.__name__] = schema
        for operation in (operation for path in document["paths"].values() for operation in path.values()):
            if "422" in operation["responses"]:  # FastAPI's own shape of it is not what we answer
                operation["responses"]["422"] = _problem_answer(422)
        schemas.pop("HTTPValidationError", None)
        schemas.pop("ValidationError", None)
        components["securitySchemes"] = {
            "AccessToken": {"type": "http", "scheme": "bearer", "bearerFormat": "ACCESS_TOKEN_ID:ACCESS_TOKEN_SECRET"}
        }
        app.openapi_schema = document
    return app.openapi_schema
