"""The log lines of one attempt: written from anywhere, stored in order, all of them before the run's last event."""

from __future__ import annotations

import asyncio
from collections import deque
from datetime import UTC, datetime

from runwire.domain.task import LogEntry, LogLevel, whole_seconds
from runwire.messaging import logs
from runwire.messaging.broker import UNAVAILABLE, Bus
from runwire.worker.redaction import Redact

MOST_LINES = 2000
"""Lines one attempt may write; further ones are counted, and the count is the last line."""
LONGEST_LINE = 8000
"""Characters of a line; the rest is cut off."""
AT_ONCE = 64
"""Lines on their way to the broker at the same time."""


class RunLog:
    """Collects lines and stores them in the background; :meth:`flush` waits until they are stored."""

    def __init__(self, bus: Bus, *, chain: int, task: int, run: str, claim_id: str) -> None:
        """For one attempt, which ``claim_id`` names. Needs a running event loop."""
        self.redact: Redact = str
        """Takes the secrets out of a line."""
        self._bus = bus
        self._chain, self._task, self._run, self._claim_id = chain, task, run, claim_id
        self._loop = asyncio.get_running_loop()
        self._lines: deque[LogEntry] = deque()
        self._written = 0
        self._stored = 0
        self._dropped = 0
        self._sender: asyncio.Task[None] | None = None
        self._sequence = 0

    def write(self, level: LogLevel, message: str) -> None:
        """Add a line. Returns at once; may be called from any thread."""
        if self._written >= MOST_LINES:
            self._dropped += 1
            return
        self._written += 1
        message = self.redact(message)
        if len(message) > LONGEST_LINE:
            message = f"{message[:LONGEST_LINE]}... ({len(message) - LONGEST_LINE} characters cut off)"
        now = whole_seconds(datetime.now(UTC))
        self._lines.append(LogEntry(date=now, level=level, message=message, run=self._run))
        self._loop.call_soon_threadsafe(self._send_soon)

    async def flush(self) -> int:
        """Wait until every line is stored; returns the LOGS sequence of the last one (0: no lines)."""
        if self._dropped:
            self._written = 0
            dropped, self._dropped = self._dropped, 0
            self.write(LogLevel.WARNING, f"{dropped} further lines were dropped: at most {MOST_LINES} are kept")
        while self._lines or self._sender is not None:
            self._send_soon()
            if self._sender is not None:
                await asyncio.shield(self._sender)
        return self._sequence

    def _send_soon(self) -> None:
        if self._sender is None and self._lines:
            self._sender = self._loop.create_task(self._send())

    async def _send(self) -> None:
        try:
            while self._lines:
                batch = [self._lines.popleft() for _ in range(min(AT_ONCE, len(self._lines)))]
                first = self._stored
                self._stored += len(batch)
                sequences = await asyncio.gather(*(self._store(line, first + i) for i, line in enumerate(batch)))
                self._sequence = max(self._sequence, *sequences)
        finally:
            self._sender = None

    async def _store(self, line: LogEntry, number: int) -> int:
        """Store a line; a broker that is away is waited for."""
        while True:
            try:
                return await logs.publish(
                    self._bus, self._chain, self._task, line, line_id=f"{self._claim_id}-{number}"
                )
            except UNAVAILABLE:
                await asyncio.sleep(0.2)
