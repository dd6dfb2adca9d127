"""``export``: the rows of a dataset as a CSV or JSON file in the object store.

The rows stream from the dataset into the store: memory stays bounded whatever the size, and nothing is written to the
worker's disk.
"""

from __future__ import annotations

import asyncio
import re
import time
import unicodedata
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model
from pydantic_core import PydanticSerializationError

from runwire.app import Action, Context
from runwire.datasets import OURS, Dataset
from runwire.domain.access import AccessLevel
from runwire.domain.errors import Fail
from runwire.domain.run import ErrorCode
from runwire.parameters import complaints
from runwire.worker.actions.formats import FORMATS


class Sink(Protocol):
    """Where a file goes."""

    async def write(self, data: bytes) -> None:
        """Add to it."""

    async def finish(self) -> int:
        """Keep it; returns its size in bytes."""


Store = Callable[[Context, str], AbstractAsyncContextManager[Sink]]
"""``(context, file name)`` -> where that file of the run goes; nothing is left of one that is not finished."""

TURN = 0.02
"""Seconds of writing rows before other runs get their turn."""
LONGEST_INDEX = 150
"""Bytes (UTF-8) of an index in a file name: file systems take names of 255."""


class Export(BaseModel):
    """Parameters of ``export``; what does not begin with ``export_`` is the dataset's."""

    model_config = ConfigDict(extra="allow")

    export_index: str
    export_format: Annotated[Literal["csv", "json"], Field(description="What the file is.")] = "csv"
    export_raw: Annotated[
        bool, Field(description="CSV for machines: text that looks like a formula is left as it is.")
    ] = False


def export_action(datasets: Mapping[str, Dataset], store: Store) -> Action:
    """The action over these datasets, by their keys, and this store."""
    names = ", ".join(sorted(dataset.name for dataset in datasets.values()))

    async def export(params: Export, ctx: Context) -> dict[str, Any]:
        dataset = datasets.get(params.export_index.lower())
        if dataset is None:
            raise Fail(
                ErrorCode.UNKNOWN_DATASET, f"There is no dataset {params.export_index[:64]!r}; there are: {names}."
            )
        given = _parameters(dataset, params.model_extra or {})
        file = file_name(params.export_index, ctx.task, params.export_format)
        async with store(ctx, file) as sink:
            rows = await _written(dataset, given, ctx, params, sink)
            size = await sink.finish()
        ctx.log(f"exported {rows} rows, {size} bytes to {file}")
        result = {"rows": rows, "bytes": size, "file": file}
        return result if dataset.needs is AccessLevel.VIEWER else result | {"needs": dataset.needs.name.lower()}

    index = Annotated[str, Field(description=_listing(datasets, names))]
    parameters = create_model("Export", __base__=Export, export_index=(index, ...))
    return Action("export", TypeAdapter(parameters), export, "Write a dataset to a file, to be downloaded.")


async def _written(dataset: Dataset, given: Any, ctx: Context, params: Export, sink: Sink) -> int:
    """Write the rows; returns how many. The dataset's generator is closed in any case."""
    form = FORMATS[params.export_format](dataset.columns, raw=params.export_raw)
    count, turn = 0, time.monotonic() + TURN
    await sink.write(form.begin)
    async with aclosing(dataset.rows(given, ctx)) as rows:
        async for row in rows:
            count += 1
            if not isinstance(row, dataset.row):
                raise _misfit(dataset, count, f"is of type {type(row).__name__}, not {dataset.row.__name__}")
            try:
                line = form.line(row)
            except PydanticSerializationError as error:
                raise _misfit(dataset, count, f"is no {dataset.row.__name__}: {error}") from None
            await sink.write(line)
            if time.monotonic() > turn:
                ctx.progress(None, f"{count:,} rows")
                await asyncio.sleep(0)
                turn = time.monotonic() + TURN
    await sink.write(form.end)
    return count


def _parameters(dataset: Dataset, extra: dict[str, Any]) -> Any:
    """The dataset's own parameters. Raises Fail."""
    unknown = sorted(name for name in extra if name.startswith(OURS))
    if unknown:
        raise Fail(ErrorCode.INVALID_PARAMETERS, f"/target/{unknown[0]}: export has no such parameter")
    if dataset.parameters is None:
        return None
    try:
        return dataset.parameters.validate_python(extra)
    except ValidationError as invalid:
        raise Fail(ErrorCode.INVALID_PARAMETERS, complaints(invalid)) from None


def _misfit(dataset: Dataset, number: int, what: str) -> Fail:
    return Fail(ErrorCode.INVALID_ROW, f"Row {number} of the dataset {dataset.name!r} {what}.")


def _listing(datasets: Mapping[str, Dataset], names: str) -> str:
    """The datasets in words: their names in the first line, then each with its parameters."""
    lines = [f"Which dataset: {names}."]
    for _, dataset in sorted(datasets.items()):
        takes = f" ({', '.join(dataset.fields)})" if dataset.fields else ""
        lines.append(f"{dataset.name}{takes}: {dataset.description}".rstrip(": "))
    return "\n".join(lines)


def file_name(index: str, task: int, extension: str) -> str:
    """``Wallet_Export-12345.csv``; what no file system or header would take becomes ``_``, what is too long is cut."""
    name = unicodedata.normalize("NFC", index.capitalize())
    name = "".join("_" if unicodedata.category(letter)[0] == "C" else letter for letter in name)
    name = re.sub(r'[\\/:*?"<>|%]|\s', "_", name).lstrip("._~-") or "Data"
    return f"{name.encode()[:LONGEST_INDEX].decode(errors='ignore')}_Export-{task}.{extension}"
