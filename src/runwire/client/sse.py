"""Server-sent events, as they come in pieces: the part of the format (WHATWG HTML, section 9.2.6) that adapters use."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

END_OF_LINE = re.compile(rb"\r\n|\n|\r")


@dataclass(frozen=True)
class Message:
    """One event: its name, its id ("" before the first that has one), and its data."""

    name: str
    id: str
    data: str


class Parser:
    """Bytes in, messages out. What a stream ends in the middle of is no message."""

    def __init__(self) -> None:
        self.last_id = ""
        """Where the stream is: what it last gave as an id, be it with an event or without one."""
        self.heard = False
        """Whether there has been an event or a comment."""
        self._rest = b""
        self._id = ""
        self._name, self._data = "", list[str]()

    def feed(self, piece: bytes) -> Iterator[Message]:
        """The messages that this piece completes."""
        *lines, self._rest = END_OF_LINE.split(self._rest + piece)
        if self._rest == b"" and piece.endswith(b"\r"):  # a \n may be about to follow
            self._rest = lines.pop() + b"\r"
        for line in lines:
            if line:
                self._field(line.decode("utf-8", "replace"))
                continue
            self.last_id = self._id
            if self._data:
                yield Message(self._name or "message", self._id, "\n".join(self._data))
            self._name, self._data = "", []

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        self.heard = self.heard or name in {"", "data"}
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._name = value
        elif name == "id" and "\0" not in value:
            self._id = value
