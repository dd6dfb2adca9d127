"""What the runs do: leave a trace outside of the system, take a while, and fail now and then."""

from __future__ import annotations

import asyncio
import json
import os
import time
from typing import Any
from zlib import crc32

from pydantic import BaseModel

import runwire

TRACES = "CHAOS_TRACES"
"""Environment variable: the file that every begin and every end of the action is appended to."""

app = runwire.App()


class Probe(BaseModel):
    """How a run goes."""

    seconds: float = 0
    """How long it takes."""
    fail_every: int = 17
    """One run in so many ends as ERROR."""
    retry_every: int = 0
    """One run in so many asks to be tried again, once; 0: none."""


@app.action("probe")
async def probe(params: Probe, ctx: runwire.Context) -> dict[str, Any]:
    """Take so many seconds."""
    _trace(ctx, ended=False)
    await asyncio.sleep(params.seconds)
    return _end(params, ctx)


@app.action("plain probe")
def plain_probe(params: Probe, ctx: runwire.Context) -> dict[str, Any]:
    """Take so many seconds in a thread, which nothing can stop."""
    _trace(ctx, ended=False)
    time.sleep(params.seconds)
    return _end(params, ctx)


def _end(params: Probe, ctx: runwire.Context) -> dict[str, Any]:
    _trace(ctx, ended=True)
    number = crc32(ctx.run_id.encode())  # so that every attempt of a run comes to the same
    if number % params.fail_every == 0:
        raise runwire.Fail("probe_failed", "This run fails, whoever carries it out.")
    if params.retry_every and number % params.retry_every == 0 and ctx.attempt == 1:
        raise runwire.Retry("The first attempt of this run asks for another one.")
    return {"run": ctx.run_id, "attempt": ctx.attempt}


def _trace(ctx: runwire.Context, *, ended: bool) -> None:
    facts = {"run": ctx.run_id, "attempt": ctx.attempt, "pid": os.getpid(), "at": time.time(), "ended": ended}
    file = os.open(os.environ[TRACES], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, json.dumps(facts).encode() + b"\n")  # one write: lines of several processes do not mix
    finally:
        os.close(file)
