"""The README is true: its commands work, and nothing that a user meets is missing from it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import runwire
import runwire.client
from runwire.client.bus import BusClient
from runwire.domain import errors
from runwire.domain.run import ErrorCode
from runwire.http.app import build_app
from runwire.http.problems import TABLE
from runwire.messaging import subjects
from runwire.settings import Settings
from tests.acceptance.test_up import Running, running
from tests.support import eventually

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
CLIENT = (ROOT / "docs" / "client.md").read_text()
API = (ROOT / "docs" / "api.md").read_text()
PROBLEMS = (ROOT / "docs" / "problems.md").read_text()


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


async def test_its_commands_and_those_of_the_api_page_work_as_they_stand(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        commands = "\n\n".join([*blocks("sh"), *blocks("sh", API)])
        script = "set -e\n" + re.sub(r"\n\n+", "\necho; echo ----\n", commands)
        script = script.replace("localhost:8080", f"127.0.0.1:{service.env['RUNWIRE_HTTP_PORT']}")
        done = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=50
        )
        assert done.returncode == 0, done.stderr
    answers = [answer.strip() for answer in done.stdout.split("----")]
    file, accepted_and_run, twice = answers[5], answers[7], answers[8]
    created, executed, runs, log, nap, edited, nap_log = (json.loads(answers[n]) for n in (1, 2, 3, 4, 6, 9, 10))
    assert (created["id"], created["state"]["code"]) == (77, "READY")
    assert list(executed) == ["code", "last_run_date", "last_modified", "created_date"]
    assert executed["code"] == "DONE"
    assert [(run["task"], run["code"]) for run in runs] == [(77, "DONE")]
    assert ([line["message"].split()[0] for line in log["lines"]], log["final"]) == (["exported"], True)
    assert file.startswith("id,task,chain,code")
    assert nap["id"] == 78
    accepted, run = (json.loads(f"{{{part.strip('{}')}}}") for part in accepted_and_run.split("}{", 1))
    assert accepted["code"] in {"READY", "INPROGRESS", "DONE"}
    assert (run["task"], run["code"], run["result"]) == (78, "DONE", {"slept": 0.5})
    first, second = twice.split("}{")
    assert first.strip("{") == second.strip("}"), "the same key is the same run"
    assert edited["target"] == {"action": "sleep", "seconds": 0.1}
    assert nap_log["final"] is True


async def test_its_action_works_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "mymodule.py").write_text(blocks("python")[0])
    async with running(tmp_path, "--app", "mymodule:app") as service:
        target = {"action": "greet", "name": "Ada"}
        task = await service.http.post("/tasks", json={"chain": 1764, "desc": "", "target": target, "trigger": {}})
        assert (await service.http.post(task.headers["location"] + "/execute")).json()["code"] == "DONE"
        found = (await service.http.get(task.headers["location"])).json()
    assert found["result"] == {"text": "Hello Ada"}
    assert [entry["message"] for entry in found["logs"]] == ["greeting Ada, attempt 1"]


async def test_the_bus_examples_work_as_they_stand(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        printed = []
        for example in blocks("python", (ROOT / "docs" / "bus.md").read_text())[:2]:
            done = subprocess.run(
                [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=30
            )
            printed.append(done.stdout)
            assert done.returncode == 0, done.stderr
            await eventually(lambda: is_done(service))
    assert re.fullmatch(r"task=12345 run='\w{32}' duplicate=False sequence=1\n", printed[0])
    assert printed[1].startswith("PubAck(stream='COMMANDS', seq=2")


async def is_done(service: Running) -> bool:
    return (await service.http.get("/tasks/12345")).json()["state"]["code"] == "DONE"


async def test_the_example_of_the_client_prints_what_stands_there(tmp_path: Path) -> None:
    example = blocks("python", CLIENT)[0]
    printed = re.search(r"^```python\n.*?^```\n```\n(.*?)^```$", CLIENT, re.MULTILINE | re.DOTALL)[1]
    async with running(tmp_path) as service:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RUNWIRE_")}
        done = subprocess.run(
            [sys.executable, "-c", example], cwd=tmp_path, env=clean | service.env, capture_output=True, text=True,
            check=False, timeout=30,
        )  # fmt: skip
    assert (done.stdout, done.stderr) == (printed, "")


def test_the_page_of_the_client_names_what_it_has() -> None:
    methods = {name for name in vars(runwire.Client) if not name.startswith("_")} - {"close"}
    assert methods == {name for name in vars(runwire.AsyncClient) if not name.startswith("_")} - {"aclose"}
    for name in methods:
        assert f"`{name}(" in CLIENT
    for name in vars(BusClient):
        if not name.startswith("_"):
            assert re.search(rf"[` ]{name}\(", CLIENT.partition("## On the bus")[2])
    for name, thing in vars(runwire.client).items():
        if isinstance(thing, type) and issubclass(thing, runwire.client.ClientError):
            assert name in CLIENT


def test_it_begins_with_the_two_commands() -> None:
    first = re.search(r"^```\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)[1]
    assert [line.split("#")[0].strip() for line in first.splitlines()] == ["make up", "make test"]


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_it_names_every_setting(name: str) -> None:
    assert f"`RUNWIRE_{name.upper()}`" in README


@pytest.mark.parametrize("error", sorted(TABLE, key=lambda error: error.code))
def test_it_names_every_problem_and_its_status(error: type[errors.RequestError]) -> None:
    status, _ = TABLE[error]
    assert f"## {error.code.replace('_', '-')}\n\n**{status}.**" in PROBLEMS
    assert re.search(rf"^\| [\d, ]*\b{status}\b", README, re.MULTILINE)


def test_every_request_error_has_a_status() -> None:
    assert set(TABLE) == set(errors.RequestError.__subclasses__())


@pytest.mark.parametrize("code", list(ErrorCode))
def test_it_names_every_error_code_of_a_run(code: ErrorCode) -> None:
    assert f"`{code}`" in API


def test_it_names_every_endpoint() -> None:
    app = build_app(lambda _: pytest.fail("never started"), version="0")
    for path, methods in app.openapi()["paths"].items():
        for method in methods:
            assert f"`{method.upper()} {path}`" in API


def test_it_names_what_the_bus_offers() -> None:
    for name in (
        subjects.DEADLETTERS,
        subjects.MSG_ID,
        subjects.RUN_ID,
        "tasks.evt.1764.>",
        "tasks.cmd.1764.12345.execute",
    ):
        assert name in README
