"""Child processes of the benchmark: none of them outlives it, however it ends."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Self

from runwire.process import die_with_parent

ROOT = Path(__file__).parents[1]
"""The checkout: where children run, so that they find this package."""
PATIENCE = 30.0
"""Seconds a child may take until it answers."""


class ChildFailed(Exception):
    """A child ended, or did not answer in time."""


class Children:
    """Starts processes; leaving the block kills them, the last one first."""

    def __init__(self) -> None:
        self.pids: dict[str, int] = {}
        """Process ids by name."""
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._arrange = die_with_parent()  # for the case that we are killed ourselves

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes.values()):
            process.kill()
            process.wait()

    def start(self, name: str, argv: Sequence[str], env: Mapping[str, str], *, log: Path | None = None) -> None:
        """Start a process; what it writes to stderr is shown, or appended to ``log``."""
        with log.open("ab") if log else nullcontext() as stderr:
            process = subprocess.Popen(
                argv,
                cwd=ROOT,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                preexec_fn=self._arrange,  # noqa: PLW1509 - no threads here
                start_new_session=True,  # Ctrl-C is for us
            )
        self._processes[name] = process
        self.pids[name] = process.pid

    def kill(self, name: str) -> None:
        """Kill a process as a crash would; it may be started again by its name."""
        process = self._processes.pop(name)
        process.kill()
        process.wait()

    def is_running(self, name: str) -> bool:
        """Whether it has not ended by itself."""
        return self._processes[name].poll() is None

    def wait_for(self, name: str, answers: Callable[[], bool]) -> None:
        """Wait until a child answers. Raises ChildFailed."""
        deadline = time.monotonic() + PATIENCE
        while True:
            with suppress(OSError):
                if answers():
                    return
            status = self._processes[name].poll()
            if status is not None:
                raise ChildFailed(f"the {name} ended with status {status}")
            if time.monotonic() > deadline:
                raise ChildFailed(f"the {name} did not answer within {PATIENCE:g} s")
            time.sleep(0.05)

    def run(self, module: str, question: str, *, timeout: float) -> str:
        """Run a module of ours to its end: ``question`` on its stdin, its stdout is returned. Raises ChildFailed."""
        try:
            done = subprocess.run(
                [sys.executable, "-m", module],
                cwd=ROOT,
                input=question,
                stdout=subprocess.PIPE,
                text=True,
                timeout=timeout,
                check=True,
                preexec_fn=self._arrange,
                start_new_session=True,
            )
        except subprocess.CalledProcessError as error:
            raise ChildFailed(f"{module} ended with status {error.returncode}") from None
        except subprocess.TimeoutExpired:
            raise ChildFailed(f"{module} did not end within {timeout:g} s") from None
        return done.stdout


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def can_connect(port: int) -> bool:
    """Whether somebody listens on a port. Raises OSError when not."""
    socket.create_connection(("127.0.0.1", port), timeout=1).close()
    return True
