"""``/livez`` and ``/readyz``: for load balancers and orchestrators. No token needed."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from runwire.http.services import services


async def livez() -> Response:
    """The process is alive; says nothing about the broker."""
    return JSONResponse({"status": "ok"})


async def readyz(
    request: Request,
    verbose: Annotated[str | None, Query(description="List the checks.")] = None,
) -> Response:
    """200 when calls can be taken, 503 otherwise."""
    parts = services(request)
    found = parts.checks()
    failed = [name for name, wrong in found.items() if wrong]
    body: dict[str, object] = {"status": "failed" if failed else "ok"}
    if verbose is not None:
        body["checks"] = {name: wrong or "ok" for name, wrong in found.items()}
        if parts.pressure.share >= 0.8:  # noqa: PLR2004 - four fifths: time to act
            body["warnings"] = [f"{parts.pressure.fullest} is {parts.pressure.share:.0%} full"]
    return JSONResponse(body, 503 if failed else 200, {"Cache-Control": "no-store"})
