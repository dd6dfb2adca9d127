"""The documented calls, word for word as a client written against the documentation makes them: with curl."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.acceptance.test_up import Running, running

DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
TASK_FIELDS = {"id", "chain", "desc", "state", "trigger", "target", "logs", "debug", "version"}
STATE_FIELDS = {"code", "last_run_date", "last_modified", "created_date"}


@dataclass(frozen=True)
class Answer:
    """What curl saw."""

    status: int
    headers: dict[str, str]
    body: str

    @property
    def json(self) -> object:
        return json.loads(self.body)


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path) as found:
        yield found


def curl(service: Running, line: str) -> Answer:
    """The line as it stands in the documentation, against this service."""
    line = line.replace("https://HOST", f"http://127.0.0.1:{service.env['RUNWIRE_HTTP_PORT']}")
    identity, secret = (service.cwd / "data" / "token").read_text().strip().split(":")
    line = line.replace("ACCESS_TOKEN_ID", identity).replace("ACCESS_TOKEN_SECRET", secret)
    done = subprocess.run(
        [*shlex.split(line), "--silent", "--show-error", "--include", "--max-time", "30"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    head, _, body = done.stdout.replace("\r\n", "\n").partition("\n\n")
    status, *lines = head.splitlines()
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Answer(int(status.split()[1]), headers, body)


AUTH = '-H "Authorization: Bearer ACCESS_TOKEN_ID:ACCESS_TOKEN_SECRET"'


async def test_post_tasks_execute(service: Running) -> None:
    answer = curl(service, f'curl -X POST "https://HOST/tasks/12345/execute" {AUTH}')
    assert answer.status == 200
    assert list(answer.json) == ["code", "last_run_date", "last_modified", "created_date"]
    assert answer.json["code"] in {"DONE", "ERROR"}
    assert all(DATE.fullmatch(answer.json[name]) for name in STATE_FIELDS - {"code"})


async def test_post_tasks(service: Running) -> None:
    body = {
        "chain": 1764,
        "desc": "Export wallets of the VIP segment",
        "target": {"action": "export", "export_index": "wallet", "export_format": "csv", "campaign": 9},
        "trigger": {"once": "2026-05-26T14:35:00Z", "segment": "vip", "segment_id": 7, "user_list": [1, 2]},
        "debug": "ticket 4711",
    }
    answer = curl(
        service,
        f"curl -X POST \"https://HOST/tasks\" {AUTH} -H 'Content-Type: application/json' -d '{json.dumps(body)}'",
    )
    assert answer.status == 201
    task = answer.json
    assert set(task) >= TASK_FIELDS
    assert DATE.fullmatch(task["trigger"].pop("next"))  # read-only, beside what was sent
    assert {name: task[name] for name in body} == body
    assert set(task["state"]) == STATE_FIELDS
    assert (task["state"]["code"], task["state"]["last_run_date"], task["version"]) == ("READY", None, 1)
    assert answer.headers["location"] == f"/tasks/{task['id']}"


@pytest.mark.parametrize("query", ["", "?status=READY", "?action=export", "?campaign_id=9", "?limit=10&offset=0"])
async def test_get_tasks(service: Running, query: str) -> None:
    body = {
        "chain": 1764, "desc": "", "target": {"action": "export", "export_index": "runs", "campaign": 9}, "trigger": {},
    }  # fmt: skip
    created = (await service.http.post("/tasks", json=body)).json()
    answer = curl(service, f'curl "https://HOST/tasks{query}" {AUTH}')
    assert answer.status == 200
    assert isinstance(answer.json, list), "a bare array"
    assert created["id"] in [task["id"] for task in answer.json]
    assert all(set(task) >= TASK_FIELDS for task in answer.json)


@pytest.mark.parametrize(("query", "lines"), [("", 3), ("?log_limit=2", 2), ("?log_limit=2&offset=2", 1)])
async def test_get_task(service: Running, query: str, lines: int) -> None:
    for _ in range(3):
        curl(service, f'curl -X POST "https://HOST/tasks/12345/execute" {AUTH}')
    answer = curl(service, f'curl "https://HOST/tasks/12345{query}" {AUTH}')
    assert answer.status == 200
    assert set(answer.json) >= TASK_FIELDS
    assert answer.json["version"] == 7
    assert len(answer.json["logs"]) == lines
    assert all({"date", "level", "message"} <= set(entry) for entry in answer.json["logs"])


@pytest.mark.parametrize(("extension", "first"), [("csv", "id,task,chain,code"), ("json", "[")])
async def test_get_download_url(service: Running, extension: str, first: str) -> None:
    target = {"action": "export", "export_index": "runs", "export_format": extension}
    created = await service.http.post("/tasks", json={"chain": 1764, "desc": "", "target": target, "trigger": {}})
    task = created.json()["id"]
    early = curl(service, f'curl "https://HOST/tasks/{task}/download_url" {AUTH}')
    assert early.status == 409
    assert curl(service, f'curl -X POST "https://HOST/tasks/{task}/execute" {AUTH}').json["code"] == "DONE"
    answer = curl(service, f'curl "https://HOST/tasks/{task}/download_url" {AUTH}')
    assert answer.status == 200
    assert list(answer.json) == ["url"]
    file = curl(service, f"curl '{answer.json['url']}'")
    assert file.status == 200
    assert f"Runs_Export-{task}.{extension}" in file.headers["content-disposition"]
    assert file.body.startswith(first)


async def test_the_documented_refusals(service: Running) -> None:
    assert curl(service, 'curl -X POST "https://HOST/tasks/12345/execute"').status == 401
    assert curl(service, f'curl -X POST "https://HOST/tasks/999/execute" {AUTH}').status == 404
    assert curl(service, f'curl -X POST "https://HOST/tasks/abc/execute" {AUTH}').status == 400
