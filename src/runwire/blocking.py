"""Plain functions as coroutines, plain generators as asynchronous ones: each call has a thread of its own.

A pool would be the usual way. But a function that never returns keeps its thread for good, and a few of them would
leave a pool with none; nor may a process wait for such threads when it ends, as it does for those of a pool.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Iterator
from typing import Any

BATCH = 100
"""Items of a plain generator that are handed over at once."""
LONGEST_BATCH = 0.2
"""Seconds after which what there is of them is handed over."""
AHEAD = 2
"""Batches that a thread may be ahead."""


def in_thread(function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    """The function as a coroutine function, which does not block the event loop.

    A call that is cancelled ends at once. Its thread cannot be stopped: it goes on, and what comes of it is dropped.
    """

    @functools.wraps(function)
    async def call(*arguments: object) -> object:
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[object] = loop.create_future()
        context = contextvars.copy_context()

        def settle(error: BaseException | None, result: object) -> None:
            if outcome.done():  # cancelled
                return
            if error is None:
                outcome.set_result(result)
            elif isinstance(error, Exception | SystemExit) and not isinstance(error, StopIteration):
                outcome.set_exception(error)
            else:  # it would end more than this call
                outcome.set_exception(RuntimeError(f"{type(error).__name__}: {error}"))

        def run() -> None:
            ending: tuple[BaseException | None, object]
            try:
                ending = None, context.run(function, *arguments)
            except BaseException as raised:  # noqa: BLE001 - the caller gets it, whatever it is
                ending = raised, None
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(settle, *ending)

        threading.Thread(target=run, name=getattr(function, "__name__", "action"), daemon=True).start()
        return await outcome

    return call


def iterated_in_thread(function: Callable[..., Generator[Any, Any, Any]]) -> Callable[..., AsyncGenerator[Any, None]]:
    """The generator function as an asynchronous one, a few batches ahead at most of whoever takes the items.

    When that one stops, the generator is closed at its next ``yield``: its thread cannot be stopped before.
    """

    @functools.wraps(function)
    async def iterate(*arguments: object) -> AsyncGenerator[Any, None]:
        loop = asyncio.get_running_loop()
        batches: asyncio.Queue[list[Any] | None] = asyncio.Queue()
        room, over = threading.Semaphore(AHEAD), threading.Event()

        def hand_over(batch: list[Any] | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(batches.put_nowait, batch)

        def pump() -> None:
            try:
                with contextlib.closing(function(*arguments)) as items:
                    for batch in _batches(items):
                        room.acquire()
                        if over.is_set():
                            return
                        hand_over(batch)
            finally:
                hand_over(None)

        pumping = asyncio.ensure_future(in_thread(pump)())
        try:
            while (batch := await batches.get()) is not None:
                for item in batch:
                    yield item
                room.release()
            await pumping  # what it raised
        finally:
            over.set()
            room.release()
            pumping.cancel()
            await asyncio.gather(pumping, return_exceptions=True)

    return iterate


def _batches(items: Iterable[Any]) -> Iterator[list[Any]]:
    batch: list[Any] = []
    began = time.monotonic()
    for item in items:
        batch.append(item)
        if len(batch) >= BATCH or time.monotonic() - began > LONGEST_BATCH:
            yield batch
            batch, began = [], time.monotonic()
    if batch:
        yield batch
