"""A program as a child of the worker: started without a shell, its output read, nothing of it left behind.

It leads a session, and so a process group, of its own. The whole group ends with it, and is ended (SIGTERM, then
SIGKILL) when the caller is cancelled; when the worker dies, the kernel kills the program.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import signal
import tempfile
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import SubprocessError

from runwire.worker.actions.output import Output

CHUNK = 64 * 1024
"""Bytes read at once."""
LINGER = 0.5
"""Seconds that others may still write to the output when the program itself has ended."""
OUT_OF_MEMORY = frozenset({signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS})
"""How programs end that get no more memory."""
ROUNDS = 5
"""How often the processes that got away are looked for: they may be forking meanwhile."""


class NotStarted(Exception):
    """The program could not be started; says why."""


@dataclass(frozen=True, kw_only=True)
class Child:
    """A program to run."""

    argv: Sequence[str]
    env: dict[str, str]
    """The whole environment."""
    mark: str
    """The variable in it that tells its processes from all others, with its value."""
    cwd: str | None
    """None: an empty directory, which is removed afterwards."""
    prepare: Callable[[], None]
    """Called between fork and exec."""
    grace: float
    """Seconds between SIGTERM and SIGKILL."""

    async def run(self, output: Output) -> int:
        """Its exit status (negative: the signal that killed it), when it has ended and ``output`` has all it printed.

        A cancellation stops it first. Raises NotStarted.
        """
        stop = asyncio.Event()
        life = asyncio.create_task(self._live(output, stop))
        try:
            return await asyncio.shield(life)
        except asyncio.CancelledError:
            stop.set()
            while not life.done():
                with contextlib.suppress(asyncio.CancelledError, NotStarted):  # however often: first it has to end
                    await asyncio.shield(life)
            raise

    async def _live(self, output: Output, stop: asyncio.Event) -> int:
        cwd = self.cwd or tempfile.mkdtemp(prefix="runwire-command-")
        try:
            process, readers = await self._start(cwd, output)
            await self._wait(process, stop)
            await self._clear_away(process, readers, stopped=stop.is_set())
        finally:
            if self.cwd is None:
                await asyncio.to_thread(shutil.rmtree, cwd, ignore_errors=True)
        output.close()
        return await process.wait()

    async def _start(self, cwd: str, output: Output) -> tuple[Process, set[asyncio.Task[None]]]:
        """The pipes are ours, not asyncio's: a process ends when it ends, whoever holds its output open."""
        (out, out_end), (err, err_end) = os.pipe(), os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *self.argv,
                cwd=cwd,
                env=self.env,
                stdin=DEVNULL,
                stdout=out_end,
                stderr=err_end,
                preexec_fn=self.prepare,
                start_new_session=True,
            )
        except (OSError, SubprocessError) as error:
            os.close(out)
            os.close(err)
            raise NotStarted(getattr(error, "strerror", None) or str(error)) from None
        finally:
            os.close(out_end)
            os.close(err_end)
        streams = ((out, output.stdout), (err, output.stderr))
        return process, {asyncio.create_task(read(pipe, stream.feed)) for pipe, stream in streams}

    async def _wait(self, process: Process, stop: asyncio.Event) -> None:
        """Until it has ended, by itself or because it was told to."""
        ending, stopping = asyncio.create_task(process.wait()), asyncio.create_task(stop.wait())
        await asyncio.wait({ending, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not ending.done():
            _kill_group(process.pid, signal.SIGTERM)
            await asyncio.wait({ending}, timeout=self.grace)
        if not ending.done():
            _kill_group(process.pid, signal.SIGKILL)
        await ending

    async def _clear_away(self, process: Process, readers: set[asyncio.Task[None]], *, stopped: bool) -> None:
        """Kill what it left behind, and read what was printed until then.

        A process that has made a session of its own is found by its environment: when the run was stopped, or when it
        holds the output open. A daemon that has let go of everything is none of ours.
        """
        if not stopped:
            await asyncio.wait(readers, timeout=LINGER)
        _kill_group(process.pid, signal.SIGKILL)
        _, pending = await asyncio.wait(readers, timeout=LINGER)
        if stopped or pending:
            await asyncio.to_thread(_kill_marked, self.mark.encode())
            _, pending = await asyncio.wait(readers, timeout=LINGER)
        for reader in pending:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)


def limited(limits: Iterable[tuple[int, int]]) -> list[tuple[int, tuple[int, int]]]:
    """Resource and limit -> what to call setrlimit(2) with: never more than the worker itself may."""
    found = []
    for kind, limit in limits:
        wanted = (limit, limit + 1 if kind == resource.RLIMIT_CPU else limit)  # SIGXCPU, and a second later SIGKILL
        highest = resource.getrlimit(kind)[1]
        if highest != resource.RLIM_INFINITY:
            wanted = (min(wanted[0], highest), min(wanted[1], highest))
        found.append((kind, wanted))
    return found


def signal_name(number: int) -> str:
    """``SIGKILL``, or ``signal 40`` for one without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


async def read(pipe: int, feed: Callable[[bytes], object]) -> None:
    """Hand over what comes until nobody holds the other end of the pipe any more, and close this one."""
    reader = asyncio.StreamReader(limit=CHUNK)
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, os.fdopen(pipe, "rb", 0))
    try:
        while chunk := await reader.read(CHUNK):
            feed(chunk)
    finally:
        transport.close()


def _kill_group(leader: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it is empty; only zombies are left
        os.killpg(leader, number)


def _kill_marked(mark: bytes) -> None:
    """Kill every process that has this variable in its environment (Linux; elsewhere nothing is found)."""
    for _ in range(ROUNDS):
        found = False
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended, or is somebody else's
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), signal.SIGKILL)
                    found = True
        if not found:
            return
