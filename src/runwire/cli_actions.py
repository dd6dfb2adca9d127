"""``runwire actions``: a client of the HTTP API like any other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from runwire.cli_client import JsonOption, UrlOption, call, draw, tell

if TYPE_CHECKING:  # loaded by the commands: `runwire --help` has to be there at once
    from rich.console import Console

LONGEST_DEFAULT = 30
"""Characters of a default that are shown."""


def actions(url: UrlOption = None, as_json: JsonOption = False) -> None:
    """List what tasks can do: the actions of the workers, and their parameters."""
    tell(call("GET", "/actions", url).json(), as_json, _action_table)


def _action_table(_console: Console, found: Any) -> None:
    if not found:
        typer.echo("No worker has published any actions lately.")
        return
    rows: list[tuple[str, ...]] = []
    for action in found:
        rows.append((action["name"], "", "", " ".join(action["description"].split())))
        rows += [("", *parameter) for parameter in _parameters(action["schema"])]
    draw(_console, ("ACTION", "PARAMETER", "TYPE", "DESCRIPTION"), rows)
    typer.echo()
    typer.echo("* required")


def _parameters(schema: Any) -> list[tuple[str, str, str]]:
    """Name, type and description of each."""
    top = _resolved(schema, schema)
    required = top.get("required", ())
    found = []
    for name, field in top.get("properties", {}).items():
        default = f" = {_short(field['default'])}" if field.get("default") is not None else ""
        words = str(field.get("description", "")).strip().partition("\n")[0]
        found.append((f"{name}*" if name in required else name, _type(field, schema) + default, words))
    return found


def _type(field: Any, schema: Any) -> str:
    """A type in a few words; what is inside an object is for ``--json``."""
    field = _resolved(field, schema)
    if "const" in field or "enum" in field:
        return " | ".join(_short(value) for value in field.get("enum", [field.get("const")]))
    for keyword in ("anyOf", "oneOf"):
        if keyword in field:
            return " | ".join(dict.fromkeys(_type(option, schema) for option in field[keyword]))
    kind = field.get("type", "any")
    if isinstance(kind, list):
        return " | ".join(kind)
    if kind == "array" and field.get("items"):
        inner = field["items"]
        return "array" if "$ref" in inner else f"array of {_type(inner, schema)}"
    return f"{kind} ({field['format']})" if "format" in field else str(kind)


def _resolved(field: Any, schema: Any) -> Any:
    """What a reference into the schema's own definitions stands for."""
    for _ in range(10):
        if not isinstance(field, dict) or "$ref" not in field:
            break
        field = schema.get("$defs", {}).get(str(field["$ref"]).removeprefix("#/$defs/"), {})
    return field if isinstance(field, dict) else {}


def _short(value: Any) -> str:
    import json  # noqa: PLC0415

    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_DEFAULT else f"{text[:LONGEST_DEFAULT]}..."
