"""How far a run says it has come: shown while it runs and afterwards, never in its way."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator

import httpx
import pytest

import runwire
from runwire.app import App
from runwire.domain.run import RunCode
from runwire.domain.task import RetryPolicy
from runwire.messaging import codec, janitor, streams, subjects
from runwire.messaging.broker import Bus
from runwire.settings import Settings
from tests.support import (
    CHAIN,
    Broker,
    adapter,
    connected,
    ended,
    eventually,
    history,
    lifecycle_now,
    make_task,
    publish_command,
    worker,
)


@pytest.fixture
def app(app: App) -> App:
    app.gate = asyncio.Event()

    @app.action("steps")
    async def steps(params: dict[str, object], ctx: runwire.Context) -> None:
        if ctx.attempt > 1 or "silent" in params:
            await app.gate.wait()
            return
        ctx.progress(0.25, "a quarter")
        await app.gate.wait()
        ctx.progress(0.9, "nearly there")
        ctx.progress(None, "tidying up")
        if "fails" in params:
            raise runwire.Retry(after=0)

    return app


@pytest.fixture
async def http(settings: Settings, bus: Bus, app: App) -> AsyncIterator[httpx.AsyncClient]:
    async with adapter(settings) as client, worker(bus, app, settings):
        yield client


async def progress_of(http: httpx.AsyncClient, run: str, task: int = 1) -> dict[str, object] | None:
    shown = (await http.get(f"/tasks/{task}/runs/{run}")).json()["progress"]
    listed = (await http.get(f"/tasks/{task}/runs")).json()
    assert {found["id"]: found["progress"] for found in listed}[run] == shown
    return shown


async def reports(bus: Bus, task: int = 1) -> int:
    info = await bus.js.stream_info("LOGS", subjects_filter=subjects.progress(CHAIN, task))
    return (info.state.subjects or {}).get(subjects.progress(CHAIN, task), 0)


async def test_a_run_shows_how_far_it_has_come_and_what_it_said_last(
    http: httpx.AsyncClient, bus: Bus, app: App
) -> None:
    await make_task(bus, "steps")
    await publish_command(bus, "r1")

    async def quarter() -> bool:
        return (await http.get("/tasks/1")).headers.get("task-progress") == "0.25"

    await eventually(quarter)
    shown = await progress_of(http, "r1")
    assert (shown["fraction"], shown["message"]) == (0.25, "a quarter")
    assert "progress" not in (await http.get("/tasks/1")).json()
    app.gate.set()
    await http.get("/tasks/1/runs/r1", headers={"Prefer": "wait=10"})
    shown = await progress_of(http, "r1")
    assert (shown["fraction"], shown["message"]) == (None, "tidying up")
    assert "task-progress" not in (await http.get("/tasks/1")).headers
    assert all("progress" not in document.model_dump()["run"] for document in await history(bus) if document.run)


async def test_reports_are_of_their_run_alone(http: httpx.AsyncClient, bus: Bus, app: App) -> None:
    app.gate.set()
    await make_task(bus, "steps")
    await publish_command(bus, "r1")
    await ended(bus, "r1")
    await publish_command(bus, "r2", body=b"{}")
    await ended(bus, "r2")
    await http.get("/tasks/1/runs/r2", headers={"Prefer": "wait=10"})
    assert await progress_of(http, "r1") is None
    assert (await progress_of(http, "r2"))["message"] == "tidying up"


async def test_a_new_attempt_begins_with_no_progress(http: httpx.AsyncClient, bus: Bus, app: App) -> None:
    app.gate.set()
    await make_task(bus, "steps", fails=True, retry=RetryPolicy(attempts=2, backoff=0))
    await publish_command(bus, "r1")
    await ended(bus, "r1")
    await http.get("/tasks/1/runs/r1", headers={"Prefer": "wait=10"})
    assert await progress_of(http, "r1") is None


async def test_a_flood_of_reports_is_a_few_messages_and_the_last_one_counts(
    bus: Bus, app: App, settings: Settings
) -> None:
    @app.action("busy")
    def busy(params: dict[str, object], ctx: runwire.Context) -> dict[str, float]:
        began = time.monotonic()
        for number in range(100_000):
            ctx.progress(number / 100_000, f"step {number}")
        return {"seconds": time.monotonic() - began}

    await make_task(bus, "busy")
    async with worker(bus, app, settings):
        await publish_command(bus, "r1")
        document = await ended(bus, "r1")
    assert document.run.result["seconds"] < 5
    assert await reports(bus) == 1
    last = await bus.js.get_msg("LOGS", subject=subjects.progress(CHAIN, 1))
    assert codec.decode_progress(last.data).message == "step 99999"
    assert last.seq == document.run.log_seq < 20


async def test_what_is_no_share_is_made_one(bus: Bus, app: App, settings: Settings) -> None:
    @app.action("odd")
    async def odd(params: dict[str, object], ctx: runwire.Context) -> None:
        fraction = params["fraction"]
        ctx.progress(float("nan") if fraction == "nan" else fraction, "\udcff" + "x" * 1000)

    async with worker(bus, app, settings):
        for task, (given, kept) in enumerate([(1.00001, 1), (-3, 0), ("nan", None), (1, 1)], start=1):
            await make_task(bus, "odd", task=task, fraction=given)
            await publish_command(bus, f"r{task}", task=task)
            await ended(bus, f"r{task}", task=task)
            stored = await bus.js.get_msg("LOGS", subject=subjects.progress(CHAIN, task))
            report = codec.decode_progress(stored.data)
            assert (report.fraction, report.message[:2], len(report.message)) == (kept, "?x", 500)
        await make_task(bus, "odd", task=9, fraction="half")
        await publish_command(bus, "r9", task=9)
        assert (await ended(bus, "r9", task=9)).run.error.code == "handler_error"


async def test_a_thread_that_goes_on_reporting_after_its_time_holds_nothing_up(
    bus: Bus, app: App, settings: Settings
) -> None:
    stop = threading.Event()

    @app.action("endless")
    def endless(params: dict[str, object], ctx: runwire.Context) -> None:
        while not stop.is_set():
            ctx.progress(0.5, "still here")
            ctx.log("still here")
            time.sleep(0.0001)

    await make_task(bus, "endless", timeout=0.3)
    async with worker(bus, app, settings):
        await publish_command(bus, "r1")
        document = await ended(bus, "r1")
        lines = (await bus.js.stream_info("LOGS")).state.last_seq
        assert document.run.error.code == "timeout"
        assert document.run.log_seq == lines
        stop.set()


async def test_reports_wait_for_a_broker_that_is_away(bus: Bus, app: App, settings: Settings, broker: Broker) -> None:
    begun, back = asyncio.Event(), asyncio.Event()

    @app.action("reporting")
    async def reporting(params: dict[str, object], ctx: runwire.Context) -> None:
        begun.set()
        for number in range(50):
            ctx.progress(number / 100)
            await asyncio.sleep(0.01)
        await back.wait()
        ctx.progress(1)

    await make_task(bus, "reporting")
    async with worker(bus, app, settings):
        await publish_command(bus, "r1")
        await begun.wait()
        broker.restart()
        back.set()
        fresh = await connected(settings)
        document = await ended(fresh, "r1", within=20)
        last = await fresh.js.get_msg("LOGS", subject=subjects.progress(CHAIN, 1))
        await fresh.nc.close()
    assert codec.decode_progress(last.data).fraction == 1
    assert last.seq == document.run.log_seq


async def test_the_last_report_of_a_deleted_task_is_forgotten_with_it(
    http: httpx.AsyncClient, bus: Bus, app: App
) -> None:
    app.gate.set()
    await make_task(bus, "steps")
    await publish_command(bus, "r1")
    await ended(bus, "r1")
    await http.get("/tasks/1/runs/r1", headers={"Prefer": "wait=10"})
    assert (await http.delete("/tasks/1")).status_code == 204
    assert await http.services.reader.report(1) is None
    assert await reports(bus) == 1
    await janitor.sweep(bus, now=lifecycle_now().replace(year=lifecycle_now().year + 1))
    assert await reports(bus) == 0


async def test_a_stream_that_an_earlier_version_made_takes_reports(bus: Bus, app: App, settings: Settings) -> None:
    config = (await bus.js.stream_info("LOGS")).config
    await bus.js.update_stream(config.evolve(allow_rollup_hdrs=False))
    await streams.provision(bus, settings)
    assert (await bus.js.stream_info("LOGS")).config.allow_rollup_hdrs
    app.gate.set()
    await make_task(bus, "steps")
    async with worker(bus, app, settings):
        await publish_command(bus, "r1")
        await ended(bus, "r1")
    assert await reports(bus) == 1


async def test_a_stream_that_takes_no_reports_is_no_reason_to_fail(bus: Bus, app: App, settings: Settings) -> None:
    config = (await bus.js.stream_info("LOGS")).config
    await bus.js.update_stream(config.evolve(allow_rollup_hdrs=False))
    app.gate.set()
    await make_task(bus, "steps")
    async with worker(bus, app, settings):
        await publish_command(bus, "r1")
        assert (await ended(bus, "r1")).run.code is RunCode.DONE
