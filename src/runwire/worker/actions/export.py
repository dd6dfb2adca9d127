"""``export``: the rows of a dataset as a CSV or JSON file in the object store.

The rows stream from the dataset through a temporary file into the store: memory stays bounded whatever the
size.
"""

from __future__ import annotations

import asyncio
import csv
import io
import json
import re
import tempfile
import unicodedata
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from runwire.app import Context, Handler
from runwire.domain.errors import Fail

Row = dict[str, Any]
Store = Callable[[Context, str, io.BufferedIOBase], Awaitable[int]]
"""Keeps a file for a run: (context, file name, content) -> bytes."""

SPOOL = 1 << 20
"""Bytes kept in memory before the file goes to disk."""
ROWS_PER_TURN = 500
"""Rows written before other runs get their turn."""
LONGEST_INDEX = 150
"""Bytes (UTF-8) of an index in a file name: file systems take names of 255."""
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
"""A cell that begins with one of these is a formula to a spreadsheet (OWASP, CSV injection)."""


@dataclass(frozen=True)
class Dataset:
    """Something that can be exported."""

    columns: tuple[str, ...]
    """The keys of every row, in order."""
    rows: Callable[[Context], AsyncIterator[Row]]
    """The rows that the context's chain may see."""


class Export(BaseModel):
    """Parameters of ``export``."""

    export_index: str
    """Which dataset."""
    export_format: Literal["csv", "json"] = "csv"


def export_action(datasets: dict[str, Dataset], store: Store) -> Handler:
    """The action over these datasets and this store."""

    async def export(params: Export, ctx: Context) -> dict[str, Any]:
        """Write the dataset to a file and keep it: ``{rows, bytes, file}``."""
        dataset = datasets.get(params.export_index.lower())
        if dataset is None:
            known = ", ".join(sorted(datasets))
            raise Fail("unknown_dataset", f"There is no dataset {params.export_index!r}; there are: {known}.")
        file = file_name(params.export_index, ctx.task, params.export_format)
        with tempfile.SpooledTemporaryFile(max_size=SPOOL) as spool:
            writer = WRITERS[params.export_format](spool, dataset.columns)
            rows = 0
            async for row in dataset.rows(ctx):
                writer.write(row)
                rows += 1
                if rows % ROWS_PER_TURN == 0:
                    await asyncio.sleep(0)
            writer.close()
            spool.seek(0)
            size = await store(ctx, file, spool)  # type: ignore[arg-type]  # a spool reads like any binary file
        ctx.log(f"exported {rows} rows, {size} bytes to {file}")
        return {"rows": rows, "bytes": size, "file": file}

    return export


def file_name(index: str, task: int, extension: str) -> str:
    """``Wallet_Export-12345.csv``; what no file system or header would take becomes ``_``, what is too long is cut."""
    name = unicodedata.normalize("NFC", index.capitalize())
    name = "".join("_" if unicodedata.category(letter)[0] == "C" else letter for letter in name)
    name = re.sub(r'[\\/:*?"<>|%]|\s', "_", name).lstrip("._~-") or "Data"
    return f"{name.encode()[:LONGEST_INDEX].decode(errors='ignore')}_Export-{task}.{extension}"


class CsvWriter:
    """Rows as CSV (RFC 4180), UTF-8, with a header line; safe to open in a spreadsheet."""

    def __init__(self, out: Any, columns: tuple[str, ...]) -> None:
        """Write to a binary file, which stays open; the header at once."""
        self._out = out
        self._columns = columns
        self._line = io.StringIO()
        self._csv = csv.writer(self._line)
        self._put(columns)

    def write(self, row: Row) -> None:
        """Add a row."""
        self._put(row[column] for column in self._columns)

    def close(self) -> None:
        """Nothing is left to write."""

    def _put(self, cells: Iterable[Any]) -> None:
        self._csv.writerow([cell_text(cell) for cell in cells])
        self._out.write(self._line.getvalue().encode())
        self._line.seek(0)
        self._line.truncate()


class JsonWriter:
    """Rows as one JSON array, a row a line."""

    def __init__(self, out: Any, columns: tuple[str, ...]) -> None:
        """Write to a binary file, which stays open."""
        self._out = out
        self._columns = columns
        self._separator = b"[\n"

    def write(self, row: Row) -> None:
        """Add a row."""
        line = json.dumps({column: row[column] for column in self._columns}, ensure_ascii=False)
        self._out.write(self._separator + line.encode())
        self._separator = b",\n"

    def close(self) -> None:
        """End the array."""
        self._out.write(b"[]\n" if self._separator == b"[\n" else b"\n]\n")


WRITERS: dict[str, type[CsvWriter | JsonWriter]] = {"csv": CsvWriter, "json": JsonWriter}


def cell_text(value: Any) -> str:
    """A value as the text of a CSV cell; text that a spreadsheet would take for a formula gets a ``'`` before it."""
    if value is None:
        return ""
    if isinstance(value, dict | list):
        value = json.dumps(value, ensure_ascii=False)
    text = str(value)
    return f"'{text}" if isinstance(value, str) and text.startswith(FORMULA_STARTS) else text
