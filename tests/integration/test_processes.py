"""Functions in processes of their own, with real processes: how they are called, how they end, that nothing stays."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from runwire.app import Action, Context
from runwire.domain.errors import Fail, Retry
from runwire.domain.task import LogLevel
from runwire.worker.processes import Captured, Processes, Raised
from tests.integration.process_actions import REFERENCE, app
from tests.support import child_pids, command_line, eventually, is_alive, pid_left

RESTLESS = """
import logging, subprocess, sys, threading, time
import runwire

logging.basicConfig(stream=sys.stderr)
threading.Thread(target=time.sleep, args=(60,), name="restless", daemon=True).start()
helper = subprocess.Popen(["/bin/sleep", "60"]).pid
app = runwire.App()

@app.action("nothing", process=True)
def nothing(params: dict, ctx: runwire.Context) -> dict:
    logging.warning("told once")
    return {"helper": helper}
"""
LARGEST = 1 << 20
DEADLINE = datetime(2026, 5, 26, 14, 35, tzinfo=UTC)


class Caller:
    """Calls actions, and keeps what they log."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.lines: list[tuple[LogLevel, str]] = []
        self.reports: list[tuple[float | None, str]] = []
        self.printed = 0
        self.asked: list[tuple[str, bool]] = []

    async def __call__(self, action: str, **parameters: Any) -> Any:
        context = Context(
            run_id="r1", attempt=2, deadline=DEADLINE, task=7, chain=1764, filters={"segment": "é"},
            traceparent="00-trace", tracestate="a=b",
            write_log=self.write,
            write_progress=lambda fraction, message: self.reports.append((fraction, message)),
            read_secret=self.secret,
        )  # fmt: skip
        captured = Captured(self.print, self.print, self.write)
        return await self.processes.call(app.actions[action], parameters, context, captured)

    def write(self, level: LogLevel, message: str) -> None:
        self.lines.append((level, message))

    def print(self, printed: bytes) -> None:
        self.printed += len(printed)

    def secret(self, name: str, own: bool) -> str:
        self.asked.append((name, own))
        if name == "none":
            raise Fail("unknown_secret", "There is none.")
        if name == "later":
            raise Retry("It cannot be read.", code="unknown_secret", after=1.5)
        return "hush é\n"


@asynccontextmanager
async def processes_of(reference: str) -> AsyncIterator[Processes]:
    processes = Processes(reference, largest_result=LARGEST)
    processes.start()
    try:
        yield processes
    finally:
        await processes.stop()


@pytest.fixture
async def call() -> AsyncIterator[Caller]:
    async with processes_of(REFERENCE) as processes:
        yield Caller(processes)


@pytest.mark.parametrize("action", ["plain", "coroutine"])
async def test_a_function_is_called_in_a_process_of_its_own(call: Caller, action: str) -> None:
    parameters = {"text": "é\n\0", "list": [1, 2.5, None, {}]}
    first, second = await call(action, **parameters), await call(action, **parameters)
    assert first["params"] == parameters
    assert first["context"] == ["r1", 2, DEADLINE.isoformat(), 7, 1764, {"segment": "é"}, False]
    assert first["trace"] == {"traceparent": "00-trace", "tracestate": "a=b"}
    assert len({first["pid"], second["pid"], os.getpid()}) == 3
    assert (first["leads"], first["stdin"]) == (True, "")
    assert len(first["files"]) <= 8, "stdin, stdout, stderr, the channel, and what asyncio and listdir open"
    assert not is_alive(first["pid"])


async def test_many_are_called_at_once(call: Caller) -> None:
    pids = {found["pid"] for found in await asyncio.gather(*(call("plain") for _ in range(20)))}
    assert len(pids) == 20


async def test_none_is_a_result(call: Caller) -> None:
    assert await call("nothing") is None


async def test_what_is_logged_arrives(call: Caller) -> None:
    await call("talk")
    assert sorted(call.lines) == [("info", "from a thread"), ("info", "recorded 1"), ("warning", "logged")]


async def test_progress_is_reported_now_and_then_and_in_the_end(call: Caller) -> None:
    await call("report")
    assert call.reports[0] == (0.0, "row 0")
    assert call.reports[-1] == (1.0, "row 10000")
    assert len(call.reports) < 100


async def test_a_report_is_not_held_back_for_long(call: Caller, tmp_path: Path) -> None:
    running = asyncio.create_task(call("held_back", folder=str(tmp_path)))
    await eventually(lambda: call.reports == [(0.25, "begun"), (0.5, "half")])
    (tmp_path / "seen").touch()
    await running


