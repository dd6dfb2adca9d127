"""Disks fill up: the broker's, with an export on its way, and a read model's."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from benchmarks.children import Children
from tests.chaos.history import Fault
from tests.chaos.stack import Stack
from tests.chaos.trial import CHAIN, Note, Trial
from tests.faults.actions import ROWS
from tests.faults.ground import filled, small_disk
from tests.faults.judge import Options, Outcome, tried
from tests.faults.service import Caller, Up, until

BROKER_DISK = 160 << 20
READ_MODEL_DISK = 48 << 20
FILLS = 2
NOTICED = 20.0
"""Seconds until a full disk has to show."""
MENDED = 30.0
"""Seconds until everything has to work again when there is room."""
LASTING = (3.0, 5.0)
"""Seconds for which a disk is full once that shows, from and to."""
FULL = "fill the disk"
EXPORTING = 0.3
"""Seconds for which an export has been going on when the disk is full."""
OWN, EXPORT = 900, 901
"""Tasks that nobody else calls."""


@dataclass(frozen=True, kw_only=True)
class FullDisk(Trial):
    """A disk that is full for a while, under a load, again and again."""

    found: Outcome = field(default_factory=Outcome)

    async def make_faults(self, stack: Stack, note: Note) -> None:
        """Fill it and make room again."""
        dice = random.Random(self.seed)
        async with Caller(stack.adapters["adapter-1"], note) as caller:
            await self.prepare(caller)
            for _ in range(FILLS):
                await asyncio.sleep(2)
                lasting = dice.uniform(*LASTING)
                await self.just_before(caller)
                note(Fault(what=FULL, whom=self.whom, at=time.time(), seconds=lasting))
                with filled(self.where(stack)):
                    await self.while_full(caller, lasting)
                mended = await until(caller.is_ready, within=MENDED)
                self.found.expect(that=mended, otherwise=f"not ready {MENDED:g} s after there was room again")
                await self.afterwards(caller)
        self.found.expect(that=stack.restarts == 0, otherwise=f"{stack.restarts} processes ended by themselves")

    whom = "adapter-1"

    def where(self, stack: Stack) -> Path:
        """A folder on the disk."""
        raise NotImplementedError

    async def prepare(self, caller: Caller) -> None:
        """Before anything is done."""
        await caller.create(OWN, CHAIN, action="probe")

    async def just_before(self, caller: Caller) -> None:
        """What begins and meets the full disk."""

    async def while_full(self, caller: Caller, lasting: float) -> None:
        """What has to be true meanwhile."""
        raise NotImplementedError

    async def afterwards(self, caller: Caller) -> None:
        """A call has to work again."""

        async def runs() -> bool:
            return (await caller.execute(OWN, wait=10)).status_code == 200

        ran = await until(runs, within=MENDED)
        self.found.expect(that=ran, otherwise=f"no run {MENDED:g} s after there was room again")

    async def outcome(self, options: Options, name: str) -> Outcome:
        """What the checker says, and what was found meanwhile."""
        outcome = await tried(self, options, name)
        return Outcome(figures=outcome.figures + self.found.figures, broken=outcome.broken + self.found.broken)


class BrokerDisk(FullDisk):
    """The disk of the broker that ``runwire up`` runs, while an export writes to it."""

    whom = "broker"

    def stack(self, children: Children, folder: Path) -> Stack:
        """With its streams on a small disk."""
        return Up(children, folder)

    def where(self, stack: Stack) -> Path:
        """The broker's store."""
        return stack.read_model("adapter-1").parent / "nats"

    async def prepare(self, caller: Caller) -> None:
        """An export, too."""
        await super().prepare(caller)
        await caller.create(EXPORT, CHAIN, action="export", export_index="rows", export_format="csv")

    async def while_full(self, caller: Caller, lasting: float) -> None:
        """Calls are refused with a reason, and the adapter is not ready."""
        before = await caller.call("GET", f"/tasks/{EXPORT}")
        reasons: set[str] = set()

        async def refused() -> bool:
            answer = await caller.execute(OWN, wait=0)
            if answer.status_code == 503:
                reasons.add(answer.json()["detail"])
            return any("cannot write to its disk" in reason for reason in reasons)

        self.found.expect(
            that=await until(refused, within=NOTICED), otherwise=f"no 503 that says why, but {reasons or 'none'}"
        )
        self.found.expect(that=not await caller.is_ready(), otherwise="/readyz says ok on a full disk")
        self.found.expect(that=before.status_code == 200, otherwise=f"a read was answered {before.status_code}")
        await asyncio.sleep(lasting)

    async def just_before(self, caller: Caller) -> None:
        """An export begins."""
        answer = await caller.execute(EXPORT, wait=0)
        self.found.expect(that=answer.status_code == 202, otherwise=f"an export was not begun: {answer.text[:200]}")
        await asyncio.sleep(EXPORTING)

    async def afterwards(self, caller: Caller) -> None:
        """The export that met the full disk is whole or not there at all, and the next one is whole."""
        await super().afterwards(caller)

        async def has_ended() -> bool:
            return (await caller.call("GET", f"/tasks/{EXPORT}")).json()["state"]["code"] in {"DONE", "ERROR"}

        self.found.expect(that=await until(has_ended, within=MENDED), otherwise="the export has no end")
        self._require_whole(await self._download(caller), may_be_missing=True)
        answer = await caller.execute(EXPORT, wait=15)
        code = answer.json().get("code")
        self.found.expect(that=code == "DONE", otherwise=f"an export after the full disk: {answer.text[:200]}")
        self._require_whole(await self._download(caller), may_be_missing=False)

    async def _download(self, caller: Caller) -> httpx.Response:
        """The file of the last export, or why there is none."""
        link = await caller.call("GET", f"/tasks/{EXPORT}/download_url")
        return await caller.call("GET", link.json()["url"]) if link.is_success else link

    def _require_whole(self, file: httpx.Response, *, may_be_missing: bool) -> None:
        is_whole = file.status_code == 200 and file.content.count(b"\n") == ROWS + 1
        told = f"the file of an export: {file.status_code}, {len(file.content):,} bytes"
        self.found.expect(that=is_whole or (may_be_missing and file.status_code == 409), otherwise=told)


