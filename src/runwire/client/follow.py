"""What the methods do that go on for a while: event streams, which resume where they broke off, and downloads."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message as MailMessage
from typing import Any

import httpx

from runwire.client import calls
from runwire.client.calls import TaskRef, task_path
from runwire.client.errors import DownloadDamaged, Problem
from runwire.client.models import Event, Line, Progress
from runwire.client.sse import Message, Parser
from runwire.client.steps import Call, Emit, Patience, Steps, Terms, ask, ask_for_stream, read

STATE, LOG, PROGRESS = "task.state", "task.log", "task.progress"
"""Names of the events of a stream."""
DIGEST = re.compile(r'"([A-Za-z0-9_-]{43}=)"')
"""The entity tag of a file: its SHA-256."""


# --- events --------------------------------------------------------------------------------------------------


def events(
    terms: Terms, task: TaskRef | None, *, chain: int | None, code: str | None, after: str | None
) -> Steps[None]:
    """What happens, without end; of one task, until it is deleted."""
    if task is None:
        stream = Stream(terms, "/events", {"chain": chain, "code": None if code is None else code.upper()}, after)
    else:
        stream = Stream(terms, f"{task_path(task)}/events", {}, after)
    while (message := (yield from stream.next())) is not None:
        if message.name != STATE:
            continue
        event = Event.of(message.id, json.loads(message.data))
        if code is None or event.code == code.lower():
            yield Emit(event)
        if task is not None and event.code == "deleted":
            return


def follow(terms: Terms, task: TaskRef, run: str) -> Steps[None]:
    """What happens to a run, what it logs and how far it has come, up to its end.

    Lines are missed by nobody: when the stream has gone on to a later run, the log has the rest.
    """
    stream = Stream(terms, f"{task_path(task)}/events", {"until": "final", "logs": "true"})
    line = 0
    while (message := (yield from stream.next())) is not None:
        item = _item(message)
        if item is None or _run_of(item) != run:
            if isinstance(item, Event) and (yield from calls.get_run(terms, task, run)).finished is not None:
                break
            continue
        if isinstance(item, Line):
            line = item.line
        yield Emit(item)
        if isinstance(item, Event) and item.run is not None and item.run.finished is not None:
            return
    yield from calls.logs(terms, task, run, after=line, follow=True)


def _item(message: Message) -> Event | Line | Progress | None:
    """What a message is about; None: something of a later version."""
    data = json.loads(message.data)
    match message.name:
        case "task.state":
            return Event.of(message.id, data)
        case "task.log":
            return Line.model_validate(data)
        case "task.progress":
            return Progress.model_validate(data)
    return None


def _run_of(item: Event | Line | Progress) -> str | None:
    if isinstance(item, Event):
        return None if item.run is None else item.run.id
    return item.run


class Stream:
    """A stream of server-sent events that is opened again, after the last event that came, whenever it ends."""

    def __init__(self, terms: Terms, path: str, params: Mapping[str, Any], after: str | None = None) -> None:
        """``after``: the id of an event; None: from now on, or from the state that ``until=final`` begins with."""
        self._path, self._params = path, params
        self._after = after
        self._patience = Patience(terms)
        self._parser: Parser | None = None
        self._messages = deque[Message]()

    def next(self) -> Steps[Message | None]:
        """The next event; None: there will be no more. Raises Problem or NoAnswer."""
        while not self._messages:
            if self._parser is None:
                call = Call(method="GET", path=self._path, params=self._params, headers=self._headers())
                answer = yield from ask_for_stream(call, self._patience)
                if answer.status_code == httpx.codes.NO_CONTENT:
                    return None
                self._parser = Parser()
            yield from self._read(self._parser)
        return self._messages.popleft()

    def _read(self, parser: Parser) -> Steps[None]:
        """Take what comes; when the stream is at its end, pause before it is opened again."""
        trouble = None
        try:
            piece = yield from read()
        except httpx.TransportError as error:
            piece, trouble = b"", error
        self._messages.extend(parser.feed(piece))
        self._after = parser.last_id or self._after
        if parser.heard:
            self._patience.restored()
        if not piece:
            self._parser = None
            yield from self._patience.bear(trouble)

    def _headers(self) -> dict[str, str]:
        headers = {"Accept": "text/event-stream", "Accept-Encoding": "identity"}
        return headers if self._after is None else headers | {"Last-Event-ID": self._after}


# --- files ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """Bytes of a file, and where they belong. What was there from this place on is no longer valid."""

    name: str
    """Of the file, as the server calls it."""
    offset: int
    content: bytes


def download(terms: Terms, task: TaskRef) -> Steps[None]:
    """The file that the task has exported, in pieces; a broken transfer goes on where it stopped.

    Raises Problem, NoAnswer, or DownloadDamaged when all is there and has another digest.
    """
    patience = Patience(terms)
    link = yield from _link(terms, task)
    tag, offset, digest = "", 0, hashlib.sha256()
    while True:
        resuming = {"Range": f"bytes={offset}-", "If-Range": tag} if offset else {}
        call = Call(method="GET", path=link, headers={"Accept-Encoding": "identity", **resuming})
        try:
            answer = yield from ask_for_stream(call, patience)
        except Problem as problem:
            if problem.code != "link_expired":
                raise
            link = yield from _link(terms, task)
            continue
        tag = answer.headers.get("etag", "")
        name = _file_name(answer)
        if answer.status_code != httpx.codes.PARTIAL_CONTENT:  # from the first byte: maybe another file by now
            offset, digest = 0, hashlib.sha256()
            yield Emit(Piece(name, 0, b""))
        try:
            while piece := (yield from read()):
                digest.update(piece)
                yield Emit(Piece(name, offset, piece))
                offset += len(piece)
                patience.restored()
        except httpx.TransportError as trouble:
            yield from patience.bear(trouble)
            continue
        expected = DIGEST.fullmatch(tag)
        if expected is not None and base64.urlsafe_b64encode(digest.digest()).decode() != expected[1]:
            raise DownloadDamaged(f"{name} is damaged: it does not have the digest it was stored with")
        return


def _link(terms: Terms, task: TaskRef) -> Steps[str]:
    answer = yield from ask(Call(method="GET", path=f"{task_path(task)}/download_url"), terms)
    return str(answer.json()["url"])


def _file_name(answer: httpx.Response) -> str:
    """The name of the file, without any directory; ``download`` when the server does not say."""
    header = MailMessage()
    header["Content-Disposition"] = answer.headers.get("content-disposition", "")
    name = (header.get_filename() or "").replace("\\", "/").rpartition("/")[2]
    return name if name.strip(". ") and name.isprintable() else "download"
