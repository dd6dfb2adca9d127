"""An App as a user writes one; the processes of the acceptance tests load it with ``--app``."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from pydantic import BaseModel

import runwire

app = runwire.App()


class Probe(BaseModel):
    """Leave a line in ``file``, then wait; ``block``: without letting anybody else do anything meanwhile."""

    file: Path
    seconds: float = 0
    block: bool = False
    failures: int = 0
    """Attempts that fail."""


@app.action("probe")
async def probe(params: Probe, ctx: runwire.Context) -> dict[str, int]:
    """Leaves a trace outside of everything that is under test."""
    descriptor = os.open(params.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, f"{ctx.run_id} {ctx.attempt} {os.getpid()}\n".encode())
    os.close(descriptor)
    if ctx.attempt <= params.failures:
        raise ConnectionError("not yet")
    if params.block and ctx.attempt == 1:
        time.sleep(params.seconds)  # noqa: ASYNC251 - the mistake that is tested
    else:
        await asyncio.sleep(params.seconds)
    return {"attempt": ctx.attempt, "pid": os.getpid()}
