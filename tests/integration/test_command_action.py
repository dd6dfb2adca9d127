"""The action `command` with real workers and processes: what is run, how it ends, that nothing is left of it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runwire.app import App
from runwire.domain.lifecycle import Change, Document
from runwire.domain.task import LogLevel
from runwire.messaging.broker import Bus
from runwire.settings import Settings
from tests.support import (
    CHAIN,
    Broker,
    Runwire,
    adapter,
    ended,
    eventually,
    history,
    is_alive,
    log_of,
    make_task,
    publish_command,
    worker,
)

PRELUDE = """
import json, os, signal, sys, time

def leave(name):
    with open(os.path.join(FOLDER, name + ".tmp"), "w") as file:
        file.write(str(os.getpid()))
    os.rename(os.path.join(FOLDER, name + ".tmp"), os.path.join(FOLDER, name))

def wait_for(name):
    while not os.path.exists(os.path.join(FOLDER, name)):
        time.sleep(0.01)

"""
"""What every script begins with: how it leaves its process id."""
FAMILY = """
if os.fork() == 0:
    leave("grandchild")
    time.sleep(60)
    os._exit(0)
leave("child")
time.sleep(60)
"""
ESCAPE = """
for name in ("one", "two"):
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        leave(name)
        time.sleep(60)
leave("child")
time.sleep(60)
"""
DAEMON = """
if os.fork() == 0:
    os.setsid()
    leave("daemon")
    time.sleep(60)
wait_for("daemon")
"""
BACKGROUND = """
if os.fork() == 0:
    os.close(1)
    os.close(2)
    leave("background")
    time.sleep(60)
wait_for("background")
"""
POLITE = """
def end(*_):
    print("bye")
    sys.exit()

signal.signal(signal.SIGTERM, end)
time.sleep(60)
"""
QUIET = """
os.write(1, b"last words")
os.close(1)
os.close(2)
time.sleep(1.5)
os._exit(7)
"""
FLOOD = """
block = (b"y" * 79 + b"\\n") * 800
for _ in range(16384):
    os.write(1, block)
os.write(2, b"the end")
"""
FLAKY = """
attempt = os.environ["RUNWIRE_ATTEMPT"]
print("attempt", attempt)
sys.exit({"1": 75, "2": 3}[attempt])
"""
SURROUNDINGS = """
print(json.dumps([dict(os.environ), os.getcwd(), os.listdir(), os.getsid(0) == os.getpid()]))
"""
LARGE_FILE = """
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
open("f", "wb").write(bytes(2 << 20))
"""


class Commands:
    """A list of commands that are Python scripts, and the folder where they leave their process ids."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "commands.toml"
        self.path.touch(0o644)

    def add(self, name: str, script: str, *arguments: str, **table: Any) -> None:
        file = self.folder / f"{name}.py"
        file.write_text(f"FOLDER = {str(self.folder)!r}\n{PRELUDE}{script}")
        argv = [sys.executable, "-I", "-S", str(file), *arguments]
        with self.path.open("a") as out:
            out.write(f"[{name}]\n" + "".join(f"{k} = {toml(v)}\n" for k, v in {"argv": argv, **table}.items()))

    async def pid(self, name: str) -> int:
        """The process id that a process has left under this name."""
        await eventually((self.folder / name).exists)
        return int((self.folder / name).read_text())


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    return Commands(tmp_path)


@pytest.fixture
def settings(base_settings: Settings, broker: Broker, commands: Commands) -> Settings:
    return base_settings.model_copy(update={"nats_url": broker.url, "commands": commands.path})


@pytest.fixture(autouse=True)
def no_process_is_left(commands: Commands) -> Iterator[None]:
    """Whatever a test is about: of the processes that left their ids none is alive when it is over."""
    yield
    deadline = time.monotonic() + 5
    for file in commands.folder.iterdir():
        if file.is_file() and not file.suffix and file.read_text().isdigit():
            while is_alive(int(file.read_text())):
                assert time.monotonic() < deadline, f"{file.name} is still alive"
                time.sleep(0.01)


