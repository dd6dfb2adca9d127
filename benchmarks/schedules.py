"""Schedules at size: ``python -m benchmarks.schedules``.

A hundred thousand tasks that are due some time next year (``--scale 0.1``: a tenth) lie in the broker, and beside them
alarms ring: one after the other, many in one second, and after broker and worker were killed. The same alarms without
runwire, plain scheduled messages in a stream of their own, are measured first: what they take is the broker's part.
Exit status 1 when a tick was early, lost or run twice, when the 99th percentile of the lateness is over
``--limit-ms``, or when a restart left anything to repair.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import re
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import count, islice
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import nats
import typer
import uvloop
from nats.js.api import RetentionPolicy, StreamConfig
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.children import ChildFailed, Children, can_connect
from benchmarks.sightings import Sight, Sightings
from benchmarks.stack import CHAIN
from runwire import embedded
from runwire.domain import lifecycle
from runwire.domain.lifecycle import Definition
from runwire.domain.task import Target
from runwire.messaging import events, streams, subjects
from runwire.messaging.broker import Bus
from runwire.settings import load

PENDING, SINGLY, AT_ONCE, PURGED, MEANWHILE = 100_000, 1000, 10_000, 5000, 20
"""Alarms that lie there; that ring one after the other; at the same instant; that are purged by hand; while all is
down."""
FEWEST = 200
"""Alarms one after the other, whatever the scale: below that a 99th percentile says nothing."""
APART = timedelta(milliseconds=40.1)
"""Between two alarms one after the other; a step that goes through all fractions of a second."""
IN_FLIGHT = 500
"""Messages on their way at once."""
STORE_BYTES = 2 << 30
BARE = "BARE"
"""The stream of the bare broker."""
LOOKED = re.compile(
    r"alarms: (\d+) schedules and (\d+) alarms looked at in ([\d.]+) s; (\d+) set, (\d+) moved, (\d+) removed"
)
"""What a worker logs about its alarms."""
PATIENCE = 600.0
"""Seconds after which anything that is waited for counts as lost."""


class Fsync(StrEnum):
    """Whether the broker flushes to disk before it acknowledges."""

    OFF = "off"
    ON = "on"


SYNC_INTERVALS = {Fsync.OFF: "2m", Fsync.ON: "always"}


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much of everything."""

    pending: int
    singly: int
    at_once: int
    purged: int

    @classmethod
    def of(cls, scale: float) -> Size:
        """1: the numbers at the top."""
        return cls(
            pending=round(PENDING * scale),
            singly=max(FEWEST, round(SINGLY * scale)),
            at_once=round(AT_ONCE * scale),
            purged=round(PURGED * scale),
        )


@dataclass(frozen=True, kw_only=True)
class Lateness:
    """How long after its time something was stored, over many alarms; milliseconds."""

    what: str
    least: float
    p50: float
    p99: float
    most: float

    @classmethod
    def of(cls, what: str, late: list[timedelta]) -> Lateness:
        """Of at least one."""
        ordered = [one / timedelta(milliseconds=1) for one in sorted(late)]

        def at(share: float) -> float:
            return ordered[min(len(ordered) - 1, int(len(ordered) * share))]

        return cls(what=what, least=ordered[0], p50=at(0.5), p99=at(0.99), most=ordered[-1])


@dataclass(frozen=True, kw_only=True)
class Burst:
    """What many alarms in the same second took, seconds from their time to the last of each; NaN: it never came."""

    what: str
    alarms: int
    rung: float
    commands: float
    ended: float


@dataclass(kw_only=True)
class Figures:
    """What came of it."""

    size: Size
    pending: dict[str, float] = field(default_factory=dict)
    """Seconds to create the tasks and to have all their alarms set, bare alarms a second, MB of memory."""
    lateness: list[Lateness] = field(default_factory=list)
    bursts: list[Burst] = field(default_factory=list)
    restart: dict[str, float] = field(default_factory=dict)
    """Seconds from the start of broker and worker."""
    purge: dict[str, float] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    """What should not have happened."""


