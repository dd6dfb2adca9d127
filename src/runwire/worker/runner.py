"""The process of one run: takes the request over its channel, calls the function, answers, and ends.

Every message is a line of JSON. The worker sends the request; this side sends what the function writes, logs, reports
and asks for (``log``, ``record``, ``progress``; ``secret``, which is answered), and at last one of

* ``{"result": n}``, followed by n bytes of JSON (0: None),
* ``{"fail": [code, message]}``, ``{"retry": [code, message, after]}``,
* ``{"raised": [text, traceback]}``: whatever else the function raised.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import logging
import math
import os
import resource
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic_core import PydanticSerializationError, to_json, to_jsonable_python

from runwire.app import Action, App, Context
from runwire.domain.errors import Fail, Retry
from runwire.domain.run import ErrorCode
from runwire.domain.task import LogLevel
from runwire.process import level_of

MB = 1 << 20
REPORT_INTERVAL = 0.1
"""Seconds between two reports of progress, at least."""
LONGEST_TEXT = 100_000
"""Characters of a text in a message; the worker shows fewer."""

Answer = tuple[dict[str, Any], bytes]
"""A message and what follows it."""


class Channel:
    """This end of the connection to the worker; may be used from any thread."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lines = connection.makefile("rb")
        self._lock, self._turn = threading.RLock(), threading.RLock()
        self._reported = 0.0
        """When progress was last sent (monotonic seconds)."""
        self._latest: list[Any] | None = None
        """The report that is to be sent."""
        self._reporter: threading.Thread | None = None

    def receive(self) -> dict[str, Any]:
        """The next message from the worker."""
        message: dict[str, Any] = json.loads(self._lines.readline())
        return message

    def send(self, message: dict[str, Any], content: bytes = b"") -> None:
        """Send a message; waits while the worker has no time to read."""
        with self._lock:
            self._connection.sendall(json.dumps(message).encode() + b"\n")
            self._connection.sendall(content)

    def log(self, level: LogLevel, text: str) -> None:
        """Send a log line."""
        self.send({"log": [level, _cut(text)]})

    def record(self, level: LogLevel, text: str) -> None:
        """Send a line of Python's logging."""
        self.send({"record": [level, _cut(text)]})

    def progress(self, fraction: float | None, text: str) -> None:
        """Send a report, or in a moment, when there has just been one. Raises TypeError when it is no number."""
        share = None if fraction is None or not math.isfinite(fraction) else float(fraction)
        with self._lock:
            self._latest = [share, _cut(text)]
            if time.monotonic() - self._reported >= REPORT_INTERVAL:
                self.report()
            elif self._reporter is None:
                self._reporter = threading.Thread(target=self._report_later, daemon=True)
                self._reporter.start()

    def _report_later(self) -> None:
        time.sleep(REPORT_INTERVAL)
        with self._lock, contextlib.suppress(OSError):
            self._reporter = None
            self.report()

    def report(self) -> None:
        """Send the report that has not been sent yet."""
        with self._lock:
            if self._latest is not None:
                self._reported = time.monotonic()
                self.send({"progress": self._latest})
                self._latest = None

    def secret(self, name: str, own: bool) -> str:
        """Ask for a secret. Raises Fail or Retry."""
        if not isinstance(name, str):
            raise TypeError(f"the name of a secret must be str, not {type(name).__name__}")
        with self._turn:
            self.send({"secret": [name, own]})
            match self.receive():
                case {"fail": [code, message]}:
                    raise Fail(code, message)
                case {"retry": [code, message, after]}:
                    raise Retry(message, after=after, code=code)
                case answer:
                    return str(answer["value"])


class Records(logging.Handler):
    """What is logged by Python's logging, into the run's log."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        """Send the record."""
        try:
            self._channel.record(level_of(record.levelno), self.format(record))
        except Exception:  # noqa: BLE001 - a mistake in a log call is told of, and is no reason to fail
            self.handleError(record)


def run(app: App, connection: socket.socket) -> None:
    """Take one request and answer it."""
    process = os.getpid()
    channel = Channel(connection)
    request = channel.receive()
    _capture_records(channel)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with _memory_limited(request["memory"]):
        answer = _answer(app, request, channel)
    if os.getpid() != process:  # the function forked, and its child came back from it
        os._exit(0)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # the function has closed it
            stream.flush()
    with contextlib.suppress(OSError):  # it has closed that, too, or the worker has gone
        channel.report()
        channel.send(*answer)


def _capture_records(channel: Channel) -> None:
    """Have what is logged sent, and printed no more."""
    root = logging.getLogger()
    for handler in root.handlers.copy():
        if isinstance(handler, logging.StreamHandler) and handler.stream in {sys.stdout, sys.stderr}:
            root.removeHandler(handler)
    root.addHandler(Records(channel))
    root.setLevel(min(root.level, logging.INFO))


def _answer(app: App, request: dict[str, Any], channel: Channel) -> Answer:
    """Call the function; whatever happens is an answer."""
    try:
        return _encoded(_call(app.actions.get(request["action"]), request, channel))
    except Fail as fail:
        return {"fail": [fail.code, _cut(str(fail))]}, b""
    except Retry as retry:
        return {"retry": [retry.code, _cut(str(retry)), retry.after]}, b""
    except MemoryError as error:
        limit = request["memory"]
        text = f"MemoryError: {f'it may take {limit} MB of memory' if limit else error}"
        return {"raised": [_cut(text), _cut("".join(traceback.format_exception(error)))]}, b""
    except BaseException as error:  # noqa: BLE001 - SystemExit and KeyboardInterrupt are the function's own, too
        text = _cut(f"{type(error).__name__}: {error}")
        return {"raised": [text, _cut("".join(traceback.format_exception(error)))]}, b""


def _call(action: Action | None, request: dict[str, Any], channel: Channel) -> object:
    if action is None or action.function is None:
        message = f"The app of --app has no action {request['action']!r} with process=True."
        raise Retry(message, code=ErrorCode.NOT_STARTED)
    function = action.function
    parameters = action.parameters.validate_python(request["parameters"])
    known = request["context"]
    context = Context(
        **known | {"deadline": datetime.fromisoformat(known["deadline"])},
        write_log=channel.log,
        write_progress=channel.progress,
        read_secret=channel.secret,
    )
    if inspect.iscoroutinefunction(function):
        return asyncio.Runner().run(function(parameters, context))  # not closed: that would wait for its threads
    return function(parameters, context)


def _encoded(result: object) -> Answer:
    if result is None:
        return {"result": 0}, b""
    try:
        content = to_json(to_jsonable_python(result))
    except (PydanticSerializationError, ValueError, RecursionError) as error:
        raise Fail(ErrorCode.INVALID_RESULT, f"The action's result is no JSON: {error}") from None
    return {"result": len(content)}, content


@contextlib.contextmanager
def _memory_limited(megabytes: int | None) -> Iterator[None]:
    """Let this process take so much more address space than it has; afterwards as much as before, to answer with."""
    if megabytes is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = _address_space() + megabytes * MB
    most = min((limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY), default=wanted)
    resource.setrlimit(resource.RLIMIT_AS, (min(wanted, most), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _address_space() -> int:
    """Bytes this process has (Linux; elsewhere 0)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def _cut(text: str) -> str:
    """What may be sent of a text: not too long, and without lone surrogates."""
    return text[:LONGEST_TEXT].encode(errors="replace").decode()
