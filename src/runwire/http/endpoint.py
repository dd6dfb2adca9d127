"""What an endpoint is: who serves it, and what its documentation says. ``http/app.py`` collects them all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from runwire.domain import errors
from runwire.domain.errors import RequestError

Handler = Callable[[Request], Awaitable[Response]]
Parameter = Mapping[str, Any]
"""An OpenAPI parameter object."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One way a call can succeed."""

    text: str
    """One sentence."""
    model: Any = None
    """The body: a pydantic model, or a list of one; None: no JSON body."""
    headers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """OpenAPI header objects by name."""
    media_type: str = "application/json"
    """Of a body that ``model`` does not describe."""
    events: tuple[type[BaseModel], ...] = ()
    """What the data of an event of a ``text/event-stream`` may be."""
    example: Any = None
    """A body as it is answered."""
    content: Mapping[str, Mapping[str, Any]] | None = None
    """OpenAPI media type objects by type, for a body that is a file."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One method on one path."""

    method: str
    path: str
    handle: Handler
    """Its docstring's first sentence is the summary, its name the operation id."""
    answers: Mapping[int, Answer]
    problems: tuple[type[RequestError], ...] = ()
    """What can go wrong, beside what follows from the rest (see :meth:`all_problems`)."""
    parameters: tuple[Parameter, ...] = ()
    """Path and header parameters."""
    query: type[BaseModel] | None = None
    """The query parameters; read with :func:`runwire.http.query.parse_query`."""
    body: type[BaseModel] | None = None
    body_types: tuple[str, ...] = ("application/json",)
    body_required: bool = True
    tag: str = "tasks"
    needs_token: bool = True

    @property
    def all_problems(self) -> tuple[type[RequestError], ...]:
        """Every problem this endpoint can answer with."""
        found = list(self.problems)
        if self.needs_token:
            found += [errors.Unauthenticated, errors.RateLimited, errors.BrokerAway]
        if "{" in self.path and self.needs_token:
            found.append(errors.MalformedId)
        if self.query is not None:
            found.append(errors.InvalidFields)
        if self.body is not None:
            found += [errors.MalformedBody, errors.RequestTimeout, errors.BodyTooLarge, errors.InvalidFields]
        return tuple(dict.fromkeys(found))


def path_parameter(name: str, description: str, schema: Mapping[str, Any], example: Any) -> Parameter:
    """A parameter in the path."""
    return {
        "name": name, "in": "path", "required": True, "description": description, "schema": dict(schema),
        "example": example,
    }  # fmt: skip


def header_parameter(name: str, description: str, schema: Mapping[str, Any], example: Any) -> Parameter:
    """An optional request header."""
    return {
        "name": name, "in": "header", "required": False, "description": description, "schema": dict(schema),
        "example": example,
    }  # fmt: skip


TASK_ID = path_parameter(
    "id", "Id of the task.", {"type": "integer", "format": "int64", "minimum": 1, "maximum": 2**53 - 1}, 12345
)
RUN_ID = path_parameter(
    "run",
    "Id of the run.",
    {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
    "0197f2a0-7c1e-7abc-9def-0123456789ab",
)
PREFER = header_parameter(
    "Prefer",
    "`wait=N`: seconds to wait for the end of the run; `respond-async`: do not wait (RFC 7240).",
    {"type": "string"},
    "wait=10",
)
