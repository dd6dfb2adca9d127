"""``/asyncapi``: the AsyncAPI document as YAML, as JSON, and as a page for people."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import yaml
from starlette.requests import Request
from starlette.responses import Response

from runwire import __version__
from runwire.http.asyncapi import build_document
from runwire.http.endpoint import Answer, Endpoint
from runwire.http.page import page
from runwire.http.services import services
from runwire.settings import Settings

YAML = "text/yaml"
"""And not application/yaml (RFC 9512): generators of clients take that for something that they cannot read."""
HEADERS = {"Cache-Control": "max-age=3600", "X-Content-Type-Options": "nosniff"}
VERBS = {"receive": "Clients publish to", "send": "Clients subscribe to"}
"""What an action of runwire is to a client."""


async def asyncapi(request: Request) -> Response:
    """What goes over the bus: a page made of the AsyncAPI document."""
    return page("runwire on the bus", as_markdown(services(request).settings))


async def asyncapi_yaml(request: Request) -> Response:
    """The AsyncAPI 3.0 document of the bus, as YAML."""
    return Response(as_yaml(services(request).settings), 200, HEADERS, YAML)


async def asyncapi_json(request: Request) -> Response:
    """The AsyncAPI 3.0 document of the bus, as JSON."""
    return Response(as_json(services(request).settings), 200, HEADERS, "application/json")


@lru_cache(maxsize=1)
def document(settings: Settings) -> dict[str, Any]:
    """The document of an adapter with these settings; made when somebody first asks for it, as are its texts.

    Nobody needs a token to ask: what is made for each would be a way to keep the adapter busy.
    """
    return build_document(settings, version=__version__)


@lru_cache(maxsize=1)
def as_yaml(settings: Settings) -> str:
    """The document as YAML."""
    return yaml.dump(document(settings), Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True, width=120)


@lru_cache(maxsize=1)
def as_json(settings: Settings) -> str:
    """The document as JSON."""
    return json.dumps(document(settings))


@lru_cache(maxsize=1)
def as_markdown(settings: Settings) -> str:
    """The document in words."""
    return markdown(document(settings))


def markdown(document: Mapping[str, Any]) -> str:
    """The document in words."""
    info = document["info"]
    return "\n".join(
        [
            f"# {info['title']}",
            "The AsyncAPI 3.0 document: [YAML](/asyncapi.yaml), [JSON](/asyncapi.json).",
            "",
            info["description"],
            *_operations(document),
            "## Schemas",
            "Of payloads. `null` stands for a value that is not there.",
            *(line for name, schema in document["components"]["schemas"].items() for line in _schema(name, schema)),
        ]
    )


def _operations(document: Mapping[str, Any]) -> Iterator[str]:
    for name, operation in document["operations"].items():
        channel = document["channels"][_last(operation["channel"])]
        yield f"## {name}\n"
        yield f"{operation['summary']}\n"
        yield f"{VERBS[operation['action']]} **`{channel['address']}`**: {channel['description']}\n"
        yield from _table(
            ("in the subject", ""), [(f"`{{{name}}}`", _facts(about)) for name, about in channel["parameters"].items()]
        )
        if "x-jetstream" in channel:
            yield from _table(
                ("JetStream", ""), [(name, f"`{json.dumps(fact)}`") for name, fact in channel["x-jetstream"].items()]
            )
        for reference in operation["messages"]:
            yield from _message(_last(reference), document)
        for reference in operation.get("reply", {}).get("messages", []):
            yield from _message(_last(reference), document, "Reply: ")


def _message(name: str, document: Mapping[str, Any], kind: str = "") -> Iterator[str]:
    message = document["components"]["messages"][name]
    yield f"### {kind}{name}\n"
    yield f"{message['summary']}\n"
    headers = message.get("headers", {})
    needed = headers.get("required", [])
    rows = [
        (f"`{header}`" + ("" if header in needed else " (optional)"), _facts(schema))
        for header, schema in headers.get("properties", {}).items()
    ]
    yield from _table(("header", ""), rows)
    for example in message["examples"]:
        lines = [f"{header}: {value}" for header, value in example.get("headers", {}).items()]
        payload = json.dumps(example["payload"], indent=2, ensure_ascii=False)
        yield "\n".join(["```", *lines, *([""] if lines else []), payload, "```\n"])


def _schema(name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    yield f"### {name}\n"
    yield f"{_facts(schema)}\n"
    rows = [(f"`{field}`", _facts(about)) for field, about in schema.get("properties", {}).items()]
    yield from _table(("field", ""), rows)


def _facts(schema: Mapping[str, Any]) -> str:
    """What a schema says, on one line."""
    kinds = [kind for kind in (_kind(schema),) if kind]
    told = [schema["description"]] if "description" in schema else []
    limits = [f"{name.removeprefix('x-')} `{schema[name]}`" for name in LIMITS if name in schema]
    return " ".join([*(f"*{kind}*" for kind in kinds), *told, *limits]).replace("|", "\\|").replace("\n", " ")


LIMITS = ("pattern", "x-pattern", "minimum", "maximum", "maxLength", "default")


def _kind(schema: Mapping[str, Any]) -> str:
    match schema:
        case {"$ref": str(reference)}:
            return reference.rpartition("/")[2]
        case {"const": value}:
            return json.dumps(value)
        case {"enum": list(values)}:
            return ", ".join(values)
        case {"anyOf": list(parts)} | {"allOf": list(parts)}:
            return " or ".join(filter(None, map(_kind, parts)))
        case {"type": "array", "items": items}:
            return f"list of {_kind(items)}"
        case {"type": str(kind), "format": str(form)}:
            return f"{kind} ({form})"
        case {"type": str(kind)}:
            return kind
        case {"type": list(several)}:
            return " or ".join(several)
    return ""


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> list[str]:
    if not rows:
        return []
    return [f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {first} | {second} |" for first, second in rows), ""]


def _last(reference: Mapping[str, str]) -> str:
    """The name at the end of a reference."""
    return reference["$ref"].rpartition("/")[2]


ENDPOINTS = (
    Endpoint(
        method="GET", path="/asyncapi", handle=asyncapi, tag="bus", needs_token=False,
        answers={200: Answer(text="A page for people.", media_type="text/html")},
    ),
    Endpoint(
        method="GET", path="/asyncapi.yaml", handle=asyncapi_yaml, tag="bus", needs_token=False,
        answers={200: Answer(text="The document.", content={YAML: {"schema": {}}})},
    ),
    Endpoint(
        method="GET", path="/asyncapi.json", handle=asyncapi_json, tag="bus", needs_token=False,
        answers={
            200: Answer(
                text="The document.",
                content={"application/json": {"schema": {"type": "object"}, "example": {"asyncapi": "3.0.0"}}},
            )
        },
    ),
)  # fmt: skip
