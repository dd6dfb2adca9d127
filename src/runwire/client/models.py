"""What the client answers with: frozen, with the names of the HTTP API; times are in UTC.

Fields that a newer adapter adds are kept, and ``model_dump(mode="json", exclude_unset=True)`` is what came.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from runwire.client.errors import RunFailed
from runwire.domain.run import RunCode
from runwire.domain.task import StateCode


class View(BaseModel):
    """Base of what is shown."""

    model_config = ConfigDict(frozen=True, extra="allow", defer_build=True)  # built when first used: a quick start

    def plain(self) -> dict[str, Any]:
        """As JSON has it: what came, and nothing that did not."""
        return self.model_dump(mode="json", exclude_unset=True)


class State(View):
    """Where a task stands."""

    code: StateCode
    last_run_date: AwareDatetime | None
    """When it last started to run; None: never."""
    last_modified: AwareDatetime
    created_date: AwareDatetime


class LogEntry(View):
    """One of the latest log entries of a task."""

    date: AwareDatetime
    level: str
    message: str
    run: str


class Task(View):
    """A task. The methods that change one take it in the place of its id, and then refuse when it has changed since."""

    id: int
    chain: int
    desc: str
    state: State
    trigger: dict[str, Any]
    """When it runs; ``next``: when it does next by itself."""
    target: dict[str, Any]
    """What it does: ``action``, and the parameters of the action."""
    logs: tuple[LogEntry, ...] = ()
    """The latest, newest last; none in events."""
    debug: str | None = None
    version: int
    result: dict[str, Any] | None = None
    """What the last successful run returned."""
    timeout: float
    """Seconds one attempt may take."""
    deadline: float | None = None
    """Seconds from the acceptance of a run to its end; None: any."""
    retry: dict[str, Any] | None = None


class RunError(View):
    """Why a run ended as ERROR, or why it is tried again."""

    code: str
    """Stable, snake_case."""
    message: str


class Progress(View):
    """How far a run says it has come."""

    fraction: float | None
    """0 to 1; None: it cannot be told."""
    message: str
    date: AwareDatetime
    run: str | None = None
    """Id of the run; None where the run is what it is a part of."""


class Run(View):
    """One execution of a task."""

    id: str
    task: int
    chain: int
    code: RunCode
    """READY while it is queued; SKIPPED: ticks of the schedule that were not run."""
    attempt: int
    source: str
    """``http``, ``bus`` or ``schedule``."""
    accepted: AwareDatetime | None
    started: AwareDatetime | None
    finished: AwareDatetime | None
    result: dict[str, Any] | None
    """What it returned."""
    error: RunError | None
    next_attempt: AwareDatetime | None = None
    """When it goes on, while it waits between two tries."""
    progress: Progress | None = None


class Line(View):
    """One line of a run's log."""

    line: int
    """Grows from line to line, though not by one."""
    date: AwareDatetime
    level: str
    message: str
    run: str
    """Id of the run."""


class Event(View):
    """Something that happened to a task."""

    id: str
    """Its place: ``events(after=...)`` goes on after it. On the bus it only tells the event apart."""
    code: str
    """ready, inprogress, done, error, edited, skipped or deleted."""
    change: str
    """What happened: created, claimed, retrying, released, concluded, edited, skipped or deleted."""
    time: AwareDatetime
    task: Task
    """The task after it."""
    run: Run | None
    """Its latest run after it; None: it has had none."""
    skipped: Run | None = None
    """Of `skipped` only: the ticks that were not run, as the history has them."""

    @classmethod
    def of(cls, event_id: str, cloud_event: dict[str, Any]) -> Self:
        """What a server-sent event with this id and data says."""
        code = str(cloud_event["type"]).split(".")[3]
        return cls.model_validate({"id": event_id, "code": code, "time": cloud_event["time"], **cloud_event["data"]})


