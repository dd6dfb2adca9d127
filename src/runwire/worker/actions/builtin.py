"""The actions every worker has, over the broker it is connected to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime

from runwire.app import App, Context
from runwire.artifacts import File
from runwire.domain.addresses import parse_exceptions
from runwire.domain.errors import Retry
from runwire.domain.run import ErrorCode
from runwire.messaging import services, subjects
from runwire.messaging.broker import Bus
from runwire.uploads import StoreFull, Upload
from runwire.worker.actions.chain_datasets import chain_datasets
from runwire.worker.actions.command import command_action
from runwire.worker.actions.commands_file import read_commands
from runwire.worker.actions.export import Sink, export_action
from runwire.worker.actions.http import http_action
from runwire.worker.actions.publish import publish_action
from runwire.worker.actions.request import Reply, request_action
from runwire.worker.actions.sleep import sleep


def builtin_actions(bus: Bus, own: App | None = None) -> App:
    """All of them, ``command`` only where RUNWIRE_COMMANDS names a list; and those of ``own``, which win.

    ``export`` knows the datasets of ``own``, too. Raises SetupError.
    """

    @asynccontextmanager
    async def store(ctx: Context, file: str) -> AsyncIterator[Sink]:
        try:
            async with Upload(bus, File(ctx.chain, ctx.task, ctx.run_id, file), ctx.attempt) as upload:
                yield upload
        except StoreFull as full:
            raise Retry(f"There is no room for the file: {full}.", code=ErrorCode.STORE_FULL) from None

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
    app.datasets = chain_datasets(bus) | (own.datasets if own else {})
    app.actions["export"] = export_action(app.datasets, store)
    app.action("http")(http_action(parse_exceptions(settings.http_allow), settings.http_max_bytes))
    app.action("publish")(publish_action(send))
    app.action("request")(request_action(ask))
    app.action("sleep")(sleep)
    if settings.commands is not None:
        app.action("command")(command_action(read_commands(settings.commands)))
    if own is not None:
        app.include(own)
    return app