async def run(bus: Bus, app: App, settings: Settings, name: str, **fields: Any) -> Document:
    """How a run of this command ends."""
    await make_task(bus, "command", command=name, **fields)
    async with worker(bus, app, settings):
        await publish_command(bus, "r1")
        return await ended(bus, "r1", within=50)


async def test_a_command_that_succeeds(bus: Bus, app: App, settings: Settings, commands: Commands) -> None:
    commands.add("hello", "print('Hello'); print('careful', file=sys.stderr)")
    document = await run(bus, app, settings, "hello")
    assert document.run.error is None
    assert document.run.result["exit"] == 0
    assert 0 < document.run.result["seconds"] < 10
    lines = [(line.level, line.message) for line in await log_of(bus)]
    assert sorted(lines) == [(LogLevel.INFO, "Hello"), (LogLevel.WARNING, "careful")]


async def test_arguments_arrive_as_they_are_each_in_its_own_element(
    bus: Bus, app: App, settings: Settings, commands: Commands
) -> None:
    nasty = ["; id", "$(id)", "`id`", "a b\tc\n", "* ~ $HOME", "'\"\\", "", "é&|<>", "%s{b}"]
    names = [f"p{number}" for number in range(len(nasty))]
    commands.add(
        "show",
        "print(json.dumps(sys.argv[1:]))",
        *(f"{{{name}}}" for name in names),
        "--all={p0}{p1}",
        parameters={name: {} for name in names},
        result="json",
    )
    document = await run(bus, app, settings, "show", arguments=dict(zip(names, nasty, strict=True)))
    assert document.run.result["output"] == [*nasty, "--all=; id$(id)"]


async def test_the_environment_is_the_lists_and_the_runs_and_nothing_else(
    bus: Bus, app: App, settings: Settings, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "canary")
    commands.add("show", SURROUNDINGS, env={"COLOUR": "blue", "LANG": "C"}, result="json")
    document = await run(bus, app, settings, "show", timeout=60)
    environment, cwd, files, leads = document.run.result["output"]
    environment.pop("LC_CTYPE", None)  # Python's own doing (PEP 538)
    deadline = environment.pop("RUNWIRE_DEADLINE")
    assert re.fullmatch("[0-9a-f]{32}", environment.pop("RUNWIRE_MARK"))
    assert environment == {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C",
        "COLOUR": "blue",
        "RUNWIRE_RUN_ID": "r1",
        "RUNWIRE_TASK": "1",
        "RUNWIRE_CHAIN": str(CHAIN),
        "RUNWIRE_ATTEMPT": "1",
    }
    assert deadline.startswith("20")
    assert deadline.endswith("Z")
    assert (files, leads) == ([], True)
    left = await asyncio.to_thread(Path(cwd).exists)
    assert not left, "its directory goes with it"


@pytest.mark.parametrize(
    ("fields", "code", "says"),
    [
        ({"command": "/bin/sh"}, "unknown_command", "There is no command '/bin/sh' for this chain."),
        ({"command": "foreign"}, "unknown_command", "There is no command 'foreign' for this chain."),
        ({"command": "show"}, "invalid_parameters", "/target/arguments/it: is required"),
        ({"command": "show", "arguments": {"it": "--version"}}, "invalid_parameters", "begin with a dash"),
        ({"command": "show", "arguments": {"it": "a\0b"}}, "invalid_parameters", "without NUL"),
        ({"command": "show", "arguments": {"it": "x" * 10_001}}, "invalid_parameters", "at most 10000 characters"),
        ({"command": "show", "arguments": ["it"]}, "invalid_parameters", "/target/arguments: "),
        ({"command": "show", "arguments": {"it": "x"}, "shell": True}, "invalid_parameters", "/target/shell: "),
    ],
)
async def test_what_is_not_on_the_list_is_not_run(
    bus: Bus, app: App, settings: Settings, commands: Commands, fields: dict[str, Any], code: str, says: str
) -> None:
    commands.add("foreign", "leave('foreign')", chains=[CHAIN + 1])
    commands.add("show", "leave('show')", "{it}", parameters={"it": {"max_length": 10_000}})
    name = fields.pop("command")
    document = await run(bus, app, settings, name, **fields)
    assert document.run.error.code == code
    assert says in document.run.error.message
    assert not [name for name in ("foreign", "show") if (commands.folder / name).exists()]


