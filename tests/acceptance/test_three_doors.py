"""The same three examples stand on the page of each door, and work there as they stand."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.test_examples import output
from tests.acceptance.test_readme import ROOT, blocks
from tests.acceptance.test_up import Running, running

FORBIDDEN = {"action": "http", "url": "http://127.0.0.1:22000/"}


def examples(page: str) -> str:
    """The section of the page."""
    text = (ROOT / "docs" / page).read_text()
    return re.search(r"^## Three examples\n(.*?)^## ", text, re.MULTILINE | re.DOTALL)[1]


def events(stream: str) -> list[dict[str, object]]:
    return [json.loads(line.removeprefix("data: ")) for line in stream.splitlines() if line.startswith("data: ")]


async def shown(service: Running, page: str, *before: str) -> list[str]:
    text = "".join(f"```sh\n{command}\n```\n" for command in before) + examples(page)
    return (await output(service, text))[len(before) :]


async def test_over_http(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        login = 'AUTH="Authorization: Bearer $(cat data/token)"'
        executed, runs, first, second, _, failures = await shown(service, "api.md", login)
    assert json.loads(executed)["code"] == "DONE"
    assert [run["code"] for run in json.loads(runs)] == ["DONE"]
    assert first == second != ""
    (failure,) = events(failures)
    assert failure["data"]["run"]["error"]["code"] == "forbidden_address"


async def test_over_the_bus(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        task = {"id": 801, "chain": 1764, "desc": "May not go there", "trigger": {}, "target": FORBIDDEN}
        assert (await service.http.post("/tasks", json=task)).status_code == 201
        (program,) = blocks("python", examples("bus.md"))
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=40
        )
    printed = re.search(r"^```python\n.*?^```\n```\n(.*?)^```$", examples("bus.md"), re.MULTILINE | re.DOTALL)[1]
    assert without_times(done.stdout) == without_times(printed), done.stderr


async def test_by_schedule(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        _, _, created, _, runs, edited, again, _, failures = await shown(service, "schedules.md")
    assert json.loads(created)["trigger"]["next"] == json.loads(created)["trigger"]["once"]
    (run,) = json.loads(runs)
    assert (run["code"], run["source"], run["accepted"] >= json.loads(created)["trigger"]["once"]) == (
        "DONE", "schedule", True,
    )  # fmt: skip
    assert json.loads(edited)["state"]["code"] == "DONE"
    assert json.loads(again) == [run]
    (failure,) = events(failures)
    assert failure["data"]["run"]["error"]["code"] == "forbidden_address"
    assert failure["data"]["run"]["source"] == "schedule"


@pytest.mark.parametrize("page", ["api.md", "bus.md", "schedules.md"])
def test_each_page_leads_to_the_others(page: str) -> None:
    others = {"api.md", "bus.md", "schedules.md"} - {page}
    assert set(re.findall(r"\]\((\w+\.md)#three-examples\)", examples(page))) == others


def without_times(text: str) -> str:
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\+00:00", "TIME", text)
