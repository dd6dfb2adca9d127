"""Memory and descriptors run out."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.children import Children
from tests.chaos.history import Fault
from tests.chaos.stack import Stack
from tests.chaos.trial import CHAIN, Note, Trial
from tests.faults import actions
from tests.faults.ground import Unfit
from tests.faults.judge import Options, Outcome, tried
from tests.faults.service import Caller, until

WORKER_BYTES = 300 << 20
"""Memory of a worker."""
BOMBS = (910, 911)
"""Tasks that take memory until there is none."""
EXPLODED = 90.0
"""Seconds until a bomb has cost as many attempts as it may."""
FILES = 256
"""Descriptors of an adapter."""
STRANGERS = 200
"""Connections of callers that say nothing."""
OWN = 920
RECOVERED = 15.0
"""Seconds until everything works again."""
OUT_OF_MEMORY, CROWD, SQUEEZE = "explode in worker", "crowd adapter", "squeeze"


class Capped(Stack):
    """Workers that have so much memory each."""

    app = actions.REFERENCE

    def __init__(self, children: Children, folder: Path) -> None:
        super().__init__(children, folder, adapters=2, workers=3)
        self._groups = {name: _new_group(f"runwire-faults-{os.getpid()}-{name}") for name in self.named("worker")}

    @property
    def kills(self) -> int:
        """How often the kernel has ended a worker."""
        return sum(_kills(group) for group in self._groups.values())

    async def close(self) -> None:
        """End the workers, too, so that nothing of their groups stays."""
        await super().close()
        for name, group in self._groups.items():
            with suppress(KeyError):
                self._children.kill(name)
            _remove_group(group)

    def _argv(self, name: str) -> list[str]:
        argv = super()._argv(name)
        group = self._groups.get(name)
        return (
            argv if group is None else ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs"), *argv]
        )


@dataclass(frozen=True, kw_only=True)
class Bombs(Trial):
    """Actions that take memory until their worker is killed."""

    found: Outcome = field(default_factory=Outcome)

    def stack(self, children: Children, folder: Path) -> Stack:
        """With workers that have little memory."""
        return Capped(children, folder)

    async def make_faults(self, stack: Stack, note: Note) -> None:
        """Let each explode."""
        if not isinstance(stack, Capped):
            raise TypeError(stack)
        async with Caller(stack.adapters["adapter-1"], note) as caller:
            for task in BOMBS:
                await caller.create(task, CHAIN, action="bomb")
                note(Fault(what=OUT_OF_MEMORY, whom="worker-1", at=time.time(), seconds=0))
                answer = await caller.execute(task, wait=0)
                self.found.expect(that=answer.status_code == 202, otherwise=f"not accepted: {answer.text[:200]}")
                path = f"/tasks/{task}/runs/{answer.headers.get('run-id')}"

                async def has_ended(path: str = path) -> bool:
                    return '"code":"ERROR"' in (await caller.call("GET", path)).text

                ended = await until(has_ended, within=EXPLODED)
                error = (await caller.call("GET", path)).json().get("error") or {}
                self.found.expect(
                    that=ended and error.get("code") == "attempts_exhausted", otherwise=f"the bomb ended as {error}"
                )
        self.found.figures.append(f"{stack.kills} workers killed by the kernel")
        self.found.expect(that=stack.kills >= len(BOMBS), otherwise="the kernel killed nobody")


@dataclass(frozen=True, kw_only=True)
class FewFiles(Trial):
    """Descriptors that run out."""

    found: Outcome = field(default_factory=Outcome)

    def stack(self, children: Children, folder: Path) -> Stack:
        """Its first adapter may open few files."""
        return Scarce(children, folder)

    async def make_faults(self, stack: Stack, note: Note) -> None:
        """Crowd an adapter, and let nobody open anything for a while."""
        if not isinstance(stack, Scarce):
            raise TypeError(stack)
        dice = random.Random(self.seed)
        async with Caller(stack.adapters["adapter-1"], note) as caller:
            await caller.create(OWN, CHAIN, action="probe")
            await asyncio.sleep(1)
            note(Fault(what=CROWD, whom="adapter-1", at=time.time(), seconds=2))
            with _crowd(stack.adapters["adapter-1"]):
                self.found.expect(
                    that=await until(self._is_refused(stack, note), within=5), otherwise="no 503 in a crowd"
                )
                await asyncio.sleep(2)
            for role in ("adapter", "worker"):
                await self._require_recovered(caller)
                name, seconds = dice.choice(stack.named(role)), dice.uniform(2, 4)
                note(Fault(what=f"{SQUEEZE} {role}", whom=name, at=time.time(), seconds=seconds))
                with stack.squeezed(name):
                    stack.cut(name)
                    await asyncio.sleep(seconds)
            await self._require_recovered(caller)
        self.found.expect(that=stack.restarts == 0, otherwise=f"{stack.restarts} processes ended by themselves")

    def _is_refused(self, stack: Stack, note: Note) -> Any:
        async def is_refused() -> bool:
            async with Caller(stack.adapters["adapter-1"], note) as late:
                return (await late.execute(OWN, wait=0)).status_code == 503

        return is_refused

    async def _require_recovered(self, caller: Caller) -> None:
        async def runs() -> bool:
            return (await caller.execute(OWN, wait=5)).status_code == 200

        self.found.expect(
            that=await until(runs, within=RECOVERED), otherwise=f"no run {RECOVERED:g} s after there were files again"
        )


class Scarce(Stack):
    """The first adapter may open few files."""

    def __init__(self, children: Children, folder: Path) -> None:
        super().__init__(children, folder, adapters=2, workers=2)

    @contextmanager
    def squeezed(self, name: str) -> Iterator[None]:
        """It can open nothing more until the block is left."""
        pid = self._children.pids[name]
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, hard))
        try:
            yield
        finally:
            with suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))

    def _argv(self, name: str) -> list[str]:
        limit = ["prlimit", f"--nofile={FILES}:{FILES}"] if name == "adapter-1" else []
        return [*limit, *super()._argv(name)]


@contextmanager
def _crowd(url: str) -> Iterator[None]:
    """Connections that say nothing, until the block is left."""
    place = urlsplit(url)
    with ExitStack() as connections:
        for _ in range(STRANGERS):
            connection = connections.enter_context(socket.socket())
            connection.setblocking(False)
            connection.connect_ex((str(place.hostname), place.port or 80))
        yield


# --- cgroups -------------------------------------------------------------------------------------------

FIRST, SECOND = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
"""Where memory is limited: cgroup v1, v2."""


def _new_group(name: str) -> Path:
    """A control group whose processes have WORKER_BYTES together. Raises Unfit."""
    is_first = FIRST.is_dir()
    group = (FIRST if is_first else SECOND) / name
    try:
        if not is_first:
            (SECOND / "cgroup.subtree_control").write_text("+memory")
        group.mkdir()
        (group / ("memory.limit_in_bytes" if is_first else "memory.max")).write_text(str(WORKER_BYTES))
    except OSError as error:
        raise Unfit(f"cannot limit memory by control groups: {error}") from None
    return group


def _kills(group: Path) -> int:
    events = group / "memory.oom_control" if (group / "memory.oom_control").exists() else group / "memory.events"
    told = dict(line.split() for line in events.read_text().splitlines())
    return int(told.get("oom_kill", 0))


def _remove_group(group: Path) -> None:
    for _ in range(50):
        with suppress(OSError):
            group.rmdir()
            return
        time.sleep(0.1)


async def memory(options: Options) -> Outcome:
    """A run that takes all memory ends as ERROR when it has cost some workers, and other runs go on."""
    attempt = Bombs(
        seed=options.seed, seconds=20, kinds=(OUT_OF_MEMORY,), untraced=BOMBS, late_after=20, tell=options.tell
    )
    outcome = await tried(attempt, options, "memory")
    return Outcome(figures=outcome.figures + attempt.found.figures, broken=outcome.broken + attempt.found.broken)


async def descriptors(options: Options) -> Outcome:
    """Who cannot open files refuses, and recovers by itself."""
    kinds = (CROWD, f"{SQUEEZE} adapter", f"{SQUEEZE} worker")
    attempt = FewFiles(seed=options.seed, seconds=15, kinds=kinds, late_after=20, tell=options.tell)
    outcome = await tried(attempt, options, "descriptors")
    return Outcome(figures=outcome.figures + attempt.found.figures, broken=outcome.broken + attempt.found.broken)
