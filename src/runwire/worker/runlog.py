"""The log lines of one attempt: written from anywhere, stored in order, all of them before the run's last event.

Beside the lines an attempt reports how far it has come. Of these reports only the latest counts: they go out
twice a second at most, and the last one before the run's last event.
"""

from __future__ import annotations

import asyncio
import codecs
import logging
import math
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from datetime import UTC, datetime

from nats.js.errors import Error as JetStreamError

from runwire.domain.task import LogEntry, LogLevel, ProgressReport, whole_seconds
from runwire.messaging import logs
from runwire.messaging.broker import UNAVAILABLE, Bus
from runwire.worker.redaction import Redact

log = logging.getLogger("runwire.worker")

WRITTEN_LINES, WRITTEN_CHARACTERS = 2000, 2 << 20
"""What an attempt may write by ``ctx.log``; further lines are counted, and the count is the last line."""
CAPTURED_LINES, CAPTURED_CHARACTERS = 1000, 1 << 20
"""What is kept beside of what it prints, and of what it and its libraries log."""
LONGEST_LINE = 8000
"""Characters of a line; the rest is cut off."""
LONGEST_MESSAGE = 500
"""Characters of what a report of progress says."""
REPORT_INTERVAL = 0.5
"""Seconds between two reports of progress."""
CHUNK = 64 * 1024
"""Bytes that are decoded at once."""
AT_ONCE = 64
"""Lines on their way to the broker at the same time."""


class Room:
    """Lines and characters that may still be added."""

    def __init__(self, lines: int, characters: int) -> None:
        self.lines, self.characters = lines, characters
        self.dropped = 0
        """Lines that found none."""

    @property
    def is_left(self) -> bool:
        """Whether another line may be added."""
        return self.lines > 0 and self.characters > 0

    def take(self, characters: int) -> bool:
        """Room for a line; False: there is none, and it is counted."""
        if not self.is_left:
            self.dropped += 1
            return False
        self.lines -= 1
        self.characters -= characters
        return True


