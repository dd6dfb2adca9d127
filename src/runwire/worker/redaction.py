"""Texts without the secrets in them: a value is found as it stands and in the encodings that logs are full of.

Found are the value itself, as JSON and Python write it, percent-encoded, in hex, in HTML, and in base64 wherever in
the encoded data it begins. Of a value of several lines each long line is looked for, too, since texts come line by
line. What somebody has cut up, turned round or encrypted is not found.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote, quote_plus

from pydantic import JsonValue

MASK = "***"
"""What stands in the place of a secret."""
SHORTEST = 4
"""Characters of a value that is looked for; a shorter one would be found everywhere."""
SHORTEST_LINE = 8
"""Characters of a line that is looked for by itself."""
UNESCAPED = ("", "/", "/:", "!'()*~", "!$&'()*+,;=", "/:@!$&'()*+,;=")
"""What the usual percent-encodings leave alone beside letters and digits."""
BASE64 = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_")


@dataclass(frozen=True)
class Forms:
    """How a value may look like in a text."""

    plain: tuple[str, ...]
    base64: tuple[str, ...]
    """Without the characters at either end that hold bits of something else, too."""


class Redact(Protocol):
    """Takes the secrets out of a text."""

    def __call__(self, text: str, *, cut: bool = False) -> str:
        """``cut``: the text has lost its end, which may have been in the midst of a secret."""


def forms_of(value: str) -> Forms | None:
    """What to look for; None: the value is too short."""
    value = value.strip()
    if len(value) < SHORTEST:
        return None
    lines = {line.strip() for line in value.splitlines()}
    parts = [value, *(line for line in lines if len(line) >= SHORTEST_LINE)]
    return Forms(
        plain=tuple({form for part in parts for form in _plain(part)}),
        base64=tuple({form for part in parts for form in _base64(part.encode())}),
    )


def redacted(text: str, secrets: Iterable[Forms], *, cut: bool = False) -> str:
    """The text with MASK for every secret in it; ``cut``: also for the beginning of one at its end."""
    spans = sorted(_spans(text, secrets, cut=cut))
    if not spans:
        return text
    pieces, end = [], 0
    begin_of_span, end_of_span = spans[0]
    for begin, stop in spans[1:]:
        if begin <= end_of_span:
            end_of_span = max(end_of_span, stop)
            continue
        pieces += [text[end:begin_of_span], MASK]
        end, begin_of_span, end_of_span = end_of_span, begin, stop
    return "".join([*pieces, text[end:begin_of_span], MASK, text[end_of_span:]])


def redacted_json(value: JsonValue, redact: Redact) -> JsonValue:
    """The value with every text in it redacted; a number that is a secret becomes a text."""
    match value:
        case str():
            return redact(value)
        case list():
            return [redacted_json(item, redact) for item in value]
        case dict():
            return {redact(key): redacted_json(item, redact) for key, item in value.items()}
        case None | bool():
            return value
        case _:
            text = json.dumps(value)
            return value if redact(text) == text else MASK


def _spans(text: str, secrets: Iterable[Forms], *, cut: bool) -> Iterator[tuple[int, int]]:
    for secret in secrets:
        if cut:
            for form in (*secret.plain, *secret.base64):
                yield from _beginnings(text, form)
        for form in secret.plain:
            if form in text:
                yield from _places(text, form)
        for form in secret.base64:
            if form in text:
                for begin, end in _places(text, form):
                    yield _with_partial_characters(text, begin, end)


def _places(text: str, form: str) -> Iterator[tuple[int, int]]:
    begin = text.find(form)
    while begin >= 0:
        yield begin, begin + len(form)
        begin = text.find(form, begin + 1)


def _beginnings(text: str, form: str) -> Iterator[tuple[int, int]]:
    """Where the text ends with the beginning of the form."""
    begin = text.find(form[:SHORTEST], max(0, len(text) - len(form)))
    while begin >= 0:
        if form.startswith(text[begin:]):
            yield begin, len(text)
        begin = text.find(form[:SHORTEST], begin + 1)


def _with_partial_characters(text: str, begin: int, end: int) -> tuple[int, int]:
    """One more to either side: they may hold some bits of the secret."""
    if begin and text[begin - 1] in BASE64:
        begin -= 1
    if end < len(text) and text[end] in BASE64:
        end += 1
    return begin, end


def _plain(value: str) -> Iterator[str]:
    raw = value.encode()
    yield value
    for ascii_only in (True, False):
        as_json = json.dumps(value, ensure_ascii=ascii_only)[1:-1]
        yield as_json
        yield as_json.replace("/", "\\/")
        yield json.dumps(as_json, ensure_ascii=ascii_only)[1:-1]
    yield repr(value)[1:-1]
    yield repr(raw)[2:-1]
    yield html.escape(value)
    yield html.escape(value, quote=False)
    for encoded in (*(quote(raw, safe) for safe in UNESCAPED), quote_plus(raw)):
        yield encoded
        yield _lower_escapes(encoded)
    yield raw.hex()
    yield raw.hex().upper()


def _lower_escapes(encoded: str) -> str:
    first, *others = encoded.split("%")
    return "%".join([first, *(other[:2].lower() + other[2:] for other in others)])


def _base64(raw: bytes) -> Iterator[str]:
    """The characters that hold nothing but the value, for each place of a group of three bytes it may begin at."""
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + raw).decode()
        begin, end = -(-before * 8 // 6), (before + len(raw)) * 8 // 6
        standard = encoded[begin:end]
        yield standard
        yield standard.replace("+", "-").replace("/", "_")
        yield quote(standard, "")
