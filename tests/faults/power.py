"""The power goes: what reached the disk is all that is left.

Broker and read models live on a file system in a file. A cut stops the broker, copies that file, kills everything and
goes on with the copy: what was in the machine's memory is gone, as it is when the power fails. Copied is what the file
system had written by then, so whoever acknowledges before it has flushed loses what it acknowledged.
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.children import ChildFailed, Children, can_connect
from tests.chaos.history import Fault
from tests.chaos.stack import BROKER, STARTING, Stack
from tests.chaos.trial import Note, Trial
from tests.faults.ground import Unfit, run, unmount
from tests.faults.judge import Options, Outcome, tried

TOOLS = ("mkfs.ext4", "losetup", "mount", "umount", "cp", "cmp", "sync")
DISK_BYTES = 192 << 20
STORE_BYTES = 64 << 20
COPIES = 20
"""Times the disk is copied until it holds still for as long as that takes."""
BETWEEN = (0.5, 2.5)
"""Seconds of calls between two cuts, from and to."""
CUT = "cut the power"


class Machine(Stack):
    """Everything on a disk that the power can be taken from."""

    def __init__(self, children: Children, folder: Path, *, sync: str) -> None:
        self._disk = folder / "disk"
        self._disk.mkdir()
        self._image = folder / "disk-0.img"
        with self._image.open("wb") as image:
            image.truncate(DISK_BYTES)
        run("mkfs.ext4", "-q", "-F", self._image)
        run("mount", "-o", "loop", self._image, self._disk)
        for name in ("broker", "adapter-1"):
            (self._disk / name).mkdir()
            (folder / name).symlink_to(self._disk / name)
        self._cuts = 0
        super().__init__(children, folder, adapters=1, workers=1, sync=sync, store_bytes=STORE_BYTES)

    def flush(self) -> None:
        """What there is now has been there for a while: it is on the disk."""
        run("sync", "--file-system", self._disk)

    async def cut_power(self) -> None:
        """Take the power away, and start everything again with what is on the disk. Raises ChildFailed or Unfit."""
        names = [name for role in ("broker", "adapter", "worker") for name in self.named(role)]
        self._held |= set(names)
        with self.frozen(BROKER):
            copied = await self._copied()
            for name in names:
                with suppress(KeyError):
                    self._children.kill(name)
        unmount(self._disk)
        self._image.unlink()
        self._image = copied
        run("mount", "-o", "loop", self._image, self._disk)
        await self._start_all(names)

    async def _copied(self) -> Path:
        """The disk at one moment. Raises Unfit when it does not hold still."""
        self._cuts += 1
        copy = self._image.with_name(f"disk-{self._cuts}.img")
        for _ in range(COPIES):
            for command in (["cp", "--sparse=always"], ["cmp", "--silent"]):
                process = await asyncio.create_subprocess_exec(*command, self._image, copy)
                status = await process.wait()
            if status == 0:  # nothing was written back meanwhile
                return copy
        raise Unfit(f"the disk changed during each of {COPIES} copies")

    async def _start_all(self, names: list[str]) -> None:
        deadline = time.monotonic() + STARTING
        self._start(BROKER)
        while True:
            with suppress(OSError):
                if can_connect(self._broker_port):
                    break
            if time.monotonic() > deadline or not self._children.is_running(BROKER):
                raise ChildFailed(f"the broker did not come back: {self.log(BROKER)}")
            await asyncio.sleep(0.02)
        for name in names:
            if name != BROKER:
                self._start(name)
        self._held.clear()
        await self.until_ready()


@dataclass(frozen=True, kw_only=True)
class PowerCuts(Trial):
    """The power goes again and again."""

    cuts: int
    sync: str

    def stack(self, children: Children, folder: Path) -> Stack:
        """On a disk of its own."""
        return Machine(children, folder, sync=self.sync)

    async def make_faults(self, stack: Stack, note: Note) -> None:
        """So many cuts."""
        if not isinstance(stack, Machine):
            raise TypeError(stack)
        dice = random.Random(self.seed)
        stack.flush()
        for _ in range(self.cuts):
            await asyncio.sleep(dice.uniform(*BETWEEN))
            note(Fault(what=CUT, whom=BROKER, at=time.time(), seconds=0))
            await stack.cut_power()
        await asyncio.sleep(BETWEEN[0])


async def power_cut(options: Options) -> Outcome:
    """Nothing that was acknowledged is lost, and every accepted run ends exactly once."""
    attempt = PowerCuts(
        seed=options.seed, seconds=options.cuts * BETWEEN[1], cuts=options.cuts, sync=options.sync, kinds=(CUT,),
        fewest_per_second=1, tell=options.tell,
    )  # fmt: skip
    return await tried(attempt, options, "power-cut")
