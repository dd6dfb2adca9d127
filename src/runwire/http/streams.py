"""``/tasks/{id}/events`` and ``/events``: what happens to a task or in a chain, as server-sent events.

Committed events are passed on as they come (:mod:`runwire.readmodel.feed`). An event's id is its sequence in
EVENTS, the same on every adapter, so ``Last-Event-ID`` resumes anywhere without gap or repeat, as far back as the
stream keeps events; where log lines come along, an id is two sequences, in EVENTS and in LOGS. Whatever ends a
stream (the client hangs up, the token is no longer valid, the adapter stops, the broker goes away) closes its
follower, and the loop comes to its end by itself; the client resumes.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache, partial
from typing import Annotated, Any, Literal
from urllib.parse import unquote

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from nats.errors import Error as NatsError
from nats.js.errors import Error as JetStreamError
from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic_core import from_json
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from runwire.domain import lifecycle
from runwire.domain.access import AccessLevel, Principal
from runwire.domain.errors import Draining, Forbidden, MalformedEventId, TaskNotFound, TooManyStreams
from runwire.domain.lifecycle import Change
from runwire.domain.run import Run
from runwire.domain.task import FINAL, MAX_ID
from runwire.http.endpoint import TASK_ID, Answer, Endpoint, header_parameter
from runwire.http.lookup import find_task, readable_chains, task_id
from runwire.http.query import Query, parse_query
from runwire.http.schemas import ProgressView, RunInEvent, TaskView, json_bytes, progress_view, task_view
from runwire.http.services import Services, services
from runwire.messaging import commands, events, logs, subjects
from runwire.messaging.broker import UNAVAILABLE
from runwire.messaging.events import Event
from runwire.messaging.logs import Line
from runwire.readmodel.feed import Follower
from runwire.readmodel.interleave import merged
from runwire.readmodel.tail import Tail

log = logging.getLogger("runwire.http")

EVENT_NAME = "task.state"
"""What every event is called: one listener gets them all, ``type`` in the data tells them apart."""
LOG_NAME, PROGRESS_NAME = "task.log", "task.progress"
HEARTBEAT = 15.0
"""Seconds of silence before a comment is sent, so that nobody on the way takes the connection for dead."""
RECHECK = 0.5
"""Seconds between two looks at the token, at least; at most the feed's TICK more. With the time that an answer is
believed (CACHE_SECONDS) that is less than 5 s."""
WRITE_TIMEOUT = 60.0
"""Seconds a client may not read before its stream is cut."""
RETRY = 2000
"""Milliseconds after which a client that lost the stream should come back."""
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""The second one tells nginx to pass events on as they come."""

EVENT_ID = re.compile(r"(\d{1,16})(?:-(\d{1,16}))?")
"""What the id of a server-sent event looks like: its place in EVENTS; with lines, the last place in LOGS, too."""
LastEventId = Annotated[
    str | None,
    Field(
        pattern=f"^{EVENT_ID.pattern}$",
        description="As the header `Last-Event-ID`, which wins; for clients that cannot set one.",
    ),
]


class TaskEventsQuery(Query):
    """Query parameters of a task's stream."""

    until: Annotated[
        Literal["final"] | None,
        Field(description="`final`: begin with the current state, end with the state the run ends in."),
    ] = None
    logs: Annotated[
        bool, Field(description="Also what its runs log (`task.log`) and how far they have come (`task.progress`).")
    ] = False
    last_event_id: LastEventId = None


class EventsQuery(Query):
    """Query parameters of the chains' stream."""

    chain: Annotated[int | None, Field(ge=1, le=MAX_ID, description="Only this one of the token's chains.")] = None
    code: Annotated[
        Literal["READY", "INPROGRESS", "DONE", "ERROR", "EDITED", "SKIPPED", "DELETED"] | None,
        Field(
            description="Only events that brought their task into this state; or edits, skipped ticks, or deletions."
        ),
    ] = None
    last_event_id: LastEventId = None


