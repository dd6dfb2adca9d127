"""JSON bodies -> pydantic models, or a clear answer. What is no JSON in the strict sense is refused everywhere."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, JsonValue, ValidationError
from pydantic_core import from_json

from runwire.domain import strictjson
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
    """Raise MalformedBody unless the body is JSON in the strict sense."""
    try:
        strictjson.check(body)
    except ValueError as error:
        raise MalformedBody(f"The body is not JSON: {error}.") from None