@pytest.mark.parametrize(
    ("script", "code", "message"),
    [
        ("print('no such month', file=sys.stderr); sys.exit(3)", "exit_status",
         "The command ended with status 3: no such month"),
        ("raise SystemExit(4)", "exit_status", "The command ended with status 4."),
        ("import os, sys; os.write(2, b'caf\\xe9\\n'); sys.exit(1)", "exit_status",
         "The command ended with status 1: caf\ufffd"),
        ("os.kill(os.getpid(), 9)", "killed", "The command was killed by SIGKILL."),
        ("os.kill(os.getpid(), 40)", "killed", "The command was killed by signal 40."),
    ],
)  # fmt: skip
async def test_how_a_command_can_fail(
    bus: Bus, app: App, settings: Settings, commands: Commands, script: str, code: str, message: str
) -> None:
    commands.add("it", script)
    document = await run(bus, app, settings, "it")
    assert (document.run.error.code, document.run.error.message) == (code, message)


async def test_a_status_can_be_declared_a_success(bus: Bus, app: App, settings: Settings, commands: Commands) -> None:
    commands.add("diff", "raise SystemExit(1)", success=[0, 1])
    assert (await run(bus, app, settings, "diff")).run.result["exit"] == 1


async def test_a_status_can_ask_for_another_try(bus: Bus, app: App, settings: Settings, commands: Commands) -> None:
    commands.add("flaky", FLAKY, retry=[75])
    document = await run(bus, app, settings, "flaky", retry={"attempts": 5, "backoff": 0, "on": ["exit_status"]})
    assert (document.run.attempt, document.run.error.code) == (2, "exit_status")
    lines = [line.message for line in await log_of(bus) if line.level == LogLevel.INFO]
    assert lines == ["attempt 1", "attempt 2 begins in 0.0 s", "attempt 2"]


async def test_a_program_that_has_gone_since_the_start_is_an_error(
    bus: Bus, app: App, settings: Settings, commands: Commands, tmp_path: Path
) -> None:
    program = tmp_path / "program.sh"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    commands.path.write_text(f'[gone]\nargv = ["{program}"]\n')
    await make_task(bus, "command", command="gone")
    async with worker(bus, app, settings):
        program.unlink()
        await publish_command(bus, "r1")
        error = (await ended(bus, "r1")).run.error
    assert (error.code, error.message) == (
        "not_started",
        "The command could not be started: No such file or directory.",
    )


@pytest.mark.parametrize(
    ("printed", "code"),
    [
        ("print('done')", "invalid_result"),
        ("print('NaN')", "invalid_result"),
        ("print('[' * 50000)", "invalid_result"),
        ("pass", "invalid_result"),
        ("print('\"' + 'x' * 100000 + '\"')", "result_too_large"),
    ],
)
async def test_a_result_that_is_no_json_is_an_error(
    bus: Bus, app: App, settings: Settings, commands: Commands, printed: str, code: str
) -> None:
    commands.add("it", printed, result="json")
    assert (await run(bus, app, settings, "it")).run.error.code == code


async def test_a_timeout_ends_the_whole_group(bus: Bus, app: App, settings: Settings, commands: Commands) -> None:
    commands.add("family", FAMILY)
    document = await run(bus, app, settings, "family", timeout=1)
    assert document.run.error.code == "timeout"
    assert not is_alive(await commands.pid("child"))
    assert not is_alive(await commands.pid("grandchild"))


async def test_a_command_may_clean_up_when_it_is_told_to_stop(
    bus: Bus, app: App, settings: Settings, commands: Commands
) -> None:
    commands.add("polite", POLITE)
    document = await run(bus, app, settings, "polite", timeout=1)
    assert document.run.error.code == "timeout"
    assert (await log_of(bus))[0].message == "bye"


