"""What a task says about a request: the parameters of ``http``, and the rules for URLs and headers."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import httpx
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, create_model

from runwire.worker.actions.pointer import POINTER

URL_FORM = r"^https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?([/?][!-~]*)?$"
"""A host by name or address, perhaps a port, a path, a query. Whatever else URLs can have is refused: user information,
zones, escapes in a host, hosts that are not ASCII."""
LONGEST_URL = 4000
LONGEST_NAME = 253
"""Characters of a host (RFC 1035 section 2.3.4, without the dot at the end)."""
LABEL = re.compile(r"[A-Za-z0-9_-]{1,63}")
HIGHEST_PORT = 65535

HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
"""``token`` of RFC 9110 section 5.6.2."""
HEADER_VALUE = re.compile(r"(?:[!-~](?:[\t -~]*[!-~])?)?")
"""Visible ASCII, with spaces and tabs inside."""
LONGEST_VALUE = 8000
MOST_HEADERS = 50

OURS = {
    "accept-encoding", "connection", "content-length", "expect", "host", "http2-settings", "keep-alive", "te",
    "trailer", "transfer-encoding", "upgrade",
}  # fmt: skip
"""Headers that say how a message is framed and passed on: the client's business, and ``proxy-*`` is, too."""

MOST_BYTES = 1_000_000
"""Bytes that a body may have when the task does not say."""


def checked_url(text: str) -> httpx.URL:
    """The URL, if it is one that may be asked for. Raises ValueError."""
    if len(text) > LONGEST_URL:
        raise ValueError(f"must have at most {LONGEST_URL} characters")
    if not re.fullmatch(URL_FORM.rstrip("$"), text):
        raise ValueError("must be http:// or https:// and a host, in ASCII, without user and password")
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        raise ValueError("must have a host that is a name or an address") from None
    if url.port is not None and not 1 <= url.port <= HIGHEST_PORT:
        raise ValueError(f"must have a port of 1 to {HIGHEST_PORT}")
    host = url.raw_host.decode()
    if ":" not in host and not _is_name(host):
        raise ValueError("must have a host that is a name or an address")
    return url


def _is_name(host: str) -> bool:
    labels = host.removesuffix(".").split(".")
    return len(host) <= LONGEST_NAME + 1 and all(LABEL.fullmatch(label) for label in labels)


def _as_url(text: str) -> str:
    checked_url(text)
    return text


def _as_headers(headers: dict[str, str]) -> dict[str, str]:
    seen = set()
    for name, value in headers.items():
        lower = name.lower()
        if not HEADER_NAME.fullmatch(name):
            raise ValueError("a name must be letters, digits and dashes")
        if lower in OURS or lower.startswith("proxy-"):
            raise ValueError(f"{name} is not yours to set")
        if lower in seen:
            raise ValueError(f"{name} is there twice")
        if len(value) > LONGEST_VALUE or not HEADER_VALUE.fullmatch(value):
            raise ValueError(f"{name} must be one line of ASCII, of {LONGEST_VALUE} at most, without spaces around it")
        seen.add(lower)
    return headers


def _as_text(body: JsonValue) -> JsonValue:
    if isinstance(body, str):
        try:
            body.encode()
        except UnicodeEncodeError:
            raise ValueError("must be text without lone surrogates") from None
    return body


Status = Annotated[int, Field(ge=200, le=599)]
Statuses = Annotated[str, Field(pattern="^[2345]xx$")]
Pointer = Annotated[str, Field(pattern=POINTER, max_length=500)]


class HttpRequest(BaseModel):
    """Parameters of ``http``."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] = "GET"
    """What to ask of the server."""
    url: Annotated[str, Field(pattern=URL_FORM, max_length=LONGEST_URL), AfterValidator(_as_url)]
    """Where to: ``https://api.example.com/orders?state=open``. What is not ASCII is escaped (%C3%A9)."""
    headers: Annotated[dict[str, str], Field(max_length=MOST_HEADERS), AfterValidator(_as_headers)] = {}
    """Beside those that say how the message is framed."""
    body: Annotated[JsonValue, AfterValidator(_as_text)] = None
    """Text is sent as it is, anything else as JSON; null: none."""
    expect: Annotated[list[Status | Statuses], Field(min_length=1, max_length=20)] = ["2xx"]
    """The statuses that make the run DONE: 204, "2xx"."""
    extract: Annotated[dict[str, Pointer], Field(min_length=1, max_length=50)] | None = None
    """Name -> JSON Pointer (RFC 6901) into the answer: what of it becomes the result, as ``values``."""
    redirects: Annotated[int, Field(ge=0, le=3)] = 0
    """How many redirects to follow."""
    seconds: Annotated[float, Field(gt=0, le=3600)] = 30
    """How long all of it may take."""
    max_bytes: Annotated[int, Field(ge=1)] = MOST_BYTES
    """How large the answer's body may be."""

    def expects(self, status: int) -> bool:
        """Whether the status is a success."""
        return status in self.expect or f"{status // 100}xx" in self.expect


def limited(most: int) -> type[HttpRequest]:
    """The parameters where no body may be larger than ``most`` bytes."""
    maximum = Annotated[int, Field(ge=1, le=most, description="How large the answer's body may be.")]
    return create_model(
        HttpRequest.__name__,
        __base__=HttpRequest,
        __cls_kwargs__={"use_attribute_docstrings": False},  # there is no class whose source has them
        max_bytes=(maximum, min(MOST_BYTES, most)),
    )