class Stack:
    """The broker and the workers: real processes, which can be killed."""

    def __init__(self, children: Children, folder: Path, sync: str) -> None:
        self._children = children
        self._folder = folder
        self._broker = embedded.prepare(load(data_dir=folder, nats_sync=sync, store_bytes=STORE_BYTES))
        self._port = int(self._broker.url.rpartition(":")[2])
        self.settings = load(nats_url=self._broker.url, data_dir=folder, store_bytes=STORE_BYTES)
        self._env = os.environ | {
            "RUNWIRE_NATS_URL": self._broker.url,
            "RUNWIRE_DATA_DIR": str(folder),
            "RUNWIRE_STORE_BYTES": str(STORE_BYTES),
            "RUNWIRE_LOG_LEVEL": "info",
        }

    def start_broker(self) -> None:
        """Start it; it may take a while to answer."""
        self._children.start("nats-server", self._broker.argv, self._broker.env)

    def wait_for_broker(self) -> None:
        """Wait until it takes connections."""
        self._children.wait_for("nats-server", lambda: can_connect(self._port))

    async def answers(self) -> None:
        """Wait until JetStream knows about the alarms."""
        while True:
            with contextlib.suppress(OSError, nats.errors.Error, nats.js.errors.Error):
                can_connect(self._port)  # a client that is refused pauses
                connection = await nats.connect(
                    self._broker.url, allow_reconnect=False, connect_timeout=1, error_cb=_ignore
                )
                try:
                    await connection.jetstream(timeout=1).stream_info(subjects.SCHEDULES)
                    return
                finally:
                    await connection.close()
            await asyncio.sleep(0.02)

    def start_worker(self, name: str) -> None:
        """Start one; what it says goes into a file."""
        self._log(name).unlink(missing_ok=True)
        self._children.start(name, [sys.executable, "-m", "runwire", "worker"], self._env, log=self._log(name))

    async def looked(self, name: str) -> re.Match[str]:
        """What the worker's first look at all alarms came to. Raises ChildFailed."""
        return await self._says(name, LOOKED)

    async def ready(self, name: str) -> None:
        """Wait until the worker takes alarms; one that has given up on a broker that comes up is started again."""
        while True:
            with contextlib.suppress(ChildFailed):
                await self._says(name, re.compile("worker ready"))
                return
            self.start_worker(name)

    def kill(self, *names: str) -> None:
        """As a crash would: kill -9."""
        for name in names:
            self._children.kill(name)

    def memory(self, name: str) -> float:
        """MB resident."""
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self._children.pids[name]}/status").read_text())
        return int(found[1]) / 1024 if found else 0.0

    async def _says(self, name: str, pattern: re.Pattern[str]) -> re.Match[str]:
        deadline = time.monotonic() + PATIENCE
        while True:
            said = self._log(name).read_text()
            if match := pattern.search(said):
                return match
            if not self._children.is_running(name):
                raise ChildFailed(f"the {name} ended: {said[-500:]}")
            if time.monotonic() > deadline:
                raise ChildFailed(f"the {name} never said {pattern.pattern!r}: {said[-500:]}")
            await asyncio.sleep(0.05)

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"


