"""What hostile callers send, and where: generated from the OpenAPI document, so that every endpoint gets its share."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

Document = dict[str, Any]

TOO_BIG_FLOAT = "<1e400>"
"""Stands for a number that ``json`` cannot write."""
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 1.5, -0.0, 2**53, 2**63, 2**64, -(2**63) - 1, 10**400, 1e308, 5e-324,
    float("nan"), float("inf"), float("-inf"), TOO_BIG_FLOAT,
    "", " ", "x", "\x00", "a\x00b", "\x1b[31m", "a" * 2000, "a" * 70_000, "\ud800", "\udfff", "\ufeff", "\uffff",
    "\u202eabc", "a\u200bb", "\u200f", "e\u0301" * 50, "👩\u200d👩\u200d👧", "\U0010ffff", "١٢٣", "１２",
    "..", "../../etc/passwd", "tasks.evt.>", "*", ">", "a b", "%00", "%s%n", "{}", "${x}", "';--", "<script>",
    "NaN", "Infinity", "1e400", "true", "null", "0x10", "1_000", "-0", "9" * 400,
    "2026-02-30T00:00:00Z", "2026-01-01T25:00:00Z", "2026-01-01T00:00:00", "2026-01-01", "24:00", "now",
    "2026-01-01T00:00:00+99:99", "2026-01-01T00:00:00+23:59", "2016-12-31T23:59:60Z", "2026-01-01T00:00:00 Mars/Base",
    "9999-12-31T23:59:59-23:59", "9999-12-31T23:59:59.999999-00:01", "0001-01-01T00:00:00+23:59",
    "0000-01-01T00:00:00Z", "10000-01-01T00:00:00Z", "-2026-01-01T00:00:00Z", "1900-01-01T00:00:00.123456789Z",
    "Europe/Nowhere", "../UTC", "/etc/localtime", "* * * * *", "99 99 99 99 99", "P1D", "-P1D",
    [], [None], [[]], [{}], ["a"] * 1000, {}, {"": ""}, {"a": None}, {"\x00": 1}, {"\ud800": 1}, {"a" * 2000: 1},
    {"__proto__": {}, "constructor": 1}, {"$ref": "#"},
)  # fmt: skip
"""Put into every field of every body."""
TEXTS = (
    "", "%20", "-1", "0", "1", "007", "1.0", "1e3", "+1", "%2B1", "1_0", "0x10", "9" * 19, "9" * 400, "true", "null",
    "[]", "1,2", "1;2", "%00", "1%00", "%0a", "%0d%0aX-Injected:%201", "%ff", "%c0%80", "%ed%a0%80", "%", "%zz",
    "%u0031", "%25", "%2e%2e", "a" * 2000, "%f0%9f%91%a9", "%e2%80%ae", "%e2%80%8b", "%d9%a1", "%ef%bc%91", "READY%00",
    "0" * 5000, "0" * 19 + "1" + "9" * 50, "0" * 19 + "1" + "0" * 5000,
    "ready", "final%20", "*", "%3e", "<script>", "%22", "%27", "..", "2026-01-01", "9999-12-31T23:59:59-23:59",
)  # fmt: skip
"""Put, as they are, into every parameter of a query and of a path."""
HEADER_VALUES = (
    b"", b",", b";", b"=", b'"', b'""', b"*", b'"*"', b'W/""', b"W/*", b"\xff\xfe", b"\xc3\x28", b"a" * 2000, b"-1",
    b"0", b"0" * 5000, b"1.5", b"9" * 400, b"wait=", b"wait=-1", b"wait=" + b"9" * 400, b"wait=1e9", b"wait=NaN",
    b"wait=0,wait=9", b"respond-async; wait", b"Bearer", b"Bearer :", b"Bearer a:", b"Bearer " + b"a" * 2000 + b":b",
    b"Bearer ../x:y", b"Bearer a.>:b", b"Bearer tester:\xff", b"bytes=0-", b"bytes=9-1", b"bytes=" + b"0-1," * 500,
    b"Thu, 01 Jan 1970 00:00:00 GMT",
)  # fmt: skip
"""Put into every header that an endpoint reads."""
BODIES: dict[str, bytes] = {
    "empty": b"",
    "space": b" " * 1000,
    "null": b"null",
    "array": b"[]",
    "text": b'"x"',
    "number": b"1",
    "cut off": b'{"chain": 17',
    "two values": b"{} {}",
    "trailing comma": b'{"a": 1,}',
    "comment": b"{} // x",
    "deep arrays": b"[" * 100_000,
    "deep objects": b'{"a":' * 40_000,
    "closed deep arrays": b"[" * 100_000 + b"]" * 100_000,
    "deep below a field": b'{"target": {"action": "noop", "x": ' + b"[" * 50_000 + b"]" * 50_000 + b"}}",
    "byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": "{}".encode("utf-16"),
    "no UTF-8": b'{"desc": "\xff"}',
    "surrogate": b'{"desc": "\\ud800"}',
    "NaN": b'{"timeout": NaN}',
    "NUL": b"\x00",
    "control character": b'{"desc": "\x01"}',
    "huge integer": b'{"chain": ' + b"9" * 100_000 + b"}",
    "huge exponent": b'{"chain": 1e999999999}',
    "many members": json.dumps({f"m{number}": number for number in range(15_000)}).encode(),
    "twice": b'{"desc": "a", "desc": "b"}',
    "twice, escaped": b'{"desc": "a", "d\\u0065sc": "b"}',
    "twice, deep down": b'{"target": {"a": [{"b": 1, "b": 2}]}}',
    "too large": b'"' + b"a" * 300_000 + b'"',
    "form": b"a=1&b=2",
    "XML": b"<task/>",
    "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
}
"""Sent instead of every body; none is what an endpoint asks for."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One endpoint, as the OpenAPI document describes it."""

    document: Document = field(repr=False)
    method: str
    path: str
    description: dict[str, Any] = field(repr=False)

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    def parameters(self, place: str) -> list[dict[str, Any]]:
        return [found for found in self.description.get("parameters", []) if found["in"] == place]

    @property
    def path_names(self) -> list[str]:
        return re.findall(r"\{(\w+)\}", self.path)

    @property
    def has_json_body(self) -> bool:
        return bool(self._json_media)

    @property
    def statuses(self) -> set[int]:
        """The documented ones."""
        return {int(status) for status in self.description["responses"]}

    @property
    def usual_headers(self) -> dict[str, str]:
        """What a careful client sends along: the type of the body, and that it overwrites whatever is there."""
        kinds = [kind for kind in self._content if "json" in kind]
        headers = {"Content-Type": kinds[0]} if kinds else {}
        if "If-Match" in {parameter["name"] for parameter in self.parameters("header")}:
            headers["If-Match"] = "*"
        return headers

    @property
    def _content(self) -> dict[str, Any]:
        return self.description.get("requestBody", {}).get("content", {})

    @property
    def _json_media(self) -> dict[str, Any]:
        return next((media for kind, media in self._content.items() if "json" in kind), {})

    def example(self) -> dict[str, Any]:
        """A body that is fine."""
        media = self._json_media
        schema = self.resolved(media["schema"])
        named = [found["value"] for found in media.get("examples", {}).values()]
        (first, *_) = [media["example"]] if "example" in media else named or schema["examples"]
        return copy.deepcopy(first)

    def resolved(self, schema: dict[str, Any]) -> dict[str, Any]:
        while "$ref" in schema:
            schema = self.document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        return schema

    def fields(self) -> list[tuple[str, ...]]:
        """The path to every field of the body, in documents below it, too; and one field nobody knows."""
        found = list(dict.fromkeys(self._fields(self._json_media["schema"], (), 0)))
        return [*found, ("no_such_field",), (*found[0], "no_such_field"), ("",), ("a/b~c",)]

    def _fields(self, schema: dict[str, Any], above: tuple[str, ...], depth: int) -> Iterator[tuple[str, ...]]:
        schema = self.resolved(schema)
        for option in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())):
            yield from self._fields(option, above, depth)
        for name, below in schema.get("properties", {}).items():
            yield (*above, name)
            if depth < 5:
                yield from self._fields(below, (*above, name), depth + 1)
        if schema.get("additionalProperties") not in (None, False):
            yield (*above, "anything")


def operations(document: Document) -> list[Operation]:
    """Every endpoint; what deletes comes last."""
    found = [
        Operation(document=document, method=method.upper(), path=path, description=description)
        for path, methods in document["paths"].items()
        for method, description in methods.items()
    ]
    return sorted(found, key=lambda operation: operation.method == "DELETE")


def with_value(body: dict[str, Any], path: tuple[str, ...], value: Any) -> bytes:
    """The body as JSON, with another value in one place."""
    changed = copy.deepcopy(body)
    place = changed
    for name in path[:-1]:
        below = place.get(name)
        if not isinstance(below, dict):
            below = place[name] = {}
        place = below
    place[path[-1]] = value
    return json.dumps(changed).replace(f'"{TOO_BIG_FLOAT}"', "1e400").encode()


def filled(path: str, values: dict[str, str]) -> str:
    """The path with its parameters; values are put in as they are."""
    return re.sub(r"\{(\w+)\}", lambda match: values[match[1]], path)


def quoted(value: object) -> str:
    return quote(str(value), safe="")
