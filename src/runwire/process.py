"""What every runwire process does about itself: log lines, readiness, and not outliving its parent."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable

from runwire.domain.task import LogLevel

EXIT_SETUP = 78
"""Exit status of a process that cannot run as configured (EX_CONFIG of sysexits.h): starting it again is no use."""

PR_SET_PDEATHSIG = 1
"""prctl(2), Linux: the signal this process gets when its parent dies."""
PR_SET_CHILD_SUBREAPER = 36
"""prctl(2), Linux: whether this process becomes the parent of its descendants whose own parent has ended."""


GC_THRESHOLDS = (100_000, 50, 1000)
"""Python's own (700, 10, 10) look at everything that is alive again and again: in a read model's rebuild that took two
thirds of the time. What we let go of is freed by its reference count; few cycles are ever made."""


def calm_garbage_collector() -> None:
    """Look for garbage in cycles seldom, and never among what was there at the start."""
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def set_up_logging(name: str, level: str) -> None:
    """Log lines to stderr, one sentence each: time, process, level where it matters, message."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines(name))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("runwire").setLevel(level.upper())


def level_of(number: int) -> LogLevel:
    """What a level of Python's logging is in the log of a run."""
    if number < logging.INFO:
        return LogLevel.DEBUG
    if number < logging.WARNING:
        return LogLevel.INFO
    return LogLevel.WARNING if number < logging.ERROR else LogLevel.ERROR


class _Lines(logging.Formatter):
    """``14:35:00 worker   run succeeded task=12345 ...``; warnings and errors say so."""

    def __init__(self, process: str) -> None:
        super().__init__(f"%(asctime)s {process:<8} %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        if record.levelno < logging.WARNING:
            return line
        time, _, rest = line.partition(" ")
        return f"{time} {record.levelname.lower()}: {rest}"


def notify_ready() -> None:
    """Tell whoever started us that we are ready: systemd or `runwire up` (sd_notify protocol). Else nothing happens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier:
        try:
            notifier.connect("\0" + address[1:] if address.startswith("@") else address)
            notifier.send(f"READY=1\nMAINPID={os.getpid()}".encode())
        except OSError as error:
            logging.getLogger("runwire").warning("cannot tell that we are ready: %s", error)


def die_with_parent() -> Callable[[], None]:
    """What a child calls between fork and exec so that it is killed when its parent dies (Linux; else nothing)."""
    if not sys.platform.startswith("linux"):
        return lambda: None
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()

    def arrange() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)

    return arrange


def outlive_parent() -> None:
    """Take back what :func:`die_with_parent` arranged: this process notices by itself."""
    _prctl(PR_SET_PDEATHSIG, 0)


def adopt_orphans() -> None:
    """From now on be the parent of every descendant whose own parent has ended (Linux; else nothing)."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, argument: int) -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(option, argument, 0, 0, 0)
