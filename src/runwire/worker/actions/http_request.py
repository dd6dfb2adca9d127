"""What a task says about a request: the parameters of ``http``, and the rules for headers."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, create_model

from runwire.outgoing.url import LONGEST_URL, URL_FORM, checked_url
from runwire.worker.actions.pointer import POINTER

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
