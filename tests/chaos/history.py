"""What a chaos run leaves behind: one record a line, so that it can be judged again, or by somebody else."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

R = TypeVar("R", bound="Record")


class Record(BaseModel):
    """One line. Times are seconds since 1970, by the clock of the machine that everything runs on."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Plan(Record):
    """What the run was meant to be, so that a verdict can say whether it was."""

    kind: Literal["plan"] = "plan"
    seed: int
    chain: int
    after: int = 0
    """Sequence of the last event of before: that of nothing the history is about."""
    triggers: dict[int, dict[str, Any]] = {}
    """Of the tasks that run by themselves, whose triggers nobody edits."""
    late_after: float = 8.0
    """Seconds after the end of its run within which a waiting call has its answer, whatever was done to whom."""
    fewest_accepted: int = 0
    """Accepted runs below which the verdict is worth nothing."""
    faults: list[str] = []
    """Kinds of faults, each of which has to have happened."""
    untraced: list[int] = []
    """Tasks whose action leaves no trace outside of the system."""


class Call(Record):
    """One request of a caller and what came of it."""

    kind: Literal["call"] = "call"
    door: Literal["http", "bus"]
    what: Literal["execute", "cancel", "edit", "read"]
    task: int
    key: str | None = None
    """Of an execute over HTTP: its Idempotency-Key. Requests with the same one are tries of one call."""
    run: str | None = None
    """The run: as it was answered, or as the caller of the bus named it."""
    sent: float
    answered: float
    outcome: Literal["accepted", "refused", "unknown"]
    """``accepted``: it was promised. ``refused``: it was denied. Anything else is unknown."""
    status: str = ""
    """As it came: of HTTP, of the broker, or the exception."""
    joined: bool = False
    """The run is somebody else's."""
    code: str | None = None
    """DONE or ERROR, when the answer says that the run has ended."""
    error: str | None = None
    """Why it ended as ERROR, by the answer."""
    finished: str | None = None
    """When, by the answer."""
    version: int | None = None
    """Of an edit: the task's version that it made."""
    desc: str | None = None
    """Of an edit: what it wrote."""
    wait: float = 0
    """Seconds the caller wanted to wait for the end."""


class Fault(Record):
    """Something that was done to a process or its connections."""

    kind: Literal["fault"] = "fault"
    what: str
    """Its kind, such as ``kill worker``."""
    whom: str
    at: float
    seconds: float


class Event(Record):
    """A message of EVENTS as the broker has it."""

    kind: Literal["event"] = "event"
    sequence: int
    subject: str
    stored: float
    headers: dict[str, str]
    document: dict[str, Any]


class DeadLetter(Record):
    """A command that could not be run."""

    kind: Literal["dead"] = "dead"
    task: int
    run: str
    reason: str


class Execution(Record):
    """The action was begun, or came to its end: what it wrote itself, outside of the system."""

    kind: Literal["execution"] = "execution"
    run: str
    attempt: int
    pid: int
    at: float
    ended: bool


class Rows(Record):
    """A read model: a digest of every row by table and primary key."""

    kind: Literal["rows"] = "rows"
    model: str
    """An adapter's name, or ``rebuilt``."""
    tables: dict[str, dict[str, str]]


class Rest(Record):
    """What was left when everything had healed and nobody asked for anything any more."""

    kind: Literal["rest"] = "rest"
    after: float
    """Seconds it took from the last heal."""
    commands: int
    """Messages in COMMANDS."""
    alarms: int
    """Messages in SCHEDULES."""
    unacknowledged: int
    """Commands that consumers take for being worked on."""
    last_sequence: int
    """Of EVENTS."""
    waiting: int = 0
    """Calls that adapters take for waiting."""


AnyRecord = Annotated[Plan | Call | Fault | Event | DeadLetter | Execution | Rows | Rest, Field(discriminator="kind")]
_RECORD: TypeAdapter[Any] = TypeAdapter(AnyRecord)


class History:
    """All records of a run, by kind, in the order in which they were added."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self.records = list(records)

    def add(self, record: Record) -> None:
        """Remember one more."""
        self.records.append(record)

    def all(self, kind: type[R]) -> list[R]:
        """The records of a kind."""
        return [record for record in self.records if isinstance(record, kind)]

    @property
    def plan(self) -> Plan:
        """What the run was meant to be. Raises ValueError when nothing says so."""
        plans = self.all(Plan)
        if len(plans) != 1:
            msg = f"a history has one plan, this one has {len(plans)}"
            raise ValueError(msg)
        return plans[0]

    def save(self, path: Path) -> None:
        """Write them to a file, one a line."""
        with path.open("w") as file:
            file.writelines(record.model_dump_json() + "\n" for record in self.records)

    @classmethod
    def load(cls, path: Path) -> History:
        """Read them from a file. Raises OSError, or ValueError when it is no history."""
        with path.open("rb") as file:
            return cls(_RECORD.validate_json(line) for line in file)
