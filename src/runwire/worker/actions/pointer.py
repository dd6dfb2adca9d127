"""JSON Pointer (RFC 6901): names a place inside a JSON value."""

from __future__ import annotations

import re

from pydantic import JsonValue

POINTER = "^(/([^/~]|~0|~1)*)*$"
"""Nothing, for the whole, or steps that begin with a slash; ``~1`` is a slash in a name, ``~0`` a tilde."""
INDEX = re.compile("0|[1-9][0-9]*")


class Nowhere(LookupError):
    """There is nothing at that place."""


def pointed_at(value: JsonValue, pointer: str) -> JsonValue:
    """What is at that place. Raises Nowhere."""
    for step in pointer.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict) and name in value:
            value = value[name]
        elif isinstance(value, list) and INDEX.fullmatch(name) and int(name) < len(value):
            value = value[int(name)]
        else:
            raise Nowhere(pointer)
    return value
