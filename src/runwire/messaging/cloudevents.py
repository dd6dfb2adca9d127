"""CloudEvents 1.0 on NATS, read as the protocol binding has them.

::

    binary      the attributes are headers ce-<name>, percent-encoded; the payload is the data
    structured  Content-Type: application/cloudevents+json, all of it is one JSON object

Ours are written in binary mode (:mod:`runwire.messaging.codec`); commands are taken in both.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

from pydantic_core import from_json, to_json

from runwire.domain import strictjson
from runwire.domain.errors import Undecodable

PREFIX = "ce-"
FAMILY, JSON_FORMAT = "application/cloudevents", "application/cloudevents+json"
REQUIRED = ("specversion", "id", "source", "type")
DATA = {"data", "data_base64"}
PLAIN = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')
"""What stands for itself in the header of an attribute."""


@dataclass(frozen=True)
class CloudEvent:
    """An event that somebody else wrote."""

    attributes: Mapping[str, str]
    """Those that are texts, by name; the required ones are there."""
    data: bytes
    """JSON; empty: there is none."""


def read(headers: Mapping[str, str], payload: bytes) -> CloudEvent | None:
    """The event that a message holds; None: it holds none. ``headers`` by lower-case names. Raises Undecodable."""
    media = _media_type(headers.get("content-type", ""))
    if media.startswith(FAMILY):
        return _structured(media, payload)
    attributes = {name.removeprefix(PREFIX): unquote(headers[name]) for name in headers if name.startswith(PREFIX)}
    return _checked(attributes, payload) if attributes else None


def encoded(value: str) -> str:
    """An attribute's value as its header has it in binary mode."""
    return quote(value, safe=PLAIN)


def _structured(media: str, payload: bytes) -> CloudEvent:
    if media != JSON_FORMAT:
        raise Undecodable(f"{media[:80]!r} is not understood; one CloudEvent as {JSON_FORMAT} is.")
    try:
        strictjson.check(payload)
        event = from_json(payload)
    except ValueError as error:
        raise Undecodable(f"The CloudEvent is not JSON: {error}.") from None
    if not isinstance(event, dict):
        raise Undecodable("The CloudEvent is no JSON object.")
    return _checked({name: value for name, value in event.items() if name not in DATA}, _data(event))


def _data(event: Mapping[str, Any]) -> bytes:
    if event.get("data_base64") is None:
        return b"" if event.get("data") is None else to_json(event["data"])
    if event.get("data") is not None:
        raise Undecodable("The CloudEvent has both data and data_base64.")
    try:
        return base64.b64decode(event["data_base64"], validate=True)
    except (TypeError, ValueError):
        raise Undecodable("The CloudEvent's data_base64 is no Base64.") from None


def _checked(given: Mapping[str, Any], data: bytes) -> CloudEvent:
    """The event. Raises Undecodable unless it has what every event has, in the one version that is understood."""
    attributes = {name: value for name, value in given.items() if isinstance(value, str)}
    missing = [name for name in REQUIRED if not attributes.get(name)]
    if missing:
        raise Undecodable(f"The CloudEvent has no {', '.join(missing)} (a text that is not empty).")
    if attributes["specversion"] != "1.0":
        raise Undecodable(f"The CloudEvent's specversion is {attributes['specversion'][:20]!r}; 1.0 is understood.")
    media = _media_type(attributes.get("datacontenttype", ""))
    if data and media and media != "application/json" and not media.endswith("+json"):
        raise Undecodable(f"The CloudEvent's data is {media[:80]!r}; JSON is understood.")
    return CloudEvent(attributes, data)


def _media_type(text: str) -> str:
    """A content type without its parameters."""
    return text.partition(";")[0].strip().lower()