async def task_events(request: Request) -> Response:
    """Follow the events of a task. Needs viewer."""
    parts = services(request)
    query = parse_query(request, TaskEventsQuery)
    task = task_id(request.path_params["id"])
    principal = await parts.authenticate(request)
    document = await find_task(parts, principal, task, AccessLevel.VIEWER)
    chain = document.task.chain
    seen = _last_event_id(request, query.last_event_id)
    if request.method == "HEAD":
        return _headers_only()
    with ExitStack() as stack:
        lines_of = (chain, task) if query.logs else None
        follower = _follow(parts, stack, [("task", task)], [subjects.events_of(chain, task)], lines_of=lines_of)
        resumed = await _known(parts, follower, seen.event)
        after = follower.joined if resumed is None else resumed
        first, is_last = None, _is_deleted
        if query.until is not None:
            state, idle = await _standing(parts, chain, task)
            document = state.document
            if idle and resumed is not None and resumed >= state.sequence:
                return Response(status_code=204, headers={"Cache-Control": "no-store"})
            is_last = partial(_is_end, opened_at=state.sequence, idle=idle)
            if resumed is None and state.sequence <= follower.joined:  # else it comes like every other
                first = state
        items = _after_first(first, follower, after)
        if follower.tail is not None:
            run = document.run
            line = None if resumed is None else seen.line
            await _begin_lines(parts, task, follower.tail, line, None if query.until is None else run)
            items = merged(follower, follower.tail, after=after, first=first, run=None if run is None else run.id)
        before = after if first is None else min(after, first.sequence - 1)
        frames = _frames(parts, principal, items, before, tail=follower.tail, is_last=is_last)
        return _EventStream(frames, on_end=stack.pop_all().close)


async def chain_events(request: Request) -> Response:
    """Follow the events of all tasks of the token's chains. Needs viewer."""
    parts = services(request)
    query = parse_query(request, EventsQuery)
    principal = await parts.authenticate(request)
    chains = readable_chains(principal, query.chain)
    seen = _last_event_id(request, query.last_event_id)
    if request.method == "HEAD":
        return _headers_only()
    with ExitStack() as stack:
        keys = [("chain", chain) for chain in chains]
        filters = [subjects.events_of_chain(chain, query.code or "*") for chain in chains]
        follower = _follow(parts, stack, keys, filters, code=query.code)
        resumed = await _known(parts, follower, seen.event)
        after = follower.joined if resumed is None else resumed
        items = _after_first(None, follower, after)
        frames = _frames(parts, principal, items, after, is_last=lambda _event: False)
        return _EventStream(frames, on_end=stack.pop_all().close)


# --- where a stream begins, and where it ends ----------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """After what a client wants to go on. None: from now."""

    event: int | None = None
    line: int | None = None


def _last_event_id(request: Request, parameter: str | None) -> Seen:
    """The event, and the line, after which the client wants to go on. Raises MalformedEventId."""
    text = request.headers.get("last-event-id", "").strip() or parameter
    if text is None:
        return Seen()
    parts = EVENT_ID.fullmatch(text)
    if parts is None or any(int(part) > MAX_ID for part in parts.groups(default="0")):
        raise MalformedEventId("A Last-Event-ID is the id of an event: a number, or two with a dash between them.")
    return Seen(int(parts[1]), int(parts[2]) if parts[2] is not None else None)


def _follow(
    parts: Services,
    stack: ExitStack,
    keys: list[tuple[str, int]],
    filters: list[str],
    *,
    code: str | None = None,
    lines_of: tuple[int, int] | None = None,
) -> Follower:
    """A follower that the stack closes. Raises Draining or TooManyStreams."""
    if parts.draining:
        raise Draining("This adapter is stopping; try again.")
    if parts.feed.is_full:
        raise TooManyStreams(f"This adapter serves {len(parts.feed)} event streams and takes no more.")
    follower = parts.feed.follow(keys, filters, code=code, lines_of=lines_of)
    stack.callback(follower.close)
    return follower


async def _known(parts: Services, follower: Follower, event_id: int | None) -> int | None:
    """The id to resume after; None when no event can have had it.

    An id that this adapter has not come to yet is another adapter's, which was ahead. One that EVENTS has not come
    to either belongs to a stream that is gone, or to nobody.
    """
    if event_id is not None and event_id > follower.joined and event_id > await events.last_sequence(parts.bus):
        return None
    return event_id


async def _begin_lines(parts: Services, task: int, tail: Tail, seen: int | None, run: Run | None) -> None:
    """Go on after the line that was seen; else from the first line of the run, if there is one; else from now."""
    if seen is not None and (seen <= tail.joined or seen <= await logs.last_sequence(parts.bus)):
        tail.begin(after=seen)
    elif run is not None:
        first = await parts.reader.first_line(task, run.id)
        if first is not None:
            tail.begin(after=first - 1)


async def _standing(parts: Services, chain: int, task: int) -> tuple[Event, bool]:
    """The task's last event, and whether it is the end: final, and no run queued. Raises TaskNotFound."""
    queued = await commands.outstanding(parts.bus, chain, task)  # first: if its run ends meanwhile, the event shows it
    state = await events.latest(parts.bus, chain, task)
    if state is None:
        raise TaskNotFound(f"There is no task {task}.")
    waiting = queued is not None and not lifecycle.has_ended(state.document, commands.run_of(queued))
    return state, state.document.task.state.code in FINAL and not waiting


