"""The actions every worker has, over the broker it is connected to."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from datetime import datetime

from runwire import artifacts
from runwire.app import App, Context
from runwire.domain.addresses import parse_exceptions
from runwire.messaging import events, services, subjects
from runwire.messaging.broker import Bus
from runwire.worker.actions.command import command_action
from runwire.worker.actions.commands_file import read_commands
from runwire.worker.actions.export import Dataset, Row, export_action
from runwire.worker.actions.http import http_action
from runwire.worker.actions.publish import publish_action
from runwire.worker.actions.request import Reply, request_action
from runwire.worker.actions.sleep import sleep

RUN_COLUMNS = (
    "id", "task", "chain", "code", "attempt", "source", "accepted", "started", "finished", "result",
    "error_code", "error_message",
)  # fmt: skip


def builtin_actions(bus: Bus) -> App:
    """All of them; ``command`` only where RUNWIRE_COMMANDS names a list. Raises SetupError."""

    async def runs(ctx: Context) -> AsyncIterator[Row]:
        """The chain's ended runs, oldest first, as EVENTS holds them."""
        async for document in events.ended_runs(bus, ctx.chain):
            run = document.run
            if run is not None:
                row = run.public()
                error = row.pop("error") or {}
                yield row | {"error_code": error.get("code"), "error_message": error.get("message")}

    async def store(ctx: Context, file: str, content: io.BufferedIOBase) -> int:
        return await artifacts.put(bus, artifacts.object_name(ctx.chain, ctx.task, ctx.run_id, file), content)

    async def ask(ctx: Context, service: str, payload: bytes, until: datetime) -> Reply:
        reply = await services.request(bus, ctx, service, payload, until=until)
        headers = reply.headers or {}
        failed = subjects.SERVICE_ERROR in headers or subjects.SERVICE_ERROR_CODE in headers
        error = headers.get(subjects.SERVICE_ERROR, "") if failed else None
        return Reply(reply.data, error, headers.get(subjects.SERVICE_ERROR_CODE, ""))

    async def send(ctx: Context, name: str, payload: bytes) -> str:
        return await services.publish(bus, ctx, name, payload)

    settings = bus.settings
    app = App()
    app.action("export")(export_action({"runs": Dataset(RUN_COLUMNS, runs)}, store))
    app.action("http")(http_action(parse_exceptions(settings.http_allow), settings.http_max_bytes))
    app.action("publish")(publish_action(send))
    app.action("request")(request_action(ask))
    app.action("sleep")(sleep)
    if settings.commands is not None:
        app.action("command")(command_action(read_commands(settings.commands)))
    return app
