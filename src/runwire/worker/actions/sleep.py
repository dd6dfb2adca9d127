"""``sleep``: waits, and does nothing else. For trying things out."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from pydantic import BaseModel, Field

from runwire.app import Context


class Sleep(BaseModel):
    """Parameters of ``sleep``."""

    seconds: Annotated[float, Field(ge=0, le=86_400)] = 1
    """How long."""


async def sleep(params: Sleep, ctx: Context) -> dict[str, Any]:
    """Wait for so many seconds."""
    ctx.log(f"sleeping for {params.seconds:g} s")
    await asyncio.sleep(params.seconds)
    return {"slept": params.seconds}
