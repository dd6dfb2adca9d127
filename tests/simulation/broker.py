"""A broker as far as the protocol of a run can see it: streams, the fence, the work queue, Msg-Ids, alarms.

It answers what nats-server answers to the requests that our code makes: tests/integration/test_simulation.py asks both.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from nats.aio.msg import Msg

from runwire.messaging import subjects

WRONG_SEQUENCE, FULL_SUBJECT, NOT_FOUND = 10071, 10077, 10037
STREAM_OF = {
    "evt": subjects.EVENTS,
    "cmd": subjects.COMMANDS,
    "log": subjects.LOGS,
    "dlq": subjects.DEADLETTERS,
    "sch": subjects.SCHEDULES,
    "due": subjects.SCHEDULES,
}


@dataclass(frozen=True)
class Stored:
    """A message of a stream."""

    sequence: int
    subject: str
    headers: dict[str, str]
    data: bytes
    time: datetime


class Stream:
    """Messages by sequence."""

    def __init__(self, *, one_per_subject: bool = False) -> None:
        self.messages: dict[int, Stored] = {}
        self.last = 0
        self.ids: dict[str, int] = {}
        """Msg-Ids that the broker remembers; a crash forgets those of messages that are gone."""
        self._one_per_subject = one_per_subject

    def add(self, subject: str, headers: dict[str, str], data: bytes, time: datetime) -> dict[str, Any]:
        """Store a message, unless something is against it; the answer to its publisher."""
        msg_id = headers.get(subjects.MSG_ID)
        if msg_id in self.ids:
            return {"seq": self.ids[msg_id], "duplicate": True}
        expected = headers.get(subjects.EXPECTED_SEQUENCE)
        if expected is not None:
            fence = headers.get(subjects.EXPECTED_SUBJECT, subject)
            found = self.last_of(fence)
            if (found.sequence if found else 0) != int(expected):
                return _error(400, WRONG_SEQUENCE, "wrong last sequence")
        if self._one_per_subject and self.last_of(subject) is not None:
            return _error(503, FULL_SUBJECT, "maximum messages per subject exceeded")
        self.last += 1
        self.messages[self.last] = Stored(self.last, subject, headers, data, time)
        if msg_id is not None:
            self.ids[msg_id] = self.last
        return {"seq": self.last}

    def last_of(self, subject: str, *, before: int | None = None) -> Stored | None:
        """The last message on a subject, as it was before a sequence."""
        for sequence in reversed(self.messages):
            if (before is None or sequence < before) and matches(subject, self.messages[sequence].subject):
                return self.messages[sequence]
        return None

    def next_of(self, subject: str, start: int) -> Stored | None:
        """The first message on a subject from a sequence on."""
        for sequence, message in self.messages.items():
            if sequence >= start and matches(subject, message.subject):
                return message
        return None

    def info(self, name: str, now: datetime) -> dict[str, Any]:
        """What is known about it."""
        state = {"messages": len(self.messages), "bytes": 0, "first_seq": 1, "last_seq": self.last, "consumer_count": 1}
        return {"config": {"name": name}, "created": now.isoformat(), "state": state}

    def crash(self) -> None:
        """What the broker has after ``kill -9``: its messages, and the Msg-Ids that it finds in them."""
        self.ids = {name: sequence for name, sequence in self.ids.items() if sequence in self.messages}


class Broker:
    """All streams."""

    def __init__(self) -> None:
        self.streams = {name: Stream(one_per_subject=name == subjects.COMMANDS) for name in STREAM_OF.values()}
        self.deliveries: dict[int, int] = {}
        """How often a message of COMMANDS or an alarm that has rung was handed out, by its sequence."""

    @property
    def events(self) -> Stream:
        """The truth."""
        return self.streams[subjects.EVENTS]

    @property
    def commands(self) -> Stream:
        """The work queue."""
        return self.streams[subjects.COMMANDS]

    def crash(self) -> None:
        """Die and come back."""
        for stream in self.streams.values():
            stream.crash()

    def answer(self, subject: str, data: bytes, headers: dict[str, str], now: datetime, *, behind: int = 0) -> Msg:
        """Carry out a request. ``behind``: events that the replica which is read directly does not have yet."""
        parts = subject.split(".")
        if parts[0] == "tasks":
            name = STREAM_OF[parts[1]]
            found = self.streams[name].add(subject, dict(headers), data, now)
            return _reply({"stream": name, **found})
        call, rest = ".".join(parts[2:4]), parts[4:]
        if call == "DIRECT.GET":
            stream = self.streams[rest[0]]
            return _direct(stream.last_of(".".join(rest[1:]), before=stream.last + 1 - behind))
        stream, question = self.streams[rest[-1]], json.loads(data or b"{}")
        if subject.startswith("$JS.API.STREAM.INFO."):
            return _reply(stream.info(rest[-1], now))
        if subject.startswith("$JS.API.STREAM.MSG.GET."):
            return _reply(_got(_find(stream, question)))
        if subject.startswith("$JS.API.STREAM.MSG.DELETE."):
            gone = stream.messages.pop(question["seq"], None)
            return _reply({"success": True} if gone else _error(500, 10057, "message not found"))
        msg = f"nobody answers {subject}"
        raise NotImplementedError(msg)


def matches(pattern: str, subject: str) -> bool:
    """Whether a subject is one that the pattern stands for."""
    if pattern == subject:
        return True
    wanted, given = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        wanted, given = wanted[:-1], given[: len(wanted) - 1] if len(given) >= len(wanted) else []
    return len(wanted) == len(given) and all(w in {"*", g} for w, g in zip(wanted, given, strict=True))


def _find(stream: Stream, question: dict[str, Any]) -> Stored | None:
    if "next_by_subj" in question:
        return stream.next_of(question["next_by_subj"], question.get("seq") or 1)
    if "last_by_subj" in question:
        return stream.last_of(question["last_by_subj"])
    return stream.messages.get(question["seq"])


def _got(found: Stored | None) -> dict[str, Any]:
    if found is None:
        return _error(404, NOT_FOUND, "no message found")
    lines = "".join(f"{name}: {value}\r\n" for name, value in found.headers.items())
    message = {
        "subject": found.subject,
        "seq": found.sequence,
        "hdrs": base64.b64encode(f"NATS/1.0\r\n{lines}\r\n".encode()).decode(),
        "data": base64.b64encode(found.data).decode(),
        "time": found.time.isoformat(),
    }
    return {"message": message}


def _direct(found: Stored | None) -> Msg:
    if found is None:
        return _message(b"", {"Status": "404"})
    headers = {
        "Nats-Subject": found.subject,
        "Nats-Sequence": str(found.sequence),
        "Nats-Time-Stamp": found.time.isoformat(),
    }
    return _message(found.data, found.headers | headers)


def _error(code: int, err_code: int, description: str) -> dict[str, Any]:
    return {"error": {"code": code, "err_code": err_code, "description": description}}


def _reply(body: dict[str, Any]) -> Msg:
    return _message(json.dumps(body).encode(), {})


def _message(data: bytes, headers: dict[str, str]) -> Msg:
    return Msg(_client=None, subject="_INBOX", data=data, headers=headers)
