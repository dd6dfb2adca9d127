"""W3C Trace Context (https://www.w3.org/TR/trace-context/): in which trace a run was asked for.

::

    traceparent  00-<trace id: 32 hex>-<parent id: 16 hex>-<flags: 2 hex>
    tracestate   vendor=value,other=value

A run has one span in the trace, whoever asked for it and however often it is tried. Its id derives from the run and
from the parent, so that it is nobody's to remember. A ``traceparent`` that is none counts as absent; without one there
is no trace: one that nobody began would tell those who are called by the run that it is not to be sampled.
"""

from __future__ import annotations

import hashlib
import re

from runwire.domain.task import Model

PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
MEMBER = re.compile(r"[a-z0-9][a-z0-9_*/@-]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]")
LONGEST_PARENT = 256
"""Characters; those of a later version than 00 may be longer than its 55."""
LONGEST_STATE = 512
"""Characters of a ``tracestate`` that are passed on; the last members go first."""
LONGEST_GIVEN_STATE, MOST_MEMBERS = 8192, 32
KNOWN_FLAGS = 0x03
"""Sampled; and that the trace id is random."""


class Trace(Model):
    """Where in a trace something stands."""

    parent: str
    """The ``traceparent`` for whoever is called from here."""
    state: str | None = None
    """The ``tracestate``."""

    @property
    def id(self) -> str:
        """The trace id: 32 hexadecimal digits."""
        return self.parent[3:35]

    def headers(self) -> dict[str, str]:
        """As headers, of HTTP or of the bus."""
        return {"traceparent": self.parent} | ({"tracestate": self.state} if self.state else {})


def parse(parent: str | None, state: str | None = None) -> Trace | None:
    """What a caller's headers say; None: nothing that is valid. A ``tracestate`` that is not valid is left out."""
    match = PARENT.fullmatch(parent) if parent and len(parent) <= LONGEST_PARENT else None
    if match is None:
        return None
    version, trace, span, flags, rest = match.groups()
    if version == "ff" or (version == "00" and rest) or not trace.strip("0") or not span.strip("0"):
        return None
    known = f"{int(flags, 16) & KNOWN_FLAGS:02x}"
    return Trace(parent=f"00-{trace}-{span}-{known}", state=_state(state))


def of_run(asked: Trace | None, run: str) -> Trace | None:
    """The run's own place in the trace in which it was asked for."""
    return None if asked is None else child(asked, run)


def child(parent: Trace, name: str) -> Trace:
    """A span below another one; the same name gives the same span."""
    span = hashlib.sha256(f"{parent.parent} {name}".encode()).hexdigest()[:16]
    return Trace(parent=f"{parent.parent[:36]}{span}{parent.parent[52:]}", state=parent.state)


def _state(given: str | None) -> str | None:
    if not given or len(given) > LONGEST_GIVEN_STATE:
        return None
    members = [member for member in (part.strip(" \t") for part in given.split(",")) if member]
    names = {member.partition("=")[0] for member in members}
    if len(members) > MOST_MEMBERS or len(names) < len(members) or not all(map(MEMBER.fullmatch, members)):
        return None
    while members and len(",".join(members)) > LONGEST_STATE:
        members.pop()
    return ",".join(members) or None
