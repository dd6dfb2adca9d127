"""A secret that an action shows in every way it can think of is nowhere to be found afterwards."""

from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path
from urllib.parse import quote

import httpx

from tests.acceptance.test_up import APP, Running, running

CANARY = 'canary-Tr0ub4dor/&3 "quoted"'
CODE = "canary_that_could_be_an_error_code"
WAYS = ("fail", "retry", "raise", "code", "return", "return much", "log")
TRACES = [
    text.encode()
    for text in (
        CANARY,
        json.dumps(CANARY)[1:-1],
        quote(CANARY),
        CANARY.encode().hex(),
        b64encode(CANARY.encode()).decode()[:-4],
        b64encode(b"u:" + CANARY.encode()).decode()[4:-4],
        "Tr0ub4dor",
        CODE,
    )
]


async def answers_about(http: httpx.AsyncClient, task: str) -> bytes:
    """What the API shows of a task, its runs and their logs."""
    found = [await http.get(task, params={"log_limit": 100}), await http.get(f"{task}/runs")]
    for run in found[-1].json():
        found.append(await http.get(f"{task}/runs/{run['id']}"))
        found.append(await http.get(f"{task}/runs/{run['id']}/logs"))
    found.append(await http.get(f"{task}/events", params={"until": "final", "last_event_id": 0}))
    return b"\n".join(answer.content for answer in found)


async def leak(service: Running, how: str) -> bytes:
    body = {
        "chain": 1764,
        "desc": how,
        "target": {"action": "leak", "how": how},
        "trigger": {},
        "retry": {"attempts": 2, "backoff": 0, "on": ["handler_error"]},
    }
    task = (await service.http.post("/tasks", json=body)).headers["location"]
    ended = await service.http.post(f"{task}/execute")
    assert ended.status_code == 200, ended.text
    return await answers_about(service.http, task)


def traces_in(content: bytes) -> list[bytes]:
    return [trace for trace in TRACES if trace in content]


async def test_a_secret_is_found_nowhere(tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "canary").write_text(CANARY + "\n")
    (secrets / "code").write_text(CODE)
    async with running(tmp_path, "--app", APP, RUNWIRE_SECRETS=str(secrets), RUNWIRE_LOG_LEVEL="debug") as service:
        for how in WAYS:
            answers = await leak(service, how)
            assert b"CONTROL" in answers
            assert b"***" in answers
            assert traces_in(answers) == []
        await service.up.stop()
    found = {}
    for file in [*(tmp_path / "data").rglob("*"), service.up.out]:
        if file.is_file():
            found[file] = file.read_bytes()
            assert traces_in(found[file]) == [], file
    with_control = {
        file.relative_to(tmp_path).parts[1]
        for file, content in found.items()
        if b"CONTROL" in content and file.parent != tmp_path
    }
    assert {"readmodel.db", "nats"} <= with_control, "EVENTS, LOGS, files and rows were looked into"
    output = found[service.up.out].decode()
    for said in ("CONTROL outside ***", "worker   CONTROL outside ***", "ValueError: CONTROL outside ***"):
        assert said in output
    assert "never retrieved" in output
    assert "CONTROL printed" not in output