class Subscription(View):
    """Who gets which events, each at least once, and how far they have come. Sequences are those of EVENTS."""

    id: str
    """``BusClient.pull`` takes it."""
    kind: str
    """``pull`` or ``web_hook``."""
    chain: int
    token: str
    """Id of the access token that made it; a pull subscription works with this one."""
    desc: str
    tasks: tuple[int, ...]
    """Only events of these; none: of all."""
    codes: tuple[str, ...]
    """Only these; none: all."""
    url: str | None
    """Of a web hook."""
    actions: tuple[str, ...]
    """Of a web hook: only events of tasks with these actions; none: of all."""
    disabled: AwareDatetime | None
    """When the web hook's receiver said 410 Gone; None: it did not."""
    previous_until: AwareDatetime | None
    """Until when events are signed with the former secret, too; None: they are not."""
    from_sequence: int | None
    from_time: AwareDatetime | None
    created: AwareDatetime
    pending: int
    """Lag: events that were not delivered yet."""
    unacknowledged: int
    """Events that were delivered, and not acknowledged yet."""
    redelivered: int
    """Of these, how many were delivered more than once."""
    acknowledged: int
    """Sequence up to which every event is acknowledged; 0: none yet."""
    last_active: AwareDatetime | None
    """When an event was last delivered; None: never."""
    waiting: int
    """Requests for events that are open: somebody is there."""
    secret: str | None = Field(default=None, repr=False)
    """What a web hook's events are signed with; known when it has just been made, or rotated."""


class PulledEvent(Event):
    """An event of a durable subscription."""

    sequence: int
    """Its place in EVENTS: what happened first has the lower one."""
    deliveries: int
    """How often it was given out, this time included."""


class Accepted(View):
    """A command that is stored: its run will end."""

    task: int
    run: str
    """Id of the run."""
    duplicate: bool
    """It was stored already: it had been published before."""
    sequence: int
    """Its place in COMMANDS."""


class Ended(View):
    """How a run ended, as far as the state of its task tells."""

    task: int
    run: str
    """Id of the run."""
    code: StateCode
    """DONE or ERROR."""
    error: str | None
    """Why it ended as ERROR: a stable code."""
    started: AwareDatetime | None
    """None: it ended in the queue."""
    finished: AwareDatetime
    replayed: bool
    """It had ended before: an earlier call with the same Idempotency-Key asked for it."""
    joined: bool
    """Somebody else asked for the run, and the task was busy with it."""

    @classmethod
    def of(cls, task: int, headers: Mapping[str, str], state: Mapping[str, Any], *, replayed: bool) -> Self:
        """What the answer to execute says."""
        return cls.model_validate(
            {
                "task": task,
                "run": headers["run-id"],
                "code": state["code"],
                "error": headers.get("task-error"),
                "started": state["last_run_date"],
                "finished": state["last_modified"],
                "replayed": replayed,
                "joined": "run-joined" in headers,
            }
        )

    def raise_on_error(self) -> Self:
        """The same. Raises RunFailed when the run ended as ERROR."""
        if self.code is StateCode.ERROR:
            raise RunFailed(self.error or "unknown", "", run=self.run)
        return self


class Result(View):
    """How a run ended."""

    task: int
    run: str
    """Id of the run."""
    code: StateCode
    """DONE or ERROR."""
    value: dict[str, Any] | None
    """What the run returned."""
    error: RunError | None
    """Why it ended as ERROR."""
    started: AwareDatetime | None
    """None: it ended in the queue."""
    finished: AwareDatetime
    replayed: bool = False
    """It had ended before: an earlier call with the same Idempotency-Key asked for it."""
    joined: bool = False
    """Somebody else asked for the run, and the task was busy with it."""

    def raise_on_error(self) -> Self:
        """The result itself. Raises RunFailed when the run ended as ERROR."""
        if self.code is StateCode.ERROR:
            error = self.error or RunError(code="unknown", message="")
            raise RunFailed(error.code, error.message, run=self.run)
        return self
