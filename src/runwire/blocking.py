"""Plain functions as coroutines: each call has a thread of its own.

A pool would be the usual way. But a function that never returns keeps its thread for good, and a few of them would
leave a pool with none; nor may a process wait for such threads when it ends, as it does for those of a pool.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import threading
from collections.abc import Awaitable, Callable
from typing import Any


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
