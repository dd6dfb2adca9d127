"""The floor: the least that `POST -> another process over NATS -> answer` can cost on this machine.

One Starlette route that sends one core NATS request and passes on what comes back: nothing is stored, checked
or projected. Server, event loop and their options are those of ``runwire.bootstrap.adapter``.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import nats
import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from benchmarks.floor_responder import SUBJECT


def floor_app(url: str) -> Starlette:
    """The ASGI app; connects when its lifespan begins."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        app.state.nc = await nats.connect(url)
        yield
        await app.state.nc.close()

    async def execute(request: Request) -> Response:
        answer = await request.app.state.nc.request(f"{SUBJECT}.{request.path_params['id']}", b"{}", timeout=5)
        return Response(answer.data, media_type="application/json")

    return Starlette(routes=[Route("/tasks/{id}/execute", execute, methods=["POST"])], lifespan=lifespan)


def serve(port: int, url: str) -> None:
    """Serve until the process is killed."""
    config = uvicorn.Config(
        floor_app(url),
        host="127.0.0.1",
        port=port,
        http="httptools",
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        backlog=2048,
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(uvicorn.Server(config).serve())


if __name__ == "__main__":
    serve(int(sys.argv[1]), os.environ["RUNWIRE_NATS_URL"])
