"""``/actions``: what tasks can do here."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from runwire.http.endpoint import Answer, Endpoint
from runwire.http.query import Query, parse_query
from runwire.http.schemas import json_bytes
from runwire.http.services import services

EXAMPLE_ACTION: dict[str, Any] = {
    "name": "greet",
    "description": "Greet somebody.",
    "schema": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Greeting",
        "type": "object",
        "properties": {"name": {"title": "Name", "type": "string"}},
        "required": ["name"],
    },
}


class ActionsQuery(Query):
    """The list of actions takes no query parameters."""


class ActionView(BaseModel):
    """Something that tasks can do."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_ACTION]})

    name: Annotated[str, Field(description="What `target.action` says.")]
    description: str
    parameters: Annotated[
        dict[str, Any],
        Field(alias="schema", description="JSON Schema (2020-12) of the fields of `target` beside `action`."),
    ]


async def list_actions(request: Request) -> Response:
    """The actions that workers have published lately, sorted by name. Needs viewer."""
    parts = services(request)
    parse_query(request, ActionsQuery)
    await parts.authenticate(request)  # every token may read in some chain; actions belong to none
    found = [
        {"name": entry.name, "description": entry.description, "schema": entry.parameters}
        for entry in parts.catalogue.entries()
    ]
    return Response(json_bytes(found), 200, {"Cache-Control": "no-store"}, "application/json")


ENDPOINTS = (
    Endpoint(
        method="GET", path="/actions", handle=list_actions, tag="actions", query=ActionsQuery,
        answers={200: Answer(text="The actions.", model=list[ActionView])},
    ),
)  # fmt: skip
