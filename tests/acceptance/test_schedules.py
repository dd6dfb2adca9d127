"""Schedules as a user sees them: over HTTP, with real processes that are stopped and killed."""

from __future__ import annotations

import os
import re
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.acceptance.test_up import APP, Running, running
from tests.support import eventually


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


def soon(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


async def create(service: Running, trigger: dict[str, Any], **target: Any) -> dict[str, Any]:
    target = target or {"action": "sleep", "seconds": 0}
    body = {"chain": 1764, "desc": "by itself", "target": target, "trigger": trigger}
    answer = await service.http.post("/tasks", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def history(service: Running, task: int, code: str) -> list[dict[str, Any]]:
    """The task's runs in this state, oldest first."""
    answer = await service.http.get(f"/tasks/{task}/runs", params={"code": code, "limit": 1000})
    return answer.json()[::-1]


def ticks_in(skipped: dict[str, Any]) -> int:
    """How many ticks a record of skipped ones is about."""
    several = re.match(r"(\d+) ticks ", skipped["error"]["message"])
    return int(several[1]) if several else 1


async def has_run(service: Running, task: int, times: int = 1) -> list[dict[str, Any]]:
    async def look() -> list[dict[str, Any]] | None:
        found = await history(service, task, "DONE")
        return found if len(found) >= times else None

    return await eventually(look, within=25, what=f"{times} runs are done")


async def test_a_task_runs_by_itself_and_says_when_it_does_so_next(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        once = await create(service, {"once": soon(1)})
        again = await create(service, {"every": 1})
        assert at(again["trigger"]["next"]) > at(again["state"]["created_date"])
        await has_run(service, again["id"], 2)
        (run,) = await has_run(service, once["id"])
        assert run["source"] == "schedule"
        assert at(run["started"]) >= at(once["trigger"]["next"]) - timedelta(seconds=1)  # one is rounded down, one up
        ended = (await service.http.get(f"/tasks/{once['id']}")).json()
        assert (ended["state"]["code"], ended["trigger"]["next"]) == ("DONE", None)
        going_on = (await service.http.get(f"/tasks/{again['id']}")).json()
        assert going_on["state"]["code"] in {"DONE", "INPROGRESS"}
        assert at(going_on["trigger"]["next"]) > at(again["trigger"]["next"])


async def test_a_past_once_runs_now_and_the_answer_says_so(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        body = {"chain": 1764, "desc": "", "target": {"action": "sleep", "seconds": 0}}
        answer = await service.http.post("/tasks", json=body | {"trigger": {"once": "2020-05-26T12:00:00Z"}})
        assert answer.status_code == 201
        assert "runs now" in answer.headers["task-note"]
        await has_run(service, answer.json()["id"])


async def test_a_run_by_hand_before_its_time_leaves_the_task_due(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        task = await create(service, {"once": soon(2)})
        assert (await service.http.post(f"/tasks/{task['id']}/execute")).json()["code"] == "DONE"
        assert (await service.http.get(f"/tasks/{task['id']}")).json()["trigger"]["next"] == task["trigger"]["next"]
        by_hand, scheduled = await has_run(service, task["id"], 2)
        assert [by_hand["source"], scheduled["source"]] == ["http", "schedule"]


async def test_a_tick_over_a_run_is_in_the_history_and_in_the_log(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        task = (await create(service, {"every": 1}, action="sleep", seconds=2.5))["id"]

        async def skipped() -> list[dict[str, Any]]:
            return await history(service, task, "SKIPPED")

        first, *_ = await eventually(skipped)
        assert (first["error"]["code"], first["source"], first["started"]) == ("overlap", "schedule", None)
        assert first["result"]["ticks"] == 1
        alone = await service.http.get(f"/tasks/{task}/runs/{first['id']}")
        assert alone.json() == first
        page = (await service.http.get(f"/tasks/{task}/runs/{first['id']}/logs")).json()
        assert page["final"] is True
        assert first["error"]["message"] in page["lines"][0]["message"]
        logs = (await service.http.get(f"/tasks/{task}", params={"log_limit": 100})).json()["logs"]
        assert first["id"] in {line["run"] for line in logs}


async def test_one_run_makes_up_for_the_time_when_everything_was_stopped(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        latest = await create(service, {"every": 2})
        await has_run(service, latest["id"])
        await service.up.stop()
        stopped = datetime.now(UTC)
    await eventually(lambda: datetime.now(UTC) > stopped + timedelta(seconds=7))
    began = datetime.now(UTC)
    async with running(tmp_path) as service:

        async def made_up() -> list[dict[str, Any]]:
            return [run for run in await history(service, latest["id"], "DONE") if at(run["accepted"]) > stopped]

        await eventually(made_up, what="a run after the stop")
        (record,) = [run for run in await history(service, latest["id"], "SKIPPED") if run["error"]["code"] == "missed"]
        assert record["result"]["ticks"] >= 2
        assert stopped - timedelta(seconds=1) < at(record["result"]["last"]) < began + timedelta(seconds=10)


async def test_killed_workers_cost_no_tick(tmp_path: Path) -> None:
    async with running(tmp_path, "--app", APP) as service:
        trace = {"action": "probe", "file": str(service.trace), "seconds": 0}
        task = await create(service, {"every": 1, "catch_up": "all", "end": soon(9)}, **trace)
        for _ in range(3):
            before = len(service.executions())
            await eventually(lambda before=before: len(service.executions()) > before)
            os.kill(service.up.children()["worker"], signal.SIGKILL)
            await eventually(lambda: "worker" in service.up.children())
        begin, end = at(task["state"]["created_date"]), at(task["trigger"]["end"])
        ticks = int((end - begin).total_seconds())

        async def accounted() -> bool:
            """Those that found the task busy, as a killed worker's run had not ended, are recorded and not run."""
            done = await history(service, task["id"], "DONE")
            skipped = await history(service, task["id"], "SKIPPED")
            assert {run["error"]["code"] for run in skipped} <= {"overlap"}
            return len({run["id"] for run in done}) + sum(map(ticks_in, skipped)) == ticks

        await eventually(accounted, within=25, what=f"{ticks} ticks are accounted for")
        assert (await service.http.get(f"/tasks/{task['id']}")).json()["trigger"]["next"] is None
