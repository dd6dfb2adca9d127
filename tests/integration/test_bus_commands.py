"""Commands as clients of the bus publish them: what is accepted, what it becomes, and what is put aside."""

from __future__ import annotations

import asyncio
import json
from uuid import uuid4

import pytest
from nats.js.errors import APIError

from runwire.app import App, Context
from runwire.domain.run import Source
from runwire.messaging import deadletters
from runwire.messaging.broker import Bus
from runwire.settings import Settings
from tests.support import CHAIN, adapter, dead_letters, ended, eventually, history, make_task, queue_is_empty, worker

SUBJECT = f"tasks.cmd.{CHAIN}.1.execute"
EVENT = {"specversion": "1.0", "id": "order-17", "source": "/orders", "type": "com.example.order.paid"}
BINARY = {f"ce-{name}": value for name, value in EVENT.items()}
STRUCTURED = {"content-type": "application/cloudevents+json"}


async def test_a_command_tells_its_run_and_its_reason(bus: Bus, app: App, settings: Settings) -> None:
    await make_task(bus)
    async with adapter(settings) as http:
        body = json.dumps({"run": "r1", "reason": "the nightly one failed"}).encode()
        ack = await bus.js.publish(SUBJECT, body, headers={"Nats-Msg-Id": uuid4().hex})
        assert (ack.stream, ack.duplicate) == ("COMMANDS", None)
        queued = (await http.get("/tasks/1/runs/r1")).json()
        assert (queued["code"], queued["source"], queued["reason"]) == ("READY", "bus", "the nightly one failed")
        async with worker(bus, app, settings):
            done = (await http.get("/tasks/1/runs/r1", headers={"Prefer": "wait=10"})).json()
    assert (done["code"], done["source"], done["reason"]) == ("DONE", "bus", "the nightly one failed")
    assert set(done) == set(queued)
    assert {found.run.reason for found in await history(bus) if found.run} == {"the nightly one failed"}


async def test_a_cancelled_run_that_never_began_keeps_its_reason(bus: Bus, settings: Settings) -> None:
    await make_task(bus)
    async with adapter(settings) as http:
        await bus.js.publish(SUBJECT, b'{"run": "r1", "reason": "by mistake"}')
        assert (await http.post("/tasks/1/cancel")).status_code == 200
        cancelled = (await http.get("/tasks/1/runs/r1")).json()
    assert (cancelled["code"], cancelled["error"]["code"], cancelled["reason"]) == ("ERROR", "cancelled", "by mistake")


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (BINARY, b'{"reason": "paid"}'),
        (STRUCTURED, json.dumps({**EVENT, "data": {"reason": "paid"}}).encode()),
    ],
)
async def test_a_cloudevent_is_a_command(
    bus: Bus, app: App, settings: Settings, headers: dict[str, str], body: bytes
) -> None:
    await make_task(bus)
    async with worker(bus, app, settings):
        await bus.js.publish(SUBJECT, body, headers=headers)
        document = await ended(bus, "order-17")
        again = await bus.js.publish(SUBJECT, body, headers=headers)  # the broker does not know ids of events, we do
        await eventually(lambda: queue_is_empty(bus))
    assert (document.run.source, document.run.reason) == (Source.BUS, "paid")
    assert again.seq == 2
    assert len(await history(bus)) == 3, "created, claimed, concluded: once"


async def test_the_broker_refuses_a_second_command_while_one_is_outstanding(
    bus: Bus, app: App, settings: Settings
) -> None:
    go_on = asyncio.Event()

    @app.action("hold")
    async def hold(params: dict[str, object], ctx: Context) -> None:
        await go_on.wait()

    await make_task(bus, "hold")
    first = await bus.js.publish(SUBJECT, b"", headers={"Nats-Msg-Id": "r1"})
    repeated = await bus.js.publish(SUBJECT, b"", headers={"Nats-Msg-Id": "r1"})
    assert (repeated.duplicate, repeated.seq) == (True, first.seq)
    await _is_refused(bus)
    async with worker(bus, app, settings):
        await eventually(lambda: _is_running(bus))
        await _is_refused(bus)
        go_on.set()
        await ended(bus, "r1")
        await eventually(lambda: queue_is_empty(bus))
        await bus.js.publish(SUBJECT, b"", headers={"Nats-Msg-Id": "r2"})
        await ended(bus, "r2")


async def _is_refused(bus: Bus) -> None:
    with pytest.raises(APIError) as refused:
        await bus.js.publish(SUBJECT, b"", headers={"Nats-Msg-Id": "r2"})
    assert refused.value.err_code == 10077


async def _is_running(bus: Bus) -> bool:
    return any(found.run and found.run.code.value == "INPROGRESS" for found in await history(bus))


@pytest.mark.parametrize(
    ("headers", "body", "why"),
    [
        ({}, b"now!", "not JSON"),
        ({}, b"[]", "object"),
        ({"Run-Id": "b"}, b'{"run": "a"}', "two runs"),
        ({"Run-Id": "x" * 20_000}, b"", "no run id"),
        ({"Nats-Msg-Id": "m"}, b'{"reason": "' + b"x" * 60_000 + b'"}', "reason"),
        ({**BINARY, "ce-source": ""}, b"", "no source"),
        (STRUCTURED, b'{"specversion": "0.3", "id": "1", "source": "s", "type": "t"}', "0.3"),
        ({"content-type": "application/cloudevents-batch+json"}, b"[]", "batch"),
    ],
)
async def test_what_is_no_command_is_put_aside_with_the_reason_and_the_next_one_runs(
    bus: Bus, app: App, settings: Settings, headers: dict[str, str], body: bytes, why: str
) -> None:
    await make_task(bus)
    async with worker(bus, app, settings):
        await bus.js.publish(SUBJECT, body, headers=headers)
        letter = await eventually(lambda: dead_letters(bus))
        await eventually(lambda: queue_is_empty(bus))
        await bus.js.publish(SUBJECT, b'{"run": "good"}')
        await ended(bus, "good")
    said = deadletters.letter_in(letter)
    assert (letter.data or b"", said.reason) == (body, "undecodable")
    assert why in said.detail


async def test_a_command_that_is_too_large_is_refused_by_the_broker(bus: Bus) -> None:
    for headers, body in (({}, b" " * 66_000), ({"x-large": "x" * 66_000}, b"{}")):
        with pytest.raises(APIError) as refused:
            await bus.js.publish(SUBJECT, body, headers=headers)
        assert refused.value.err_code == 10054
    assert await queue_is_empty(bus)


async def test_a_second_spelling_of_a_task_is_no_task(bus: Bus, app: App, settings: Settings) -> None:
    await make_task(bus)
    async with worker(bus, app, settings):
        await bus.js.publish(f"tasks.cmd.{CHAIN}.01.execute", b"")
        await eventually(lambda: dead_letters(bus, task=0))
        await eventually(lambda: queue_is_empty(bus))
    assert len(await history(bus)) == 1