async def test_secrets_are_asked_for(call: Caller) -> None:
    assert await call("secrets", method="secret", name="key") == {"length": 7, "value": "hush é\n"}
    await call("secrets", method="chain_secret", name="key")
    assert call.asked == [("key", False), ("key", True)]
    with pytest.raises(Fail, match="There is none") as failed:
        await call("secrets", method="secret", name="none")
    assert failed.value.code == "unknown_secret"
    with pytest.raises(Retry, match="It cannot be read") as retried:
        await call("secrets", method="secret", name="later")
    assert (retried.value.code, retried.value.after) == ("unknown_secret", 1.5)
    with pytest.raises(Raised, match="TypeError: the name of a secret must be str, not int"):
        await call("secrets", method="secret", name=1)


async def test_a_result_is_as_large_as_can_be_kept_and_no_larger(call: Caller) -> None:
    assert len((await call("large", size=LARGEST - 11))["text"]) == LARGEST - 11
    with pytest.raises(Fail, match="1,048,577 bytes; at most 1,048,576") as raised:
        await call("large", size=LARGEST - 10)
    assert raised.value.code == "result_too_large"


async def test_output_without_end_does_not_fill_the_memory(call: Caller) -> None:
    before = resident()
    await call("flood", megabytes=300)
    assert call.printed == 300 << 20
    assert resident() - before < 48 << 20


def resident() -> int:
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_fail_and_retry_come_back_as_such(call: Caller) -> None:
    with pytest.raises(Fail, match="never heard of it") as failed:
        await call("crash", how="fail")
    assert failed.value.code == "no_such_month"
    with pytest.raises(Retry, match="later") as retried:
        await call("crash", how="retry")
    assert (retried.value.code, retried.value.after) == ("handler_error", 2.5)


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("raise", "ValueError: café ?"),
        ("recursion", "RecursionError: maximum recursion depth exceeded"),
        ("interrupt", "KeyboardInterrupt: "),
        ("sys.exit", "SystemExit: 3"),
    ],
)
async def test_what_a_function_raises_comes_back_as_text(call: Caller, how: str, text: str) -> None:
    with pytest.raises(Raised) as raised:
        await call("crash", how=how)
    assert str(raised.value) == text
    assert 'process_actions.py", line' in raised.value.traceback
    assert await call("nothing") is None


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("exit 0", "The process ended with status 0 without an answer."),
        ("exit 3", "The process ended with status 3 without an answer."),
        ("segfault", "The process was killed by SIGSEGV."),
        ("abort", "The process was killed by SIGABRT."),
        ("kill", "The process was killed by SIGKILL."),
        ("close", "The process ended with status 0 without an answer."),
        ("close and stay", "The process was killed, since it had closed its connection to the worker."),
    ],
)
async def test_a_process_that_ends_without_an_answer_was_killed(call: Caller, how: str, message: str) -> None:
    with pytest.raises(Retry) as raised:
        await call("crash", how=how)
    assert (raised.value.code, str(raised.value)) == ("killed", message)
    assert await call("nothing") is None


async def test_memory_is_limited_beyond_what_the_app_takes(call: Caller) -> None:
    assert await call("exhaust", megabytes=50) == {"megabytes": 50}
    with pytest.raises(Raised, match="MemoryError: it may take 100 MB of memory"):
        await call("exhaust", megabytes=300)
    assert await call("exhaust", megabytes=50) == {"megabytes": 50}


async def test_a_result_that_is_no_json_is_an_error(call: Caller) -> None:
    with pytest.raises(Fail) as raised:
        await call("odd", object=True)
    assert raised.value.code == "invalid_result"
    assert await call("odd") == ["a", "list"], "which the worker refuses as it does any other"


async def test_a_child_that_comes_back_from_the_function_is_not_heard(call: Caller) -> None:
    assert await call("comeback") == {"who": "parent"}


async def test_parameters_are_validated_in_the_process(call: Caller) -> None:
    with pytest.raises(Raised, match=r"ValidationError: .*\nfolder"):
        await call("endless", folder=3)


# --- nothing stays ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "names"),
    [("endless", ["endless"]), ("deaf", ["deaf"]), ("family", ["parent", "child", "escaped", "bare"])],
)
async def test_a_call_that_is_cancelled_ends_with_everything_it_started(
    call: Caller, tmp_path: Path, action: str, names: list[str]
) -> None:
    running = asyncio.create_task(call(action, folder=str(tmp_path)))
    pids = [await pid_left(tmp_path, name) for name in names]
    assert all(map(is_alive, pids))
    began = time.monotonic()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not is_alive(pids[0])
    await eventually(lambda: not any(map(is_alive, pids)), within=1)
    assert time.monotonic() - began < 1


