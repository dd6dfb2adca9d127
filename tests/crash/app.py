"""What the workers of these tests can do: `probe` of the acceptance tests, and a file of several chunks."""

from __future__ import annotations

from collections.abc import AsyncIterator

from pydantic import BaseModel

import runwire
from tests.acceptance.actions import app

ROWS = 30


class Row(BaseModel):
    number: int
    text: str


@app.dataset("Numbers")
async def numbers(ctx: runwire.Context) -> AsyncIterator[Row]:
    """Some 600 KB."""
    for number in range(ROWS):
        yield Row(number=number, text=str(number % 10) * 20_000)


__all__ = ["app"]
