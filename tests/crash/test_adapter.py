"""An adapter that dies at each step of a call: the same call with the same key, to another one, makes good."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from runwire.app import App, Context
from runwire.domain.lifecycle import Change
from runwire.failpoints import Point
from runwire.messaging import commands, events
from runwire.messaging.broker import Bus
from runwire.settings import Settings
from runwire.worker.consumer import Consumer
from tests.crash.processes import Processes, died, freeze, go_on, proxied, stands_still
from tests.support import CHAIN, dead_letters, ended, eventually, history, make_task, publish_command, worker

ASYNC = {"Prefer": "respond-async"}


@pytest.fixture
def begun(app: App) -> list[str]:
    """The runs that the action `counted` was begun for."""
    runs: list[str] = []

    @app.action("counted")
    async def counted(params: dict[str, object], ctx: Context) -> None:
        runs.append(ctx.run_id)

    return runs


@pytest.fixture
async def working(bus: Bus, app: App, settings: Settings, begun: list[str]) -> AsyncIterator[Consumer]:
    async with worker(bus, app, settings) as consumer:
        yield consumer


async def ends(bus: Bus, task: int) -> list[str]:
    return [document.run.id for document in await history(bus, task=task) if document.change is Change.CONCLUDED]


@pytest.mark.parametrize("point", [Point.KEY_STORED, Point.BEFORE_COMMAND, Point.COMMAND_STORED, Point.BEFORE_ANSWER])
async def test_a_call_whose_adapter_dies_at_any_step_is_one_run_with_its_key(
    bus: Bus, processes: Processes, http: httpx.AsyncClient, working: Consumer, begun: list[str], task: int, point: str
) -> None:
    await make_task(bus, "counted", task=task)
    call = {"url": f"/tasks/{task}/execute", "headers": {"Idempotency-Key": f"order-{task}"}}
    async with processes.adapter(f"{point}:kill") as (adapter, client):
        with pytest.raises(httpx.TransportError):
            await client.post(**call)
        await died(adapter)
    again = await http.post(**call)
    assert (again.status_code, again.json()["code"]) == (200, "DONE")
    assert await ends(bus, task) == begun == [again.headers["run-id"]]


async def test_a_call_whose_adapter_dies_before_it_hears_of_its_command_is_one_run_with_its_key(
    bus: Bus, processes: Processes, http: httpx.AsyncClient, settings: Settings, begun: list[str], task: int, app: App
) -> None:
    await make_task(bus, "counted", task=task)
    call = {"url": f"/tasks/{task}/execute", "headers": {"Idempotency-Key": f"order-{task}"}}
    async with proxied(settings) as proxy:
        async with processes.adapter(f"{Point.BEFORE_COMMAND}:stop", proxy=proxy) as (adapter, client):
            calling = asyncio.create_task(client.post(**call))
            await stands_still(adapter)
            proxy.mute()
            go_on(adapter)
            held = await eventually(lambda: commands.outstanding(bus, CHAIN, task), what="the command is stored")
            adapter.kill()
            with pytest.raises(httpx.TransportError):
                await calling
    async with worker(bus, app, settings):
        again = await http.post(**call)
    assert (again.status_code, again.json()["code"]) == (200, "DONE")
    assert await ends(bus, task) == begun == [again.headers["run-id"]] == [commands.run_of(held)]


@pytest.mark.parametrize("point", [Point.KEY_STORED, Point.TASK_STORED])
async def test_a_creation_whose_adapter_dies_is_one_task_with_its_key(
    processes: Processes, http: httpx.AsyncClient, task: int, point: str
) -> None:
    body = {"chain": CHAIN, "desc": "made once", "target": {"action": f"once {task}"}, "trigger": {}}
    call = {"url": "/tasks", "json": body, "headers": {"Idempotency-Key": f"task-{task}"}}
    async with processes.adapter(f"{point}:kill") as (adapter, client):
        with pytest.raises(httpx.TransportError):
            await client.post(**call)
        await died(adapter)
    again = await http.post(**call)
    assert again.status_code == 201, again.text
    assert again.headers.get("idempotency-replayed") == ("true" if point == Point.TASK_STORED else None)
    found = await http.get("/tasks", params={"action": f"once {task}"})
    assert [one["id"] for one in found.json()] == [again.json()["id"]]


async def test_a_cancel_whose_adapter_dies_between_event_and_command_has_happened(
    bus: Bus, processes: Processes, settings: Settings, begun: list[str], task: int, app: App
) -> None:
    await make_task(bus, "counted", task=task)
    await publish_command(bus, f"run-{task}", task=task)
    async with processes.adapter(f"{Point.CANCEL_STORED}:kill") as (adapter, client):
        with pytest.raises(httpx.TransportError):
            await client.post(f"/tasks/{task}/cancel")
        await died(adapter)
    assert (await ended(bus, f"run-{task}", task=task)).run.error.code == "cancelled"
    assert await commands.outstanding(bus, CHAIN, task) is not None
    async with worker(bus, app, settings):
        await eventually(lambda: is_free(bus, task), what="the command is gone")
        await publish_command(bus, f"next-{task}", task=task)
        await ended(bus, f"next-{task}", task=task)
    assert begun == [f"next-{task}"]
    assert await ends(bus, task) == [f"run-{task}", f"next-{task}"]


@pytest.mark.parametrize("point", [Point.CANCEL_STORED, Point.BEFORE_DELETION])
async def test_a_deletion_whose_adapter_dies_after_it_cancelled_the_run_is_made_good_by_the_next(
    bus: Bus, processes: Processes, http: httpx.AsyncClient, settings: Settings, app: App, task: int, point: str
) -> None:
    await make_task(bus, "counted", task=task)
    await publish_command(bus, f"run-{task}", task=task)
    async with processes.adapter(f"{point}:kill") as (adapter, client):
        with pytest.raises(httpx.TransportError):
            await client.delete(f"/tasks/{task}", params={"force": "true"})
        await died(adapter)
    assert (await http.get(f"/tasks/{task}/runs/run-{task}")).json()["error"]["code"] == "cancelled"
    assert (await http.delete(f"/tasks/{task}")).status_code == 204
    async with worker(bus, app, settings):
        await eventually(lambda: is_free(bus, task), what="the command is gone")
    assert [document.change for document in await history(bus, task=task)] == [
        Change.CREATED, Change.CONCLUDED, Change.DELETED,
    ]  # fmt: skip
    assert await dead_letters(bus, task=task) is None


async def test_an_adapter_frozen_and_cut_off_meanwhile_answers_everybody_who_waited(
    bus: Bus, processes: Processes, settings: Settings, app: App
) -> None:
    gate = asyncio.Event()

    @app.action("gate")
    async def held_up(params: dict[str, object], ctx: Context) -> None:
        await gate.wait()

    tasks = range(2_000_001, 2_000_006)
    for number in tasks:
        await make_task(bus, "gate", task=number)
    async with worker(bus, app, settings), proxied(settings) as proxy:
        async with processes.adapter(proxy=proxy) as (adapter, client):
            calls = [asyncio.create_task(client.post(f"/tasks/{number}/execute")) for number in tasks]
            await eventually(lambda: all_are(bus, tasks, Change.CLAIMED), what="every run has begun")
            freeze(adapter)
            proxy.stall()
            gate.set()
            await eventually(lambda: all_are(bus, tasks, Change.CONCLUDED), what="every run has ended")
            proxy.cut()  # and with it all that was on its way
            proxy.heal()
            go_on(adapter)
            answers = await asyncio.wait_for(asyncio.gather(*calls), 10)
    assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [(200, "DONE")] * len(tasks)


async def is_free(bus: Bus, task: int) -> bool:
    return await commands.outstanding(bus, CHAIN, task) is None


async def all_are(bus: Bus, tasks: range, change: Change) -> bool:
    """Whether that is the last thing that happened to each of the tasks."""
    heads = [await events.load(bus, CHAIN, task) for task in tasks]
    return all(head.document.change is change for head in heads)
