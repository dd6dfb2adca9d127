"""What a command prints, on its way to its run's log: line by line, bounded in lines, bytes and memory.

The first lines are logged as they come. What is beyond that is only counted, and of each stream the last lines are
logged at its end: with a program that fails they are the ones that say why.
"""

from __future__ import annotations

from collections.abc import Callable

from runwire.domain.task import LogLevel

FIRST_LINES = 1000
"""Lines that are logged as they come, of both streams together."""
FIRST_BYTES = 1 << 20
"""Bytes in them."""
LAST_LINES = 50
"""Lines at the end of each stream that are logged in any case."""
KEPT = 64 * 1024
"""Bytes at the end of each stream that are kept."""
LONGEST_LINE = 4000
"""Bytes of a line; the rest is cut off."""


class Output:
    """Both streams of a command."""

    def __init__(self, log: Callable[[str, LogLevel], None]) -> None:
        """``log`` takes the lines."""
        self.log = log
        self.lines, self.bytes = FIRST_LINES, FIRST_BYTES
        self.stdout = Stream(self, "stdout", LogLevel.INFO)
        self.stderr = Stream(self, "stderr", LogLevel.WARNING)

    def close(self) -> None:
        """Log what is left."""
        self.stdout.close()
        self.stderr.close()


class Stream:
    """One of them. Bytes that are no UTF-8 become U+FFFD."""

    def __init__(self, output: Output, name: str, level: LogLevel) -> None:
        self._output = output
        self._name = name
        self._level = level
        self._line = b""
        """The beginning of the line that is not complete yet."""
        self._cut = 0
        """Bytes of it that are not kept."""
        self._end = bytearray()
        self._trimmed = False
        self._skipping = False
        self._skipped = 0

    def feed(self, chunk: bytes) -> None:
        """Take what was read."""
        self._end += chunk
        if len(self._end) > 2 * KEPT:
            del self._end[:-KEPT]
            self._trimmed = True
        if self._skipping:
            self._skipped += chunk.count(b"\n")
            return
        first, *others = chunk.split(b"\n")
        self._line += first
        for other in others:
            self._complete()
            self._line = other
        if len(self._line) > LONGEST_LINE:
            self._cut += len(self._line) - LONGEST_LINE
            self._line = self._line[:LONGEST_LINE]

    def close(self) -> None:
        """Log the last lines, as far as they have not been."""
        if not self._skipping:
            if self._line:
                self._complete()
        elif not self._end.endswith(b"\n"):
            self._skipped += 1
        if not self._skipped:
            return
        lines = bytes(self._end).removesuffix(b"\n").split(b"\n")
        if self._trimmed and len(lines) > 1:
            del lines[0]  # a part of one
        lines = lines[-min(LAST_LINES, self._skipped) :]
        if len(lines) < self._skipped:
            self._output.log(f"{self._skipped - len(lines):,} lines of {self._name} are left out", LogLevel.WARNING)
        for line in lines:
            self._log(line)

    @property
    def last_line(self) -> bytes:
        """The last line that is not blank; empty: there is none. One that is longer than KEPT lacks its beginning."""
        return bytes(self._end).rstrip().rpartition(b"\n")[2]

    def _complete(self) -> None:
        """A line has come to its end: log it, or skip it if there is no room."""
        if self._output.lines <= 0 or self._output.bytes <= 0:
            self._skipping = True
            self._skipped += 1
        else:
            self._output.lines -= 1
            self._output.bytes -= len(self._line)
            self._log(self._line, self._cut)
        self._line, self._cut = b"", 0

    def _log(self, line: bytes, cut: int = 0) -> None:
        cut += max(0, len(line) - LONGEST_LINE)
        text = line[:LONGEST_LINE].removesuffix(b"\r").decode(errors="replace")
        self._output.log(f"{text}... ({cut:,} bytes cut off)" if cut else text, self._level)
