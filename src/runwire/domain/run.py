"""The run: one execution of a task; the command that asks for it; and the ways it can end."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import AwareDatetime, JsonValue

from runwire.domain.task import Model, whole_seconds
from runwire.domain.trace import Trace

RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""What a run id looks like, whoever made it: safe in a URL, a header and a bucket key."""

PUBLIC_FIELDS = (
    "id",
    "task",
    "chain",
    "code",
    "attempt",
    "source",
    "reason",
    "accepted",
    "started",
    "finished",
    "result",
    "error",
    "next_attempt",
    "trace_id",
)
"""Of what is stored, ``next_attempt``: when a run that waits between two tries goes on, and ``trace_id``."""


class RunCode(StrEnum):
    """Where a run stands: as its task does, but for SKIPPED."""

    READY = "READY"
    """Queued."""
    INPROGRESS = "INPROGRESS"
    DONE = "DONE"
    ERROR = "ERROR"
    SKIPPED = "SKIPPED"
    """It never came to be: a tick of the schedule that was not run, or several in a row."""


class Source(StrEnum):
    """The door a run came in by."""

    HTTP = "http"
    BUS = "bus"
    SCHEDULE = "schedule"


class ErrorCode(StrEnum):
    """Why a run ended as ERROR, when runwire itself says so; ``Fail`` may bring codes of its own."""

    HANDLER_ERROR = "handler_error"
    """The action raised."""
    TIMEOUT = "timeout"
    """An attempt took longer than the task's ``timeout``."""
    DEADLINE_EXCEEDED = "deadline_exceeded"
    """The run was not over within the task's ``deadline``, in the queue, at work or between two tries."""
    INVALID_PARAMETERS = "invalid_parameters"
    """The target does not fit the action's parameter model."""
    INVALID_RESULT = "invalid_result"
    """The action returned something that is no JSON object."""
    RESULT_TOO_LARGE = "result_too_large"
    """The result is larger than can be stored."""
    UNKNOWN_ACTION = "unknown_action"
    """No worker that knows the action turned up within RUNWIRE_ACTION_WAIT."""
    UNKNOWN_DATASET = "unknown_dataset"
    """The worker knows no dataset of this name."""
    INVALID_ROW = "invalid_row"
    """The dataset gave something else than the rows it promises."""
    STORE_FULL = "store_full"
    """There was no room for the file."""
    UNKNOWN_SECRET = "unknown_secret"  # noqa: S105 - the name of an error, no secret
    """The action asked for a secret that is not there, or cannot be read."""
    UNKNOWN_COMMAND = "unknown_command"
    """The operator's list has no such command, or not for this chain."""
    NOT_STARTED = "not_started"
    """The command, or the process of the function, could not be started."""
    EXIT_STATUS = "exit_status"
    """The command ended with a status that says it failed."""
    KILLED = "killed"
    """The command was killed by a signal: a limit, the system, or somebody. A function's process ended unanswered."""
    SERVICE_ERROR = "service_error"
    """The service answered that it failed, without a code of its own."""
    NO_RESPONDERS = "no_responders"
    """Nobody on the bus listens to requests for the service."""
    CONNECTION_LOST = "connection_lost"
    """The connection to the broker broke before the reply was there, or before a message was known to be out."""
    FORBIDDEN_ADDRESS = "forbidden_address"
    """The request's host, or one it was redirected to, stands for an address that may not be called."""
    CONNECTION_FAILED = "connection_failed"
    """The server could not be reached, or the connection broke before its answer was there."""
    UNEXPECTED_STATUS = "unexpected_status"
    """The server answered with a status that says it failed."""
    RESPONSE_TOO_LARGE = "response_too_large"
    """The server's answer is larger than the task or the operator allows."""
    INVALID_RESPONSE = "invalid_response"
    """The server's answer is not what it has to be."""
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    """Its workers died RUNWIRE_MAX_DELIVERIES times."""
    CANCELLED = "cancelled"
    """Somebody ended it, queued or running."""
    LOST = "lost"
    """It was in progress, but the command behind it is gone."""
    OVERLAP = "overlap"
    """A tick was skipped: the task was still queued or running."""
    MISSED = "missed"
    """A tick was skipped: nobody was there at its time, and the trigger does not make up for it."""


