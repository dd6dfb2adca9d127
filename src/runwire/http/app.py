"""The ASGI application: every endpoint of every module, their documentation, and the way to each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from runwire.domain.errors import RequestError
from runwire.http import (
    access_tokens,
    actions,
    asyncapi_pages,
    audit,
    cancel,
    dead_letters,
    downloads,
    edit,
    execute,
    health,
    limits,
    openapi,
    problem_pages,
    problems,
    runs,
    streams,
    subscriptions,
    tasks,
)
from runwire.http.endpoint import Endpoint, Handler

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]

ENDPOINTS: tuple[Endpoint, ...] = (
    *tasks.ENDPOINTS,
    *edit.ENDPOINTS,
    *execute.ENDPOINTS,
    *cancel.ENDPOINTS,
    *runs.ENDPOINTS,
    *streams.ENDPOINTS,
    *subscriptions.ENDPOINTS,
    *downloads.ENDPOINTS,
    *actions.ENDPOINTS,
    *dead_letters.ENDPOINTS,
    *access_tokens.ENDPOINTS,
    *audit.ENDPOINTS,
    *health.ENDPOINTS,
    *problem_pages.ENDPOINTS,
    *asyncapi_pages.ENDPOINTS,
)
SUMMARY = "Runs tasks on demand over a message bus and answers with what became of them."


class _Dispatch:
    """The methods of one path, as a bare ASGI app: FastAPI's own way to an endpoint costs 0.16 to 0.2 ms of CPU."""

    def __init__(self, path: str, handlers: Mapping[str, Handler]) -> None:
        self._path = path
        self._handlers = handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler = self._handlers["GET" if scope["method"] == "HEAD" else scope["method"]]
        request = Request(scope, receive, send)
        try:
            response = await handler(request)
        except RequestError as error:
            audit.note_refusal(request, self._path, error)
            raise
        response.headers.update(limits.headers())
        await response(scope, receive, send)


def build_app(lifespan: Lifespan, *, version: str) -> FastAPI:
    """The app; ``lifespan`` puts the :class:`~runwire.http.services.Services` into ``app.state``."""
    app = FastAPI(
        title="runwire",
        version=version,
        summary=SUMMARY,
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,  # a path has one spelling; the redirection would repeat whatever Host says
        telemetry={"tracing": False, "metrics": False, "logs": False},  # it looks into the environment at every call
        swagger_ui_parameters={"persistAuthorization": True},
    )
    problems.install(app)
    paths: dict[str, dict[str, Handler]] = {}
    for endpoint in ENDPOINTS:
        paths.setdefault(endpoint.path, {})[endpoint.method] = endpoint.handle
    # What is called most is tried first.
    for path in sorted(paths, key=lambda path: path != execute.PATH):
        handlers = paths[path]
        app.router.routes.append(Route(path, _Dispatch(path, handlers), methods=list(handlers)))
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]  # FastAPI's documented way to extend it
    return app


def _document(app: FastAPI) -> dict[str, object]:
    if app.openapi_schema is None:
        app.openapi_schema = openapi.build_document(ENDPOINTS, title="runwire", version=app.version, summary=SUMMARY)
    return app.openapi_schema
