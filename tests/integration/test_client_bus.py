"""The Python client of the bus against a real broker, adapter and worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import timedelta
from typing import Any

import httpx
import nats.errors
import pytest

import runwire
from runwire.app import App, Context
from runwire.client import (
    Accepted,
    CommandRefused,
    NoAnswer,
    NotFinished,
    NotLetIn,
    OutcomeUnknown,
    Problem,
    PulledEvent,
    RunFailed,
)
from runwire.client import bus as client_bus
from runwire.client.bus import BusClient
from runwire.domain.access import AccessLevel
from runwire.domain.errors import Fail, SetupError
from runwire.messaging import callout, streams, subjects
from runwire.messaging.broker import Bus
from runwire.settings import Settings
from tests.support import (
    CHAIN,
    Broker,
    adapter,
    ended,
    eventually,
    free_port,
    grant,
    make_task,
    refused_reconnections,
    worker,
)


@pytest.fixture
def app(app: App) -> App:
    app.gate = asyncio.Event()

    @app.action("waits")
    async def waits(params: dict[str, object], ctx: Context) -> None:
        await app.gate.wait()

    @app.action("fails")
    async def fails(params: dict[str, object], ctx: Context) -> None:
        raise Fail("no_luck", "the dice fell badly")

    return app


@pytest.fixture
async def http(settings: Settings, bus: Bus) -> AsyncIterator[httpx.AsyncClient]:
    async with adapter(settings) as client:
        yield client


@pytest.fixture
async def client(http: httpx.AsyncClient, bus: Bus, broker: Broker, app: App, settings: Settings) -> Any:
    """A manager's, with a worker that carries out what it asks for."""
    async with worker(bus, app, settings), client_of(broker, *await grant(bus, level=AccessLevel.MANAGER)) as client:
        yield client


def client_of(broker: Broker, token: str, secret: str, **options: Any) -> BusClient:
    return BusClient(CHAIN, url=broker.bus_url, token=f"{token}:{secret}", **options)


async def the_next(events: AsyncIterator[Any]) -> Any:
    async with asyncio.timeout(15):
        return await anext(events)


# --- commands --------------------------------------------------------------------------------------------


async def test_a_command_is_accepted_runs_and_its_end_is_heard(client: BusClient, bus: Bus) -> None:
    await make_task(bus)
    async with client.events(1, "done") as ends:
        accepted = await client.publish(1, run="invoice-1", reason="the nightly one failed")
        end = await the_next(ends)
        again = await client.publish(1, run="invoice-1")
    assert (accepted.run, accepted.duplicate, again.duplicate, again.sequence) == (
        "invoice-1", False, True, accepted.sequence,
    )  # fmt: skip
    assert (end.code, end.change, end.task.id, end.task.state.code) == ("done", "concluded", 1, "DONE")
    assert (end.run.id, end.run.source, end.run.reason) == ("invoice-1", "bus", "the nightly one failed")


async def test_one_run_id_is_a_run_of_each_task(client: BusClient, bus: Bus) -> None:
    """The broker knows message ids for all tasks together."""
    for task in (1, 2):
        await make_task(bus, task=task)
        assert not (await client.publish(task, run="nightly")).duplicate
    for task in (1, 2):
        assert (await ended(bus, "nightly", task=task)).run.code == "DONE"


async def test_a_busy_task_is_told_from_a_full_stream(client: BusClient, bus: Bus) -> None:
    await make_task(bus, "waits")
    await client.publish(1)
    with pytest.raises(CommandRefused) as refused:
        await client.publish(1, run="second")
    assert (refused.value.code, refused.value.run) == ("task_busy", "second")
    info = await bus.js.stream_info(subjects.COMMANDS)
    await bus.js.update_stream(info.config.evolve(max_bytes=info.state.bytes))
    with pytest.raises(CommandRefused, match="maximum bytes") as refused:
        await client.publish(2)
    assert refused.value.code == "not_accepted"


