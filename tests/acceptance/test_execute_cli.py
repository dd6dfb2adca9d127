"""`runwire task execute` and `runwire events` as a person types them, and as a script does, against a running `up`."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from runwire import cli_execute
from runwire.cli import cli
from tests.acceptance.test_token_cli import on
from tests.acceptance.test_up import APP, Running, running
from tests.support import TOKEN, eventually, free_port


class Shown:
    """A `runwire` command that goes on by itself, and what it has printed so far."""

    def __init__(self, service: Running, *arguments: str, terminal: bool = False) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RUNWIRE_")}
        self._ours, theirs = pty.openpty() if terminal else os.pipe()
        if terminal:
            fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        os.set_blocking(self._ours, False)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "runwire", *arguments],
            cwd=service.cwd, env={**clean, **service.env, "TERM": "xterm"}, stdin=subprocess.DEVNULL, stdout=theirs,
            stderr=theirs if terminal else subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self._raw = b""

    @property
    def text(self) -> str:
        try:
            while piece := os.read(self._ours, 65_536):
                self._raw += piece
        except OSError:  # nothing more now, or for ever
            pass
        return self._raw.decode()

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    async def says(self, text: str) -> None:
        await eventually(lambda: text in self.text, what=f"it says {text!r}")

    async def ends(self) -> int:
        await eventually(lambda: self.process.poll() is not None, what="the command ended")
        return self.process.returncode

    async def interrupted(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return await self.ends()

    @property
    def complaint(self) -> str:
        return self.process.stderr.read()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stderr is not None:
            self.process.stderr.close()
        os.close(self._ours)


@asynccontextmanager
async def shown(service: Running, *arguments: str, terminal: bool = False) -> AsyncIterator[Shown]:
    command = Shown(service, *arguments, terminal=terminal)
    try:
        yield command
    finally:
        command.close()


async def create(service: Running, action: str, desc: str = "", **fields: Any) -> str:
    body = {"chain": 1764, "desc": desc, "target": {"action": action, **fields}, "trigger": {}}
    answer = await service.http.post("/tasks", json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def without_times(lines: list[str]) -> list[str]:
    return [re.sub(r"^\d\d:\d\d:\d\d  ", "", line) for line in lines]


async def test_the_exit_status_says_what_became_of_the_run(tmp_path: Path) -> None:
    async with running(tmp_path, "--app", APP) as service:
        runwire = on(service)
        good, bad = await create(service, "sleep", seconds=0), await create(service, "probe", file="/no/where")
        slow = await create(service, "walk", gate=str(tmp_path / "gate"))

        done = runwire("task", "execute", good)
        assert (done.returncode, done.stderr) == (0, "")
        assert re.fullmatch(r'DONE  run \S+  \d+\.\d s\n\{"slept": 0\.0\}\n', done.stdout)
        told = json.loads(runwire("task", "execute", good, "--key", "k", "--json").stdout)
        assert (told["task"], told["code"], told["result"], told["error"]) == (int(good), "DONE", {"slept": 0.0}, None)
        again = json.loads(runwire("task", "execute", good, "--key", "k", "--json").stdout)
        assert again == told

        failed = runwire("task", "execute", bad)
        assert (failed.returncode, failed.stderr) == (1, "")
        assert re.fullmatch(r"ERROR  run \S+  \d+\.\d s\nhandler_error: .*No such file.*\n", failed.stdout)

        refused = runwire("task", "execute", "4711")
        assert (refused.returncode, refused.stdout, refused.stderr) == (4, "", "runwire: There is no task 4711.\n")

        unfinished = runwire("task", "execute", slow, "--wait", "0.2", "--json")
        assert unfinished.returncode == 3
        run = json.loads(unfinished.stdout)
        assert (run["code"] in {"READY", "INPROGRESS"}, run["finished"]) == (True, None)
        assert unfinished.stderr.splitlines() == [
            "runwire: not finished within 0.2 s",
            "The run goes on. To end it:",
            f"  runwire task cancel {slow} --run {run['run']}",
        ]
        busy = runwire("task", "execute", slow)
        assert (busy.returncode, busy.stdout) == (4, "")
        assert run["run"] in busy.stderr
        assert runwire("task", "execute", slow, "--if-running", "queue", "--wait", "1").returncode == 4
        (tmp_path / "gate").touch()
        joined = runwire("task", "execute", slow, "--if-running", "join", "--json")
        assert json.loads(joined.stdout)["result"] == {"at": "home"}


def test_an_adapter_that_does_not_answer_is_not_known_to_have_refused(monkeypatch: Any) -> None:
    monkeypatch.setattr(cli_execute, "PATIENCE", 0.2)
    url = f"http://127.0.0.1:{free_port()}"
    done = CliRunner().invoke(cli, ["task", "execute", "1", "--url", url], env={"RUNWIRE_TOKEN": TOKEN})
    assert (done.exit_code, done.stdout) == (3, "")
    trying, given_up, *rest = done.stderr.splitlines()
    assert trying.startswith(f"runwire: no answer from {url}: ")
    assert trying == given_up + "; trying again"
    assert rest == ["It is not known whether there is a run. To end it:", "  runwire task cancel 1"]


async def test_a_run_is_followed_line_by_line_in_a_pipe(tmp_path: Path) -> None:
    async with running(tmp_path, "--app", APP) as service:
        task = await create(service, "walk", gate=str(tmp_path / "gate"))
        join = ("--if-running", "join")
        async with (
            shown(service, "task", "execute", task, "--follow", *join) as first,
            shown(service, "task", "execute", task, "--follow", "--json", *join) as second,
        ):
            await first.says("at the gate")
            await second.says("at the gate")
            (tmp_path / "gate").touch()
            assert (await first.ends(), await second.ends()) == (0, 0)
            run = json.loads(second.lines[-1])["run"]
            heading, *lines, end, value = first.lines
            assert heading == f"run {run}"
            assert without_times(lines)[-1] == "warning  through the ?[31mgate"
            assert sorted(without_times(lines)[:-1]) == ["50 % at the gate", "setting out", "started"]
            assert re.fullmatch(rf"DONE  run {run}  \d+\.\d s", end)
            assert value == '{"at": "home"}'
            documents = [json.loads(line) for line in second.lines]
            assert {document["event"] for document in documents[:-1]} == {"task.state", "task.log", "task.progress"}
            assert (documents[-1]["event"], documents[-1]["result"]) == ("result", {"at": "home"})


async def test_ctrl_c_ends_the_looking_and_not_the_run(tmp_path: Path) -> None:
    async with running(tmp_path, "--app", APP) as service:
        task = await create(service, "walk", gate=str(tmp_path / "gate"))
        async with shown(service, "task", "execute", task, "--follow") as command:
            await command.says("at the gate")
            assert await command.interrupted() == 130
            *_, cancel = complaint = command.complaint.splitlines()
        assert complaint[:2] == ["runwire: stopped waiting", "The run goes on. To end it:"]
        run = (await service.http.get(f"/tasks/{task}/runs")).json()[0]
        assert run["code"] == "INPROGRESS"
        assert cancel == f"  runwire task cancel {task} --run {run['id']}"
        assert on(service)(*cancel.split()[1:]).returncode == 0
        async with (
            shown(service, "task", "execute", task) as silent,
            shown(service, "events", "--task", task, "--code", "inprogress", "--after", "0") as events,
        ):
            await eventually(lambda: len(events.lines) == 2, what="the next run has begun")
            assert await silent.interrupted() == 130
            assert silent.complaint.splitlines()[-1].startswith(f"  runwire task cancel {task}")


async def test_on_a_terminal_the_last_line_is_alive(tmp_path: Path) -> None:
    async with running(tmp_path, "--app", APP) as service:
        task = await create(service, "walk", gate=str(tmp_path / "gate"))
        async with shown(service, "task", "execute", task, "--follow", terminal=True) as command:
            await command.says("at the gate")
            await eventually(lambda: re.search("INPROGRESS.*50 %.*at the gate.*0:00:0", command.text))
            (tmp_path / "gate").touch()
            assert await command.ends() == 0
            assert "\x1b[31mgate" not in command.text, "a log line does not steer the terminal"
            plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", command.text)
            assert '{"at": "home"}' in plain.splitlines()[-1]
            assert max(len(line) for line in re.split(r"[\r\n]+", plain)) <= 80


async def test_an_adapter_may_die_while_a_command_waits(tmp_path: Path) -> None:
    async with running(tmp_path, "--app", APP) as service:
        task = await service.probe_task(seconds=2)
        async with shown(service, "events", "--json", "--code", "done", "--after", "0") as events:
            async with shown(service, "task", "execute", str(task), "--follow") as command:
                await service.execution_begins()
                os.kill(service.up.children()["adapter"], signal.SIGKILL)
                assert await command.ends() == 0
                assert command.lines[-2].startswith("DONE  run ")
                assert "trying again" in command.complaint
            assert len(service.executions()) == 1
            await eventually(lambda: len(events.lines) == 1, what="the event came, too")
            event = json.loads(events.lines[0])
            assert (event["code"], event["task"]["id"], event["run"]["code"]) == ("done", task, "DONE")


async def test_events_are_lines(tmp_path: Path) -> None:
    async with running(tmp_path, "--app", APP) as service:
        task = await create(service, "sleep", desc="A nap", seconds=0)
        bad = await create(service, "probe", file="/no/where")
        for number in (task, bad):
            await service.http.post(f"/tasks/{number}/execute")
        async with (
            shown(service, "events", "--after", "0") as everything,
            shown(service, "events", "--after", "0", "--code", "done", "--code", "error") as ends,
        ):
            await eventually(lambda: len(everything.lines) == 7, what="all have come")
            assert [line.split("  ", 1)[1] for line in everything.lines if f"/{task} " in line] == [
                f"1764/{task:<6}  READY       created: A nap",
                f"1764/{task:<6}  INPROGRESS  started (http)",
                f'1764/{task:<6}  DONE        {{"slept": 0.0}}',
            ]
            await eventually(lambda: len(ends.lines) == 2, what="both ends have come")
            assert re.search(r"ERROR +handler_error: .*No such file", ends.lines[1])
            assert await ends.interrupted() == 130
            assert ends.complaint.strip() == ""
        refused = on(service)("events", "--task", "4711")
        assert (refused.returncode, refused.stderr) == (1, "runwire: There is no task 4711.\n")
        assert on(service)("events", "--code", "never").returncode == 1
