"""The ground that faults are made on: mounts, namespaces and cgroups, of which nothing stays.

All of it happens in a mount and a network namespace of this program's own (:func:`enter`), which the kernel takes down
with the last process in it, however that ends. Only cgroups have to be removed by hand.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

INSIDE = "FAULTS_INSIDE"
"""Environment variable: set in the namespaces."""
PIECE = 4096
"""Bytes a full disk is filled by in the end."""


class Unfit(Exception):
    """This machine cannot make the fault; the message says what it lacks."""


def require(tools: Iterable[str]) -> None:
    """Raise Unfit unless we are root and these programs are installed; ``a|b``: one of them is enough."""
    if os.geteuid() != 0:
        msg = "needs root"
        raise Unfit(msg)
    missing = sorted({tool for tool in tools if not any(map(shutil.which, tool.split("|")))})
    if missing:
        raise Unfit(f"needs {', '.join(tool.replace('|', ' or ') for tool in missing)}")


def enter() -> None:
    """Go on as the same program in namespaces of our own, in its first line. Raises Unfit when that is not allowed."""
    if os.environ.get(INSIDE) != str(os.getpid()):
        apart = ["unshare", "--mount", "--propagation", "private", "--net"]
        run(*apart, "true")
        command = [*apart, sys.executable, "-m", "tests.faults", *sys.argv[1:]]
        os.execvpe(apart[0], command, os.environ | {INSIDE: str(os.getpid())})
    run("ip", "link", "set", "lo", "up")


def run(*command: str | Path) -> str:
    """The output of a command. Raises Unfit when it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        raise Unfit(f"cannot do `{' '.join(map(str, command))}`: {done.stdout.strip()}")
    return done.stdout


@contextmanager
def small_disk(path: Path, size: int) -> Iterator[None]:
    """A file system of so many bytes, in memory."""
    path.mkdir(parents=True, exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", path)
    try:
        yield
    finally:
        unmount(path)


def unmount(path: Path) -> None:
    """Take a mount away, at the latest when nobody uses it any more."""
    subprocess.run(["umount", "--lazy", path], check=False)


@contextmanager
def filled(folder: Path) -> Iterator[None]:
    """Until the block is left, not a byte more fits onto the disk that this folder is on."""
    ballast = folder / "ballast"
    file = os.open(ballast, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        with suppress(OSError):
            while True:
                os.write(file, bytes(PIECE * 64))
        with suppress(OSError):
            while True:
                os.write(file, bytes(PIECE))
        yield
    finally:
        os.close(file)
        ballast.unlink(missing_ok=True)
