"""Bodies of requests and answers, as the public contract has them, with examples."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Literal, cast

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    Strict,
    field_validator,
)
from pydantic_core import to_json

from runwire.domain.errors import BodyTooLarge, FieldError, InvalidFields
from runwire.domain.lifecycle import Definition, Document
from runwire.domain.run import Run, RunCode
from runwire.domain.task import (
    INTEGRAL,
    LONGEST_ACTION,
    MAX_ID,
    ChainId,
    Number,
    RetryPolicy,
    State,
    StateCode,
    Target,
    Task,
    TaskId,
)
from runwire.http import trigger_schemas
from runwire.http.json_body import parse_json, pointer, read_json
from runwire.http.trigger_schemas import TriggerBody, TriggerView
from runwire.messaging.codec import LARGEST_DOCUMENT
from runwire.readmodel.reader import ListedTask

LONGEST_DEADLINE = 2_592_000
"""Seconds: thirty days."""

SAMPLE_TASK: dict[str, Any] = {
    "chain": 1764,
    "desc": "Export the run history every evening",
    "target": {"action": "export", "export_index": "runs", "export_format": "csv"},
    "trigger": {"cron": "0 18 * * *", "time_zone": "Europe/Amsterdam"},
}


INSTANT = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d(:\d\d([.,]\d+)?)?([Zz]|[+-]\d\d:?\d\d)")


def _written(value: object) -> object:
    """Only as text with date, time and offset: pydantic would also take seconds since 1970."""
    if not isinstance(value, str) or INSTANT.fullmatch(value) is None:
        msg = "must be an ISO 8601 time with an offset, such as 2026-05-26T14:35:00Z"
        raise ValueError(msg)
    return value


NO_NUL: dict[str, Any] = {"pattern": r"^[^\x00]*$"}
"""For the documentation of a text; what refuses one with NUL says so in words."""
Text = Annotated[str, Field(max_length=2000, json_schema_extra=NO_NUL)]
"""What a person wrote."""
Instant = Annotated[AwareDatetime, BeforeValidator(_written)]
"""A time as a body may give it: ISO 8601 with date, time and offset; fractions are welcome."""


EXAMPLE_TASK: dict[str, Any] = {
    "id": 12345,
    "chain": 1764,
    "desc": "Export the run history every evening",
    "state": {
        "code": "DONE",
        "last_run_date": "2026-05-26T14:35:00Z",
        "last_modified": "2026-05-26T14:35:45Z",
        "created_date": "2026-05-26T11:59:00Z",
    },
    "trigger": {"cron": "0 18 * * *", "time_zone": "Europe/Amsterdam", "next": "2026-05-26T16:00:00Z"},
    "target": {"action": "export", "export_index": "runs", "export_format": "csv"},
    "logs": [
        {
            "date": "2026-05-26T14:35:44Z",
            "level": "info",
            "message": "exported 1200 rows, 98304 bytes to Runs_Export-12345.csv",
            "run": "019e6491-1d9c-7f6b-a3a2-7b1f5f0d8c11",
        }
    ],
    "debug": None,
    "version": 3,
    "result": {"rows": 1200, "bytes": 98304, "file": "Runs_Export-12345.csv"},
    "timeout": 3600,
    "deadline": None,
    "retry": None,
}
EXAMPLE_RUN: dict[str, Any] = {
    "id": "019e6491-1d9c-7f6b-a3a2-7b1f5f0d8c11",
    "task": 12345,
    "chain": 1764,
    "code": "DONE",
    "attempt": 1,
    "source": "http",
    "reason": None,
    "accepted": "2026-05-26T14:35:00Z",
    "started": "2026-05-26T14:35:00Z",
    "finished": "2026-05-26T14:35:45Z",
    "result": {"rows": 1200, "bytes": 98304, "file": "Runs_Export-12345.csv"},
    "error": None,
    "next_attempt": None,
    "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
    "progress": {"fraction": 1.0, "message": "1200 rows", "date": "2026-05-26T14:35:44Z"},
}


class TargetBody(BaseModel):
    """What the task does; fields beside these belong to the action and are kept untouched."""

    model_config = ConfigDict(extra="allow")

    action: Annotated[
        str, Field(min_length=1, max_length=LONGEST_ACTION, description="Name of the action; may contain spaces.")
    ]
    export_index: Annotated[str, Field(max_length=200, description="For `export`: which dataset.")] | None = None
    export_format: Annotated[Literal["csv", "json"], Field(description="For `export`.")] | None = None
    campaign: (
        Annotated[
            int,
            Strict(),
            Field(ge=-MAX_ID, le=MAX_ID, description="Campaign the task belongs to; lists can be filtered by it."),
            INTEGRAL,
        ]
        | None
    ) = None


class TaskBody(BaseModel):
    """A new task."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [SAMPLE_TASK]})

    chain: ChainId
    desc: Text
    target: TargetBody
    trigger: TriggerBody
    id: Annotated[TaskId, Field(description="An id of your own; 409 when it is taken.")] | None = None
    debug: Annotated[Text, Field(description="Debug string for diagnosis.")] | None = None
    timeout: Annotated[Number, Field(gt=0, le=604_800, description="Longest time for one attempt, seconds.")] = 3600
    deadline: Annotated[
        Number | None,
        Field(gt=0, le=LONGEST_DEADLINE, description="Longest time from a run's acceptance to its end, seconds."),
    ] = None
    retry: RetryPolicy | None = None

    @field_validator("desc", "debug")
    @classmethod
    def _no_control_characters(cls, text: str | None) -> str | None:
        if text is not None and "\x00" in text:
            msg = "must not contain NUL"
            raise ValueError(msg)
        return text

    def definition(self) -> Definition:
        """What the body says about the task; target and trigger exactly as they were sent."""
        return Definition(
            chain=self.chain,
            desc=self.desc,
            target=Target.model_validate(self.target.model_dump(mode="json", exclude_unset=True)),
            trigger=self.trigger.stored(),
            debug=self.debug,
            timeout=self.timeout,
            deadline=self.deadline,
            retry=self.retry,
        )


