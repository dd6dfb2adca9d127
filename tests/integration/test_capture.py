"""What actions print and log goes into the log of their run, into no other, and not without bounds."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

import runwire
from runwire.app import App
from runwire.messaging import codec
from runwire.messaging.broker import Bus
from runwire.settings import Settings
from runwire.worker import capture, runlog
from runwire.worker.vault import Vault
from tests.support import CHAIN, ended, make_task, publish_command, worker

LOG = logging.getLogger("someones.module")


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    (tmp_path / "canary").write_text("canary-Tr0ub4dor")
    return settings.model_copy(update={"secrets": tmp_path})


@dataclass
class Runs:
    """A worker that captures, for one task after the other."""

    bus: Bus
    app: App
    settings: Settings

    async def of(self, *actions: str) -> list[list[tuple[str, str]]]:
        """The lines of a run of each action, all at once."""
        vault = Vault(self.settings.secrets)
        with capture.installed(vault.conceal):
            async with worker(self.bus, self.app, self.settings, vault=vault):
                for task, action in enumerate(actions, start=1):
                    await make_task(self.bus, action, task=task)
                    await publish_command(self.bus, f"r{task}", task=task)
                for task in range(1, len(actions) + 1):
                    await ended(self.bus, f"r{task}", task=task)
        return [await lines_of(self.bus, task) for task in range(1, len(actions) + 1)]


@pytest.fixture
def runs(bus: Bus, app: App, settings: Settings) -> Runs:
    return Runs(bus, app, settings)


async def lines_of(bus: Bus, task: int = 1) -> list[tuple[str, str]]:
    """(level, message) of every line of the task, in order."""
    last = (await bus.js.stream_info("LOGS")).state.last_seq
    stored = [await bus.js.get_msg("LOGS", number) for number in range(1, last + 1)]
    entries = [codec.decode_log(line.data) for line in stored if line.subject == f"tasks.log.{CHAIN}.{task}"]
    return [(entry.level.value, entry.message) for entry in entries]


async def test_what_is_printed_and_logged_is_in_the_log(
    runs: Runs, app: App, capsys: pytest.CaptureFixture[str]
) -> None:
    @app.action("noisy")
    async def noisy(params: dict[str, object], ctx: runwire.Context) -> None:
        print("printed")
        print("to stderr", file=sys.stderr)
        LOG.debug("not asked for")
        LOG.info("logged %d", 1)
        LOG.warning("warned")
        try:
            [].pop()
        except IndexError:
            LOG.exception("went wrong")
        ctx.log("written")

    lines = (await runs.of("noisy"))[0]
    assert lines[:4] == [("info", "printed"), ("warning", "to stderr"), ("info", "logged 1"), ("warning", "warned")]
    assert lines[4][0] == "error"
    assert lines[4][1].startswith("went wrong\nTraceback")
    assert lines[5:] == [("info", "written")]
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


async def test_runs_at_the_same_time_are_told_apart(runs: Runs, app: App) -> None:
    together = threading.Barrier(4, timeout=20)

    @app.action("thread")
    def thread(params: dict[str, object], ctx: runwire.Context) -> None:
        together.wait()
        for number in range(20):
            print(ctx.task, end="")
            print("", number)
            LOG.info("%d logged", ctx.task)

    @app.action("coroutine")
    async def coroutine(params: dict[str, object], ctx: runwire.Context) -> None:
        async def child() -> None:
            for number in range(20):
                print(ctx.task, end="")
                await asyncio.sleep(0)
                print("", number)
            await asyncio.to_thread(LOG.info, "%d logged", ctx.task)

        await asyncio.to_thread(together.wait)
        await asyncio.create_task(child())

    for task, lines in enumerate(await runs.of("thread", "coroutine", "thread", "coroutine"), start=1):
        messages = [message for _, message in lines]
        assert [message for message in messages if "logged" not in message] == [f"{task} {n}" for n in range(20)]
        assert {message for message in messages if "logged" in message} == {f"{task} logged"}


async def test_what_is_outside_of_runs_goes_where_it_went(
    runs: Runs, bus: Bus, app: App, capsys: pytest.CaptureFixture[str]
) -> None:
    late, threads, loop = threading.Event(), [], asyncio.get_running_loop()

    @app.action("careless")
    def careless(params: dict[str, object], ctx: runwire.Context) -> None:
        canary = ctx.secret("canary")
        own = threading.Thread(target=print, args=(f"from a thread of its own: {canary}",))
        own.start()
        own.join()

        def after_the_end() -> None:
            late.wait(20)
            print(f"too late: {canary}")

        async def in_context() -> None:
            threads.append(asyncio.create_task(asyncio.to_thread(after_the_end)))

        asyncio.run_coroutine_threadsafe(in_context(), loop).result()
        logging.getLogger("runwire.bus").warning("about the worker")

    @app.action("afterwards")
    async def afterwards(params: dict[str, object], ctx: runwire.Context) -> None:
        await ended(bus, "r1")
        late.set()
        await asyncio.gather(*threads)

    careless_lines, other_lines = await runs.of("careless", "afterwards")
    assert (careless_lines, other_lines) == ([], [])
    assert capsys.readouterr().out == "from a thread of its own: ***\ntoo late: ***\n"


async def test_lines_come_whole_and_progress_bars_once(runs: Runs, app: App) -> None:
    @app.action("odd")
    async def odd(params: dict[str, object], ctx: runwire.Context) -> None:
        print("two\nlines", end="")
        print(" and", "a half", end="\r\n")
        for percent in range(101):
            print(f"\r{percent} %", end="")
        print()
        sys.stdout.buffer.write("caf\u00e9 \u2603".encode()[:-1])
        sys.stdout.buffer.write("\u2603".encode()[-1:] + b" \xff\n")
        print("x" * 10_000)
        print("\udcff")
        assert not sys.stdout.isatty()
        print("no end", end="")
        raise runwire.Fail("over")

    messages = [message for _, message in (await runs.of("odd"))[0]]
    assert messages[:4] == ["two", "lines and a half", "100 %", "caf\u00e9 \u2603 \ufffd"]
    assert messages[4] == "x" * 8000 + "... (2,000 characters cut off)"
    assert messages[5:] == ["?", "no end", "over: over"]


async def test_a_secret_that_a_cut_goes_through_is_hidden(runs: Runs, app: App) -> None:
    @app.action("cut")
    async def cut(params: dict[str, object], ctx: runwire.Context) -> None:
        canary = ctx.secret("canary")
        print("x" * (runlog.LONGEST_LINE - 10) + canary + "y" * 100)
        print("p", canary[:3], sep="", end="")
        print(canary[3:])

    first, second = [message for _, message in (await runs.of("cut"))[0]]
    assert "cana" not in first
    assert second == "p***"


async def test_too_many_lines_are_counted_and_those_of_ctx_are_kept(runs: Runs, app: App) -> None:
    @app.action("flood")
    def flood(params: dict[str, object], ctx: runwire.Context) -> None:
        for number in range(3000):
            print(number)
        print("many\n" * 10_000, end="")
        for number in range(10):
            LOG.info("logged %d", number)
        ctx.log("still heard")
        raise ValueError("at last")

    lines = (await runs.of("flood"))[0]
    assert [message for _, message in lines[:1001]] == [*map(str, range(1000)), "still heard"]
    assert lines[1001][1].startswith("Traceback")
    assert lines[1002] == ("error", "handler_error: ValueError: at last")
    assert lines[1003][1].startswith("12,010 further lines were dropped")
    assert len(lines) == 1004


async def test_long_lines_are_bounded_together(runs: Runs, app: App) -> None:
    @app.action("wide")
    def wide(params: dict[str, object], ctx: runwire.Context) -> None:
        for _ in range(500):
            print("x" * 7999)

    lines = (await runs.of("wide"))[0]
    assert sum(len(message) for _, message in lines) < runlog.CAPTURED_CHARACTERS + 10_000
    assert lines[-1][1].startswith(f"{500 - len(lines) + 1} further lines were dropped")


async def test_a_line_about_a_line_is_no_line(runs: Runs, bus: Bus, app: App) -> None:
    """A library that logs whatever it does, asked to do so by the sending of a line, would go on for ever."""
    chatty = logging.getLogger("chatty")
    publish = bus.js.publish

    async def tell_and_publish(*arguments: object, **options: object) -> object:
        chatty.warning("about to publish")
        return await publish(*arguments, **options)

    bus.js.publish = tell_and_publish

    @app.action("one")
    async def one(params: dict[str, object], ctx: runwire.Context) -> None:
        chatty.warning("one")
        ctx.progress(0.5)
        await asyncio.sleep(0.05)

    assert (await runs.of("one"))[0] == [("warning", "one")]


def test_everything_is_put_back(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = (sys.stdout, sys.stderr, sys.unraisablehook, root.level, list(root.handlers))
    with capture.installed(str):
        print("within")
        assert (sys.stdout, sys.stderr, sys.unraisablehook) != before[:3]
    assert (sys.stdout, sys.stderr, sys.unraisablehook, root.level, list(root.handlers)) == before
    assert capsys.readouterr().out == "within\n"


def test_the_levels_outside_of_runs_stay_as_they_were(capsys: pytest.CaptureFixture[str]) -> None:
    root, own = logging.getLogger(), logging.getLogger("with.a.level")
    handler = logging.StreamHandler(sys.stderr)
    root.addHandler(handler)
    own.setLevel(logging.DEBUG)
    try:
        with capture.installed(str):
            LOG.info("not before, not now")
            LOG.warning("as ever")
            own.debug("as it was asked for")
    finally:
        root.removeHandler(handler)
        own.setLevel(logging.NOTSET)
    assert capsys.readouterr().err == "as ever\nas it was asked for\n"