class ReadModelDisk(FullDisk):
    """The disk that an adapter has its read model on."""

    def stack(self, children: Children, folder: Path) -> Stack:
        """Its data directory is a small disk."""
        return Stack(children, folder, adapters=self.adapters, workers=self.workers)

    def where(self, stack: Stack) -> Path:
        """The adapter's data directory."""
        return stack.read_model("adapter-1").parent

    async def while_full(self, caller: Caller, lasting: float) -> None:
        """Reads go on, and the adapter says that it is not ready."""

        async def tells() -> bool:
            return "read model cannot be written" in (await caller.call("GET", "/readyz?verbose")).text

        self.found.expect(that=await until(tells, within=NOTICED), otherwise="/readyz does not tell of the full disk")
        until_then = time.monotonic() + lasting
        while time.monotonic() < until_then:
            for path in (f"/tasks/{OWN}", "/tasks?limit=5"):
                answer = await caller.call("GET", path)
                self.found.expect(
                    that=answer.status_code == 200, otherwise=f"GET {path}: {answer.status_code} {answer.text[:200]}"
                )
            await asyncio.sleep(0.2)


async def broker_disk(options: Options) -> Outcome:
    """503 with a reason and no run that was promised is lost; all works again by itself when there is room."""
    attempt = BrokerDisk(
        seed=options.seed, seconds=10, kinds=(FULL,), untraced=(EXPORT,), fewest_per_second=1, scheduled=4, bus=2,
        http=6, late_after=15, tell=options.tell,
    )  # fmt: skip
    with small_disk(options.folder / "broker-disk" / "broker" / "nats", BROKER_DISK):
        return await attempt.outcome(options, "broker-disk")


async def read_model_disk(options: Options) -> Outcome:
    """Reads go on, and what could not be written is when there is room: nothing ends, nothing is missed."""
    attempt = ReadModelDisk(
        seed=options.seed, seconds=20, kinds=(FULL,), fewest_per_second=1, workers=2, late_after=20, tell=options.tell
    )
    with small_disk(options.folder / "read-model-disk" / "adapter-1", READ_MODEL_DISK):
        return await attempt.outcome(options, "read-model-disk")
