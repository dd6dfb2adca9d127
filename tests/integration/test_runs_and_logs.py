"""The runs of a task and what they logged: lists, pages, filters, incremental reading."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

import httpx
import pytest

import runwire
from runwire.app import App
from runwire.messaging.broker import Bus
from runwire.settings import Settings
from tests.support import CHAIN, adapter, eventually, publish_command, queue_is_empty, worker


@pytest.fixture
def app(app: App) -> App:
    app.gate = asyncio.Event()

    @app.action("talk")
    async def talk(params: dict[str, object], ctx: runwire.Context) -> dict[str, str]:
        for number in range(int(params.get("lines", 3))):
            ctx.log(f"line {number}")
        if params.get("waits"):
            await app.gate.wait()
            ctx.log("done waiting")
        if ctx.run_id.endswith("bad"):
            raise runwire.Fail("unlucky", "no luck")
        return {"run": ctx.run_id}

    return app


@pytest.fixture
async def http(settings: Settings, bus: Bus) -> AsyncIterator[httpx.AsyncClient]:
    async with adapter(settings) as client:
        yield client


@pytest.fixture
async def live(http: httpx.AsyncClient, bus: Bus, app: App, settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    async with worker(bus, app, settings):
        yield http


async def create(http: httpx.AsyncClient, **target: object) -> int:
    body = {"chain": CHAIN, "desc": "talks", "target": {"action": "talk", **target}, "trigger": {}}
    return (await http.post("/tasks", json=body)).json()["id"]


async def execute(http: httpx.AsyncClient, task: int, **headers: str) -> str:
    answer = await http.post(f"/tasks/{task}/execute", headers=headers)
    assert answer.status_code in {200, 202}, answer.text
    return answer.headers["run-id"]


async def test_the_runs_of_a_task_come_newest_first_and_by_pages(live: httpx.AsyncClient) -> None:
    task = await create(live)
    runs = [await execute(live, task) for _ in range(7)]
    everything = await live.get(f"/tasks/{task}/runs")
    assert [run["id"] for run in everything.json()] == runs[::-1]
    assert set(everything.json()[0]) == {
        "id", "task", "chain", "code", "attempt", "source", "reason", "accepted", "started", "finished", "result",
        "error", "next_attempt", "trace_id", "progress",
    }  # fmt: skip
    assert everything.headers["x-total-count"] == "7"
    page = await live.get(f"/tasks/{task}/runs?limit=3&offset=3")
    assert [run["id"] for run in page.json()] == runs[::-1][3:6]
    following = re.search(r'<([^>]*)>; rel="next"', page.headers["link"])[1]
    assert [run["id"] for run in (await live.get(following)).json()] == runs[:1]
    assert (await live.get(f"/tasks/{task}/runs?offset=50")).json() == []


async def test_a_run_in_the_list_is_the_run_by_itself(live: httpx.AsyncClient) -> None:
    task = await create(live)
    run = await execute(live, task)
    (listed,) = (await live.get(f"/tasks/{task}/runs")).json()
    assert listed == (await live.get(f"/tasks/{task}/runs/{run}")).json()


async def test_runs_are_filtered_by_their_state(live: httpx.AsyncClient, bus: Bus) -> None:
    task = await create(live)
    good = await execute(live, task)
    await eventually(lambda: queue_is_empty(bus))  # the last run's command is acknowledged
    await publish_command(bus, "this-is-bad", task=task)

    async def both() -> bool:
        return len((await live.get(f"/tasks/{task}/runs")).json()) == 2

    await eventually(both)
    assert [run["id"] for run in (await live.get(f"/tasks/{task}/runs?code=DONE")).json()] == [good]
    failed = await live.get(f"/tasks/{task}/runs?code=ERROR")
    assert [(run["id"], run["error"]["code"]) for run in failed.json()] == [("this-is-bad", "unlucky")]
    assert failed.headers["x-total-count"] == "1"
    assert (await live.get(f"/tasks/{task}/runs?code=INPROGRESS")).json() == []


async def test_a_run_that_is_queued_or_in_progress_comes_first(
    http: httpx.AsyncClient, bus: Bus, app: App, settings: Settings
) -> None:
    task = await create(http, waits=True)
    queued = await execute(http, task, Prefer="respond-async")
    assert [(run["id"], run["code"]) for run in (await http.get(f"/tasks/{task}/runs")).json()] == [(queued, "READY")]
    async with worker(bus, app, settings):

        async def running() -> bool:
            (run,) = (await http.get(f"/tasks/{task}/runs")).json()
            return (run["id"], run["code"]) == (queued, "INPROGRESS")

        await eventually(running)
        listed = await http.get(f"/tasks/{task}/runs?code=INPROGRESS")
        assert (len(listed.json()), listed.headers["x-total-count"]) == (1, "1")
        app.gate.set()
        await http.get(f"/tasks/{task}/runs/{queued}", headers={"Prefer": "wait=10"})
    (ended,) = (await http.get(f"/tasks/{task}/runs")).json()
    assert (ended["id"], ended["code"]) == (queued, "DONE")


async def test_the_log_of_a_run_is_read_on_line_by_line_until_it_is_final(live: httpx.AsyncClient, app: App) -> None:
    task = await create(live, lines=5, waits=True)
    run = await execute(live, task, Prefer="respond-async")
    logs = f"/tasks/{task}/runs/{run}/logs"

    async def five() -> dict[str, object] | None:
        page = await live.get(logs)
        return page.json() if page.status_code == 200 and len(page.json()["lines"]) == 5 else None

    page = await eventually(five)
    assert [line["message"] for line in page["lines"]] == [f"line {number}" for number in range(5)]
    assert page["final"] is False
    assert page["next"] == page["lines"][-1]["line"]
    nothing_new = (await live.get(f"{logs}?after={page['next']}")).json()
    assert nothing_new == {"lines": [], "next": page["next"], "final": False}
    app.gate.set()
    await live.get(f"/tasks/{task}/runs/{run}", headers={"Prefer": "wait=10"})
    rest = (await live.get(f"{logs}?after={page['next']}")).json()
    assert ([line["message"] for line in rest["lines"]], rest["final"]) == (["done waiting"], True)


async def test_a_log_is_read_by_pages_and_only_the_last_is_final(live: httpx.AsyncClient) -> None:
    task = await create(live, lines=25)
    run = await execute(live, task)
    seen, after, final = [], 0, []
    for _ in range(3):
        page = (await live.get(f"/tasks/{task}/runs/{run}/logs?limit=10&after={after}")).json()
        seen += [line["message"] for line in page["lines"]]
        after = page["next"]
        final.append(page["final"])
    assert seen == [f"line {number}" for number in range(25)]
    assert final == [False, False, True]


async def test_each_run_has_a_log_of_its_own(live: httpx.AsyncClient) -> None:
    task = await create(live, lines=2)
    runs = [await execute(live, task) for _ in range(3)]
    for run in runs:
        assert len((await live.get(f"/tasks/{task}/runs/{run}/logs")).json()["lines"]) == 2
    assert len((await live.get(f"/tasks/{task}")).json()["logs"]) == 6


async def test_a_queued_run_has_no_lines_and_is_not_final(http: httpx.AsyncClient) -> None:
    task = await create(http)
    run = await execute(http, task, Prefer="respond-async")
    page = (await http.get(f"/tasks/{task}/runs/{run}/logs")).json()
    assert page == {"lines": [], "next": 0, "final": False}


async def test_the_log_of_a_run_nobody_knows_is_not_found(http: httpx.AsyncClient) -> None:
    answer = await http.get("/tasks/12345/runs/nobody/logs")
    assert (answer.status_code, answer.json()["code"]) == (404, "run_not_found")
    assert (await http.get("/tasks/54321/runs")).status_code == 404