async def test_a_command_that_does_not_listen_is_killed_after_its_grace(
    bus: Bus, app: App, settings: Settings, commands: Commands
) -> None:
    commands.add("deaf", "signal.signal(15, signal.SIG_IGN); leave('deaf'); time.sleep(60)", grace=0.3)
    document = await run(bus, app, settings, "deaf", timeout=1)
    assert document.run.error.code == "timeout"
    assert not is_alive(await commands.pid("deaf"))


async def test_a_cancel_stops_it_within_a_second(bus: Bus, app: App, settings: Settings, commands: Commands) -> None:
    commands.add("family", FAMILY)
    await make_task(bus, "command", command="family")
    async with adapter(settings) as http, worker(bus, app, settings):
        await publish_command(bus, "r1")
        pids = [await commands.pid("child"), await commands.pid("grandchild")]
        await eventually(lambda: has_appeared(http))
        began = time.monotonic()
        assert (await http.post("/tasks/1/cancel")).json()["code"] == "ERROR"
        await eventually(lambda: not any(map(is_alive, pids)))
        assert time.monotonic() - began < 1
        assert (await ended(bus, "r1")).run.error.code == "cancelled"


async def has_appeared(http: Any) -> bool:
    answer = await http.get("/tasks/1")
    return answer.status_code == 200 and answer.json()["state"]["code"] == "INPROGRESS"


async def test_processes_that_escape_into_sessions_of_their_own_are_stopped_too(
    bus: Bus, app: App, settings: Settings, commands: Commands
) -> None:
    commands.add("escape", ESCAPE)
    document = await run(bus, app, settings, "escape", timeout=1)
    assert document.run.error.code == "timeout"
    await eventually(lambda: not any(is_alive(int((commands.folder / n).read_text())) for n in ("one", "two", "child")))


async def test_a_daemon_that_holds_the_output_open_does_not_hold_up_the_run(
    bus: Bus, app: App, settings: Settings, commands: Commands
) -> None:
    commands.add("daemon", DAEMON)
    began = time.monotonic()
    document = await run(bus, app, settings, "daemon")
    assert document.run.result["exit"] == 0
    assert time.monotonic() - began < 5
    assert not is_alive(await commands.pid("daemon"))


async def test_a_background_process_ends_with_its_command(
    bus: Bus, app: App, settings: Settings, commands: Commands
) -> None:
    commands.add("background", BACKGROUND)
    assert (await run(bus, app, settings, "background")).run.result["exit"] == 0
    await eventually(lambda: not is_alive(int((commands.folder / "background").read_text())))


async def test_a_command_that_closes_its_output_may_go_on(
    bus: Bus, app: App, settings: Settings, commands: Commands
) -> None:
    commands.add("quiet", QUIET)
    document = await run(bus, app, settings, "quiet")
    assert document.run.error.message == "The command ended with status 7."
    assert (await log_of(bus))[0].message == "last words"


@pytest.mark.parametrize(
    ("limits", "script", "says"),
    [
        ({"memory": 200}, "x = bytearray(300 << 20)", "status 1: MemoryError"),
        ({"cpu": 1}, "while True: pass", "killed by SIGXCPU: it may use 1 s of CPU"),
        ({"file_size": 1}, LARGE_FILE, "killed by SIGXFSZ: a file may have 1 MB"),
        ({"open_files": 10}, "files = [open('/dev/null') for _ in range(20)]", "Too many open files"),
        ({"memory": 200}, "os.kill(os.getpid(), 11)", "killed by SIGSEGV; it may use 200 MB of memory"),
    ],
)  # fmt: skip
async def test_a_command_cannot_use_more_than_its_limits(
    bus: Bus, app: App, settings: Settings, commands: Commands, limits: dict[str, int], script: str, says: str
) -> None:
    commands.add("greedy", script, limits=limits)
    document = await run(bus, app, settings, "greedy")
    assert says in document.run.error.message


