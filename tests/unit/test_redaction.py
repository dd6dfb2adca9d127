"""A secret is found in a text however the usual encodings write it, and what is no secret stays."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Callable
from urllib.parse import quote, quote_plus, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runwire.worker.redaction import forms_of, redacted, redacted_json

SECRET = 'pä$$ w/rd+"42"\'\\n<&>=?~!'
ENCODINGS: dict[str, Callable[[str], str]] = {
    "as it stands": str,
    "base64": lambda v: base64.b64encode(v.encode()).decode(),
    "base64 after one byte": lambda v: base64.b64encode(b":" + v.encode() + b"!").decode(),
    "base64 after two bytes": lambda v: base64.b64encode(b"u:" + v.encode() + b"!!").decode(),
    "base64 for URLs": lambda v: base64.urlsafe_b64encode(b"user:" + v.encode()).decode(),
    "percent": quote,
    "percent, all": lambda v: quote(v, safe=""),
    "percent, small": lambda v: quote(v, safe="").lower(),
    "form": quote_plus,
    "query": lambda v: urlencode({"token": v}),
    "JSON": json.dumps,
    "JSON beyond ASCII": lambda v: json.dumps(v, ensure_ascii=False),
    "JSON in JSON": lambda v: json.dumps(json.dumps({"k": v})),
    "JSON with slashes escaped": lambda v: json.dumps(v).replace("/", "\\/"),
    "repr": repr,
    "repr of bytes": lambda v: repr(v.encode()),
    "hex": lambda v: v.encode().hex(),
    "HEX": lambda v: v.encode().hex().upper(),
    "HTML": html.escape,
}


def without(text: str, *secrets: str) -> str:
    return redacted(text, [forms for forms in map(forms_of, secrets) if forms])


@pytest.mark.parametrize("secret", [SECRET, "correct-horse-battery", "d\u00e9j\u00e0", "0123456789abcdef" * 40])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_secret_is_found_in_every_encoding(encoding: str, secret: str) -> None:
    encoded = ENCODINGS[encoding](secret)
    if encoding == "percent, small" and encoded.lower() != quote(secret, safe="").lower():
        pytest.skip("nothing is escaped")
    text = without(f"begin {encoded} end", secret)
    assert "***" in text
    assert text.startswith("begin ")
    assert text.endswith(" end")
    assert len(text) < len("begin  end") + len("token=***") + 12, text  # at most some quotes and padding are left


@given(st.binary(max_size=5), st.text(st.characters(codec="ascii"), min_size=12), st.binary(max_size=5))
def test_base64_shows_nothing_of_it_wherever_it_stands(before: bytes, secret: str, after: bytes) -> None:
    secret = secret.strip() or "correct-horse"
    if len(secret) < 4:
        secret += "-horse"
    encoded = base64.b64encode(before + secret.encode() + after).decode()
    left = without(encoded, secret)
    head, found, tail = left.partition("***")
    assert found
    seen = base64.b64decode(head[: len(head) // 4 * 4])
    assert len(seen) <= len(before)
    assert len(tail.rstrip("=")) * 6 <= (len(after) + 1) * 8


def test_what_is_no_secret_stays() -> None:
    assert without("nothing to see", "correct-horse") == "nothing to see"
    assert without("any text") == "any text"


def test_short_values_are_not_looked_for() -> None:
    assert without("abc and abcd", "abc") == "abc and abcd"
    assert without("abc and abcd", "abcd") == "abc and ***"


def test_secrets_that_overlap_leave_no_remainder() -> None:
    assert without("say abcdefgh!", "abcd", "abcdefgh", "efghij") == "say ***!"
    assert without("say abcdXefgh!", "abcdX", "Xefgh") == "say ***!"
    assert without("aaaaaa", "aaaa") == "***"


def test_each_long_line_of_a_secret_is_looked_for() -> None:
    key = "-----BEGIN KEY-----\nMIIEvQIBADANBgkq\nhkiG9w0BAQEF\nAA==\n-----END KEY-----"
    assert without("at hkiG9w0BAQEF", key) == "at ***"
    assert without("AA==", key) == "AA=="


def test_white_space_around_a_value_does_not_matter() -> None:
    assert without("token correct-horse.", " correct-horse \n\n") == "token ***."


def test_json_values_are_redacted_all_the_way_down() -> None:
    def redact(text: str) -> str:
        return without(text, "correct-horse", "736251")

    value = {"a": ["correct-horse", 736251, 7, None, True, 0.5], "correct-horse": {"b": "a correct-horse"}}
    assert redacted_json(value, redact) == {"a": ["***", "***", 7, None, True, 0.5], "***": {"b": "a ***"}}
