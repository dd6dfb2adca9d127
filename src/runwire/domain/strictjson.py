"""JSON in the strict sense: it means the same to every reader, and can be written back as JSON.

pydantic's parser takes the last of two members with the same name, and lets NaN, Infinity and 1e400 pass. Two readers
could make two things of such a text (RFC 8259 section 4).
"""

from __future__ import annotations

import json
import math
from typing import Any


def check(text: bytes) -> None:
    """Raise ValueError, which says why, unless it is JSON in that sense."""
    try:
        json.loads(text.decode(), object_pairs_hook=_members, parse_constant=_constant, parse_float=_number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            raise ValueError(f"an object has the member {name[:80]!r} twice")
        members[name] = value
    return members


def _constant(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:80]} is out of range")
    return number
