"""What runs do while faults are made: the probe of ``tests.chaos``, and what needs a lot of something."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from pydantic import BaseModel

import runwire
from tests.chaos import probe

REFERENCE = "tests.faults.actions:app"
"""For ``--app``."""
PIECE = 8 << 20
"""Bytes that a bomb takes at once."""
ROWS, WIDTH = 1200, 1000
"""Of the dataset, and bytes of each."""

app = runwire.App()
app.include(probe.app)


class Row(BaseModel):
    """A row of the dataset."""

    number: int
    text: str


@app.action("bomb")
async def bomb(params: dict[str, object], ctx: runwire.Context) -> None:
    """Take memory until there is none, in the worker's own process."""
    pieces = []
    while True:
        pieces.append(b"x" * PIECE)
        await asyncio.sleep(0.001)


@app.dataset("rows")
async def rows(ctx: runwire.Context) -> AsyncIterator[Row]:
    """Some megabytes, within two seconds or so."""
    for number in range(ROWS):
        yield Row(number=number, text="x" * WIDTH)
        if number % 10 == 0:
            await asyncio.sleep(0.01)
