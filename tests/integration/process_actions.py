"""An App whose actions run in processes of their own, with good and bad functions; processes load it by this name."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

import runwire

REFERENCE = "tests.integration.process_actions:app"

app = runwire.App()


class Place(BaseModel):
    """Where a function leaves its traces."""

    folder: Path = Path()

    def leave(self, name: str) -> None:
        """A file with the process id, all at once."""
        path = self.folder / f"{name}.{os.getpid()}"
        path.write_text(str(os.getpid()))
        path.rename(self.folder / name)

    def wait_for(self, *names: str) -> None:
        while not all((self.folder / name).exists() for name in names):
            time.sleep(0.005)


Anything = dict[str, Any]


@app.action("plain", process=True)
def plain(params: Anything, ctx: runwire.Context) -> Anything:
    return about(params, ctx)


@app.action("coroutine", process=True)
async def coroutine(params: Anything, ctx: runwire.Context) -> Anything:
    await asyncio.sleep(0)
    return about(params, ctx)


def about(params: Anything, ctx: runwire.Context) -> Anything:
    return {
        "params": params,
        "pid": os.getpid(),
        "context": [ctx.run_id, ctx.attempt, ctx.deadline.isoformat(), ctx.task, ctx.chain, ctx.filters, ctx.cancelled],
        "trace": ctx.trace_headers,
        "files": [path.name for path in Path("/proc/self/fd").iterdir()],
        "stdin": sys.stdin.read(),
        "leads": os.getpgrp() == os.getpid(),
    }


@app.action("nothing", process=True)
def nothing(params: Anything, ctx: runwire.Context) -> None:
    """Nothing."""


@app.action("talk", process=True)
def talk(params: Anything, ctx: runwire.Context) -> None:
    ctx.log("logged", "warning")
    print("printed")
    print("complained", file=sys.stderr)
    threading.Thread(target=ctx.log, args=("from a thread",)).start()
    subprocess.run(["/bin/echo", "from a program"], check=True)
    logging.getLogger("library").info("recorded %d", 1)
    logging.getLogger("library").debug("not recorded")
    print("no line end", end="")


@app.action("report", process=True)
def report(params: Anything, ctx: runwire.Context) -> None:
    for number in range(10_001):
        ctx.progress(number / 10_000, f"row {number}")


@app.action("held_back", process=True)
def held_back(params: Place, ctx: runwire.Context) -> None:
    ctx.progress(0.25, "begun")
    ctx.progress(0.5, "half")
    params.wait_for("seen")


@app.action("secrets", process=True)
def secrets(params: Anything, ctx: runwire.Context) -> Anything:
    value = getattr(ctx, params["method"])(params["name"])
    print("x" * 7990, value)
    ctx.log(f"it is {value}")
    return {"length": len(value), "value": value}


@app.action("large", process=True)
def large(params: Anything, ctx: runwire.Context) -> Anything:
    return {"text": "x" * params["size"]}


@app.action("flood", process=True)
def flood(params: Anything, ctx: runwire.Context) -> None:
    for _ in range(params["megabytes"]):
        os.write(1, b"0123456789abcde\n" * 65536)
    for _ in range(10_000):
        ctx.log("much")


@app.action("endless", process=True)
def endless(params: Place, ctx: runwire.Context) -> None:
    params.leave("endless")
    while True:
        pass


@app.action("deaf", process=True)
def deaf(params: Place, ctx: runwire.Context) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.setpgid(0, os.getppid())  # and away from its group
    params.leave("deaf")
    time.sleep(60)


@app.action("family", process=True)
def family(params: Place, ctx: runwire.Context) -> None:
    """A child; a grandchild in a session of its own; a program there without any environment."""
    fork(params.leave, "child")
    escape(params.leave, "escaped")
    script = f"import os, time; open({str(params.folder / 'bare')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    escape(lambda _: os.execve(sys.executable, [sys.executable, "-S", "-c", script], {}), "")
    params.wait_for("child", "escaped")
    params.leave("parent")
    time.sleep(60)


@app.action("leave", process=True)
def leave(params: Place, ctx: runwire.Context) -> None:
    fork(params.leave, "child")
    escape(params.leave, "escaped")
    params.wait_for("child", "escaped")


@app.action("comeback", process=True)
def comeback(params: Place, ctx: runwire.Context) -> Anything:
    """The child returns, too."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
    return {"who": "parent" if pid else "child"}


def fork(act: Callable[[str], None], name: str) -> None:
    if os.fork() == 0:
        act(name)
        time.sleep(60)
        os._exit(0)


def escape(act: Callable[[str], None], name: str) -> None:
    """Twice forked, in a session of its own."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        fork(act, name)
        os._exit(0)
    os.waitpid(pid, 0)


@app.action("exhaust", process=True, memory=100)
def exhaust(params: Anything, ctx: runwire.Context) -> Anything:
    kept = [bytearray(1 << 20) for _ in range(params["megabytes"])]
    return {"megabytes": len(kept)}


@app.action("crash", process=True)
def crash(params: Anything, ctx: runwire.Context) -> Anything:
    """In the way that ``how`` names."""
    WAYS[params["how"]]()
    return {"still": "alive"}


def fail() -> None:
    raise runwire.Fail("no_such_month", "never heard of it")


def try_again() -> None:
    raise runwire.Retry("later", after=2.5)


def break_down() -> None:
    raise ValueError("café \ud800")


def overflow() -> None:
    overflow()


def abort() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.abort()


WAYS: dict[str, Callable[[], object]] = {
    "fail": fail,
    "retry": try_again,
    "raise": break_down,
    "recursion": overflow,
    "interrupt": lambda: signal.raise_signal(signal.SIGINT),
    "sys.exit": lambda: sys.exit(3),
    "exit 0": lambda: os._exit(0),
    "exit 3": lambda: os._exit(3),
    "segfault": lambda: ctypes.string_at(0),
    "abort": abort,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "close": lambda: os.closerange(0, 256),
    "close and stay": lambda: (os.closerange(0, 256), time.sleep(60)),
}


@app.action("odd", process=True)
def odd(params: Anything, ctx: runwire.Context) -> object:
    """A result that is none."""
    return {"set": {1, 2}, "object": object()} if params.get("object") else ["a", "list"]


@app.action("one_at_a_time", concurrency=1)
async def one_at_a_time(params: Anything, ctx: runwire.Context) -> None:
    """Has a limit."""
