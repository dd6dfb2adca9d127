"""Puts the HTTP adapter together: bus, read model, endpoints, server."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from types import FrameType
from typing import Any

import uvicorn
import uvloop
from fastapi import FastAPI
from nats.js.errors import Error as JetStreamError
from nats.js.errors import NotFoundError

from runwire import __version__
from runwire.artifacts import Links
from runwire.domain.errors import SetupError, TaskNotFound
from runwire.first_start import make_first_start
from runwire.http.app import build_app
from runwire.http.auth import Authenticator
from runwire.http.bus import BusDoor
from runwire.http.catalogue import Catalogue
from runwire.http.keeper import KeyKeeper
from runwire.http.limits import CountingAuthenticator, Outstanding, Rates
from runwire.http.protocol import GuardedProtocol
from runwire.http.services import Pressure, Services
from runwire.messaging import deadletters, health, janitor, site, streams, subjects
from runwire.messaging.audit import Refusals
from runwire.messaging.broker import UNAVAILABLE, Bus
from runwire.messaging.callout import Callout
from runwire.messaging.tokens import Uses
from runwire.process import calm_garbage_collector, notify_ready
from runwire.readmodel.audit import Trail
from runwire.readmodel.database import Database, open_database
from runwire.readmodel.feed import Feed
from runwire.readmodel.heads import Heads
from runwire.readmodel.projector import Projector
from runwire.readmodel.reader import Reader
from runwire.readmodel.waiters import Waiters
from runwire.settings import Settings, load
from runwire.signing import Signer

log = logging.getLogger("runwire.adapter")

PRESSURE_INTERVAL = 2.0
"""Seconds between two looks at how full the streams are."""
PROGRESS_INTERVAL = 2.0
"""Seconds between two lines about a read model that is catching up."""
LAST_WORDS = 2.0
"""Seconds that a stopping adapter gives the broker to take what is only in memory."""
UNREAD_TIMEOUT = 60
"""Seconds a client may leave what was sent to it unread before the system cuts the connection."""
SPARE_FILES = 1000
"""Open files beside the connections that are served: read model, broker, those that are told there are too many."""
SPARE_SHARE = 4
"""Where the system allows fewer, one in so many is spared."""
SHUTDOWN_GRACE = 5
"""Seconds that answers may take to be written when the adapter stops."""


def adapter_app(settings: Settings | None = None) -> FastAPI:
    """The ASGI app; connects when its lifespan begins. ``settings`` None: from the environment."""
    chosen = settings or load()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            try:
                app.state.services = await _assemble(chosen, stack)
                await stack.enter_async_context(BusDoor(app, app.state.services.bus))
            except Exception as error:
                app.state.failure = error  # uvicorn does not pass it on
                raise
            yield
            app.state.services.drain()

    return build_app(lifespan, version=__version__)


def serve_adapter(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Raises SetupError when that is not possible."""
    listener = _bind(settings)
    app = adapter_app(settings)
    calm_garbage_collector()
    server = _Server(app, settings)
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # what went wrong at the start is raised below
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, suppress(SystemExit):
        runner.run(server.serve(sockets=[listener]))
    failure: Exception | None = getattr(app.state, "failure", None)
    if failure is not None:
        raise failure


def server_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """How the app is served: with limits on what a stranger may send."""
    return uvicorn.Config(
        app,
        port=settings.http_port,
        http=GuardedProtocol,
        limit_concurrency=affordable_connections(settings.max_connections),
        proxy_headers=False,  # nobody here asks where a call came from
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_GRACE,
        backlog=2048,
    )


