"""A broker that dies or freezes between storing and saying so, and everybody who has to come back to it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import httpx
import pytest

from runwire.app import App, Context
from runwire.failpoints import Point
from runwire.messaging import commands
from runwire.messaging.broker import Bus
from runwire.settings import Settings
from tests.crash.processes import ROOT, Processes, go_on, proxied, ready, stands_still
from tests.crash.test_adapter import ends
from tests.support import CHAIN, TOKEN, Broker, connected, eventually, make_task, worker

SHORT = {"Prefer": "wait=1"}
CLIENTS = 100


@pytest.fixture
def runs(app: App) -> list[str]:
    """The runs that the action `counted` was begun for."""
    begun: list[str] = []

    @app.action("counted")
    async def counted(params: dict[str, object], ctx: Context) -> None:
        begun.append(ctx.run_id)

    return begun


@pytest.fixture
def thawed(broker: Broker) -> Iterator[None]:
    """Whatever a test did to the broker, the next one finds it running."""
    yield
    os.kill(broker.process.pid, signal.SIGCONT)
    if broker.process.poll() is not None:
        broker.start()


@asynccontextmanager
async def anew(settings: Settings) -> AsyncIterator[Bus]:
    """Another connection; the one that was there before may not have noticed yet that the broker is another one."""
    bus = await connected(settings)
    yield bus
    await bus.nc.close()


def call_of(task: int, **headers: str) -> dict[str, object]:
    return {"url": f"/tasks/{task}/execute", "headers": {"Idempotency-Key": f"order-{task}", **headers}}


async def is_one_run(settings: Settings, app: App, runs: list[str], answer: httpx.Response, task: int) -> None:
    assert (answer.status_code, answer.json()["code"]) == (200, "DONE")
    async with anew(settings) as bus:
        assert await ends(bus, task) == runs == [answer.headers["run-id"]]


async def test_a_command_that_a_dying_broker_never_stored_is_unknown_and_one_run_with_its_key(
    bus: Bus, broker: Broker, thawed: None, processes: Processes, settings: Settings, app: App, runs: list[str],
    task: int,
) -> None:  # fmt: skip
    await make_task(bus, "counted", task=task)
    async with processes.adapter(f"{Point.BEFORE_COMMAND}:stop") as (adapter, client):
        calling = asyncio.create_task(client.post(**call_of(task, **SHORT)))
        await stands_still(adapter)
        broker.kill()
        go_on(adapter)
        unknown = await calling
        assert (unknown.status_code, unknown.json()["code"]) == (503, "not_accepted")
        assert unknown.headers["retry-after"]
        broker.start()
        await ready(client)
        async with anew(settings) as back, worker(back, app, settings):
            answer = await client.post(**call_of(task))
        await is_one_run(settings, app, runs, answer, task)


async def test_a_command_that_a_broker_stored_before_it_died_is_found_again(
    bus: Bus, broker: Broker, thawed: None, processes: Processes, settings: Settings, app: App, runs: list[str],
    task: int,
) -> None:  # fmt: skip
    await make_task(bus, "counted", task=task)
    async with proxied(settings) as proxy:
        async with processes.adapter(f"{Point.BEFORE_COMMAND}:stop", proxy=proxy) as (adapter, client):
            calling = asyncio.create_task(client.post(f"/tasks/{task}/execute"))  # without a key: nobody asks again
            await stands_still(adapter)
            proxy.mute()
            go_on(adapter)
            held = await eventually(lambda: commands.outstanding(bus, CHAIN, task), what="the command is stored")
            broker.kill()
            proxy.cut()  # and with it what the broker said last
            proxy.heal()
            broker.start()
            async with anew(settings) as back, worker(back, app, settings):
                answer = await calling
    assert answer.headers["run-id"] == commands.run_of(held)
    await is_one_run(settings, app, runs, answer, task)


async def test_a_frozen_broker_is_503_in_time_and_costs_nothing(
    bus: Bus, broker: Broker, thawed: None, http: httpx.AsyncClient, settings: Settings, app: App, runs: list[str],
    task: int,
) -> None:  # fmt: skip
    await make_task(bus, "counted", task=task)
    await eventually(lambda: is_known(http, task), what="the adapter knows the task")
    os.kill(broker.process.pid, signal.SIGSTOP)
    began = time.monotonic()
    unknown = await http.post(**call_of(task, **SHORT))
    assert (unknown.status_code, unknown.json()["code"]) == (503, "not_accepted")
    assert time.monotonic() - began < 4, "as long as the caller wanted to wait, and a look at the clock"
    os.kill(broker.process.pid, signal.SIGCONT)
    async with worker(bus, app, settings):
        answer = await http.post(**call_of(task))
    await is_one_run(settings, app, runs, answer, task)


async def is_known(http: httpx.AsyncClient, task: int) -> bool:
    return (await http.get(f"/tasks/{task}")).is_success


async def test_a_hundred_clients_come_back_to_a_broker_that_was_killed(
    bus: Bus, broker: Broker, thawed: None, http: httpx.AsyncClient, settings: Settings, app: App, runs: list[str],
    task: int,
) -> None:  # fmt: skip
    await make_task(bus, "counted", task=task)
    arguments = [sys.executable, "-m", "tests.crash.clients", broker.bus_url, *TOKEN.split(":"), str(CLIENTS)]
    clients = await asyncio.create_subprocess_exec(*arguments, stdout=asyncio.subprocess.PIPE, cwd=ROOT)
    try:
        assert await asyncio.wait_for(clients.stdout.readline(), 20) == b"connected\n"
        broker.kill()
        assert await asyncio.wait_for(clients.stdout.readline(), 20) == b"gone\n"
        broker.start()
        assert await asyncio.wait_for(clients.stdout.readline(), 20) == b"back\n"
        async with anew(settings) as back, worker(back, app, settings):
            answer = await http.post(**call_of(task))
        await is_one_run(settings, app, runs, answer, task)
    finally:
        if clients.returncode is None:
            clients.kill()
        await clients.wait()
