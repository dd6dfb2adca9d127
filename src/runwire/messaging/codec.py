"""Documents, commands and log lines as messages, and back.

Events are CloudEvents 1.0 in binary mode (NATS binding): the attributes stand in ``ce-*`` headers, the
payload is the document as JSON. Everything that arrives is validated here; what does not fit is
:class:`~runwire.domain.errors.Undecodable`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import from_json

from runwire.domain import strictjson, trace
from runwire.domain.errors import Undecodable
from runwire.domain.lifecycle import Change, Document
from runwire.domain.run import RUN_ID, Command, Source, Tick
from runwire.domain.task import LogEntry, ProgressReport
from runwire.domain.ticks import Alarm
from runwire.domain.trace import Trace
from runwire.messaging import cloudevents, subjects
from runwire.messaging.cloudevents import CloudEvent

LARGEST_DOCUMENT = 16 * 1024
"""Bytes of JSON a task may take when it is created, so that every later version of it fits a message."""
LONGEST_REASON = 1000
"""Characters of why a run is asked for."""


COURSE = {Change.CLAIMED, Change.RETRYING, Change.RELEASED, Change.CONCLUDED}
"""The changes that belong to the trace of the run."""


class CommandBody(BaseModel):
    """The optional body of an execute command on the bus, or the data of one that is a CloudEvent."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: Annotated[str, Field(pattern=f"^{RUN_ID.pattern}$")] | None = None
    """The run id; None: the header ``Run-Id``, else one made of what tells the command apart (:func:`_run_id`)."""
    reason: (
        Annotated[str, StringConstraints(max_length=LONGEST_REASON, pattern=r"^[^\x00]*$", strip_whitespace=True)]
        | None
    ) = None
    """Why, for people."""


def event_headers(document: Document, event_id: str, at: datetime) -> dict[str, str]:
    """The CloudEvents attributes of an event. ``at`` is when it happened.

    No ``Nats-Msg-Id``: the fence stores an event once, whoever repeats it.
    """
    task = document.task
    headers = {
        "ce-specversion": "1.0",
        subjects.EVENT_ID: event_id,
        "ce-source": f"/chains/{task.chain}/tasks/{task.id}",
        "ce-type": event_type(subjects.event_code(document)),
        "ce-time": f"{at.replace(tzinfo=None).isoformat(timespec='microseconds')}Z",
        "ce-datacontenttype": "application/json",
    }
    if document.run is not None:
        headers["ce-subject"] = document.run.id
        if document.run.trace is not None and document.change in COURSE:
            for name, value in document.run.trace.headers().items():
                headers |= {name: value, f"ce-{name}": cloudevents.encoded(value)}
    return headers


def event_type(code: str) -> str:
    """The CloudEvents type of the events with this code."""
    return f"dev.runwire.task.{code}.v1"


def encode(document: Document) -> bytes:
    """A document as the payload of its event."""
    return document.model_dump_json().encode()


def decode(payload: bytes) -> Document:
    """The document in an event's payload. Raises Undecodable."""
    try:
        return Document.model_validate_json(payload)
    except ValidationError as invalid:
        raise Undecodable(_first_complaint(invalid)) from None


def has_schedule(payload: bytes) -> bool:
    """Whether the document in an event's payload has a schedule; nothing else about it is looked at."""
    try:
        value = from_json(payload)
    except ValueError:
        return False
    return isinstance(value, dict) and value.get("schedule") is not None


def decode_command(
    subject: str,
    payload: bytes,
    headers: Mapping[str, str] | None,
    *,
    sequence: int,
    delivery: int,
    accepted: datetime,
) -> Command:
    """The command in a message of COMMANDS. Raises Undecodable."""
    chain, task = subjects.parse(subject)
    known = _lower(headers)
    event = cloudevents.read(known, payload)
    body = _body(payload if event is None else event.data)
    run = _run_id(body, known, event, sequence)
    return Command(
        chain=chain,
        task=task,
        run=run,
        source=source_of_command(headers),
        tick=tick_of_command(headers),
        reason=body.reason or None,
        trace=trace.of_run(_trace(known, event), run),
        accepted=accepted,
        sequence=sequence,
        delivery=delivery,
    )


def encode_command(reason: str | None) -> bytes:
    """The body of a command of ours: who and when are in its headers."""
    return b"{}" if reason is None else CommandBody(reason=reason).model_dump_json(exclude_none=True).encode()


def run_of_command(message_headers: Mapping[str, str] | None, payload: bytes, sequence: int) -> str:
    """The run id of a stored command, also of one that is not well formed."""
    known = _lower(message_headers)
    try:
        event = cloudevents.read(known, payload)
        return _run_id(_body(payload if event is None else event.data), known, event, sequence)
    except Undecodable:
        with contextlib.suppress(Undecodable):
            return _run_id(CommandBody(), known, None, sequence)
        return f"bus-{sequence}"


