"""What an action's parameters have to be like, as JSON Schema (2020-12): one to show, and one that is enforced.

The one that is shown is pydantic's own. It cannot be enforced: a model that is not strict takes ``"5"`` for an integer,
a validator of its own may take anything, and of neither is there a trace in it. The one that is enforced is made of
pydantic's core schema, which knows. It refuses only what the model is sure to refuse; of what is not understood here it
asks nothing. It is a tree without references, so that a check ends soon whatever the data.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum, EnumMeta
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode

Schema = dict[str, Any]
"""A JSON Schema. ``description`` says in the enforced one what a value has to be, as in "must be ...". """

Core = Mapping[str, Any]
"""A core schema of pydantic, or its configuration."""

MOST_NODES = 300
"""Schemas inside the enforced one; beyond that nothing is asked."""

EXACT = 2**53
"""Below it every integer is a float: a bound means the same before and after a value becomes a float."""

A_DIGIT = "[0-9]"
A_NUMBER = "[0-9]|[iI][nN][fF]|[nN][aA][nN]"
AN_INTEGER = "^[^A-Za-z]*[0-9][^A-Za-z]*$"
A_BOOLEAN = "^([01nNtTfFyY]|[oO][nN]|[oO][fF][fF]|[nN][oO]|[yY][eE][sS]|[tT][rR][uU][eE]|[fF][aA][lL][sS][eE])$"
"""What text has to look like, at least, for pydantic to make a value of it."""

LOADED = re.compile(r"\\[A-Za-z]|\(\?")
"""What regular expressions of different libraries understand differently: ``\\d`` has other digits elsewhere."""

TRANSFORMS = ("strip_whitespace", "to_lower", "to_upper")
"""What is done to text before its length and pattern are looked at."""


class _Shown(GenerateJsonSchema):
    """As pydantic makes them, with the dialect named, and without warnings about what cannot be shown."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012 - as in its base

    def generate(self, schema: Any, mode: JsonSchemaMode = "validation") -> Schema:
        return {"$schema": self.schema_dialect, **super().generate(schema, mode)}


def complaints(invalid: ValidationError) -> str:
    """What is wrong with the parameters of a target, in one line."""
    return "; ".join(
        f"/target/{'/'.join(str(part) for part in error['loc'])}: {error['msg']}"
        for error in invalid.errors(include_url=False, include_context=False, include_input=False)[:10]
    )


def shown(parameters: TypeAdapter[Any]) -> Schema:
    """The schema for people and for generated forms. Of a type that JSON Schema has no word for it says nothing."""
    try:
        return parameters.json_schema(mode="validation", schema_generator=_Shown)
    except PydanticUserError:
        return {"$schema": _Shown.schema_dialect}


def enforced(parameters: TypeAdapter[Any]) -> Schema:
    """The schema that accepts whatever ``parameters.validate_python`` accepts, and as little else as can be told."""
    try:
        return _Walk().accepts(parameters.core_schema, {})
    except PydanticUserError:  # something in it is not defined yet
        return {}