async def test_a_gigabyte_of_output_neither_fills_the_memory_nor_stops_the_worker(
    bus: Bus, app: App, settings: Settings, commands: Commands
) -> None:
    commands.add("flood", FLOOD)
    lags: list[float] = []

    async def look_at_the_loop() -> None:
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.01)
            lags.append(time.monotonic() - began)

    looking = asyncio.create_task(look_at_the_loop())
    before = resident()
    document = await run(bus, app, settings, "flood")
    looking.cancel()
    assert document.run.result["exit"] == 0
    assert document.run.result["seconds"] < 30
    assert resident() - before < 64 << 20
    assert max(lags) < 1
    lines = [line.message for line in await log_of(bus)]
    assert len(lines) == 1000 + 1 + 1 + 50
    assert "13,106,150 lines of stdout are left out" in lines
    assert "the end" in lines


def resident() -> int:
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_a_line_without_an_end_is_cut(bus: Bus, app: App, settings: Settings, commands: Commands) -> None:
    commands.add("endless", "for _ in range(100): os.write(1, b'x' * 1000000)")
    assert (await run(bus, app, settings, "endless")).run.result["exit"] == 0
    (line,) = await log_of(bus)
    assert line.message == "x" * 4000 + "... (99,996,000 bytes cut off)"


def worker_process(broker: Broker, commands: Commands, **env: str) -> Runwire:
    return Runwire(
        "worker",
        cwd=commands.folder,
        RUNWIRE_NATS_URL=broker.url,
        RUNWIRE_STORE_BYTES=str(128 << 20),
        RUNWIRE_ACK_WAIT="1",
        RUNWIRE_GRACE_SECONDS="0.2",
        RUNWIRE_COMMANDS=str(commands.path),
        **env,
    )


async def test_a_program_dies_with_its_worker(bus: Bus, broker: Broker, commands: Commands) -> None:
    commands.add("long", "leave('child'); time.sleep(60)")
    await make_task(bus, "command", command="long")
    process = worker_process(broker, commands)
    try:
        await publish_command(bus, "r1")
        pid = await commands.pid("child")
        process.kill()
        await eventually(lambda: not is_alive(pid), within=2)
    finally:
        process.kill()


async def test_a_worker_that_is_stopped_stops_its_commands_and_hands_back_their_runs(
    bus: Bus, broker: Broker, commands: Commands
) -> None:
    commands.add("family", FAMILY)
    await make_task(bus, "command", command="family")
    process = worker_process(broker, commands)
    try:
        await publish_command(bus, "r1")
        pids = [await commands.pid("child"), await commands.pid("grandchild")]
        await process.stop(within=8)
        assert not any(map(is_alive, pids))
        assert (await history(bus))[-1].change is Change.RELEASED
    finally:
        process.kill()


async def test_a_worker_process_runs_commands_and_stops_them_when_they_are_cancelled(
    bus: Bus, settings: Settings, broker: Broker, commands: Commands
) -> None:
    """As users start it: with uvloop."""
    commands.add("hello", "print('Hello'); print('careful', file=sys.stderr); sys.exit(3)")
    commands.add("family", FAMILY)
    await make_task(bus, "command", command="hello", task=2)
    await make_task(bus, "command", command="family")
    process = worker_process(broker, commands)
    try:
        await publish_command(bus, "r2", task=2)
        assert (await ended(bus, "r2", task=2)).run.error.message == "The command ended with status 3: careful"
        async with adapter(settings) as http:
            await publish_command(bus, "r1")
            pids = [await commands.pid("child"), await commands.pid("grandchild")]
            await eventually(lambda: has_appeared(http))
            assert (await http.post("/tasks/1/cancel")).status_code == 200
            await eventually(lambda: not any(map(is_alive, pids)), within=1)
    finally:
        process.kill()


async def test_a_worker_with_a_wrong_list_does_not_start(broker: Broker, commands: Commands) -> None:
    commands.path.write_text('[x]\nargv = ["echo"]\n')
    process = worker_process(broker, commands)
    try:
        await process.says("x.argv: must begin with the absolute path of a program")
        assert await eventually(process.process.poll) == 78
        assert len(process.output.splitlines()) == 1
    finally:
        process.kill()
