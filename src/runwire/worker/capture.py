"""What an action prints and what it logs by Python's logging goes into the log of its run.

Which run it is, a context variable says: coroutines and threads of :func:`runwire.blocking.in_thread` that run at
once are told apart by it, and so is whatever they start that takes their context along. What is printed or logged
where it is not set (a thread that an action has started itself, the worker's own lines) goes where it went before,
without the secrets in it.
"""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar
from typing import Any, TextIO, cast

from runwire.process import level_of
from runwire.worker.runlog import Printed, RunLog

OWN_LOGGERS = ("runwire", "nats", "faststream", "asyncio")
"""What they say is the worker's business, whoever set it off: a task that failed is told of when it is cleared away,
and that may happen in the midst of any other run."""

_current: ContextVar[RunLog | None] = ContextVar("run_log", default=None)


@contextmanager
def captured(log: RunLog) -> Iterator[None]:
    """What is printed and logged within the block goes into this log; at its end the last lines are complete."""
    token = _current.set(log)
    try:
        yield
    finally:
        _current.reset(token)
        log.stdout.close()
        log.stderr.close()


@contextmanager
def installed(conceal: Callable[[str], str]) -> Iterator[None]:
    """Within the block runs get what they print, and what is logged from INFO on unless a logger says otherwise.

    Outside of runs everything goes where it went, at the level it had; ``conceal`` takes the secrets out of it.
    """
    root, stdout, stderr, hook = logging.getLogger(), sys.stdout, sys.stderr, sys.unraisablehook
    level, records, gate = root.level, _Records(), _OutsideOnly(root.level)
    outside = {id(stream): _Outside(stream, conceal) for stream in (stdout, stderr)}
    handlers = [
        (handler, handler.stream)
        for handler in root.handlers
        if isinstance(handler, logging.StreamHandler) and id(handler.stream) in outside
    ]
    for handler, stream in handlers:
        handler.setStream(outside[id(stream)])
        handler.addFilter(gate)
    root.addHandler(records)
    root.setLevel(min(level, logging.INFO))
    sys.stdout = cast("TextIO", _Captured(outside[id(stdout)], "stdout"))
    sys.stderr = cast("TextIO", _Captured(outside[id(stderr)], "stderr"))
    sys.unraisablehook = lambda unraisable: Context().run(hook, unraisable)  # it may be any run's, or nobody's
    try:
        yield
    finally:
        sys.stdout, sys.stderr, sys.unraisablehook = stdout, stderr, hook
        root.setLevel(level)
        root.removeHandler(records)
        for handler, stream in handlers:
            handler.removeFilter(gate)
            handler.setStream(stream)


class _Records(logging.Handler):
    """Records of a run, into its log."""

    def emit(self, record: logging.LogRecord) -> None:
        log = _log_of(record)
        if log is None:
            return
        if not log.captures:
            log.drop(1)
            return
        try:
            log.capture(level_of(record.levelno), self.format(record))
        except Exception:  # noqa: BLE001 - a mistake in a log call is told of, and is no reason to fail
            self.handleError(record)


class _OutsideOnly(logging.Filter):
    """What goes into no run's log, and would have been told before."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self._level = level

    def filter(self, record: logging.LogRecord) -> bool:
        if _log_of(record) is not None:
            return False
        return record.levelno >= self._level or _has_level_of_its_own(record.name)


class _Outside(io.TextIOBase):
    """A stream without the secrets."""

    def __init__(self, stream: TextIO, conceal: Callable[[str], str]) -> None:
        self.stream = stream
        self._conceal = conceal

    def write(self, text: str) -> int:
        self.stream.write(self._conceal(text))
        return len(text)

    def flush(self) -> None:
        self.stream.flush()


class _Captured(io.TextIOBase):
    """sys.stdout or sys.stderr: what is written belongs to the current run, if there is one."""

    errors = "replace"

    def __init__(self, outside: _Outside, name: str) -> None:
        self._outside = outside
        self._attribute = name
        self.buffer = _Bytes(self)

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        printed = self.printed()
        return self._outside.write(text) if printed is None else printed.feed(text)

    def writelines(self, lines: Iterable[str]) -> None:  # type: ignore[override]  # typeshed has it for bytes, too
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if self.printed() is None:
            self._outside.flush()

    def printed(self) -> Printed | None:
        """Where the current run keeps what it prints here; None: there is no run."""
        log = _current.get()
        return None if log is None or log.is_closed else cast("Printed", getattr(log, self._attribute))

    @property
    def encoding(self) -> str:  # type: ignore[override]  # an attribute there
        return self._outside.stream.encoding

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self.printed() is None and self._outside.stream.isatty()

    def fileno(self) -> int:
        """The file behind it: what is written there by other means is not captured."""
        return self._outside.stream.fileno()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._outside.stream, name)


class _Bytes(io.BufferedIOBase):
    """``sys.stdout.buffer``: bytes that are no UTF-8 become U+FFFD in a log."""

    def __init__(self, text: _Captured) -> None:
        self._text = text

    def write(self, data: Any) -> int:
        printed = self._text.printed()
        if printed is None:
            return int(self._text._outside.stream.buffer.write(data))  # noqa: SLF001 - one thing in two classes
        printed.feed_bytes(data)
        return len(data)

    def flush(self) -> None:
        self._text.flush()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._text.fileno()


def _log_of(record: logging.LogRecord) -> RunLog | None:
    """The log that a record goes into; None: none."""
    log = _current.get()
    if log is None or log.is_closed or record.name.partition(".")[0] in OWN_LOGGERS:
        return None
    return log


def _has_level_of_its_own(name: str) -> bool:
    logger: logging.Logger | None = logging.getLogger(name)
    while logger is not None and logger.parent is not None:
        if logger.level:
            return True
        logger = logger.parent
    return False