class _Walk:
    """From a core schema to the schema of what it accepts; ``{}`` accepts anything."""

    def __init__(self) -> None:
        self._definitions: dict[str, Core] = {}
        self._inside: set[str] = set()
        """Definitions that are being walked through: one inside itself is not looked at again."""
        self._left = MOST_NODES

    def accepts(self, core: Core, config: Core) -> Schema:
        """``config``: of the model around it."""
        self._left -= 1
        if self._left < 0:
            return {}
        match core["type"]:
            case "definitions":
                self._definitions |= {definition["ref"]: definition for definition in core["definitions"]}
                return self.accepts(core["schema"], config)
            case "definition-ref":
                return self._referred(core["schema_ref"], config)
            case "default":
                return {} if core.get("on_error", "raise") != "raise" else self.accepts(core["schema"], config)
            case "function-after" | "custom-error":  # may refuse more, never less
                return self.accepts(core["schema"], config)
            case "chain":
                return self.accepts(core["steps"][0], config)
            case "json-or-python":
                return self.accepts(core["python_schema"], config)
            case "nullable":
                return _or_null(self.accepts(core["schema"], config))
            case "union":
                choices = (choice[0] if isinstance(choice, tuple) else choice for choice in core["choices"])
                return _any_of([self.accepts(choice, config) for choice in choices])
            case "tagged-union":
                return self._tagged(core, config)
            case "model":
                return self._model(core)
            case "model-fields":
                forbids = core.get("extra_behavior", config.get("extra_fields_behavior")) == "forbid"
                return self._fields(core["fields"], config, forbids=forbids)
            case "typed-dict":
                own = core.get("config") or {**config, "strict": False, "extra_fields_behavior": None}
                forbids = core.get("extra_behavior", own.get("extra_fields_behavior")) == "forbid"
                return self._fields(core["fields"], own, forbids=forbids, total=core.get("total", True))
            case "dict":
                values = self.accepts(core["values_schema"], config) if "values_schema" in core else {}
                return _object(additionalProperties=values or None, minProperties=core.get("min_length"))
            case "list":
                return self._array(core, config, most=core.get("max_length"))
            case "set" | "frozenset":  # equal items count once
                return self._array(core, config, most=None)
            case "tuple":
                return {"type": "array", "description": "an array"}
            case _:
                return _plain(core, config)

    def _referred(self, name: str, config: Core) -> Schema:
        if name in self._inside or name not in self._definitions:
            return {}
        self._inside.add(name)
        try:
            return self.accepts(self._definitions[name], config)
        finally:
            self._inside.discard(name)

    def _model(self, core: Core) -> Schema:
        """A model goes by its own configuration only."""
        config = core.get("config") or {}
        if core.get("custom_init") or config.get("from_attributes"):
            return {}
        return self.accepts(core["schema"], config)

    def _fields(self, fields: Core, config: Core, *, forbids: bool, total: bool = True) -> Schema:
        properties: Schema = {}
        required = []
        for name, field in fields.items():
            names, exact = _names(name, field, config)
            if not exact:  # which of them counts depends on the data
                properties |= {member: {} for member in names}
                continue
            properties[names[0]] = self.accepts(field["schema"], config)
            if field.get("required", total) and not self._has_default(field["schema"]):
                required.append(names[0])
        return _object(
            properties=properties or None,
            additionalProperties=False if forbids else None,
            **_at_once({"required": required} if required else {}),
        )

    def _has_default(self, core: Any) -> bool:
        """Whether there is a default somewhere in it, other than of a field inside."""
        if isinstance(core, Mapping):
            match core.get("type"):
                case "default":
                    return True
                case "model" | "model-fields" | "typed-dict" | "dataclass" | "dataclass-args":
                    return False
                case "definition-ref":
                    definition = self._definitions.get(core["schema_ref"], {})
                    return definition.get("type") not in {"model", "typed-dict", "dataclass"}
            return any(self._has_default(part) for key, part in core.items() if key != "metadata")
        return isinstance(core, list | tuple) and any(self._has_default(part) for part in core)

    def _array(self, core: Core, config: Core, *, most: int | None) -> Schema:
        items = self.accepts(core["items_schema"], config) if "items_schema" in core else {}
        found = {"items": items or None, "minItems": core.get("min_length"), "maxItems": most}
        return {"type": "array", "description": "an array", **_given(found)}

    def _tagged(self, core: Core, config: Core) -> Schema:
        """The choice that the tag names is looked at, where the tag is one plain field and has text for values."""
        tag, choices = core["discriminator"], core["choices"]
        if not isinstance(tag, str) or not all(type(value) is str for value in choices):
            return _any_of([self.accepts(choice, config) for choice in choices.values()])
        cases = []
        for value, choice in choices.items():
            chosen = {"type": "object", "required": [tag], "properties": {tag: {"const": value}}}
            cases.append({"if": chosen, "then": self.accepts(choice, config)})
        return _object(properties={tag: {"enum": list(choices)}}, allOf=cases, **_at_once({"required": [tag]}))


def _names(name: str, field: Core, config: Core) -> tuple[list[str], bool]:
    """The members that may give a field its value; whether it is always the one."""
    alias = field.get("validation_alias")
    if alias is None:
        return [name], True
    if isinstance(alias, str) and not config.get("validate_by_name") and config.get("validate_by_alias", True):
        return [alias], True
    paths = [alias] if isinstance(alias, str) else alias
    return [name, *(str(path[0] if isinstance(path, list) else path) for path in paths)], False


