"""``runwire rebuild``: the read model anew, from the event stream.

An adapter does the same by itself when the file is gone; this does it ahead of time, with progress to look at.
Without RUNWIRE_NATS_URL the embedded broker is started for it.
"""

from __future__ import annotations

import asyncio
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from runwire import embedded
from runwire.messaging import events as event_log
from runwire.messaging.broker import Bus
from runwire.process import calm_garbage_collector, die_with_parent
from runwire.readmodel.database import Database, open_database, remove_database
from runwire.readmodel.heads import Heads
from runwire.readmodel.projector import Projector
from runwire.readmodel.waiters import Waiters
from runwire.settings import Settings


def run_rebuild(settings: Settings) -> None:
    """Build the file beside the old one and put it in its place. Raises SetupError, as when an adapter has it open."""
    calm_garbage_collector()
    with _broker(settings) as url:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_rebuild(settings.model_copy(update={"nats_url": url})))


@contextmanager
def _broker(settings: Settings) -> Iterator[str]:
    """The configured broker, or the embedded one for the time being."""
    if settings.nats_url is not None:
        yield settings.nats_url
        return
    lock = embedded.lock_data_dir(settings)
    try:
        brokers = embedded.prepare_again(settings)
        servers = [
            subprocess.Popen(broker.argv, env=broker.env, preexec_fn=die_with_parent(), start_new_session=True)  # noqa: S603, PLW1509 - our own child, one thread
            for broker in brokers
        ]
        try:
            yield ",".join(broker.url for broker in brokers)
        finally:
            for server in servers:
                server.send_signal(signal.SIGTERM)
            for server in servers:
                server.wait(timeout=10)
    finally:
        lock.close()


async def _rebuild(settings: Settings) -> None:
    path = settings.read_model_path
    old = await open_database(path)  # holds the lock: no adapter may have the file
    fresh_path = path.with_name(f"{path.stem}.rebuild.db")
    remove_database(fresh_path)
    try:
        bus = Bus(settings, "runwire rebuild")
        await bus.connect()
        began = time.monotonic()
        fresh = await open_database(fresh_path)
        try:
            events = await _project(bus, fresh, settings)
        finally:
            await fresh.close()
            await bus.nc.close()
    finally:
        await old.close()
    remove_database(path)
    fresh_path.replace(path)
    for leftover in (fresh_path.with_suffix(".lock"), Path(f"{fresh_path}-wal"), Path(f"{fresh_path}-shm")):
        leftover.unlink(missing_ok=True)
    seconds = time.monotonic() - began
    megabytes, memory = path.stat().st_size / 1e6, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"rebuilt {path} from {events:,} events in {seconds:.1f} s ({events / seconds:,.0f} events/s): "
        f"{megabytes:,.0f} MB, with {memory:,.0f} MB of memory"
    )


async def _project(bus: Bus, database: Database, settings: Settings) -> int:
    """Read everything there is; returns the last sequence."""
    projector = Projector(bus, database, Heads(capacity=1), Waiters(1), history=settings.events_history)
    await bus.until_available(lambda: _answers(bus))
    await projector.start()
    columns = (
        TextColumn("reading events"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:,.0f}/s"),
        TimeRemainingColumn(),
    )
    began = time.monotonic()
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task("events", total=projector.progress[1], rate=0.0)
        while not projector.caught_up.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    await projector.caught_up.wait()
            done = projector.progress[0]
            bar.update(task, completed=done, rate=done / (time.monotonic() - began))
    await projector.stop()
    return projector.progress[0]


async def _answers(bus: Bus) -> None:
    """Raises one of UNAVAILABLE while JetStream is only coming up."""
    await event_log.last_sequence(bus)
