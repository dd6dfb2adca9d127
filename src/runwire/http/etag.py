"""Entity tags: a task's version, quoted; and the precondition ``If-Match`` (RFC 9110 sections 8.8.3 and 13.1.1)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from starlette.requests import Request

from runwire.domain.errors import MalformedIfMatch, Stale
from runwire.http.endpoint import header_parameter

TAGS = re.compile(
    r'[ \t,]*(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"(?:[ \t]*,[ \t,]*(?:W/)?"[\x21\x23-\x7e\x80-\xff]*")*[ \t,]*'
)
"""A list of entity tags; empty members are allowed (section 5.6.1)."""
TAG = re.compile(r'(W/)?("[^"]*")')


def etag(version: int) -> str:
    """The strong entity tag of a task at this version."""
    return f'"{version}"'


@dataclass(frozen=True)
class IfMatch:
    """What the caller takes the task's entity tag to be. None: whatever it is."""

    tags: frozenset[str] | None = None

    def require(self, version: int) -> None:
        """Raise Stale unless the task at this version is what the caller has seen."""
        if self.tags is not None and etag(version) not in self.tags:
            raise Stale(version)


def if_match(request: Request) -> IfMatch:
    """The precondition of a request. Weak tags match nothing: the comparison is strong. Raises MalformedIfMatch."""
    lines = request.headers.getlist("if-match")
    text = ",".join(lines)
    if not lines or text.strip() == "*":
        return IfMatch()
    if TAGS.fullmatch(text) is None:
        raise MalformedIfMatch('If-Match is * or a list of entity tags in quotes, such as "7".')
    return IfMatch(frozenset(tag for weak, tag in TAG.findall(text) if not weak))


ETAG = {"ETag": {"schema": {"type": "string"}, "description": "The task's version in quotes, for If-Match."}}
IF_MATCH = header_parameter(
    "If-Match",
    "Only if the task's ETag is among these (RFC 9110 section 13.1.1); `*`: whatever it is.",
    {"type": "string"},
    '"7"',
)
