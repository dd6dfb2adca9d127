"""Runs child processes: starts them, restarts those that die, stops them in order, leaves none behind."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runwire import failpoints
from runwire.failpoints import Point
from runwire.process import EXIT_SETUP, die_with_parent

log = logging.getLogger("runwire.up")

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds before a child that died is started again; doubles each time it dies young."""
YOUNG = 10.0
"""Seconds of life after which a death is a new story."""


@dataclass
class Child:
    """A process to keep alive."""

    name: str
    argv: Sequence[str]
    env: dict[str, str]
    notifies: bool = True
    """Whether it says when it is ready (sd_notify)."""
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    process: asyncio.subprocess.Process | None = None


class Supervisor:
    """Keeps children alive until :meth:`stop`."""

    def __init__(self) -> None:
        """Without children yet."""
        self._children: list[Child] = []
        self._keepers: list[asyncio.Task[None]] = []
        self._stopping = False
        self._folder = tempfile.TemporaryDirectory(prefix="runwire-")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._address = str(Path(self._folder.name) / "notify")
        self._socket.setblocking(False)
        self._socket.bind(self._address)
        self._arrange = die_with_parent()
        self.failed = asyncio.Event()
        """Set when a child cannot run as configured; it has said why."""
        asyncio.get_running_loop().add_reader(self._socket, self._hear)

    def start(self, child: Child) -> None:
        """Start a child and keep it alive."""
        self._children.append(child)
        self._keepers.append(asyncio.create_task(self._keep(child)))

    async def restart(self, name: str, *, patience: float) -> None:
        """Terminate a child, or kill it after so many seconds; it is started again as one that died is."""
        for child in self._children:
            if child.name != name or self._stopping or child.process is None:
                continue
            process = child.process
            _signal(child, signal.SIGTERM)
            try:
                async with asyncio.timeout(patience):
                    await process.wait()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()

    async def stop(self, names: Sequence[str], *, patience: float) -> None:
        """Terminate these children and wait for them; what is left after ``patience`` seconds is killed."""
        self._stopping = True
        children = [child for child in self._children if child.name in names]
        for child in children:
            _signal(child, signal.SIGTERM)
        try:
            async with asyncio.timeout(patience):
                await asyncio.gather(*(_wait(child) for child in children))
        except TimeoutError:
            for child in children:
                if child.process is not None and child.process.returncode is None:
                    log.warning("%s did not stop in time, killing it", child.name, extra={"action": "killed"})
                    _signal(child, signal.SIGKILL)
            await asyncio.gather(*(_wait(child) for child in children))

    async def close(self) -> None:
        """Kill whatever is left and clean up."""
        self._stopping = True
        for child in self._children:
            _signal(child, signal.SIGKILL)
        await asyncio.gather(*(_wait(child) for child in self._children))
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        self._folder.cleanup()

    async def _keep(self, child: Child) -> None:
        pause = FIRST_PAUSE
        while not self._stopping:
            began = time.monotonic()
            child.process = await asyncio.create_subprocess_exec(
                *child.argv,
                env={**child.env, "NOTIFY_SOCKET": self._address} if child.notifies else child.env,
                stdin=asyncio.subprocess.DEVNULL,
                preexec_fn=self._arrange,
                start_new_session=True,  # Ctrl-C is for us; we stop them in order
            )
            failpoints.reach(Point.CHILD_STARTED)
            if not child.notifies:
                child.ready.set()
            status = await child.process.wait()
            child.ready.clear()
            if self._stopping:
                return
            if status == EXIT_SETUP:
                self.failed.set()
                return
            pause = FIRST_PAUSE if time.monotonic() - began > YOUNG else min(pause * 2, LONGEST_PAUSE)
            log.warning(
                "%s %s, starting it again in %.1f s", child.name, _cause(status), pause, extra={"action": "restarted"}
            )
            await asyncio.sleep(pause)

    def _hear(self) -> None:
        """A child says that it is ready."""
        with contextlib.suppress(BlockingIOError):
            words = dict(
                line.partition("=")[::2] for line in self._socket.recv(4096).decode(errors="replace").split("\n")
            )
            for child in self._children:
                if child.process is not None and words.get("MAINPID") == str(child.process.pid):
                    child.ready.set()


def _signal(child: Child, number: signal.Signals) -> None:
    if child.process is not None and child.process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.process.pid, number)


async def _wait(child: Child) -> None:
    if child.process is not None:
        await child.process.wait()


def _cause(status: int) -> str:
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