def reason_of_command(message_headers: Mapping[str, str] | None, payload: bytes) -> str | None:
    """Why a stored command says it was published; None: it does not, or it is garbled."""
    with contextlib.suppress(Undecodable):
        event = cloudevents.read(_lower(message_headers), payload)
        return _body(payload if event is None else event.data).reason or None
    return None


def source_of_command(message_headers: Mapping[str, str] | None) -> Source:
    """The door a stored command came in by, also of one that is not well formed."""
    source = _lower(message_headers).get(subjects.RUN_SOURCE.lower(), Source.BUS)
    return Source(source) if source in set(Source) else Source.BUS


def encode_tick(tick: Tick) -> str:
    """A tick as the header of its command."""
    return f"{tick.version} {tick.due.astimezone(UTC).isoformat()}"


def tick_of_command(message_headers: Mapping[str, str] | None) -> Tick | None:
    """The tick a stored command says it stands for; None: it names none, or garbles it. Nothing proves it yet."""
    if not message_headers or subjects.RUN_TICK not in message_headers:
        return None
    version, _, due = message_headers[subjects.RUN_TICK].partition(" ")
    try:
        return Tick(version=int(version), due=datetime.fromisoformat(due))
    except ValueError:
        return None


def encode_alarm(alarm: Alarm) -> bytes:
    """An alarm as the payload of its message."""
    return alarm.model_dump_json(exclude_none=True).encode()


def decode_alarm(payload: bytes) -> Alarm:
    """The alarm in a message of SCHEDULES. Raises Undecodable."""
    try:
        return Alarm.model_validate_json(payload)
    except ValidationError as invalid:
        raise Undecodable(_first_complaint(invalid)) from None


def encode_log(entry: LogEntry) -> bytes:
    """A log line as the payload of its message."""
    return entry.model_dump_json().encode()


def decode_log(payload: bytes) -> LogEntry:
    """The log line in a message of LOGS. Raises Undecodable."""
    try:
        return LogEntry.model_validate_json(payload)
    except ValidationError as invalid:
        raise Undecodable(_first_complaint(invalid)) from None


def encode_progress(report: ProgressReport) -> bytes:
    """A report of progress as the payload of its message."""
    return report.model_dump_json().encode()


def decode_progress(payload: bytes) -> ProgressReport:
    """The report of progress in a message of LOGS. Raises Undecodable."""
    try:
        return ProgressReport.model_validate_json(payload)
    except ValidationError as invalid:
        raise Undecodable(_first_complaint(invalid)) from None


def _lower(headers: Mapping[str, str] | None) -> dict[str, str]:
    return {name.lower(): value for name, value in (headers or {}).items()}


def _body(text: bytes) -> CommandBody:
    """The body of a command. Raises Undecodable."""
    if text == b"{}" or not text.strip():
        return CommandBody()
    try:
        strictjson.check(text)
        return CommandBody.model_validate_json(text)
    except ValidationError as invalid:
        raise Undecodable(f"The body of the command does not fit: {_first_complaint(invalid)}.") from None
    except ValueError as error:
        raise Undecodable(f"The body of the command is not JSON: {error}.") from None


def _run_id(body: CommandBody, headers: Mapping[str, str], event: CloudEvent | None, sequence: int) -> str:
    """The id a command gives its run. Raises Undecodable when it gives two, or one that is none.

    Body and ``Run-Id`` name it. Else it is what makes the command the only one of its kind: ``Nats-Msg-Id``, the
    CloudEvent's id, its place in the stream; hashed when that is no run id.
    """
    header = headers.get(subjects.RUN_ID.lower())
    if body.run and header and body.run != header:
        raise Undecodable(
            f"The command names two runs: {body.run!r} in its body, {header[:80]!r} in {subjects.RUN_ID}."
        )
    named = body.run or header
    if named:
        if not RUN_ID.fullmatch(named):
            raise Undecodable(f"{named[:80]!r} is no run id: 1 to 64 letters, digits, - and _")
        return named
    message_id = headers.get(subjects.MSG_ID.lower())
    if message_id:
        return message_id if RUN_ID.fullmatch(message_id) else _hashed("msg", message_id)
    if event is not None:
        event_id, source = event.attributes["id"], event.attributes["source"]
        return event_id if RUN_ID.fullmatch(event_id) else _hashed("evt", f"{source}\n{event_id}")
    return f"bus-{sequence}"


def _trace(headers: Mapping[str, str], event: CloudEvent | None) -> Trace | None:
    """The trace in which a command was published, else the one in which its CloudEvent came to be."""
    for known in (headers, event.attributes if event is not None else {}):
        found = trace.parse(known.get(subjects.TRACE_PARENT), known.get(subjects.TRACE_STATE))
        if found is not None:
            return found
    return None


def _hashed(kind: str, text: str) -> str:
    return f"{kind}-{sha256(text.encode()).hexdigest()[:32]}"


def _first_complaint(invalid: ValidationError) -> str:
    error = invalid.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part) for part in error["loc"])
    return f"{place}: {error['msg']}" if place else str(error["msg"])
