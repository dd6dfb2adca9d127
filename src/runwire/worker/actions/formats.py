"""How rows become bytes: CSV and JSON, line by line."""

from __future__ import annotations

import csv
import io
import math
import re
from decimal import Decimal
from enum import Enum
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError, to_json, to_jsonable_python

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # noqa: RUF001 - the full-width forms
"""Text that begins with one of these is a formula to some spreadsheet (OWASP, CSV injection)."""
BLANKS = " \0\u00a0\u200b\u3000\ufeff"
"""What importers may drop from the beginning of a cell."""
SURROGATES = re.compile("[\ud800-\udfff]")


class CsvFormat:
    """CSV (RFC 4180) in UTF-8 with a header line; safe to open in a spreadsheet unless it is ``raw``."""

    end = b""

    def __init__(self, columns: tuple[str, ...], *, raw: bool = False) -> None:
        """``raw``: text stays as it is."""
        self._columns = columns
        self._raw = raw
        self._line = io.StringIO()
        self._csv = csv.writer(self._line)
        self.begin = self._written(list(columns))

    def line(self, row: BaseModel) -> bytes:
        """A row. Raises PydanticSerializationError when it does not hold what its model says."""
        values = row.model_dump(by_alias=True, warnings="error")
        return self._written([values.get(column) for column in self._columns])

    def _written(self, values: list[Any]) -> bytes:
        self._csv.writerow([cell(value, raw=self._raw) for value in values])
        text = self._line.getvalue()
        self._line.seek(0)
        self._line.truncate()
        return _utf8(text)


class JsonFormat:
    """One JSON array in UTF-8, a row a line."""

    begin = b"["

    def __init__(self, columns: tuple[str, ...], *, raw: bool = False) -> None:  # noqa: ARG002 - it is always raw
        """``raw`` makes no difference: JSON has no formulas."""
        self._columns = columns
        self._separator = b"\n"
        self.end = b"]\n"

    def line(self, row: BaseModel) -> bytes:
        """A row. Raises PydanticSerializationError when it does not hold what its model says."""
        values = row.model_dump(mode="json", by_alias=True, warnings="error")
        separator, self._separator, self.end = self._separator, b",\n", b"\n]\n"
        return separator + _json({column: values.get(column) for column in self._columns})


FORMATS: dict[str, type[CsvFormat | JsonFormat]] = {"csv": CsvFormat, "json": JsonFormat}


def cell(value: Any, *, raw: bool = False) -> str:
    """A value as the text of a CSV cell.

    Text that a spreadsheet would take for a formula gets a ``'`` before it, unless ``raw``. What is no finite number
    is empty, as is None; lists and objects are JSON.
    """
    match value:
        case None:
            return ""
        case Enum():
            return cell(value.value, raw=raw)
        case str():
            return value if raw or not value.lstrip(BLANKS).startswith(FORMULA_STARTS) else f"'{value}"
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return str(value) if math.isfinite(value) else ""
        case Decimal():
            return str(value) if value.is_finite() else ""
        case dict() | list() | tuple() | set() | frozenset():
            return _json(value).decode()
    return cell(to_jsonable_python(value), raw=raw)


def _json(value: Any) -> bytes:
    try:
        return to_json(value, inf_nan_mode="null")
    except (PydanticSerializationError, UnicodeEncodeError):
        return to_json(_mended(value), inf_nan_mode="null")


def _mended(value: Any) -> Any:
    """The value with U+FFFD for each lone surrogate, which UTF-8 has no way to write."""
    match value:
        case str():
            return SURROGATES.sub("\ufffd", value)
        case dict():
            return {_mended(key): _mended(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_mended(item) for item in value]
    return value


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        return SURROGATES.sub("\ufffd", text).encode()
