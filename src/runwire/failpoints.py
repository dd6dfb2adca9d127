"""Failpoints: where a process can be made to die, or to stop, so that a test can try what a crash there does.

``RUNWIRE_FAILPOINT=POINT:ACTION`` in a process's environment when it starts, with ``:N`` behind it for the N-th time
it comes by. ``kill`` is SIGKILL to itself: nothing is tidied up. ``stop`` is SIGSTOP: it stands at exactly that point
until somebody sends SIGCONT. ::

    RUNWIRE_FAILPOINT=before_acknowledgement:kill runwire worker
    RUNWIRE_FAILPOINT=chunk_stored:kill:3 runwire worker

It is no setting: nobody but who starts the process can set it, nothing that comes from outside is looked at, and it
says so in the log. Without the variable a point is a call of a function that does nothing: 60 ns.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import signal
from collections.abc import Callable

from runwire.domain.errors import SetupError

log = logging.getLogger("runwire")

VARIABLE = "RUNWIRE_FAILPOINT"
SPELLING = re.compile("([a-z_]+):(kill|stop)(?::([1-9][0-9]*))?")
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


class Point:
    """Every failpoint. Plain strings: a member of an enumeration takes 100 ns to be looked up."""

    # An adapter; the first two also a forwarder.
    BEFORE_COMMAND = "before_command"
    """A command is about to be published."""
    COMMAND_STORED = "command_stored"
    """The broker has confirmed a command, and nothing has been made of that."""
    KEY_STORED = "key_stored"
    """The record of an Idempotency-Key is stored, and nothing has been made of that."""
    BEFORE_ANSWER = "before_answer"
    """A run has ended, and its caller has not been told."""
    TASK_STORED = "task_stored"
    """A task is created, and neither its caller nor the record of its key knows."""
    CANCEL_STORED = "cancel_stored"
    """A run is cancelled in the log, and its command is still there."""
    BEFORE_DELETION = "before_deletion"
    """A task's run was ended, if there was one, and its deletion is about to be stored."""

    # A worker.
    BEFORE_CLAIM = "before_claim"
    """A command is in hand, and its run is about to be claimed."""
    CLAIM_STORED = "claim_stored"
    """A run is claimed, and its action has not begun."""
    BEFORE_CONCLUSION = "before_conclusion"
    """The action has ended, and that is about to be stored."""
    BEFORE_ACKNOWLEDGEMENT = "before_acknowledgement"
    """The end of a run is stored, and its command is still there."""
    DEAD_LETTER_STORED = "dead_letter_stored"
    """A dead letter is stored, and its command is still there."""
    CHUNK_STORED = "chunk_stored"
    """A part of a file is stored."""
    BEFORE_FILE = "before_file"
    """All of a file is stored, and nothing of it can be seen yet."""

    # A forwarder, in the same process as a worker.
    BEFORE_ALARM = "before_alarm"
    """A tick was dealt with, and the next alarm is about to be set."""
    ALARM_STORED = "alarm_stored"
    """The next alarm is set, and the one that rang is not acknowledged."""

    # A projector, in an adapter.
    ROWS_WRITTEN = "rows_written"
    """The rows of a batch are written, in a transaction that is open, and the position is not."""
    BEFORE_COMMIT = "before_commit"
    """Rows and position are written, and the transaction is open."""
    COMMITTED = "committed"
    """Rows and position are committed, and nobody was told."""

    # `runwire up`.
    CHILD_STARTED = "child_started"
    """A child was started."""


def armed(text: str | None) -> Callable[[str], None]:
    """What is called at every point. Raises SetupError: a point that is misspelt would be a test of nothing."""
    if text is None:
        return _pass
    match = SPELLING.fullmatch(text)
    known = {value for name, value in vars(Point).items() if name.isupper()}
    if match is None or match[1] not in known:
        raise SetupError(f"{VARIABLE}: must be POINT:kill or POINT:stop, with one of {', '.join(sorted(known))}")
    wanted, number, nth = match[1], SIGNALS[match[2]], int(match[3] or 1)
    times = itertools.count(1)
    log.warning("%s is set: this process will end or stop at %s", VARIABLE, text, extra={"action": "failpoint"})

    def reached(point: str) -> None:
        if point == wanted and next(times) == nth:
            os.kill(os.getpid(), number)

    return reached


def _pass(_point: str) -> None:
    """Nothing is to happen anywhere."""


reach = armed(os.environ.get(VARIABLE))
"""Call it with the point the process is at."""