def _as_patch(schema: dict[str, Any]) -> None:
    """The schema of a merge patch: what is left out has no default, it stays as it is."""
    for field in schema.get("properties", {}).values():
        field.pop("default", None)


class TargetPatch(TargetBody):
    """Changes of what the task does; fields beside these belong to the action. null takes a field away."""

    model_config = ConfigDict(json_schema_extra=_as_patch)

    action: Annotated[str, Field(min_length=1, max_length=LONGEST_ACTION)] = ""


class TriggerPatch(TriggerBody):
    """Changes of when the task runs; null takes a field away."""

    model_config = ConfigDict(json_schema_extra=_as_patch)


class RetryPatch(BaseModel):
    """Changes of how often a failing run is tried again; null takes a field back to its default."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_as_patch)

    attempts: Annotated[int, Strict(), Field(ge=1, le=100), INTEGRAL] | None = None
    backoff: Annotated[Number, Field(ge=0, le=86_400)] | None = None
    on: Annotated[list[str], Field(max_length=32)] | None = None


def _as_task_patch(schema: dict[str, Any]) -> None:
    _as_patch(schema)
    schema["examples"] = [{"desc": "Export the run history as JSON", "target": {"export_format": "json"}}]


class TaskPatch(BaseModel):
    """Changes of a task, as a JSON merge patch: objects are merged, null takes a field away or back to its default."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_as_task_patch)

    desc: Text = ""
    target: TargetPatch = TargetPatch()
    trigger: TriggerPatch = TriggerPatch()
    debug: Text | None = None
    timeout: Annotated[Number, Field(gt=0, le=604_800)] | None = None
    deadline: Annotated[Number, Field(gt=0, le=LONGEST_DEADLINE)] | None = None
    retry: RetryPatch | None = None


class StateView(BaseModel):
    """Where the task stands."""

    code: StateCode
    last_run_date: Annotated[datetime | None, Field(description="When it last started to run; null: never.")]
    last_modified: Annotated[datetime, Field(description="Last state change.")]
    created_date: datetime


class LogView(BaseModel):
    """One log entry."""

    date: datetime
    level: str
    message: str
    run: str


class TaskView(BaseModel):
    """A task."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_TASK]})

    id: int
    chain: int
    desc: str
    state: StateView
    trigger: TriggerView
    target: dict[str, Any]
    logs: Annotated[list[LogView], Field(description="Log entries of its runs, newest last.")]
    debug: str | None
    version: Annotated[int, Field(description="+1 with each state change.")]
    result: Annotated[dict[str, Any] | None, Field(description="What the last successful run returned.")]
    timeout: float
    deadline: float | None
    retry: RetryPolicy | None


class ExecuteView(BaseModel):
    """How the run ended, or where it stands: exactly these four fields."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "code": "DONE",
                    "last_run_date": "2026-05-26T14:35:00Z",
                    "last_modified": "2026-05-26T14:35:45Z",
                    "created_date": "2026-05-26T11:59:00Z",
                }
            ]
        }
    )

    code: StateCode
    last_run_date: datetime | None
    last_modified: datetime
    created_date: datetime


class RunErrorView(BaseModel):
    """Why the run ended as ERROR."""

    code: str
    message: str


class ProgressView(BaseModel):
    """How far a run says it has come."""

    fraction: Annotated[float | None, Field(ge=0, le=1, description="null: it cannot be told.")]
    message: str
    date: datetime


class RunInEvent(BaseModel):
    """One execution of a task, without its progress."""

    id: str
    task: int
    chain: int
    code: Annotated[
        RunCode, Field(description="READY while it is queued; SKIPPED: ticks that were not run, `error` says why.")
    ]
    attempt: int
    source: Literal["http", "bus", "schedule"]
    reason: Annotated[str | None, Field(description="Why it was asked for, as a command on the bus may say.")]
    accepted: datetime
    started: datetime | None
    finished: datetime | None
    result: dict[str, Any] | None
    error: RunErrorView | None
    next_attempt: Annotated[
        datetime | None, Field(description="When it goes on, while it waits between two tries; `error`: why.")
    ]
    trace_id: Annotated[str | None, Field(description="The trace in which it was asked for (W3C Trace Context).")]