class Benchmark:
    """The phases, in their order."""

    def __init__(self, stack: Stack, bus: Bus, size: Size) -> None:
        self._stack = stack
        self._bus = bus
        self._seen = Sightings(bus)
        self._ids = count(1)
        self._rate = 500.0
        """Alarms a second that can be set, as far as is known."""
        self.figures = Figures(size=size)

    async def run(self) -> None:
        """Everything."""
        await streams.provision(self._bus, self._stack.settings)
        await self._seen.start()
        await self._bare()
        self._stack.start_worker("worker")
        await self._stack.looked("worker")
        await self._fill()
        await self._singly()
        await self._burst("runwire, one worker")
        self._stack.start_worker("second worker")
        await self._stack.looked("second worker")
        await self._burst("runwire, two workers")
        self._stack.kill("second worker")
        await self._restart()
        await self._purge()

    # --- the broker without us ----------------------------------------------------------------------------

    async def _bare(self) -> None:
        """The same alarms in a stream that nobody reads."""
        size = self.figures.size
        config = StreamConfig(
            name=BARE, subjects=["bare.>"], retention=RetentionPolicy.WORK_QUEUE, allow_msg_schedules=True
        )
        await self._bus.js.add_stream(config)
        await self._seen.republish(BARE, "bare.due.*", Sight.BARE)
        _progress(f"bare broker: {size.pending:,} scheduled messages ...")
        began = time.perf_counter()
        await self._bare_alarms(dict.fromkeys(self._take(size.pending), datetime.now(UTC) + timedelta(days=300)))
        self.figures.pending["bare alarms/s"] = size.pending / (time.perf_counter() - began)
        _progress(f"bare broker: {size.singly:,} one after the other ...")
        due = self._spread(size.singly, rate=2000)
        await self._bare_alarms(due)
        await self._all_seen(Sight.BARE, due)
        self._add_lateness("bare broker: it rings", Sight.BARE, due)
        _progress(f"bare broker: {size.at_once:,} at once ...")
        due = self._together(size.at_once, rate=2000)
        await self._bare_alarms(due)
        await self._all_seen(Sight.BARE, due)
        nan = float("nan")
        self.figures.bursts.append(
            Burst(what="bare broker", alarms=len(due), rung=self._last(Sight.BARE, due), commands=nan, ended=nan)
        )
        await self._bus.js.delete_stream(BARE)

    async def _bare_alarms(self, due: dict[int, datetime]) -> None:
        async def publish(number: int, at: datetime) -> None:
            headers = {
                subjects.SCHEDULE: f"@at {at.replace(tzinfo=None).isoformat(timespec='microseconds')}Z",
                subjects.SCHEDULE_TARGET: f"bare.due.{number}",
                subjects.EXPECTED_SEQUENCE: "0",
            }
            await self._bus.js.publish(f"bare.sch.{number}", b'{"version":1}', headers=headers, timeout=60)

        await _many(publish(number, at) for number, at in due.items())

    # --- the phases ---------------------------------------------------------------------------------------

    async def _fill(self) -> None:
        size = self.figures.size
        _progress(f"{size.pending:,} tasks that are due next year ...")
        before = {name: self._stack.memory(name) for name in ("nats-server", "worker")}
        began = time.perf_counter()
        await self._create({task: {"cron": _once_a_year(task)} for task in self._take(size.pending)})
        created = time.perf_counter() - began
        await self._until(self._pending_is(size.pending), "every task has its alarm")
        taken = time.perf_counter() - began
        self._rate = size.pending / taken
        self.figures.pending |= {"created s": created, "set s": taken, "alarms/s": self._rate}
        for name, megabytes in before.items():
            self.figures.pending |= {f"{name} MB before": megabytes, f"{name} MB": self._stack.memory(name)}

    async def _singly(self) -> None:
        size = self.figures.size
        _progress(f"{size.singly:,} alarms one after the other ...")
        due = self._spread(size.singly, rate=self._rate)
        await self._create_once(due)
        await self._all_seen(Sight.ENDED, due)
        self._add_lateness("runwire: the broker rings", Sight.RUNG, due)
        self._add_lateness("runwire: the command is stored", Sight.COMMAND, due)
        self._add_lateness("runwire: the run has ended", Sight.ENDED, due)
        self._expect_once_each("one after the other", due)

    async def _burst(self, what: str) -> None:
        size = self.figures.size
        _progress(f"{what}: {size.at_once:,} alarms at once ...")
        due = self._together(size.at_once, rate=self._rate)
        await self._create_once(due)
        await self._until(self._pending_is(size.pending + size.at_once), "every task has its alarm")
        if datetime.now(UTC) > next(iter(due.values())):
            self.figures.wrong.append(f"{what}: the alarms were not set in time")
        await self._all_seen(Sight.ENDED, due)
        rung, commands, ended = (self._last(sight, due) for sight in (Sight.RUNG, Sight.COMMAND, Sight.ENDED))
        self.figures.bursts.append(Burst(what=what, alarms=len(due), rung=rung, commands=commands, ended=ended))
        self._expect_once_each(what, due)

    async def _restart(self) -> None:
        _progress("kill -9 of broker and worker ...")
        due = self._together(MEANWHILE, rate=self._rate)
        at = next(iter(due.values()))
        await self._create_once(due)
        await self._until(self._pending_is(self.figures.size.pending + len(due)), "every task has its alarm")
        self._stack.kill("nats-server", "worker")
        await asyncio.sleep((at - datetime.now(UTC)).total_seconds() + 1)  # they are due now, and nobody is there
        began = datetime.now(UTC)
        self._stack.start_broker()
        self._stack.start_worker("worker")
        await self._stack.answers()
        answered = datetime.now(UTC) - began
        await self._stack.ready("worker")
        ready = datetime.now(UTC) - began
        await self._until(self._have_ended(due), "every overdue alarm has had its run")
        ends = [await self._ended_at(task) - began for task in due]
        looked = await self._stack.looked("worker")
        self.figures.restart = {
            "JetStream answers": answered.total_seconds(),
            "worker ready": ready.total_seconds(),
            "first overdue run": min(ends).total_seconds(),
            "last overdue run": max(ends).total_seconds(),
            "look s": float(looked[3]),
            "schedules": float(looked[1]),
            "alarms": float(looked[2]),
        }
        for task, times in (await self._ends(due)).items():
            if times != 1:
                self.figures.wrong.append(f"restart: task {task} had {times} runs")
        if any(int(looked[number]) for number in (4, 5, 6)):
            self.figures.wrong.append(f"restart: {looked[0]}")

    async def _purge(self) -> None:
        """Alarms are purged by hand; the worker that starts next finds out."""
        size = self.figures.size
        _progress(f"{size.purged:,} alarms purged by hand ...")
        self._stack.kill("worker")
        first = (await self._bus.js.stream_info(subjects.SCHEDULES)).state.first_seq
        await self._bus.js.purge_stream(subjects.SCHEDULES, seq=first + size.purged)
        left = (await self._bus.js.stream_info(subjects.SCHEDULES)).state.messages
        began = time.perf_counter()
        self._stack.start_worker("worker")
        await self._until(self._pending_is(size.pending), "every purged alarm is set again")
        taken = time.perf_counter() - began
        looked = await self._stack.looked("worker")
        self.figures.purge = {"purged": size.pending - left, "set again s": taken, "look s": float(looked[3])}
        if int(looked[4]) != size.pending - left or int(looked[5]) or int(looked[6]):
            self.figures.wrong.append(f"purge: {looked[0]}")

    # --- tasks --------------------------------------------------------------------------------------------

    def _take(self, number: int) -> list[int]:
        return list(islice(self._ids, number))

    def _spread(self, number: int, *, rate: float) -> dict[int, datetime]:
        """Tasks that are due one after the other, the first once all of them can have been set."""
        start = datetime.now(UTC) + timedelta(seconds=2 + 1.5 * number / rate)
        return {task: start + place * APART for place, task in enumerate(self._take(number))}

    def _together(self, number: int, *, rate: float) -> dict[int, datetime]:
        """Tasks that are due at the same instant, once all of them can have been set."""
        at = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=4 + round(1.5 * number / rate))
        return dict.fromkeys(self._take(number), at)

    async def _create_once(self, due: dict[int, datetime]) -> None:
        await self._create({task: {"once": at.isoformat()} for task, at in due.items()})

    async def _create(self, triggers: dict[int, dict[str, Any]]) -> None:
        """Tasks that do nothing, as an adapter stores them."""
        target = Target.model_validate({"action": "sleep", "seconds": 0})

        async def create(task: int, trigger: dict[str, Any]) -> None:
            definition = Definition(chain=CHAIN, desc="for the benchmark", target=target, trigger=trigger)
            document = lifecycle.create(definition, task, datetime.now(UTC))
            await events.append_confirmed(self._bus, document, expected=0, event_id=uuid4().hex, unique_id=True)

        await _many(create(task, trigger) for task, trigger in triggers.items())

    # --- what was seen ------------------------------------------------------------------------------------

    async def _all_seen(self, sight: Sight, due: dict[int, datetime]) -> None:
        await asyncio.sleep(max(0.0, (max(due.values()) - datetime.now(UTC)).total_seconds()))
        if not await self._seen.wait(sight, due.keys(), seconds=PATIENCE):
            missing = len(due) - self._seen.count(sight, due.keys())
            raise ChildFailed(f"{missing:,} of {len(due):,} never came: {sight}")

    def _add_lateness(self, what: str, sight: Sight, due: dict[int, datetime]) -> None:
        late = [stored - at for task, at in due.items() for stored in self._seen.times(sight, task)]
        self.figures.lateness.append(Lateness.of(what, late))

    def _last(self, sight: Sight, due: dict[int, datetime]) -> float:
        """Seconds from the time of the alarms to the last one; NaN: there was none."""
        late = [stored - at for task, at in due.items() for stored in self._seen.times(sight, task)]
        return max(late).total_seconds() if late else float("nan")

    def _expect_once_each(self, what: str, due: dict[int, datetime]) -> None:
        """Every tick one command and one run, and none before its time."""
        for task, at in due.items():
            commands, ends = self._seen.times(Sight.COMMAND, task), self._seen.times(Sight.ENDED, task)
            if len(commands) != 1 or len(ends) != 1:
                self.figures.wrong.append(f"{what}: task {task} had {len(commands)} commands, {len(ends)} runs")
            if commands and commands[0] < at:
                self.figures.wrong.append(f"{what}: task {task} had its command {at - commands[0]} early")

    # After a restart EVENTS is asked: a worker may be quicker than our own connection, which then sees nothing.

    async def _ends(self, due: dict[int, datetime]) -> dict[int, int]:
        """How many runs of each task have ended, as EVENTS has it."""
        info = await self._bus.js.stream_info(subjects.EVENTS, subjects_filter=subjects.events_of_chain(CHAIN, "done"))
        counts = info.state.subjects or {}
        return {task: counts.get(f"tasks.evt.{CHAIN}.{task}.done", 0) for task in due}

    def _have_ended(self, due: dict[int, datetime]) -> Callable[[], Awaitable[bool]]:
        async def look() -> bool:
            return all((await self._ends(due)).values())

        return look

    async def _ended_at(self, task: int) -> datetime:
        """When the end of the task's run was stored."""
        message = await self._bus.js.get_msg(subjects.EVENTS, subject=f"tasks.evt.{CHAIN}.{task}.done")
        assert message.time is not None
        return message.time

    def _pending_is(self, number: int) -> Callable[[], Awaitable[bool]]:
        async def look() -> bool:
            return (await self._bus.js.stream_info(subjects.SCHEDULES)).state.messages >= number

        return look

    async def _until(self, condition: Callable[[], Awaitable[bool]], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not await condition():
            if time.monotonic() > deadline:
                raise ChildFailed(f"it never came true that {what}")
            await asyncio.sleep(0.05)


async def _many(work: Iterator[Awaitable[None]]) -> None:
    """All of it, IN_FLIGHT at once."""

    async def hand() -> None:
        for one in work:
            await one

    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(hand())


def _once_a_year(task: int) -> str:
    """A cron line that is two to ten months away, another one for each of 300,000 tasks."""
    minute, hour, day, month = task % 60, task // 60 % 24, task // 1440 % 28, task // 40_320 % 9
    return f"{minute} {hour} {day + 1} {(datetime.now(UTC).month + 1 + month) % 12 + 1} *"


async def _ignore(_error: Exception) -> None:
    """A broker that is coming up."""


# --- what is told -------------------------------------------------------------------------------------------


def report(console: Console, figures: Figures) -> None:
    """Everything that was measured; a phase that was not reached is left out."""
    size, pending, restart, purge = figures.size, figures.pending, figures.restart, figures.purge
    if "worker MB" in pending:
        console.print(
            f"{size.pending:,} alarms pending\n"
            f"set           {pending['alarms/s']:,.0f}/s, in {pending['set s']:.0f} s with the creation of their tasks "
            f"({pending['created s']:.0f} s); bare broker {pending['bare alarms/s']:,.0f}/s\n"
            f"memory        nats-server {pending['nats-server MB before']:,.0f} -> {pending['nats-server MB']:,.0f} MB"
            f", worker {pending['worker MB before']:,.0f} -> {pending['worker MB']:,.0f} MB\n"
        )
    console.print(
        f"{size.singly:,} alarms, one every {APART.total_seconds() * 1000:.0f} ms; ms after their time",
        _table(("", "min", "p50", "p99", "max"), [_lateness_row(one) for one in figures.lateness]),
    )
    console.print(
        f"{size.at_once:,} alarms at the same instant; s after it until the last",
        _table(
            ("", "rang", "command stored", "commands/s", "run ended", "runs/s"),
            [_burst_row(one) for one in figures.bursts],
        ),
    )
    if restart:
        console.print(
            f"kill -9 of broker and worker, both started again; {MEANWHILE} alarms were due meanwhile\n"
            f"broker        JetStream answers after {restart['JetStream answers']:.1f} s\n"
            f"worker        ready after {restart['worker ready']:.1f} s; first overdue run ended after "
            f"{restart['first overdue run']:.1f} s, last after {restart['last overdue run']:.1f} s\n"
            f"look          {restart['schedules']:,.0f} schedules and {restart['alarms']:,.0f} alarms in "
            f"{restart['look s']:.1f} s\n"
        )
    if purge:
        console.print(
            f"{purge['purged']:,.0f} alarms purged by hand: all set again {purge['set again s']:.1f} s after a start"
        )


def _lateness_row(one: Lateness) -> tuple[str, ...]:
    return (one.what, *(f"{value:.1f}" for value in (one.least, one.p50, one.p99, one.most)))


def _burst_row(one: Burst) -> tuple[str, ...]:
    rates = [_per(one.alarms, seconds) for seconds in (one.commands, one.ended)]
    return (one.what, _seconds(one.rung), _seconds(one.commands), rates[0], _seconds(one.ended), rates[1])


def _table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        table.add_row(*row)
    return table


def _seconds(value: float) -> str:
    return "" if value != value else f"{value:.2f}"  # noqa: PLR0124 - NaN


def _per(number: int, seconds: float) -> str:
    return "" if seconds != seconds else f"{number / seconds:,.0f}"  # noqa: PLR0124 - NaN


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _judge(figures: Figures, limit_ms: float) -> None:
    """Say what is wrong about the lateness."""
    for one in figures.lateness:
        if one.least < 0:
            figures.wrong.append(f"{one.what} {-one.least:.3f} ms before its time")
        if "command" in one.what and one.p99 > limit_ms:
            figures.wrong.append(f"{one.what} {one.p99:.0f} ms late at the 99th percentile; the limit is {limit_ms:g}")


def main(
    scale: Annotated[float, typer.Option(min=0.001, help="1: a hundred thousand pending alarms.")] = 1.0,
    fsync: Annotated[Fsync, typer.Option(help="Broker flushes before it acknowledges.")] = Fsync.ON,
    limit_ms: Annotated[float, typer.Option(help="How late the 99th percentile of the commands may be.")] = 500,
    json_path: Annotated[Path | None, typer.Option("--json", help="Where to put the numbers.")] = None,
) -> None:
    """Measure, and print what came of it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for name in [name for name in os.environ if name.startswith("RUNWIRE_")]:
        del os.environ[name]  # settings of the user's installation

    async def measure(stack: Stack) -> Figures:
        bus = Bus(stack.settings, "runwire benchmark")
        await bus.connect()
        benchmark = Benchmark(stack, bus, Size.of(scale))
        try:
            await benchmark.run()
        except ChildFailed as failure:  # what was measured before it still counts
            benchmark.figures.wrong.append(str(failure))
        await bus.nc.close()
        return benchmark.figures

    with tempfile.TemporaryDirectory(prefix="runwire-schedules-") as folder, Children() as children:
        stack = Stack(children, Path(folder), SYNC_INTERVALS[fsync])
        stack.start_broker()
        try:
            stack.wait_for_broker()
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                figures = runner.run(measure(stack))
        except ChildFailed as failure:
            sys.exit(f"benchmarks.schedules: {failure}")
    _judge(figures, limit_ms)
    console = Console(width=100)
    console.print(
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, {platform.machine()}, "
        f"Python {platform.python_version()}, fsync {fsync}\n"
    )
    report(console, figures)
    if json_path is not None:
        json_path.write_text(json.dumps(asdict(figures), indent=1) + "\n")
    for line in figures.wrong[:20]:
        print(f"wrong: {line}", file=sys.stderr)
    if figures.wrong:
        sys.exit(1)


if __name__ == "__main__":
    typer.run(main)
