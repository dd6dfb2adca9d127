"""An App as a user writes one; the processes of the acceptance tests load it with ``--app``."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import threading
import time
from base64 import b64encode
from pathlib import Path
from urllib.parse import quote

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


class Walk(BaseModel):
    """Go half way, and on when ``gate`` is there."""

    gate: Path


@app.action("walk")
async def walk(params: Walk, ctx: runwire.Context) -> dict[str, str]:
    """Tells where it is."""
    ctx.log("setting out")
    ctx.progress(0.5, "at the gate")
    while not params.gate.exists():
        await asyncio.sleep(0.01)
    ctx.log("through the \x1b[31mgate", level="warning")
    return {"at": "home"}


class Flood(BaseModel):
    """Print so many megabytes, a thousand bytes at a time."""

    megabytes: int


@app.action("flood")
def flood(params: Flood, ctx: runwire.Context) -> dict[str, int]:
    """In a thread, as fast as it can."""
    line = "x" * 999
    for _ in range(params.megabytes * 1000):
        print(line)
    return {"printed": params.megabytes}


class Leak(BaseModel):
    """Show the secret ``canary`` in one of the ways there are."""

    how: str


@app.action("leak")
async def leak(params: Leak, ctx: runwire.Context) -> dict[str, object]:
    """Also says CONTROL each time, so that whoever looks can tell that he looked in the right place."""
    canary = ctx.secret("canary")
    ctx.log(f"CONTROL {params.how}")
    ctx.progress(0.5, f"CONTROL {canary}")
    for text in (canary, repr(canary), json.dumps({"k": canary}), quote(canary), b64encode(b"u:" + canary.encode())):
        ctx.log(f"said {text}")
        print(f"CONTROL printed {text}")
        print(f"CONTROL printed {text}", file=sys.stderr)
        logging.getLogger("leaky").info("logged %s", text)
    own = threading.Thread(target=_leak_outside, args=(canary,))
    own.start()
    await asyncio.to_thread(own.join)
    asyncio.get_running_loop().create_future().set_exception(ValueError(canary))
    match params.how:
        case "fail":
            raise runwire.Fail("no_luck", f"CONTROL {canary}")
        case "retry":
            raise runwire.Retry(f"CONTROL {canary}", after=0)
        case "raise":
            raise KeyError(f"CONTROL {canary}")
        case "code":
            raise runwire.Fail(ctx.secret("code"), "CONTROL")
        case "return":
            return {"CONTROL": canary, "nested": [{canary: canary.encode().hex()}]}
        case "return much":
            return {"CONTROL": canary, "filler": ["x" * 1000] * 10, "last": canary}
        case _:
            return {"CONTROL": True}


def _leak_outside(canary: str) -> None:
    """In a thread that no run owns."""
    print(f"CONTROL outside {canary}")
    logging.getLogger("leaky").warning("CONTROL outside %s", canary)
    raise ValueError(f"CONTROL outside {canary}")