class RunView(RunInEvent):
    """One execution of a task."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_RUN]})

    progress: Annotated[
        ProgressView | None,
        Field(description="What its latest attempt has reported last; null: nothing, or a later run has since."),
    ]


class LineView(BaseModel):
    """One line of a run's log."""

    line: Annotated[int, Field(description="Grows from line to line; not by one.")]
    date: datetime
    level: str
    message: str


class LogPageView(BaseModel):
    """A stretch of a run's log."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "lines": [
                        {
                            "line": 4711,
                            "date": "2026-05-26T14:35:44Z",
                            "level": "info",
                            "message": "exported 1200 rows, 98304 bytes to Runs_Export-12345.csv",
                        }
                    ],
                    "next": 4711,
                    "final": True,
                }
            ]
        }
    )

    lines: Annotated[list[LineView], Field(description="Oldest first.")]
    next: Annotated[int, Field(description="What to ask with as `after` the next time.")]
    final: Annotated[bool, Field(description="The run has ended, and no more lines will come.")]


class Problem(BaseModel):
    """Problem details (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: Annotated[str, Field(description="Stable, snake_case.")]


def parse_task(body: bytes) -> TaskBody:
    """The task in a request body. Raises MalformedBody, InvalidFields or BodyTooLarge."""
    task = parse_json(body, TaskBody)
    if len(body) > LARGEST_DOCUMENT:
        raise BodyTooLarge(f"A task may take {LARGEST_DOCUMENT:,} bytes; this one has {len(body):,}.")
    return task


def parse_patch(body: bytes) -> dict[str, JsonValue]:
    """The changes in a request body. Raises MalformedBody; InvalidFields for what cannot be changed."""
    patch = read_json(body)
    if not isinstance(patch, dict):
        raise InvalidFields([FieldError(pointer="", detail="A patch of a task is a JSON object.")])
    fixed = [name for name in patch if name not in TaskPatch.model_fields]
    if fixed:
        raise InvalidFields([FieldError(pointer=pointer((name,)), detail="This cannot be changed.") for name in fixed])
    return patch


def patched(task: Task, patch: dict[str, JsonValue]) -> Definition:
    """The task's definition with these changes; checked like that of a new task, with the same errors.

    Of a trigger whose times stay as they are nothing is asked again: what was stored once is never refused.
    """
    before = task.model_dump(mode="json", include=set(TaskPatch.model_fields))
    merged = cast("dict[str, JsonValue]", _merge(before, patch))
    definition = parse_task(to_json({**merged, "chain": task.chain})).definition()
    trigger_schemas.check_changed(definition.trigger, task.trigger, created=task.state.created_date)
    return definition


def _merge(target: JsonValue, patch: JsonValue) -> JsonValue:
    """A JSON merge patch, applied: ``MergePatch`` of RFC 7396 section 2."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = _merge(merged.get(name), value)
    return merged


def task_view(document: Document, logs: list[dict[str, JsonValue]], *, now: datetime) -> dict[str, Any]:
    """The task as the API shows it: JSON-ready, fields in the contract's order. ``now``: what ``next`` is told for."""
    cursor = document.schedule.cursor if document.schedule is not None else None
    return _view(document.task.model_dump(mode="json"), logs, cursor=cursor, now=now)


def listed_view(found: ListedTask, *, now: datetime) -> dict[str, Any]:
    """As :func:`task_view`, of a task as its document has it in JSON."""
    cursor = datetime.fromisoformat(found.schedule["cursor"]) if found.schedule is not None else None
    return _view(found.task, found.logs, cursor=cursor, now=now)


def _view(
    task: dict[str, Any], logs: list[dict[str, JsonValue]], *, cursor: datetime | None, now: datetime
) -> dict[str, Any]:
    created = datetime.fromisoformat(task["state"]["created_date"])
    task["trigger"] = trigger_schemas.shown(task["trigger"], task["id"], created=created, cursor=cursor, now=now)
    rest = {name: task.pop(name, None) for name in ("debug", "version", "result", "timeout", "deadline", "retry")}
    return task | {"logs": logs} | rest


def progress_view(report: dict[str, Any]) -> dict[str, Any]:
    """A report of progress as the API shows it."""
    return {name: report[name] for name in ProgressView.model_fields}


def execute_view(code: StateCode, last_run: datetime | None, modified: datetime, created: datetime) -> dict[str, Any]:
    """The four documented fields of execute's answer."""
    return {
        "code": code.value,
        "last_run_date": instant(last_run),
        "last_modified": instant(modified),
        "created_date": instant(created),
    }


def ended_view(run: Run, state: State) -> dict[str, Any]:
    """The four fields for a run that has ended; ``state``: of its task, before or after, for a run that never began."""
    return execute_view(
        StateCode(run.code), run.started or state.last_run_date, run.finished or run.accepted, state.created_date
    )


def json_bytes(value: Any) -> bytes:
    """A JSON-ready value as UTF-8."""
    return to_json(value)


def instant(value: datetime | None) -> str | None:
    """A UTC time as the API writes it."""
    return None if value is None else value.isoformat()[:19] + "Z"