def _is_deleted(event: Event) -> bool:
    return event.document.change is Change.DELETED


def _is_end(event: Event, *, opened_at: int, idle: bool) -> bool:
    """Whether the event is the final state that was asked for.

    What had happened when the stream was opened is past, but for its last event when the task was ``idle`` then.
    """
    if _is_deleted(event):
        return True
    if event.sequence <= opened_at:
        return idle and event.sequence == opened_at
    return event.document.change is Change.CONCLUDED


# --- what is sent --------------------------------------------------------------------------------------------


async def _frames(
    parts: Services,
    principal: Principal,
    items: AsyncGenerator[Event | Line | None, None],
    after: int,
    *,
    is_last: Callable[[Event], bool],
    tail: Tail | None = None,
) -> AsyncGenerator[bytes, None]:
    """The stream's bytes, until the last event or a reason to stop. ``after``: the event before the first.

    Its id is told first: whoever loses a stream on which nothing has come yet resumes where it began.
    """
    clock = asyncio.get_running_loop().time
    yield format_sse_event(retry=RETRY, id=str(after) if tail is None else f"{after}-{tail.last}")
    sent = checked = clock()
    last = after
    try:
        async with aclosing(items) as following:
            async for item in following:
                if clock() - checked >= RECHECK:
                    if not await parts.authenticate.still_valid(principal):
                        log.info("stream ended token=%s", principal.token, extra={"action": "stream_ended"})
                        return
                    checked = clock()
                if isinstance(item, Event):
                    last = max(last, item.sequence)
                    yield _frame(item, str(last) if tail is None else f"{last}-{tail.last}")
                    sent = clock()
                    if is_last(item):
                        return
                elif item is not None:
                    yield _line_frame(item, f"{last}-{item.sequence}")
                    sent = clock()
                elif clock() - sent >= HEARTBEAT:
                    yield KEEPALIVE_COMMENT
                    sent = clock()
    except (*UNAVAILABLE, NatsError, JetStreamError) as error:
        log.info("stream ended, the broker does not answer: %r", error, extra={"action": "stream_ended"})


async def _after_first(
    first: Event | None, follower: Follower, after: int
) -> AsyncGenerator[Event | Line | None, None]:
    """``first``, then what comes later than ``after``."""
    if first is not None:
        yield first
    async with aclosing(follower.events(after=after)) as following:
        async for event in following:
            yield event


def _frame(event: Event, event_id: str) -> bytes:
    """An event as it is sent: a CloudEvent in structured mode, on one line."""
    return format_sse_event(event=EVENT_NAME, id=event_id, data_str=_data(event))


@lru_cache(maxsize=64)  # an event that many follow is written once
def _data(event: Event) -> str:
    return json_bytes(_cloud_event(event)).decode()


def _line_frame(line: Line, event_id: str) -> bytes:
    """A log line, or a report of progress, as it is sent."""
    entry = from_json(line.payload)
    if line.is_progress:
        name, view = PROGRESS_NAME, progress_view(entry)
    else:
        name, view = LOG_NAME, {"line": line.sequence} | {key: entry[key] for key in ("date", "level", "message")}
    return format_sse_event(event=name, id=event_id, data_str=json_bytes(view | {"run": line.run}).decode())


def _cloud_event(event: Event) -> dict[str, Any]:
    """The event as the bus has it, without what is only for workers and managers."""
    document = event.document
    attributes = {name[3:]: unquote(value) for name, value in event.headers.items() if name.startswith("ce-")}
    task = task_view(document, [], now=datetime.fromisoformat(event.headers["ce-time"]))
    del task["logs"]
    if document.change is Change.DELETED and "next" in task["trigger"]:
        task["trigger"]["next"] = None
    data = {"task": task, "run": document.run and document.run.public(), "change": document.change.value}
    if document.skipped is not None:
        data["skipped"] = document.skipped.public()
    return attributes | {"data": data}


