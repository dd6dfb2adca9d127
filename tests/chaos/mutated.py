"""A runwire process that is broken in one way: ``python -m tests.chaos.mutated MUTANT adapter|worker ...``.

Each mutant takes away one thing that a promise rests on, by wrapping or replacing a function before the process
starts. What is not touched is the system as it is shipped.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from collections.abc import Callable
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from nats.js import JetStreamContext

from runwire import cli
from runwire.domain import lifecycle
from runwire.http.idempotency import RunKey
from runwire.messaging import subjects
from runwire.readmodel import projection
from runwire.readmodel.projector import Projector
from runwire.readmodel.waiters import Waiters
from runwire.worker.consumer import Consumer
from runwire.worker.executor import Executor
from runwire.worker.watch import Watch

LATER = 0.05
"""Seconds by which a waiter comes too late."""
WRITING = 0.2
"""Seconds between the position and its rows."""


def no_fence() -> None:
    """Events are appended whatever the task's last event is."""
    publish = JetStreamContext.publish

    async def unfenced(self: Any, subject: str, payload: bytes = b"", **options: Any) -> Any:
        if subject.startswith("tasks.evt.") and options.get("headers"):
            dropped = {subjects.EXPECTED_SEQUENCE, subjects.EXPECTED_SUBJECT}
            options["headers"] = {name: value for name, value in options["headers"].items() if name not in dropped}
        return await publish(self, subject, payload, **options)

    JetStreamContext.publish = unfenced  # type: ignore[method-assign,assignment]


def acknowledged_first() -> None:
    """A command is acknowledged before it is carried out."""
    dispose = Consumer._dispose

    async def hasty(self: Any, message: Any) -> Any:
        await message.ack_sync()
        return await dispose(self, message)

    Consumer._dispose = hasty  # type: ignore[method-assign]


def published_first() -> None:
    """The waiter of a call is registered after its command has been published."""
    registered = Waiters.registered

    @contextmanager
    def late(self: Any, task: int, run: str) -> Any:
        loop = asyncio.get_running_loop()
        with registered(self, task, run) as future:
            waiting = self._by_run[task, run]
            waiting.remove(future)
            put = loop.call_later(LATER, waiting.append, future)
            try:
                yield future
            finally:
                put.cancel()
                if future not in waiting:
                    waiting.append(future)

    Waiters.registered = late  # type: ignore[method-assign]


def random_run() -> None:
    """A call that is repeated with the same key asks for another run."""
    RunKey.run = cached_property(lambda _self: secrets.token_hex(16))  # type: ignore[assignment,method-assign]
    RunKey.run.__set_name__(RunKey, "run")  # type: ignore[attr-defined]
    RunKey.is_joined = False  # type: ignore[assignment,method-assign]


def position_first() -> None:
    """How far a stream was read is stored before the rows that come of it."""
    apply_arrived = Projector._apply_arrived

    async def hasty(self: Any) -> None:
        ahead = [(source, source.arrived[-1][0]) for source in self._sources if source.arrived]

        def store(connection: Any) -> None:
            for source, sequence in ahead:
                projection.set_position(connection, source.stream, source.identity, sequence)

        if ahead:
            await self._database.transact(store)
            await asyncio.sleep(WRITING)
        await apply_arrived(self)

    Projector._apply_arrived = hasty  # type: ignore[method-assign]


def over_a_cancel() -> None:
    """A worker does not hear of a cancel, and ends the run once more."""

    def is_claimed(document: Any, claim_id: str) -> bool:
        return document.run is not None and document.run.claim.id == claim_id

    async def deaf(_self: Any, _hold: Any, **_options: Any) -> None:
        return None

    lifecycle.still_claimed = is_claimed
    Watch._look = deaf  # type: ignore[method-assign,assignment]


def no_ring() -> None:
    """Documents know the latest of the runs that have ended, and no other."""

    def has_ended(document: Any, run: str) -> bool:
        current = document.run if document is not None else None
        return current is not None and current.id == run and current.is_final

    lifecycle.has_ended = has_ended


MUTANTS: dict[str, Callable[[], None]] = {
    "no-fence": no_fence,
    "acknowledged-first": acknowledged_first,
    "published-first": published_first,
    "random-run": random_run,
    "position-first": position_first,
    "over-a-cancel": over_a_cancel,
    "no-ring": no_ring,
}


# --- what no history shows, but a soak ----------------------------------------------------------------


def waiters_kept() -> None:
    """A waiter stays on the list when its call is over."""

    @contextmanager
    def kept(self: Any, task: int, run: str) -> Any:
        future = asyncio.get_running_loop().create_future()
        self._by_run.setdefault((task, run), []).append(future)
        self._count += 1
        yield future

    Waiters.registered = kept  # type: ignore[method-assign]


def files_kept() -> None:
    """A worker opens a file for every run, and never closes it."""
    execute, opened = Executor.execute, []

    async def untidy(self: Any, command: Any) -> Any:
        opened.append(os.open(os.devnull, os.O_RDONLY))
        return await execute(self, command)

    Executor.execute = untidy  # type: ignore[method-assign]


LEAKS: dict[str, Callable[[], None]] = {"waiters-kept": waiters_kept, "files-kept": files_kept}
"""Mutants that keep every promise, for a while."""


def main() -> None:
    """Break it, then start it."""
    mutant = sys.argv.pop(1)
    (MUTANTS | LEAKS)[mutant]()
    cli.main()


if __name__ == "__main__":
    main()