class _Server(uvicorn.Server):
    """Says when it can be called, and lets the waiting calls answer 202 as soon as it is asked to stop."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        super().__init__(server_config(app, settings))
        self._app = app
        self._url = settings.http_url

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, listen, and only then say so: who reads it may call at once."""
        await super().startup(sockets)
        if self.started:
            log.info("adapter ready on %s", self._url, extra={"action": "ready"})
            notify_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Before anything is served there is nothing to drain: end at once. A read model half built goes on later."""
        if not self.started:
            os._exit(128 + sig)
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, then close."""
        services: Services | None = getattr(self._app.state, "services", None)
        if services is not None:
            services.drain()
        await super().shutdown(sockets)


async def _assemble(settings: Settings, stack: AsyncExitStack) -> Services:
    """Every part of the adapter, started in order; ``stack`` stops them in reverse."""
    database = await open_database(settings.read_model_path)
    stack.push_async_callback(database.close)
    bus = Bus(settings, "runwire adapter")
    await bus.connect()
    stack.push_async_callback(bus.broker.stop)
    await bus.until_available(lambda: streams.provision(bus, settings))
    await bus.until_available(lambda: make_first_start(bus, settings))
    heads, waiters = Heads(), Waiters(settings.max_waiters)
    server_key = await bus.until_available(lambda: site.server_key(bus))
    keeper = KeyKeeper(bus, server_key)
    waiters.on_ended.append(keeper.ended)
    keeper.start()
    stack.push_async_callback(keeper.stop)
    projector = await start_projector(bus, database, heads, waiters, settings)
    stack.push_async_callback(projector.stop)
    reader = Reader(database, heads)
    feed = Feed(
        bus,
        position=projector.progress[0],
        lines=projector.lines_committed,
        read_lines=reader.stretch,
        limit=settings.max_streams,
    )
    projector.listeners.append(feed.publish)
    projector.line_listeners.append(feed.publish_lines)
    rates = Rates(settings) if settings.rate_per_token or settings.rate_per_chain else None
    most = settings.max_outstanding_per_chain
    uses, refusals, catalogue = Uses(bus), Refusals(bus), Catalogue(bus)
    await bus.until_available(catalogue.refresh)
    stack.push_async_callback(_write_the_rest, uses, refusals)
    services = Services(
        settings=settings,
        bus=bus,
        reader=reader,
        waiters=waiters,
        milestones=projector.milestones,
        feed=feed,
        authenticate=CountingAuthenticator(bus, uses, rates=rates) if rates else Authenticator(bus, uses),
        uses=uses,
        trail=Trail(database),
        refusals=refusals,
        catalogue=catalogue,
        checks=lambda: _checks(services, projector),
        server_key=server_key,
        rates=rates,
        outstanding=Outstanding(bus, most) if most else None,
        links=Links(bus),
    )
    if settings.bus_key is not None:
        signer = Signer(settings.bus_key.get_secret_value())
        callout = Callout(bus, signer, server_key=server_key, uses=uses, refusals=refusals)
        await callout.start()
        stack.push_async_callback(callout.stop)
    _watch_dead_letters(services)
    await bus.broker.start()
    for chore in (
        _watch_pressure(services), janitor.keep_swept(bus), uses.keep_written(), refusals.keep_written(),
        catalogue.keep_current(),
    ):  # fmt: skip
        stack.callback(asyncio.create_task(chore).cancel)
    return services


async def start_projector(
    bus: Bus, database: Database, heads: Heads, waiters: Waiters, settings: Settings
) -> Projector:
    """A projector that has caught up with everything there is; says how far it is when that takes long."""
    projector = Projector(bus, database, heads, waiters, history=settings.events_history)
    await projector.start()
    began, first = time.monotonic(), projector.progress[0]
    while not projector.caught_up.is_set():
        try:
            async with asyncio.timeout(PROGRESS_INTERVAL):
                await projector.caught_up.wait()
        except TimeoutError:
            done, target = projector.progress
            rate = (done - first) / (time.monotonic() - began)
            log.info("reading events: %d of %d, %.0f/s", done, target, rate, extra={"action": "catching_up"})
    return projector


