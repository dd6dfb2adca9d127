"""The task: the stored object users create, field by field as the public contract has it.

All times are UTC with whole seconds; on the wire ``2026-05-26T14:35:00Z``.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, Strict

MAX_ID = 2**53 - 1
"""Largest task or chain id: what every JSON parser reads back unchanged (RFC 8259 section 6)."""


def _integral(value: object) -> object:
    """1764.0 is an integer to JSON Schema (validation, section 6.1.1), and so it is to us."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


LONGEST_ACTION = 200
"""Characters of an action's name."""

INTEGRAL = BeforeValidator(_integral)
Number = Annotated[float, Strict()]
"""A number: no text, no true or false."""
TaskId = Annotated[int, Strict(), Field(ge=1, le=MAX_ID), INTEGRAL]
ChainId = Annotated[int, Strict(), Field(ge=1, le=MAX_ID), INTEGRAL]


def whole_seconds(instant: datetime) -> datetime:
    """The instant in UTC without its fraction: the precision of every time in a document."""
    return instant.astimezone(UTC).replace(microsecond=0)


class Model(BaseModel):
    """Base of what crosses a boundary: immutable, and silent about fields of newer versions."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)  # built when first used: a quick start


class StateCode(StrEnum):
    """READY -> INPROGRESS -> DONE | ERROR, and again from there; drawn in domain/lifecycle.py."""

    READY = "READY"
    INPROGRESS = "INPROGRESS"
    DONE = "DONE"
    ERROR = "ERROR"


FINAL = frozenset({StateCode.DONE, StateCode.ERROR})
"""The codes a run ends with."""


class State(Model):
    """Where the task stands."""

    code: StateCode
    last_run_date: AwareDatetime | None
    """When its last run started; None: never."""
    last_modified: AwareDatetime
    """When ``code`` last changed, or a run last ended."""
    created_date: AwareDatetime


class RetryPolicy(Model):
    """How often a failing run is tried again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attempts: Annotated[int, Strict(), Field(ge=1, le=100), INTEGRAL] = 1
    """Tries in total, the first included."""
    backoff: Number = Field(default=10, ge=0, le=86_400)
    """Seconds before the second try; doubles with each further one, jittered, at most a day."""
    on: tuple[str, ...] | None = Field(default=None, max_length=32)
    """Error codes that are tried again; None: all but what ``Fail`` says."""


class Target(Model):
    """What the task does. Fields beside ``action`` belong to the action and are kept untouched."""

    model_config = ConfigDict(frozen=True, extra="allow")

    action: str

    @property
    def parameters(self) -> dict[str, JsonValue]:
        """The fields beside ``action``."""
        return dict(self.__pydantic_extra__ or {})


class Task(Model):
    """One task, without its logs: those are kept in a stream of their own and joined on reading."""

    id: int
    chain: int
    """The tenant the task belongs to."""
    desc: str
    state: State
    trigger: dict[str, JsonValue]
    """When it runs; ``{}``: only by hand. May also hold filters (segment, segment_id, user_list)."""
    target: Target
    debug: str | None = None
    version: int = 1
    """+1 with every event of the task."""
    result: dict[str, JsonValue] | None = None
    """What the last successful run returned."""
    timeout: float = 3600
    """Seconds one attempt may take."""
    deadline: float | None = None
    """Seconds a run may take from its acceptance to its end, waiting and further tries included; None: any time."""
    retry: RetryPolicy | None = None

    @property
    def filters(self) -> dict[str, JsonValue]:
        """The trigger's filters, which are handed to the action."""
        return {key: self.trigger[key] for key in ("segment", "segment_id", "user_list") if key in self.trigger}


class LogLevel(StrEnum):
    """Levels of log entries."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class ProgressReport(Model):
    """How far an attempt of a run says it has come."""

    date: AwareDatetime
    run: str
    attempt: int
    fraction: float | None
    """0 to 1; None: it cannot tell."""
    message: str


class LogEntry(Model):
    """One line that a run logged."""

    date: AwareDatetime
    level: LogLevel
    message: str
    run: str
