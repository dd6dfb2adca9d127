"""`runwire task` as a person types it, against a running `up`."""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta
from pathlib import Path

from tests.acceptance.test_token_cli import on
from tests.acceptance.test_up import Running, running


async def create(service: Running, trigger: dict[str, object], desc: str = "a task", **fields: object) -> str:
    body = {"chain": 1764, "desc": desc, "target": {"action": "sleep", "seconds": 0}, "trigger": trigger, **fields}
    answer = await service.http.post("/tasks", json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def test_the_next_runs_are_shown_in_the_time_zone_of_the_task(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        runwire = on(service)
        # In the night of 25 October 2099 clocks in Amsterdam go back.
        trigger = {"cron": "30 2 * 10 *", "time_zone": "Europe/Amsterdam", "start": "2099-10-24T00:00:00Z"}
        task = await create(service, trigger, desc="Nightly")
        shown = runwire("task", "next", task, "-n", "3")
        assert shown.returncode == 0, shown.stderr
        heading, table = shown.stdout.split("\n\n")
        assert re.split(r"\n?(?:task|trigger|time zone) +", heading)[1:] == [
            f"{task}  Nightly", "cron 30 2 * 10 *, from 2099-10-24T00:00:00Z", "Europe/Amsterdam",
        ]  # fmt: skip
        columns = [re.split(r"  +", line) for line in table.splitlines()]
        assert columns[0] == ["#", "LOCAL TIME", "UTC", "WHEN"]
        assert [row[:3] for row in columns[1:]] == [
            ["1", "Sat 2099-10-24 02:30:00 +02:00", "2099-10-24T00:30:00Z"],
            ["2", "Sun 2099-10-25 02:30:00 +02:00", "2099-10-25T00:30:00Z"],
            ["3", "Mon 2099-10-26 02:30:00 +01:00", "2099-10-26T01:30:00Z"],
        ]
        assert all(re.fullmatch(r"in \d+ d( \d+ h)?", row[3]) for row in columns[1:])

        told = json.loads(runwire("task", "next", task, "-n", "3", "--json").stdout)
        assert [run["utc"] for run in told["runs"]] == [row[2] for row in columns[1:]]
        assert told["runs"][2]["local"] == "2099-10-26T02:30:00+01:00"
        assert (told["task"], told["time_zone"]) == (int(task), "Europe/Amsterdam")


async def test_the_first_one_is_what_the_adapter_says_jitter_included(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        task = await create(service, {"every": "P1D", "start": "2099-01-01T00:00:00Z", "jitter": 3600})
        said = (await service.http.get(f"/tasks/{task}")).json()["trigger"]["next"]
        told = json.loads(on(service)("task", "next", task, "--json").stdout)["runs"]
        first = datetime.fromisoformat(said)
        assert len(told) == 10
        assert [datetime.fromisoformat(run["utc"]) for run in told] == [first + timedelta(days=n) for n in range(10)]
        assert "up to 1 h" in on(service)("task", "next", task).stdout


async def test_tasks_are_listed_and_shown(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        runwire = on(service)
        task = await create(service, {"cron": "@daily"}, desc="Nightly", retry={"attempts": 2})
        await service.http.post(f"/tasks/{task}/execute")
        head, *rows = [re.split(r"  +", line) for line in runwire("task", "list").stdout.splitlines()]
        assert head == ["ID", "STATE", "LAST RUN", "NEXT RUN", "ACTION", "DESC"]
        (own,) = [row for row in rows if row[0] == task]
        assert (own[1], own[4:]) == ("DONE", ["sleep", "Nightly"])
        assert json.loads(runwire("task", "list", "--status", "READY", "--json").stdout)[0]["id"] == 12345
        facts, logs = runwire("task", "get", task).stdout.split("\n\n")
        told = dict(re.split(r"  +", line.strip(), maxsplit=1) for line in facts.splitlines())
        assert (told["task"], told["trigger"], told["action"]) == (f"{task}  Nightly", "cron @daily", "sleep")
        assert (told["seconds"], told["result"]) == ("0", '{"slept": 0.0}')
        assert re.fullmatch(r"\S+Z  info     sleeping for 0\S* s\n", logs)
        assert json.loads(runwire("task", "get", task, "--json").stdout)["desc"] == "Nightly"


async def test_it_says_when_there_is_nothing_to_come(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        runwire = on(service)
        over = await create(service, {"every": 60})
        await service.http.patch(f"/tasks/{over}", json={"trigger": {"end": "2020-01-01T00:00:00Z"}})
        for task, says in (
            (await create(service, {"segment": "vip"}), "It runs only by hand."),
            (await create(service, {"cron": "@daily", "paused": True}), "It is paused"),
            (over, "It is over"),
        ):
            shown = runwire("task", "next", task)
            assert (shown.returncode, shown.stderr) == (0, "")
            assert says in shown.stdout.splitlines()[-1]
            assert json.loads(runwire("task", "next", task, "--json").stdout)["runs"] == []


async def test_what_is_refused_is_told_in_one_line(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        for arguments, env, says in (
            (("4711",), {}, "There is no task 4711."),
            (("x",), {}, "'x' is no task id"),
            (("12345",), {"RUNWIRE_TOKEN": "nobody:x"}, "A valid access token is required"),
            (("12345", "--url", "http://127.0.0.1:1"), {}, "no answer from http://127.0.0.1:1"),
        ):
            done = on(service)("task", "next", *arguments, **env)
            assert (done.returncode, done.stdout) == (1, "")
            assert done.stderr.startswith("runwire: ")
            assert done.stderr.count("\n") == 1
            assert says in done.stderr


async def test_a_run_is_cancelled(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        runwire = on(service)
        task = await create(service, {}, target={"action": "sleep", "seconds": 60})
        started = [
            (await service.http.post(f"/tasks/{task}/execute", headers={"Prefer": "respond-async"})).headers["run-id"]
        ]
        done = runwire("task", "cancel", task)
        assert (done.returncode, done.stdout) == (0, f"run {started[0]} of task {task} is cancelled\n"), done.stderr
        again = runwire("task", "cancel", task)
        assert (again.returncode, again.stdout) == (1, "")
        assert again.stderr == "runwire: The task is neither queued nor running.\n"

        started.append(
            (await service.http.post(f"/tasks/{task}/execute", headers={"Prefer": "respond-async"})).headers["run-id"]
        )
        other = runwire("task", "cancel", task, "--run", started[0])
        assert (other.returncode, other.stdout) == (1, "")
        assert started[1] in other.stderr
        told = json.loads(runwire("task", "cancel", task, "--run", started[1], "--json").stdout)
        assert (told["task"], told["run"], told["code"], told["error"]) == (int(task), started[1], "ERROR", "cancelled")