def _plain(core: Core, config: Core) -> Schema:
    """What accepts a value without parts."""
    strict = core.get("strict", config.get("strict", False))
    match core["type"]:
        case "none":
            return {"type": "null", "description": "null"}
        case "str":
            return _text(core, config, strict=strict)
        case "int":
            types = {"type": "integer"} if strict else {"type": ["integer", "string", "boolean"], "pattern": AN_INTEGER}
            return {**types, "description": "an integer", **_bounds(core)}
        case "float":
            types = {"type": "number"} if strict else {"type": ["number", "string", "boolean"], "pattern": A_NUMBER}
            exact = {name: bound for name, bound in _bounds(core).items() if abs(bound) < EXACT}
            return {**types, "description": "a number", **exact}
        case "bool" if strict:
            return {"type": "boolean", "description": "true or false"}
        case "bool":
            # No minimum and maximum: 0.5 is told by no other reason than being no boolean.
            return _any_of([{"type": "boolean"}, {"enum": [0, 1]}, {"type": "string", "pattern": A_BOOLEAN}]) | {
                "description": "true or false"
            }
        case "decimal":
            return {"type": ["number", "string", "array"], "description": "a decimal number"}
        case "date" | "time" | "datetime" | "timedelta":
            words = {"datetime": "a date and time", "timedelta": "a duration"}
            types = {"type": ["string", "number", "boolean"], "pattern": A_DIGIT}
            return {**types, "description": words.get(core["type"], f"a {core['type']}")}
        case "uuid":
            return {"type": "string", "minLength": 32, "maxLength": 45, "description": "a UUID"}
        case "url" | "multi-host-url":
            return {"type": "string", "description": "a URL"}
        case "bytes" | "json":
            return {"type": "string", "description": "text"}
        case "literal":
            return _one_of(core["expected"])
        case "enum":
            return _member(core["cls"])
    return {}


def _text(core: Core, config: Core, *, strict: bool) -> Schema:
    types: Any = "string"
    if not strict and (core.get("coerce_numbers_to_str") or config.get("coerce_numbers_to_str")):
        types = ["string", "number"]
    found: Schema = {"type": types, "description": "text"}
    if any(core.get(name) or config.get(f"str_{name}") for name in TRANSFORMS):
        return found
    pattern = core.get("pattern")
    python = "python-re" in {core.get("regex_engine"), config.get("regex_engine")}
    if not isinstance(pattern, str) or python or LOADED.search(pattern):
        pattern = None
    return found | _given(
        {"minLength": core.get("min_length"), "maxLength": core.get("max_length"), "pattern": pattern}
    )


def _bounds(core: Core) -> dict[str, Any]:
    keywords = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
    return {keyword: core[name] for name, keyword in keywords.items() if core.get(name) is not None}


def _one_of(values: list[Any]) -> Schema:
    """Text and null are themselves only; to Python 1, 1.0 and True are the same."""
    if not all(value is None or type(value) in {str, int} for value in values):
        return {}
    return {"enum": [*values, *(bool(value) for value in values if type(value) is int and value in {0, 1})],
            "description": " or ".join(_word(value) for value in values)}  # fmt: skip


def _member(kind: type[Enum]) -> Schema:
    """Of an enumeration of texts; unless it has ways of its own from a value to a member."""
    values = list(kind._value2member_map_)
    plain = kind._missing_.__func__ is Enum._missing_.__func__  # type: ignore[attr-defined]  # it is a class method
    is_known = type(kind) is EnumMeta and plain and all(type(value) is str for value in values)
    return _one_of(values) if is_known else {}


def _word(value: str | int | None) -> str:
    return "null" if value is None else repr(value)


def _object(**keywords: Any) -> Schema:
    return {"type": "object", "description": "an object", **_given(keywords)}


def _at_once(keywords: Schema) -> Schema:
    """They hold, or one thing is wrong: not one for each choice or each name, of which there may be a million."""
    return {"if": keywords, "else": False} if keywords else {}


def _given(keywords: Mapping[str, Any]) -> Schema:
    return {name: value for name, value in keywords.items() if value is not None}


def _any_of(choices: list[Schema]) -> Schema:
    """What at least one of them accepts."""
    if not all(choices):
        return {}
    if len(choices) == 1:
        return choices[0]
    words = dict.fromkeys(choice.get("description", "something else") for choice in choices)
    return {**_at_once({"anyOf": choices}), "description": " or ".join(words)}


def _or_null(schema: Schema) -> Schema:
    """What it accepts, and null."""
    if not schema:
        return {}
    if "type" in schema and "null" not in schema["type"]:  # no keyword beside it looks at null
        types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        return {**schema, "type": [*types, "null"], "description": f"{schema['description']} or null"}
    return _any_of([schema, {"type": "null", "description": "null"}])
