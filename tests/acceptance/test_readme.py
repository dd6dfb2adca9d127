"""The README is true: its commands work, and nothing that a user meets is missing from it."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from runwire.domain import errors
from runwire.domain.run import ErrorCode
from runwire.http.app import build_app
from runwire.http.problems import TABLE
from runwire.messaging import subjects
from runwire.settings import Settings
from tests.acceptance.test_up import running

README = (Path(__file__).parents[2] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


async def test_its_commands_work_as_they_stand(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        script = "set -e\n" + "\necho\n".join(blocks("sh"))
        script = script.replace("localhost:8080", f"127.0.0.1:{service.env['RUNWIRE_HTTP_PORT']}")
        done = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=40
        )
        assert done.returncode == 0, done.stderr
    decoder, answers, rest = json.JSONDecoder(), [], done.stdout.strip()
    while rest:
        answer, end = decoder.raw_decode(rest)
        answers.append(answer)
        rest = rest[end:].strip()
    created, executed, shown, listed, accepted, run = answers
    assert (created["id"], created["state"]["code"]) == (77, "READY")
    assert list(executed) == ["code", "last_run_date", "last_modified", "created_date"]
    assert executed["code"] == "DONE"
    assert shown["result"] == {"slept": 0.5}
    assert [task["id"] for task in listed] == [77]
    assert accepted["code"] in {"READY", "INPROGRESS", "DONE"}
    assert (run["code"], run["task"]) == ("DONE", 77)


async def test_its_action_works_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "mymodule.py").write_text(blocks("python")[0])
    async with running(tmp_path, "--app", "mymodule:app") as service:
        target = {"action": "greet", "name": "Ada"}
        task = await service.http.post("/tasks", json={"chain": 1764, "desc": "", "target": target, "trigger": {}})
        assert (await service.http.post(task.headers["location"] + "/execute")).json()["code"] == "DONE"
        found = (await service.http.get(task.headers["location"])).json()
    assert found["result"] == {"text": "Hello Ada"}
    assert [entry["message"] for entry in found["logs"]] == ["greeting Ada, attempt 1"]


def test_it_begins_with_the_two_commands() -> None:
    first = re.search(r"^```\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)[1]
    assert [line.split("#")[0].strip() for line in first.splitlines()] == ["make up", "make test"]


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_it_names_every_setting(name: str) -> None:
    assert f"`RUNWIRE_{name.upper()}`" in README


@pytest.mark.parametrize("error", sorted(TABLE, key=lambda error: error.code))
def test_it_names_every_problem_and_its_status(error: type[errors.RequestError]) -> None:
    status, _ = TABLE[error]
    (row,) = [line for line in README.splitlines() if line.startswith(f"| {status} |")]
    assert error.code.replace("_", "-") in row.replace("_", "-")


def test_every_request_error_has_a_status() -> None:
    assert set(TABLE) == set(errors.RequestError.__subclasses__())


@pytest.mark.parametrize("code", list(ErrorCode))
def test_it_names_every_error_code_of_a_run(code: ErrorCode) -> None:
    assert f"`{code}`" in README


def test_it_names_every_endpoint() -> None:
    app = build_app(lambda _: pytest.fail("never started"), version="0")
    for path, methods in app.openapi()["paths"].items():
        for method in methods:
            assert f"`{method.upper()} {path}`" in README


def test_it_names_what_the_bus_offers() -> None:
    for name in (
        subjects.DEADLETTERS,
        subjects.MSG_ID,
        subjects.RUN_ID,
        "tasks.evt.1764.>",
        "tasks.cmd.1764.12345.execute",
    ):
        assert name in README