def _watch_dead_letters(services: Services) -> None:
    """A call that waits for a run which cannot be carried out hears of it at once.

    It hears the publication itself, whose reply is the broker's to give: an answer of FastStream's would stand for it.
    """

    async def undecoded(message: Any) -> bytes:
        """The body may be anything, whatever its headers say it is."""
        return bytes(message.body)

    @services.bus.broker.subscriber(subjects.DEAD_COMMANDS, decoder=undecoded, no_reply=True)
    async def dead(_body: Any) -> None:
        letter = deadletters.heard(services.bus.broker.context.get("message").raw_message)
        document = await services.reader.document(letter.task)
        if document is None or document.task.chain == letter.chain:  # else another chain may have guessed the run
            services.waiters.gone(letter.task, letter.run, TaskNotFound(letter.detail))


async def _write_the_rest(uses: Uses, refusals: Refusals) -> None:
    """What is only in memory when the adapter stops, if the broker takes it soon."""
    with suppress(*UNAVAILABLE, JetStreamError):
        async with asyncio.timeout(LAST_WORDS):
            await refusals.write()
            await uses.write(everything=True)


async def _watch_pressure(services: Services) -> None:
    """Look at how full the streams are, for as long as the adapter runs."""
    while True:
        with suppress(*UNAVAILABLE, JetStreamError):
            services.pressure = await _pressure(services.bus)
        await asyncio.sleep(PRESSURE_INTERVAL)


async def _pressure(bus: Bus) -> Pressure:
    shares: dict[str, float] = {}
    for stream in (subjects.EVENTS, subjects.COMMANDS):
        try:
            info = await bus.js.stream_info(stream)
        except NotFoundError:
            return Pressure(missing=f"{stream} is missing")
        limit = info.config.max_bytes or 0
        shares[stream] = info.state.bytes / limit if limit > 0 else 0.0
    fullest = max(shares, key=lambda stream: shares[stream])
    # Where there are several copies, those that can be written decide.
    broken = await health.write_error(bus.nc) if bus.settings.nats_replicas == 1 else None
    return Pressure(fullest, shares[fullest], shares[subjects.EVENTS], broken=broken)


def _checks(services: Services, projector: Projector) -> dict[str, str | None]:
    """The readiness checks and what is wrong with each."""
    return {
        "broker": None if services.bus.is_connected else "not connected",
        "streams": services.pressure.missing or _cannot_write(services.pressure),
        "projector": None if projector.is_running else "stopped",
        "read_model": projector.trouble,
        "draining": "stopping" if services.draining else None,
    }


def _cannot_write(pressure: Pressure) -> str | None:
    return None if pressure.broken is None else f"the broker cannot write to its disk: {pressure.broken}"


def affordable_connections(wanted: int) -> int:
    """So many connections, or fewer where the system lets this process open too few files; says so then.

    Raises the process's own limit as far as it may.
    """
    files = wanted + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = files if hard == resource.RLIM_INFINITY else min(files, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most == files:
        return wanted
    served = min(wanted, most - min(SPARE_FILES, most // SPARE_SHARE))
    text = "%d connections at most: RUNWIRE_MAX_CONNECTIONS=%d wants %d open files, the system allows %d (ulimit -Hn)"
    log.warning(text, served, wanted, files, most, extra={"action": "file_limit"})
    return served


def _bind(settings: Settings) -> socket.socket:
    """The listening address, taken before anything else is done. Raises SetupError."""
    family = socket.AF_INET6 if ":" in settings.http_host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # handed down to every connection; a vanished client is noticed by it, too
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_TIMEOUT * 1000)
    try:
        listener.bind((settings.http_host, settings.http_port))
    except OSError as error:
        listener.close()
        address = f"{settings.http_host}:{settings.http_port}"
        raise SetupError(
            f"cannot listen on {address}: {error.strerror}; set RUNWIRE_HTTP_HOST or RUNWIRE_HTTP_PORT"
        ) from None
    return listener
