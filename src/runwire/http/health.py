"""``/livez`` and ``/readyz``: for load balancers and orchestrators. No token needed."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from runwire.http.endpoint import Answer, Endpoint
from runwire.http.query import Query, parse_query
from runwire.http.services import services


class ReadyQuery(Query):
    """Query parameters of ``/readyz``."""

    verbose: Annotated[str | None, Field(description="List the checks; takes no value.")] = None


class HealthView(BaseModel):
    """How the adapter is."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "ok"}]})

    status: str
    checks: Annotated[dict[str, str] | None, Field(description="With `?verbose`: what is wrong with each, or ok.")] = (
        None
    )
    warnings: list[str] | None = None
    waiting: Annotated[int | None, Field(description="With `?verbose`: calls that wait for the end of a run.")] = None


async def livez(_request: Request) -> Response:
    """Whether the process is alive; says nothing about the broker."""
    return JSONResponse({"status": "ok"})


async def readyz(request: Request) -> Response:
    """Whether calls can be taken: 200, or 503."""
    parts = services(request)
    verbose = parse_query(request, ReadyQuery).verbose
    found = parts.checks()
    failed = [name for name, wrong in found.items() if wrong]
    body: dict[str, object] = {"status": "failed" if failed else "ok"}
    if verbose is not None:
        body["checks"] = {name: wrong or "ok" for name, wrong in found.items()}
        body["waiting"] = len(parts.waiters)
        if parts.pressure.share >= 0.8:  # noqa: PLR2004 - four fifths: time to act
            body["warnings"] = [f"{parts.pressure.fullest} is {parts.pressure.share:.0%} full"]
    return JSONResponse(body, 503 if failed else 200, {"Cache-Control": "no-store"})


ENDPOINTS = (
    Endpoint(
        method="GET", path="/livez", handle=livez, tag="health", needs_token=False,
        answers={200: Answer(text="Alive.", model=HealthView)},
    ),
    Endpoint(
        method="GET", path="/readyz", handle=readyz, tag="health", needs_token=False, query=ReadyQuery,
        answers={
            200: Answer(text="Ready.", model=HealthView),
            503: Answer(text="Not ready.", model=HealthView),
        },
    ),
)  # fmt: skip