async def test_without_an_acknowledgement_the_outcome_is_unknown_and_the_same_run_may_be_published_again(
    client: BusClient, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_task(bus)
    publish = client._jetstream.publish

    async def loses_the_answer(*arguments: Any, **options: Any) -> Any:
        await publish(*arguments, **options)
        raise nats.errors.TimeoutError

    with monkeypatch.context() as patched, pytest.raises(OutcomeUnknown) as unknown:
        patched.setattr(client._jetstream, "publish", loses_the_answer)
        await client.publish(1)
    again = await client.publish(1, run=unknown.value.run)
    assert again.duplicate
    assert isinstance(unknown.value, TimeoutError)
    assert (await ended(bus, again.run)).run.code == "DONE"


async def test_what_the_level_does_not_allow_is_told_at_once(http: httpx.AsyncClient, bus: Bus, broker: Broker) -> None:
    async with client_of(broker, *await grant(bus, level=AccessLevel.VIEWER), timeout=30) as viewer:
        async with asyncio.timeout(5):
            with pytest.raises(Problem) as refused:
                await viewer.publish(1)
    assert (refused.value.status, refused.value.code) == (403, "forbidden")


# --- requests --------------------------------------------------------------------------------------------


async def test_requests_are_answered_with_models_and_problems(client: BusClient, app: App) -> None:
    task = await client.create(target={"action": "noop"}, desc="a nap", id=5)
    assert (task.id, task.chain, task.desc) == (5, CHAIN, "a nap")
    result = await client.execute(task, idempotency_key="order-17")
    assert (result.task, result.code, result.error, result.replayed) == (5, "DONE", None, False)
    again = await client.execute(5, idempotency_key="order-17")
    assert (again.run, again.replayed) == (result.run, True)
    assert (await client.get(5)).state.code == "DONE"
    assert [found.id async for found in client.list(status="DONE")] == [5]
    assert [found.id async for found in client.list(status="ERROR")] == []
    with pytest.raises(Problem) as missing:
        await client.get(6)
    assert (missing.value.status, missing.value.code) == (404, "task_not_found")
    with pytest.raises(Problem) as invalid:
        await client.create(target={"action": "noop"}, timeout=-1)
    assert [error.pointer for error in invalid.value.errors] == ["/timeout"]


async def test_a_failed_run_is_a_result_or_an_error_as_the_caller_likes(client: BusClient, bus: Bus) -> None:
    await make_task(bus, "fails")
    result = await client.execute(1)
    assert (result.code, result.error) == ("ERROR", "no_luck")
    with pytest.raises(RunFailed) as failed:
        await client.execute(1, raise_on_error=True)
    assert failed.value.code == "no_luck"


async def test_a_long_run_is_waited_for_in_short_calls(
    client: BusClient, bus: Bus, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_bus, "POLL", 1)
    await make_task(bus, "waits")
    with pytest.raises(NotFinished) as unfinished:
        await client.execute(1, wait=0)
    with pytest.raises(Problem) as busy:
        await client.execute(1)
    assert busy.value.code == "task_busy"
    asked: list[str] = []
    ask = client._ask

    async def counted(call: str, *arguments: Any, **options: Any) -> Any:
        asked.append(call)
        return await ask(call, *arguments, **options)

    monkeypatch.setattr(client, "_ask", counted)
    joined = asyncio.create_task(client.execute(1, if_running="join"))
    await eventually(lambda: len(asked) == 2, what="it asked again")
    app.gate.set()
    result = await joined
    assert (result.run, result.code, result.replayed) == (unfinished.value.run, "DONE", False)


async def test_a_run_is_cancelled(client: BusClient, bus: Bus) -> None:
    await make_task(bus, "waits")
    accepted = await client.publish(1)
    async with client.events(1, "inprogress") as begun:
        if (await client.get(1)).state.code == "READY":
            await the_next(begun)
    assert await client.cancel(1, accepted.run) == accepted.run
    assert (await ended(bus, accepted.run)).run.error.code == "cancelled"


async def test_no_adapter_is_no_answer(settings: Settings, bus: Bus, broker: Broker) -> None:
    token = await grant(bus)
    async with adapter(settings):
        client = await client_of(broker, *token, timeout=5).__aenter__()
    with pytest.raises(NoAnswer):
        await client.get(1)
    assert (await client.publish(1)).sequence == 1, "commands need none"
    await client.__aexit__()


# --- durable subscriptions -------------------------------------------------------------------------------


async def test_an_event_is_acknowledged_when_the_next_one_is_asked_for(
    client: BusClient, http: httpx.AsyncClient, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "SUBSCRIBER_WAIT", 1.0)
    subscription = await subscribed(http, client)
    for task in (1, 2, 3):
        await make_task(bus, task=task)

    async def taken(until: int) -> list[tuple[int, bool]]:
        """(task, whether it came again) of events, up to the one of this task, whose processing is broken off."""
        found = []
        async with aclosing(client.pull(subscription, batch=2)) as events:
            async for event in events:
                found.append((event.task.id, event.deliveries > 1))
                if event.task.id == until:
                    return found
        raise AssertionError

    assert await taken(until=2) == [(1, False), (2, False)]
    standing = (await http.get(f"/subscriptions/{subscription}")).json()
    assert (standing["unacknowledged"], standing["pending"]) == (1, 1)
    found = await taken(until=3)
    assert (2, True) in [*found, *([] if (2, True) in found else await taken(until=2))]


async def test_pulling_waits_for_what_is_to_come_and_ends_with_the_subscription(
    client: BusClient, http: httpx.AsyncClient, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_bus, "PULL_SECONDS", 0.3)
    monkeypatch.setattr(client, "_timeout", 0.5)
    subscription = await subscribed(http, client)
    events = client.pull(subscription)
    waiting = asyncio.create_task(the_next(events))
    await eventually(lambda: _is_waited_for(http, subscription))
    await make_task(bus)
    event = await waiting
    assert isinstance(event, PulledEvent)
    assert (event.code, event.task.id, event.sequence, event.deliveries) == ("ready", 1, 2, 1)
    assert (await http.delete(f"/subscriptions/{subscription}")).status_code == 204
    with pytest.raises(Problem) as gone:
        await the_next(events)
    assert gone.value.code == "subscription_not_found"


async def subscribed(http: httpx.AsyncClient, client: BusClient) -> str:
    credential = {"Authorization": f"Bearer {client.token}:{client._secret}"}
    made = await http.post("/subscriptions", json={"kind": "pull", "chain": CHAIN}, headers=credential)
    return made.json()["id"]


async def _is_waited_for(http: httpx.AsyncClient, subscription: str) -> bool:
    return (await http.get(f"/subscriptions/{subscription}")).json()["waiting"] > 0


# --- connecting ------------------------------------------------------------------------------------------


@refused_reconnections
async def test_a_wrong_secret_is_not_let_in(http: httpx.AsyncClient, bus: Bus, broker: Broker) -> None:
    token, _ = await grant(bus)
    with pytest.raises(NotLetIn, match=token):
        await client_of(broker, token, "wrong", timeout=0.5).__aenter__()


@refused_reconnections
async def test_a_broker_that_is_not_there_is_no_answer() -> None:
    with pytest.raises(NoAnswer, match="no answer from nats"):
        await BusClient(CHAIN, url=f"nats://127.0.0.1:{free_port()}", token="a:b", timeout=0.5).__aenter__()


async def test_the_broker_on_this_machine_is_found(
    http: httpx.AsyncClient, bus: Bus, broker: Broker, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, secret = await grant(bus)
    monkeypatch.setenv("RUNWIRE_TOKEN", f"{token}:{secret}")
    monkeypatch.setenv("RUNWIRE_DATA_DIR", str(settings.data_dir))
    async with runwire.BusClient(CHAIN) as client:
        assert isinstance(await client.publish(1), Accepted)
    monkeypatch.setenv("RUNWIRE_DATA_DIR", str(settings.data_dir / "elsewhere"))
    with pytest.raises(SetupError, match="where is the broker"):
        runwire.BusClient(CHAIN)
    with pytest.raises(ValueError, match="ID:SECRET"):
        runwire.BusClient(CHAIN, token="nonsense")


@refused_reconnections
async def test_a_login_that_is_over_is_made_again(
    http: httpx.AsyncClient, bus: Bus, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = await grant(bus, level=AccessLevel.MANAGER)
    with monkeypatch.context() as patched:
        patched.setattr(callout, "LIFETIME", timedelta(seconds=3))
        client = await client_of(broker, *token).__aenter__()
    async with client.events(code="ready") as made:
        coming = asyncio.create_task(the_next(made))
        await eventually(lambda: client.nats.stats["reconnects"] > 0, what="it has logged in again")
        await client.create(target={"action": "noop"}, id=5)
        assert (await coming).task.id == 5
    await client.__aexit__()