class Tick(Model):
    """An instant at which a schedule wants a run."""

    version: int
    """Which of the task's schedules: the version of the task that brought it."""
    due: AwareDatetime


class RunError(Model):
    """Why a run ended as ERROR: a stable snake_case code and a sentence."""

    code: str
    message: str


class Claim(Model):
    """Who works on the run, and what it has been through: for the workers, not for the public view."""

    id: str
    """New with every attempt: two attempts are never mistaken for each other. Empty: nobody ever claimed the run."""
    command: int
    """COMMANDS sequence of the command behind the run."""
    delivery: int
    """Which delivery of that command made the claim (1: the first)."""
    failures: int = 0
    """Attempts that ended in an error and were tried again."""
    interruptions: int = 0
    """Attempts whose worker vanished."""
    retry_at: AwareDatetime | None = None
    """Set while the run waits between two tries: not before this."""
    released: bool = False
    """The worker was stopped in an orderly way and gave the run back."""


class Run(Model):
    """One execution of a task."""

    id: str
    task: int
    chain: int
    code: RunCode
    attempt: int
    """1 for the first; counts retries and lost workers alike, so it can serve as a fencing token. 0: it never began."""
    source: Source
    reason: str | None = None
    """Why it was asked for, in somebody's words."""
    accepted: AwareDatetime
    """When the command was stored; of a skipped tick: its time."""
    tick: Tick | None = None
    """What the schedule wanted it for; None: it came in by another door."""
    trace: Trace | None = None
    """Its own place in the trace in which it was asked for; None: it was asked for in none."""
    started: AwareDatetime | None = None
    """When the first attempt began; None: it was cancelled before."""
    finished: AwareDatetime | None = None
    result: dict[str, JsonValue] | None = None
    error: RunError | None = None
    """Why it ended as ERROR; while it waits for its next try, why the last one failed."""
    log_seq: int = 0
    """LOGS sequence of its last line; 0: none."""
    claim: Claim

    @property
    def is_final(self) -> bool:
        """Whether the run has ended."""
        return self.code not in {RunCode.READY, RunCode.INPROGRESS}

    def public(self) -> dict[str, Any]:
        """The run as the HTTP API shows it: JSON-ready."""
        following = None if self.is_final else self.claim.retry_at
        when = None if following is None else f"{whole_seconds(following):%Y-%m-%dT%H:%M:%SZ}"
        return self.model_dump(mode="json", include=set(PUBLIC_FIELDS)) | {
            "next_attempt": when,
            "trace_id": self.trace and self.trace.id,
        }


@dataclass(frozen=True, kw_only=True)
class Command:
    """One delivery of an execute command."""

    chain: int
    task: int
    run: str
    source: Source
    accepted: datetime
    sequence: int
    """Its position in COMMANDS."""
    delivery: int
    """1 for the first delivery, +1 with each further one."""
    tick: Tick | None = None
    """The tick of the schedule that it stands for."""
    reason: str | None = None
    """Why, for people."""
    trace: Trace | None = None
    """The run's place in the trace in which it was asked for."""


@dataclass(frozen=True)
class Done:
    """The attempt succeeded."""

    result: dict[str, JsonValue] | None


@dataclass(frozen=True)
class Failed:
    """The attempt failed. ``retryable`` False: whatever the task's retry policy says, this is the end."""

    error: RunError
    retryable: bool = False
    retry_after: float | None = None
    """Seconds the action asked to wait before the next try; None: as the policy says."""


Outcome = Done | Failed
