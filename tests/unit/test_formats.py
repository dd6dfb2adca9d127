"""Rows as CSV and JSON: what a spreadsheet, a parser and the rows' author expect."""

from __future__ import annotations

import csv
import io
import json
import math
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field
from pydantic_core import PydanticSerializationError

from runwire.datasets import columns_of
from runwire.worker.actions.formats import CsvFormat, JsonFormat, cell


class Row(BaseModel):
    text: str
    number: int = 0


def written(kind: type[CsvFormat | JsonFormat], model: type[BaseModel], *rows: BaseModel, raw: bool = False) -> bytes:
    form = kind(columns_of(model), raw=raw)
    return form.begin + b"".join([form.line(row) for row in rows]) + form.end


def parsed(content: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(content.decode(), newline=""), strict=True))


# --- formulas --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "\nx", '=cmd|"/c calc"!A1', "＝1+1", "＋1", "－1", "＠A1",
        " =1+1", "\u00a0=1+1", "\ufeff=1+1", "\0=1+1", '=HYPERLINK("http://a/?"&A1)', "-",
    ],
)  # fmt: skip
def test_text_that_a_spreadsheet_would_calculate_is_defused(text: str) -> None:
    assert cell(text) == "'" + text
    assert cell(text, raw=True) == text


@pytest.mark.parametrize("text", ["", "a=1", "a-b", "1+1", "'=1", " a", "ü", "(-1)", "%=", '"=1+1"'])
def test_other_text_stays_as_it_is(text: str) -> None:
    assert cell(text) == text


def test_a_header_is_defused_too() -> None:
    class Named(BaseModel):
        amount: int = Field(serialization_alias="=amount")

    assert written(CsvFormat, Named, Named(amount=-1)) == b"'=amount\r\n-1\r\n"


@given(st.text())
def test_no_cell_begins_with_a_formula_and_raw_loses_nothing(text: str) -> None:
    assert not cell(text).startswith(("=", "+", "-", "@", "\t", "\r"))
    assert cell(text).removeprefix("'") == text.removeprefix("'")
    assert cell(text, raw=True) == text


# --- values ----------------------------------------------------------------------------------------------


class Colour(Enum):
    RED = "=red"


class Level(IntEnum):
    LOW = -1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""), (-1, "-1"), (2.5, "2.5"), (-1e300, "-1e+300"), (Decimal("-0.10"), "-0.10"), (True, "true"),
        (math.nan, ""), (-math.inf, ""), (Decimal("NaN"), ""), (Colour.RED, "'=red"), (Level.LOW, "-1"),
        ({"x": [1, None]}, '{"x":[1,null]}'), ([], "[]"), ((1, 2), "[1,2]"), (timedelta(seconds=-1), "'-PT1S"),
        (datetime(2026, 5, 26, 14, 35, tzinfo=UTC), "2026-05-26T14:35:00Z"), (date(2026, 5, 26), "2026-05-26"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"), (b"-1", "'-1"), ({"=x": math.nan}, '{"=x":null}'),
    ],
)  # fmt: skip
def test_numbers_stay_numbers_and_everything_has_a_text(value: object, text: str) -> None:
    assert cell(value) == text


@given(st.lists(st.builds(Row, text=st.text(alphabet=st.characters(exclude_categories=["Cs"])), number=st.integers())))
def test_both_are_read_back_as_they_were_written(rows: list[Row]) -> None:
    head, *found = parsed(written(CsvFormat, Row, *rows, raw=True))
    assert head == ["text", "number"]
    assert found == [[row.text, str(row.number)] for row in rows]
    content = written(JsonFormat, Row, *rows)
    assert json.loads(content) == [row.model_dump() for row in rows]
    assert content.count(b"\n") == (len(rows) + 2 if rows else 1)


def test_lines_and_quotes_are_as_rfc_4180_has_them() -> None:
    content = written(CsvFormat, Row, Row(text='say "a", b\r\nc'), Row(text=" x "))
    assert content == b'text,number\r\n"say ""a"", b\r\nc",0\r\n x ,0\r\n'


def test_json_has_a_row_a_line() -> None:
    assert written(JsonFormat, Row) == b"[]\n"
    rows = [Row(text="a\nb"), Row(text="\u2028", number=1)]
    assert written(JsonFormat, Row, *rows).decode().splitlines(keepends=False)[0] == "["
    assert written(JsonFormat, Row, *rows).split(b"\n") == [
        b"[", b'{"text":"a\\nb","number":0},', '{"text":"\u2028","number":1}'.encode(), b"]", b"",
    ]  # fmt: skip


def test_what_json_has_no_word_for_becomes_null() -> None:
    class Figures(BaseModel):
        a: float
        b: list[float]

    content = written(JsonFormat, Figures, Figures(a=math.nan, b=[math.inf, 1]))
    assert json.loads(content, parse_constant=pytest.fail) == [{"a": None, "b": [None, 1]}]


@pytest.mark.parametrize("kind", [CsvFormat, JsonFormat])
def test_lone_surrogates_become_replacement_characters(kind: type[CsvFormat | JsonFormat]) -> None:
    class Nested(BaseModel):
        text: str
        more: dict[str, Any]

    row = Nested.model_construct(text="a\ud800b", more={"x": ["\ud800"], "y": ("\udfff",)})
    text = written(kind, Nested, row).decode()
    assert text.count("\ufffd") == 3
    assert "a\ufffdb" in text


@pytest.mark.parametrize("kind", [CsvFormat, JsonFormat])
def test_a_row_that_does_not_hold_what_its_model_says_is_refused(kind: type[CsvFormat | JsonFormat]) -> None:
    row = Row.model_construct(text="a", number="many")
    with pytest.raises(PydanticSerializationError):
        written(kind, Row, row)
