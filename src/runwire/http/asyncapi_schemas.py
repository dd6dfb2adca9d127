"""JSON Schemas of what goes over the bus, made of the models that write and read it; and an example of each event.

What stands in a message only because our own processes need it is left out: it may be anything, and another thing in
the next version.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import pairwise
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue
from pydantic_core.core_schema import ModelSchema

from runwire.domain import lifecycle, ticks
from runwire.domain.lifecycle import Document
from runwire.domain.run import PUBLIC_FIELDS, Command, Done, ErrorCode, Failed, Run, RunError, Source
from runwire.domain.sample import SAMPLE, SAMPLE_ID
from runwire.domain.ticks import Skipped
from runwire.domain.trace import Trace
from runwire.messaging import codec, subjects

REFERENCE = "#/components/schemas/{model}"
SHOWN: Mapping[type[BaseModel], frozenset[str]] = {
    Document: frozenset({"task", "run", "change", "by", "skipped"}),
    Run: frozenset({*PUBLIC_FIELDS, "trace"}),
}
"""The fields of a model that others than we may go by; a model that is not here shows all of them."""
BEGAN = datetime(2026, 5, 26, 14, 35, tzinfo=UTC)
BY, RUN = "0b7e6f0e-3f0c-4c4e-9a53-5d3b8f6f2a11", "0197f2a0-7c1e-7abc-9def-0123456789ab"
TRACE = Trace(parent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")


class Schemas:
    """The schemas of one document, by name."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def add(self, model: type[BaseModel], mode: JsonSchemaMode = "serialization") -> dict[str, str]:
        """A reference to the schema of this model, which is there now, with those that it refers to."""
        schema = model.model_json_schema(ref_template=REFERENCE, schema_generator=_Generator, mode=mode)
        self.found |= schema.pop("$defs", {})
        self.found[model.__name__] = schema
        return {"$ref": REFERENCE.format(model=model.__name__)}


class _Generator(GenerateJsonSchema):
    """Takes the descriptions of fields from their docstrings, and leaves out what is not shown."""

    def model_schema(self, schema: ModelSchema) -> JsonSchemaValue:
        made = super().model_schema(schema)
        model: type[BaseModel] = schema["cls"]
        shown, texts = SHOWN.get(model), _docstrings(model)
        made["properties"] = {
            name: _described(_plain(field), texts.get(name))
            for name, field in made.get("properties", {}).items()
            if shown is None or name in shown
        }
        made["required"] = [name for name in made.get("required", []) if name in made["properties"]]
        return made


def _plain(field: dict[str, Any]) -> dict[str, Any]:
    """A field without its title, which is its name once more, and without a default that says nothing."""
    return {name: value for name, value in field.items() if name != "title" and (name, value) != ("default", None)}


def _described(field: dict[str, Any], text: str | None) -> dict[str, Any]:
    if text is None or "description" in field:
        return field
    if "$ref" in field:  # in Draft 7, nothing counts beside it
        field = {"allOf": [field]}
    return {**field, "description": text}


@cache
def _docstrings(model: type[BaseModel]) -> dict[str, str]:
    """What stands below each field of the model, in the words of JSON."""
    found: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if not issubclass(cls, BaseModel) or cls is BaseModel:
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in pairwise(body.body):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                    found[name] = _in_words_of_json(words)
    return found


def _in_words_of_json(docstring: str) -> str:
    text = re.sub(r" ?\(?:\w+:`[^`]*`\)?", "", " ".join(docstring.split()))
    return re.sub(r"\bNone\b", "null", text.replace("``", "`"))


def payload_of(document: Document) -> dict[str, Any]:
    """A document as an example shows it."""
    run = SHOWN[Run] & Run.model_fields.keys()
    wanted: dict[str, Any] = {"task": True, "change": True, "by": True, "run": run}
    if document.skipped is not None:
        wanted["skipped"] = run
    return document.model_dump(mode="json", include=wanted)


@cache
def events() -> dict[str, Document]:
    """One event of each code, as our own rules make them."""
    command = Command(
        chain=SAMPLE.chain, task=SAMPLE_ID, run=RUN, source=Source.BUS, reason="the nightly one failed", trace=TRACE,
        accepted=BEGAN, sequence=17, delivery=1,
    )  # fmt: skip
    later, ended = BEGAN + timedelta(seconds=1), BEGAN + timedelta(seconds=45)
    nightly = replace(SAMPLE, trigger={"cron": "0 14 * * *"})
    ready = lifecycle.create(nightly, SAMPLE_ID, BEGAN - timedelta(days=1), by=BY)
    begun = lifecycle.claim(ready, command, claim_id=BY, now=later)
    failed = Failed(RunError(code=ErrorCode.HANDLER_ERROR, message="ValueError: no such segment"))
    done = lifecycle.conclude(begun, Done({"rows": 1, "bytes": 287, "file": "Runs_Export-12345.csv"}), now=ended)
    tick = BEGAN.replace(minute=0)
    skipped = ticks.record(
        b"", ready.task, 1, Skipped(ticks=1, first=tick, last=tick, reason=ErrorCode.OVERLAP), now=tick, log_seq=0
    )
    made = (
        ready,
        begun,
        done,
        lifecycle.conclude(begun, failed, now=ended),
        lifecycle.edit(done, replace(nightly, desc="Every night's export"), by=BY, now=ended),
        lifecycle.skip(begun, skipped, until=tick),
        lifecycle.delete(done, by=BY),
    )
    return {subjects.event_code(document): document for document in made}


def headers_of(document: Document) -> dict[str, str]:
    """The headers of an event, as an example shows them."""
    return codec.event_headers(document, "6f0c0d7e-55f6-4f5c-9e0f-0a3a1f1c5f0e", BEGAN + timedelta(seconds=45))