class RunLog:
    """Collects lines and stores them in the background; :meth:`flush` waits until they are stored.

    :meth:`write`, :meth:`capture`, :meth:`note` and :meth:`report` return at once and may be called from any thread.
    What comes after the flush, from a thread that goes on after its time, is dropped.
    """

    def __init__(self, bus: Bus, *, chain: int, task: int, run: str, claim_id: str, attempt: int = 0) -> None:
        """For one attempt, which ``claim_id`` names. Needs a running event loop."""
        self.redact: Redact = _unchanged
        """Takes the secrets out of a line."""
        self.stdout, self.stderr = Printed(self, LogLevel.INFO), Printed(self, LogLevel.WARNING)
        """What the attempt prints."""
        self.is_closed = False
        """Nothing more is taken."""
        self._bus = bus
        self._chain, self._task, self._run, self._claim_id = chain, task, run, claim_id
        self._attempt = attempt
        self._loop = asyncio.get_running_loop()
        self._context = copy_context()  # not the action's: what is said about a line must not become one
        self._lock = threading.RLock()  # reentrant: a destructor or a signal handler may print at any time
        self._lines: deque[LogEntry] = deque()
        self._for_written = Room(WRITTEN_LINES, WRITTEN_CHARACTERS)
        self._for_captured = Room(CAPTURED_LINES, CAPTURED_CHARACTERS)
        self._stored = 0
        self._sender: asyncio.Task[None] | None = None
        self._latest: tuple[float | None, str] | None = None
        """The report that is to be sent."""
        self._reported = 0
        self._reporter_is_due = False
        self._reporter: asyncio.Task[None] | None = None
        self._ending = asyncio.Event()
        self._sequence = 0

    def write(self, level: LogLevel, message: str) -> None:
        """Add a line that the action wants in the log."""
        if self._for_written.is_left:
            self._add(level, message, self._for_written)
        else:
            self._drop(self._for_written, 1)

    def capture(self, level: LogLevel, message: str, *, cut: int = 0) -> None:
        """Add a line that was printed or logged; ``cut``: characters that have been cut off it."""
        self._add(level, message, self._for_captured, cut)

    def note(self, level: LogLevel, message: str) -> None:
        """Add a line of the worker's own, whatever has been written before."""
        self._add(level, message, None)

    @property
    def captures(self) -> bool:
        """Whether there is room for another line that was printed or logged."""
        return self._for_captured.is_left

    def drop(self, lines: int) -> None:
        """Count lines that were printed or logged."""
        self._drop(self._for_captured, lines)

    def _drop(self, room: Room, lines: int) -> None:
        with self._lock:
            room.dropped += lines

    def _add(self, level: LogLevel, message: str, room: Room | None, cut: int = 0) -> None:
        message = storable(self.redact(message, cut=cut > 0))
        cut += max(0, len(message) - LONGEST_LINE)
        if cut:
            message = f"{message[:LONGEST_LINE]}... ({cut:,} characters cut off)"
        entry = LogEntry(date=_now(), level=level, message=message, run=self._run)
        with self._lock:
            if self.is_closed or (room is not None and not room.take(len(message))):
                return
            self._lines.append(entry)
        self._call_soon(self._send_soon)

    def _call_soon(self, function: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the worker has ended, a thread of its has not
            self._loop.call_soon_threadsafe(function, context=self._context)

    def report(self, fraction: float | None, message: str = "") -> None:
        """Report progress, in the place of what is not sent yet. Raises TypeError when the fraction is no number."""
        if self.is_closed:
            return
        self._latest = (_share(fraction), message)
        if not self._reporter_is_due:
            self._reporter_is_due = True
            self._call_soon(self._report_soon)

    def close(self) -> None:
        """Take nothing more, and say how much was dropped. May be called twice."""
        if self.is_closed:
            return
        self.stdout.close()
        self.stderr.close()
        dropped = self._for_written.dropped + self._for_captured.dropped
        if dropped:
            self.note(
                LogLevel.WARNING, f"{dropped:,} further lines were dropped: too much was written, printed or logged"
            )
        with self._lock:
            self.is_closed = True
        self.stdout.detach()
        self.stderr.detach()
        self._ending.set()

    async def flush(self) -> int:
        """Wait until every line is stored; returns the LOGS sequence of the last one (0: no lines).

        The last report of progress counts as a line.
        """
        self.close()
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


class Printed:
    """What an attempt prints on one of its streams, on its way to being lines. May be used from any thread."""

    def __init__(self, log: RunLog, level: LogLevel) -> None:
        self._log: RunLog | None = log
        self._level = level
        self._lock = threading.RLock()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._line = ""
        """The beginning of the line that is not complete yet."""
        self._cut = 0
        """Characters of it that are not kept."""

    def feed(self, text: str) -> int:
        """Take what was printed; returns how many characters."""
        begin = 0
        with self._lock:
            log = self._log
            if log is None:
                return len(text)
            while (end := text.find("\n", begin)) >= 0 and log.captures:
                self._append(text, begin, end)
                self._complete()
                begin = end + 1
            if log.captures:
                self._append(text, begin, len(text))
            else:
                log.drop(text.count("\n", begin))
                self._line, self._cut = "", 0
        return len(text)

    def feed_bytes(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes; what is no UTF-8 becomes U+FFFD."""
        view = memoryview(data).cast("B")
        with self._lock:
            for begin in range(0, len(view), CHUNK):
                self.feed(self._decoder.decode(bytes(view[begin : begin + CHUNK])))

    def close(self) -> None:
        """The last line is complete as it is. More may come."""
        with self._lock:
            self.feed(self._decoder.decode(b"", final=True))
            self._decoder.reset()
            if self._line or self._cut:
                self._complete()

    def detach(self) -> None:
        """Let go of the log, which takes nothing more: with it this would be a cycle, and such garbage stays long."""
        with self._lock:
            self._log = None

    def _append(self, text: str, begin: int, end: int) -> None:
        """Add to the line. What a carriage return has the terminal write over is left out, as by a progress bar."""
        restart = text.rfind("\r", begin, end - 1)
        if restart >= 0 or (begin < end and self._line.endswith("\r")):
            self._line, self._cut = "", 0
            begin = max(begin, restart + 1)
        room = LONGEST_LINE - len(self._line)
        self._line += text[begin : min(end, begin + room)]
        self._cut += max(0, end - begin - room)

    def _complete(self) -> None:
        if self._log is not None:
            self._log.capture(self._level, self._line.removesuffix("\r"), cut=self._cut)
        self._line, self._cut = "", 0


def _unchanged(text: str, *, cut: bool = False) -> str:  # noqa: ARG001 - a Redact
    return text


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
