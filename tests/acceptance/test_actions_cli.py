"""`runwire actions` as a person types it, against a running `up` with an App."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

from tests.acceptance.test_token_cli import on
from tests.acceptance.test_up import APP, running
from tests.support import eventually


async def test_it_lists_the_actions_and_their_parameters(tmp_path: Path) -> None:
    async with running(tmp_path, "--app", APP) as service:
        runwire = on(service)

        async def told() -> list[dict[str, object]]:
            answer = await asyncio.to_thread(runwire, "actions", "--json")
            found = json.loads(answer.stdout)
            return found if any(action["name"] == "probe" for action in found) else []

        found = await eventually(told, what="the adapter has heard of the actions")
        assert found == (await service.http.get("/actions")).json()
        assert {"export", "probe", "sleep"} <= {action["name"] for action in found}

        shown = runwire("actions")
        assert shown.returncode == 0, shown.stderr
        rows = [re.split(r"  +", line) for line in shown.stdout.splitlines()]
        assert rows[0] == ["ACTION", "PARAMETER", "TYPE", "DESCRIPTION"]
        assert ["probe", "Leaves a trace outside of everything that is under test."] in rows
        assert ["", "file*", "string (path)"] in rows
        assert ["", "block", "boolean = false"] in rows
        assert ["", "export_format", "csv | json = csv", "What the file is."] in rows
        assert shown.stdout.splitlines()[-1] == "* required"

        refused = await service.http.post(
            "/tasks", json={"chain": 1764, "desc": "", "target": {"action": "probe", "seconds": "long"}, "trigger": {}}
        )
        assert {error["pointer"] for error in refused.json()["errors"]} == {"/target/file", "/target/seconds"}


async def test_without_an_adapter_it_says_so_in_one_line(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        done = on(service)("actions", "--url", "http://127.0.0.1:1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("runwire: no answer from http://127.0.0.1:1")
