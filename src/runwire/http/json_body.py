"""JSON bodies -> pydantic models, or a clear answer.

pydantic's parser takes the last of two members with the same name, and lets NaN, Infinity and 1e400 pass. Two readers
could make two things of such a body (RFC 8259 section 4), and what is no JSON could not be written back as JSON: both
are refused here, for every endpoint alike.
"""

from __future__ import annotations

import json
import math
from typing import Any, TypeVar

from pydantic import BaseModel, JsonValue, ValidationError
from pydantic_core import from_json

from runwire.domain.errors import FieldError, InvalidFields, MalformedBody

T = TypeVar("T", bound=BaseModel)

MOST_COMPLAINTS = 50
"""Invalid fields that one answer points at; the rest is told when these are put right."""


def parse_json(body: bytes, model: type[T]) -> T:
    """The body as ``model``. Raises MalformedBody or InvalidFields, which points at every field that does not fit."""
    _check(body)
    try:
        return model.model_validate_json(body)
    except ValidationError as invalid:
        complaints = invalid.errors(include_url=False, include_context=False, include_input=False)
    if any(complaint["type"] == "json_invalid" for complaint in complaints):
        raise MalformedBody(f"The body is not JSON: {complaints[0]['msg']}.")
    raise InvalidFields(
        [
            FieldError(pointer=pointer(complaint["loc"]), detail=complaint["msg"])
            for complaint in complaints[:MOST_COMPLAINTS]
        ]
    )


def pointer(location: tuple[int | str, ...]) -> str:
    """A pydantic location as a JSON pointer (RFC 6901)."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in location)


def read_json(body: bytes) -> JsonValue:
    """The body as it is, for who has no model of it. Raises MalformedBody."""
    _check(body)
    try:
        value: JsonValue = from_json(body)
    except ValueError as error:  # what pydantic's parser alone refuses: half of a surrogate pair
        raise MalformedBody(f"The body is not JSON: {error}.") from None
    return value


def _check(body: bytes) -> None:
    """Raise MalformedBody unless the body is JSON in the strict sense, and means the same to every reader."""
    try:
        json.loads(body.decode(), object_pairs_hook=_members, parse_constant=_constant, parse_float=_number)
    except RecursionError:
        raise MalformedBody("The body is nested too deeply.") from None
    except ValueError as error:
        raise MalformedBody(f"The body is not JSON: {error}.") from None


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