class _EventStream(StreamingResponse):
    """Sends frames until there are no more, the client hangs up, or does not read."""

    media_type = "text/event-stream"

    def __init__(self, frames: AsyncGenerator[bytes, None], on_end: Callable[[], None]) -> None:
        """``on_end`` closes the follower, whereupon the frames come to an end."""
        super().__init__(frames, headers=HEADERS)
        self._frames = frames
        self._on_end = on_end

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Serve. Nothing is cancelled in the middle: whatever happens, the frames end by themselves."""

        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(WRITE_TIMEOUT):
                await send(message)

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            self._on_end()

        watching = asyncio.create_task(watch())
        try:
            async with aclosing(self._frames):
                await self.stream_response(send_in_time)
        except TimeoutError:
            log.info("stream cut, the client does not read", extra={"action": "stream_cut"})
        finally:
            watching.cancel()
            self._on_end()


def _headers_only() -> Response:
    """The answer to HEAD."""
    response = Response(headers=HEADERS, media_type=_EventStream.media_type)
    del response.headers["Content-Length"]
    return response


# --- how it is documented ------------------------------------------------------------------------------------


class _View(BaseModel):
    model_config = ConfigDict(extra="forbid")


_FIELDS: Any = {name: (info.annotation, info) for name, info in TaskView.model_fields.items() if name != "logs"}
TaskInEvent = create_model("TaskInEvent", __base__=_View, __doc__="A task, without its log entries.", **_FIELDS)


class EventData(_View):
    """What happened: the task and its latest run after the change."""

    task: TaskInEvent
    run: RunInEvent | None
    change: Annotated[Change, Field(description="What happened.")]
    skipped: Annotated[
        RunInEvent | None, Field(description="Of `skipped` only: the ticks that were not run, as the history has them.")
    ] = None


class TaskEvent(_View):
    """The `data` of a server-sent event: a CloudEvent in structured mode."""

    specversion: Literal["1.0"]
    id: Annotated[str, Field(description="The same as on the bus.")]
    source: Annotated[str, Field(description="`/chains/<chain>/tasks/<task>`.")]
    type: Annotated[
        str,
        Field(
            description="`dev.runwire.task.<code>.v1`; code: ready, inprogress, done, error, edited, skipped, deleted."
        ),
    ]
    subject: Annotated[str | None, Field(description="Id of the run; absent before the first.")] = None
    time: datetime
    datacontenttype: Literal["application/json"]
    traceparent: Annotated[
        str | None, Field(description="Of what a run brings about: its place in the trace in which it was asked for.")
    ] = None
    tracestate: Annotated[str | None, Field(description="What belongs to it.")] = None
    data: EventData


class LineEvent(_View):
    """The `data` of a `task.log`: a line of a run's log."""

    line: Annotated[int, Field(description="Grows from line to line; not by one.")]
    date: datetime
    level: str
    message: str
    run: str


class ProgressEvent(ProgressView):
    """The `data` of a `task.progress`: how far a run says it has come."""

    run: str


LAST_EVENT_ID = header_parameter(
    "Last-Event-ID",
    "Id of the last event the client has got: the stream goes on after it, without gap or repeat, as far back as "
    "events are kept; `0`: from the first. An id that no event has had yet counts as none.",
    {"type": "string", "pattern": "^[0-9]{1,16}(-[0-9]{1,16})?$"},
    "4711",
)
EXAMPLE = (
    "id: 4711\nretry: 2000\n\n"
    'event: task.state\ndata: {"specversion":"1.0","id":"6f0c...","source":"/chains/1764/tasks/12345",'
    '"type":"dev.runwire.task.done.v1","time":"2026-05-26T14:35:45.120034Z","datacontenttype":"application/json",'
    '"subject":"0197f2a0-7c1e-7abc-9def-0123456789ab","data":{...}}\nid: 4712\n\n: ping\n\n'
)
STREAM = Answer(
    text="The stream. The data of each event is a `TaskEvent`; a comment comes after 15 s of silence.",
    media_type="text/event-stream",
    events=(TaskEvent,),
    example=EXAMPLE,
)
STREAM_WITH_LINES = Answer(
    text="The stream. The data of a `task.state` is a `TaskEvent`, that of a `task.log` a `LineEvent`, that of a "
    "`task.progress` a `ProgressEvent`; a comment comes after 15 s of silence.",
    media_type=STREAM.media_type,
    events=(TaskEvent, LineEvent, ProgressEvent),
    example=EXAMPLE,
)
NOTHING_MORE = Answer(text="With `until=final`: the client has got the final state; an EventSource does not come back.")

ENDPOINTS = (
    Endpoint(
        method="GET", path="/tasks/{id}/events", handle=task_events, tag="events", query=TaskEventsQuery,
        parameters=(TASK_ID, LAST_EVENT_ID),
        answers={200: STREAM_WITH_LINES, 204: NOTHING_MORE},
        problems=(Forbidden, TaskNotFound, MalformedEventId, TooManyStreams, Draining),
    ),
    Endpoint(
        method="GET", path="/events", handle=chain_events, tag="events", query=EventsQuery,
        parameters=(LAST_EVENT_ID,),
        answers={200: STREAM},
        problems=(Forbidden, MalformedEventId, TooManyStreams, Draining),
    ),
)  # fmt: skip
