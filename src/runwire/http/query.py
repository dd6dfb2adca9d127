"""Query parameters -> a pydantic model."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request

from runwire.domain.errors import FieldError, InvalidFields

T = TypeVar("T", bound=BaseModel)


class Query(BaseModel):
    """Base of what a query string can say; a parameter that is not known is refused: it is most likely a typo."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Page(Query):
    """A stretch of a list."""

    limit: Annotated[int, Field(ge=1, le=1000, description="How many, at most.")] = 100
    offset: Annotated[int, Field(ge=0, le=2**53 - 1, description="How many to leave out.")] = 0


def parse_query(request: Request, model: type[T]) -> T:
    """The query parameters. Raises InvalidFields, which names each that does not fit or comes twice."""
    pairs = request.query_params.multi_items()
    given = dict(pairs)
    if len(given) != len(pairs):
        twice = {name for name in given if len(request.query_params.getlist(name)) > 1}
        raise InvalidFields([FieldError(parameter=name, detail="is given twice") for name in sorted(twice)])
    try:
        return model.model_validate_strings(given)
    except ValidationError as invalid:
        raise InvalidFields(
            [
                FieldError(parameter=str(error["loc"][0]) if error["loc"] else "", detail=error["msg"])
                for error in invalid.errors(include_url=False, include_context=False, include_input=False)
            ]
        ) from None