async def test_a_call_that_is_cancelled_before_it_runs_never_does(call: Caller, tmp_path: Path) -> None:
    running = asyncio.create_task(call("endless", folder=str(tmp_path)))
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await call("nothing") is None
    assert not await asyncio.to_thread(os.listdir, tmp_path)


async def test_what_a_function_leaves_behind_is_killed(call: Caller, tmp_path: Path) -> None:
    await call("leave", folder=str(tmp_path))
    pids = [await pid_left(tmp_path, name) for name in ("child", "escaped")]
    await eventually(lambda: not any(map(is_alive, pids)), within=1)


async def test_the_end_of_one_call_takes_nothing_from_another(call: Caller, tmp_path: Path) -> None:
    running = asyncio.create_task(call("family", folder=str(tmp_path)))
    pids = [await pid_left(tmp_path, name) for name in ("parent", "child", "escaped", "bare")]
    with pytest.raises(Retry):
        await call("crash", how="kill")
    assert await call("nothing") is None
    assert all(map(is_alive, pids))
    running.cancel()
    await asyncio.wait({running})
    await eventually(lambda: not any(map(is_alive, pids)), within=1)


# --- the process they are forked from --------------------------------------------------------------------


def zygote() -> int:
    (pid,) = [pid for pid in child_pids(os.getpid()) if "runwire.worker.zygote" in command_line(pid) and is_alive(pid)]
    return pid


async def test_a_zygote_that_was_killed_takes_its_calls_along_and_is_replaced(call: Caller, tmp_path: Path) -> None:
    running = asyncio.create_task(call("endless", folder=str(tmp_path)))
    pid = await pid_left(tmp_path, "endless")
    os.kill(zygote(), signal.SIGKILL)
    with pytest.raises(Retry, match="the one that it was forked from has ended") as raised:
        await running
    assert raised.value.code == "killed"
    await eventually(lambda: not is_alive(pid), within=1)
    assert await call("nothing") is None


async def test_stopping_ends_all_of_it(tmp_path: Path) -> None:
    async with processes_of(REFERENCE) as processes:
        running = asyncio.create_task(Caller(processes)("family", folder=str(tmp_path)))
        pids = [await pid_left(tmp_path, name) for name in ("parent", "child", "escaped", "bare")]
        pids.append(zygote())
    assert not any(map(is_alive, pids))
    with pytest.raises(Retry):
        await running


async def test_signals_for_everybody_are_left_to_the_worker(call: Caller) -> None:
    await call("nothing")
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(zygote(), number)
    before = zygote()
    assert await call("nothing") is None
    assert zygote() == before


async def test_an_app_that_cannot_be_loaded_is_told_by_each_call() -> None:
    async with processes_of("tests.integration.nowhere:app") as processes:
        call = Caller(processes)
        for _ in range(2):
            with pytest.raises(Retry, match=r"could not be started: --app tests\.integration\.nowhere:app: M") as told:
                await call("nothing")
            assert told.value.code == "not_started"


async def test_what_the_app_starts_when_it_is_imported_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "restless.py").write_text(RESTLESS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    async with processes_of("restless:app") as processes:
        call = Caller(processes)
        action = Action("nothing", app.actions["nothing"].parameters, app.actions["nothing"].handler, function=print)
        context = Context(run_id="r1", attempt=1, deadline=DEADLINE, task=7, chain=1764)
        captured = Captured(call.print, call.print, call.write)
        for _ in range(2):
            helper = (await processes.call(action, {}, context, captured))["helper"]
            assert is_alive(helper)
    os.kill(helper, signal.SIGKILL)
    assert call.lines == [("warning", "told once")] * 2
    assert call.printed == 0
    assert "threads that the app starts when it is imported (restless)" in caplog.text


async def test_an_app_that_lacks_the_action_is_told(call: Caller) -> None:
    action = Action("elsewhere", app.actions["nothing"].parameters, app.actions["nothing"].handler, function=print)
    context = Context(run_id="r1", attempt=1, deadline=DEADLINE, task=7, chain=1764)
    with pytest.raises(Retry, match="no action 'elsewhere' with process=True") as told:
        await call.processes.call(action, {}, context, Captured(call.print, call.print, call.write))
    assert told.value.code == "not_started"
