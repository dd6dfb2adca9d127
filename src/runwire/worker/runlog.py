"""The log lines of one attempt: written from anywhere, stored in order, all of them before the run's last event.

Beside the lines an attempt reports how far it has come. Of these reports only the latest counts: they go out
twice a second at most, and the last one before the run's last event.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime

from nats.js.errors import Error as JetStreamError

from runwire.domain.task import LogEntry, LogLevel, ProgressReport, whole_seconds
from runwire.messaging import logs
from runwire.messaging.broker import UNAVAILABLE, Bus
from runwire.worker.redaction import Redact

log = logging.getLogger("runwire.worker")

MOST_LINES = 2000
"""Lines one attempt may write; further ones are counted, and the count is the last line."""
LONGEST_LINE = 8000
"""Characters of a line; the rest is cut off."""
LONGEST_MESSAGE = 500
"""Characters of what a report of progress says."""
REPORT_INTERVAL = 0.5
"""Seconds between two reports of progress."""
AT_ONCE = 64
"""Lines on their way to the broker at the same time."""


class RunLog:
    """Collects lines and stores them in the background; :meth:`flush` waits until they are stored."""

    def __init__(self, bus: Bus, *, chain: int, task: int, run: str, claim_id: str, attempt: int = 0) -> None:
        """For one attempt, which ``claim_id`` names. Needs a running event loop."""
        self.redact: Redact = str
        """Takes the secrets out of a line."""
        self._bus = bus
        self._chain, self._task, self._run, self._claim_id = chain, task, run, claim_id
        self._attempt = attempt
        self._loop = asyncio.get_running_loop()
        self._lines: deque[LogEntry] = deque()
        self._written = 0
        self._stored = 0
        self._dropped = 0
        self._sender: asyncio.Task[None] | None = None
        self._latest: tuple[float | None, str] | None = None
        """The report that is to be sent."""
        self._reported = 0
        self._reporter_is_due = False
        self._reporter: asyncio.Task[None] | None = None
        self._closed = False
        self._ending = asyncio.Event()
        self._sequence = 0

    def write(self, level: LogLevel, message: str) -> None:
        """Add a line. Returns at once; may be called from any thread."""
        if self._closed:
            return
        if self._written >= MOST_LINES:
            self._dropped += 1
            return
        self._written += 1
        message = self.redact(message)
        if len(message) > LONGEST_LINE:
            message = f"{message[:LONGEST_LINE]}... ({len(message) - LONGEST_LINE} characters cut off)"
        self._lines.append(LogEntry(date=_now(), level=level, message=storable(message), run=self._run))
        with suppress(RuntimeError):  # the worker has ended, a thread of its has not
            self._loop.call_soon_threadsafe(self._send_soon)

    def report(self, fraction: float | None, message: str = "") -> None:
        """Report progress, in the place of what is not sent yet. Returns at once; may be called from any thread.

        Raises TypeError when the fraction is no number.
        """
        if self._closed:
            return
        self._latest = (_share(fraction), message)
        if not self._reporter_is_due:
            self._reporter_is_due = True
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._report_soon)

    async def flush(self) -> int:
        """Wait until every line is stored; returns the LOGS sequence of the last one (0: no lines).

        The last report of progress counts as a line. What is written or reported later, by a thread that goes on after
        its time, is dropped.
        """
        if self._dropped:
            self._written = 0
            dropped, self._dropped = self._dropped, 0
            self.write(LogLevel.WARNING, f"{dropped} further lines were dropped: at most {MOST_LINES} are kept")
        self._closed = True
        self._ending.set()
        while self._lines or self._latest or self._sender is not None or self._reporter is not None:
            self._send_soon()
            self._report_soon()
            for worker in (self._sender, self._reporter):
                if worker is not None:
                    await asyncio.shield(worker)
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

    def _report_soon(self) -> None:
        if self._reporter is None and self._latest is not None:
            self._reporter = self._loop.create_task(self._send_reports())

    async def _send_reports(self) -> None:
        try:
            while self._latest is not None:
                (fraction, message), self._latest = self._latest, None
                report = ProgressReport(
                    date=_now(),
                    run=self._run,
                    attempt=self._attempt,
                    fraction=fraction,
                    message=storable(self.redact(str(message))[:LONGEST_MESSAGE]),
                )
                await self._store_report(report)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._ending.wait(), REPORT_INTERVAL)
        finally:
            self._reporter = None
            self._reporter_is_due = False
            self._report_soon()  # what came in between

    async def _store_report(self, report: ProgressReport) -> None:
        """Store a report, unless there is a newer one by the time the broker is back."""
        self._reported += 1
        report_id = f"{self._claim_id}-p{self._reported}"
        while True:
            try:
                sequence = await logs.publish_progress(self._bus, self._chain, self._task, report, report_id=report_id)
            except UNAVAILABLE:
                await asyncio.sleep(0.2)
                if self._latest is not None:
                    return
            except JetStreamError as error:  # nothing that a run should fail for
                log.warning("a report of progress was refused: %s", error, extra={"action": "progress_refused"})
                return
            else:
                self._sequence = max(self._sequence, sequence)
                return


def _now() -> datetime:
    return whole_seconds(datetime.now(UTC))


def _share(fraction: float | None) -> float | None:
    """Between 0 and 1; None: that is no share."""
    if fraction is None or not math.isfinite(fraction):
        return None
    return round(min(max(float(fraction), 0.0), 1.0), 4)


def storable(text: str) -> str:
    """The text, with ``?`` for what UTF-8 cannot hold: halves of surrogate pairs, as file names may bring them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="replace").decode()
    return text
