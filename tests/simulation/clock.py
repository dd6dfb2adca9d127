"""An event loop in which time passes only when it is told to."""

from __future__ import annotations

import asyncio
from asyncio import events
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

BEGIN = datetime(2026, 11, 24, 12, tzinfo=UTC)


class _NoFiles:
    """What the loop asks for files that are ready; there are none, and waiting for some takes no time."""

    def select(self, _timeout: float | None) -> list[Any]:
        return []

    def close(self) -> None:
        pass


class Loop(asyncio.BaseEventLoop):
    """Callbacks and timers of asyncio, no files, no time of its own."""

    def __init__(self) -> None:
        super().__init__()
        self._selector = _NoFiles()
        self._passed = 0.0
        self.errors: list[dict[str, Any]] = []
        """What nobody caught."""
        self._kept: set[asyncio.Task[Any]] = set()
        self.set_task_factory(self._keep)  # also of what is dead: nothing is cleared away before the end
        self.set_exception_handler(lambda _loop, context: self.errors.append(context))

    def time(self) -> float:
        """Seconds since it was made."""
        return self._passed

    def now(self) -> datetime:
        """The same as a date."""
        return BEGIN + timedelta(seconds=self._passed)

    def settle(self) -> None:
        """Run until everything waits for a message or for time to pass."""
        self._in_loop(self._until_idle)

    def advance(self, seconds: float) -> None:
        """Let time pass; every timer goes off at its own moment."""
        self._in_loop(lambda: self._pass(self._passed + seconds))

    def call(self, function: Callable[[], Any]) -> Any:
        """Call something that needs a running loop, and settle."""
        return self._in_loop(lambda: (function(), self._until_idle())[0])

    def _keep(self, _loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(work, loop=self, **options)
        self._kept.add(task)
        task.add_done_callback(self._kept.discard)
        return task

    def _pass(self, until: float) -> None:
        self._until_idle()
        while self._scheduled and self._scheduled[0].when() <= until:
            self._passed = max(self._passed, self._scheduled[0].when())
            self._run_once()
            self._until_idle()
        self._passed = until

    def _until_idle(self) -> None:
        while self._ready:
            self._run_once()

    def _in_loop(self, function: Callable[[], Any]) -> Any:
        events._set_running_loop(self)
        try:
            return function()
        finally:
            events._set_running_loop(None)

    def _process_events(self, _events: object) -> None:
        pass

    def _write_to_self(self) -> None:
        pass
