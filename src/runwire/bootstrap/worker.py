"""Puts the worker together: bus, actions, executor, consumer, scheduler, in a FastStream app."""

from __future__ import annotations

import asyncio
import logging
from contextlib import ExitStack

import uvloop
from faststream import FastStream

from runwire.app import App, load_app
from runwire.messaging import streams
from runwire.messaging.broker import Bus
from runwire.messaging.clock import BrokerClock
from runwire.process import calm_garbage_collector, notify_ready
from runwire.scheduler.scheduler import Scheduler
from runwire.settings import Settings, load
from runwire.webhooks.sender import WebHooks
from runwire.worker import capture
from runwire.worker.actions.builtin import builtin_actions
from runwire.worker.announcer import Announcer
from runwire.worker.consumer import Consumer
from runwire.worker.executor import Executor
from runwire.worker.vault import Vault

log = logging.getLogger("runwire.worker")


def worker_app(settings: Settings | None = None, app: App | None = None) -> FastStream:
    """The FastStream app of a worker; connects when it starts. None: settings from the environment, and its App."""
    chosen = settings or load()
    own = app or (load_app(chosen.app) if chosen.app else None)
    vault = Vault(chosen.secrets)
    bus = Bus(chosen, "runwire worker")
    worker = FastStream(bus.broker, logger=None)
    parts: list[BrokerClock | Consumer | Scheduler | Announcer | WebHooks] = []
    capturing = ExitStack()

    @worker.on_startup
    async def connect() -> None:
        await bus.connect()
        await bus.until_available(lambda: streams.provision(bus, chosen))

    @worker.after_startup
    async def begin() -> None:
        capturing.enter_context(capture.installed(vault.conceal))
        actions = builtin_actions(bus, own)
        clock = BrokerClock(bus)
        consumer = Consumer(bus, Executor(bus, actions, chosen, vault=vault, clock=clock), chosen)
        scheduler = Scheduler(bus, chosen, clock=clock)
        for part in (clock, consumer, scheduler, WebHooks(bus), Announcer(bus, actions, clock=clock)):
            parts.append(part)
            await part.start()
        log.info("worker ready, %d slots, actions: %s", chosen.worker_slots, ", ".join(sorted(actions.actions)),
                 extra={"action": "ready"})  # fmt: skip
        notify_ready()

    @worker.on_shutdown
    async def finish() -> None:
        for part in reversed(parts):  # no more ticks, then no more runs
            await part.stop()
        capturing.close()

    return worker


def run_worker(settings: Settings) -> None:
    """Work until SIGTERM or SIGINT. Raises SetupError when that is not possible."""
    calm_garbage_collector()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(worker_app(settings).run(log_level=logging.CRITICAL))
