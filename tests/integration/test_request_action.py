"""The actions `request` and `publish`: services of a chain, on connections of their own, over the real broker."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nats
import nats.micro
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from runwire.app import App
from runwire.domain.lifecycle import Document
from runwire.messaging import cancellation
from runwire.messaging.broker import Bus
from runwire.messaging.callout import LONGEST_ANSWER
from runwire.settings import Settings
from runwire.worker.actions.builtin import builtin_actions
from runwire.worker.actions.request import LONGEST_WAIT
from tests.support import (
    CHAIN,
    Broker,
    Runwire,
    answering_logins,
    ended,
    eventually,
    grant,
    history,
    make_task,
    on_the_bus,
    publish_command,
    queue_is_empty,
    refused_reconnections,
    worker,
)

RENDER = "services.1764.invoices.render"
OTHER = 2001
AGAIN = {"attempts": 5, "backoff": 0}

Answer = Callable[[Msg], Awaitable[None]]


class Member:
    """A client of the bus as a chain's services are: what it was refused is noted."""

    def __init__(self) -> None:
        self.nc: Client
        self.heard: list[Msg] = []
        self.refused: list[str] = []

    async def hear(self, subject: str, answer: Answer | None = None) -> None:
        async def note(message: Msg) -> None:
            self.heard.append(message)
            if answer is not None:
                await answer(message)

        await self.nc.subscribe(subject, queue="service" if answer else "", cb=note)
        await self.nc.flush()


@asynccontextmanager
async def member(bus: Bus, broker: Broker, chain: int = CHAIN) -> AsyncIterator[Member]:
    """Logins have to be answered."""
    found = Member()

    async def note(error: Exception) -> None:
        found.refused.append(str(error))

    found.nc = await on_the_bus(broker, *await grant(bus, chain), error_cb=note, max_reconnect_attempts=-1)
    try:
        yield found
    finally:
        await found.nc.close()


@pytest.fixture
async def service(bus: Bus, broker: Broker, settings: Settings) -> AsyncIterator[Member]:
    async with answering_logins(bus, settings), member(bus, broker) as found:
        yield found


async def run(bus: Bus, app: App, settings: Settings, action: str = "request", **fields: Any) -> Document:
    """How a run of this task ends."""
    await make_task(bus, action, **fields)
    async with worker(bus, app, settings):
        await publish_command(bus, "r1")
        return await ended(bus, "r1")


def replies(*bodies: bytes) -> Answer:
    """Each request gets the next of these."""
    left = list(bodies)

    async def answer(message: Msg) -> None:
        await message.respond(left.pop(0))

    return answer


async def silence(_message: Msg) -> None:
    """Never answers."""


async def answer_all_but_the_first(message: Msg) -> None:
    if message.headers["Run-Attempt"] != "1":
        await message.respond(b'{"done": true}')


async def failures(bus: Bus) -> list[str]:
    """Why the task's attempts failed that were followed by another one."""
    return [found.run.error.code for found in await history(bus) if found.run and found.run.claim.retry_at]


def inboxes(bus: Bus) -> set[str]:
    return {subscription.subject for subscription in bus.nc._subs.values() if "_INBOX" in subscription.subject}


def attempts(service: Member) -> list[tuple[str, str]]:
    return [(message.headers["Run-Id"], message.headers["Run-Attempt"]) for message in service.heard]


async def test_the_reply_of_a_service_is_the_result(bus: Bus, app: App, settings: Settings, service: Member) -> None:
    await service.hear(RENDER, replies(b'{"pages": 3}'))
    payload = {"invoice": 17, "note": "5 \u20ac", "lines": [{"n": 1.5}, None]}
    before = datetime.now(UTC)
    document = await run(bus, app, settings, service="invoices.render", payload=payload, timeout=60)
    assert (document.run.error, document.run.result) == (None, {"pages": 3})
    [request] = service.heard
    assert json.loads(request.data) == payload
    headers = dict(request.headers)
    deadline = datetime.fromisoformat(headers.pop("Run-Deadline"))
    assert 59 < (deadline - before).total_seconds() < 75
    assert {name: headers[name] for name in headers if not name.startswith("Nats-")} == {
        "Run-Id": "r1",
        "Run-Attempt": "1",
        "Task-Id": "1",
        "Chain-Id": "1764",
    }


async def test_a_large_reply_becomes_a_file(bus: Bus, app: App, settings: Settings, service: Member) -> None:
    body = json.dumps({"text": "x" * 900_000}).encode()
    await service.hear(RENDER, replies(body))
    document = await run(bus, app, settings, service="invoices.render")
    assert document.run.result == {"file": "Result-1.json", "bytes": len(body) - 1}, "no space after the colon"


async def test_a_service_made_with_the_micro_framework_answers_and_fails(
    bus: Bus, app: App, settings: Settings, service: Member
) -> None:
    seen: list[str] = []

    async def divide(request: nats.micro.request.Request) -> None:
        seen.append(request.headers["Run-Attempt"])
        if len(seen) == 1:
            await request.respond_error("503", "warming up", b'{"code": "warming_up"}')
        else:
            await request.respond_error("422", "division by zero")

    micro = await nats.micro.add_service(service.nc, name="calculator", version="1.0.0")
    await micro.add_endpoint(name="divide", subject="services.1764.divide", handler=divide)
    document = await run(bus, app, settings, service="divide", retry=AGAIN)
    error = document.run.error
    assert (error.code, error.message) == ("service_error", "divide: 422 division by zero")
    assert (seen, document.run.attempt) == (["1", "2"], 2)
    assert await failures(bus) == ["warming_up"]
    assert service.refused == []
    await micro.stop()


async def test_a_service_that_nobody_is_there_for_is_noticed_at_once(
    bus: Bus, app: App, settings: Settings, service: Member
) -> None:
    began = time.monotonic()
    document = await run(bus, app, settings, service="invoices.render")
    assert document.run.error.code == "no_responders"
    assert document.run.error.message == f"Nobody listens to {RENDER}."
    assert time.monotonic() - began < 10


async def test_a_service_that_comes_later_is_found_by_a_retry(
    bus: Bus, app: App, settings: Settings, service: Member
) -> None:
    await make_task(bus, "request", service="invoices.render", retry={"attempts": 100, "backoff": 0.1})
    async with worker(bus, app, settings):
        await publish_command(bus, "r1")
        await eventually(lambda: failures(bus))
        await service.hear(RENDER, replies(b"{}"))
        document = await ended(bus, "r1")
    assert document.run.result == {}
    assert [run_id for run_id, _ in attempts(service)] == ["r1"]
    assert document.run.attempt > 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seconds": 0.2}, "invoices.render did not answer within 0.2 s."),
        ({"timeout": 0.2, "seconds": 100}, "The action took longer than 0.2 s."),
    ],
)
async def test_a_service_that_does_not_answer_is_a_timeout(
    bus: Bus, app: App, settings: Settings, service: Member, fields: dict[str, Any], message: str
) -> None:
    await service.hear(RENDER, silence)
    before = inboxes(bus)
    document = await run(bus, app, settings, service="invoices.render", retry={"attempts": 2, "backoff": 0}, **fields)
    assert (document.run.error.code, document.run.error.message) == ("timeout", message)
    assert attempts(service) == [("r1", "1"), ("r1", "2")], "the same run, so that the service can tell"
    assert inboxes(bus) == before, "the broker need not remember the requests"


async def test_a_cancel_ends_the_wait(bus: Bus, app: App, settings: Settings, service: Member) -> None:
    await service.hear(RENDER, silence)
    await make_task(bus, "request", service="invoices.render")
    async with worker(bus, app, settings):
        await publish_command(bus, "r1")
        await eventually(lambda: service.heard)
        await cancellation.cancel(bus, CHAIN, 1, by="tester")
        assert (await ended(bus, "r1")).run.error.code == "cancelled"
        await publish_command(bus, "r2")
        await eventually(lambda: attempts(service) == [("r1", "1"), ("r2", "1")])
        await service.heard[0].respond(b'{"late": true}')
        await service.heard[1].respond(b'{"mine": true}')
        assert (await ended(bus, "r2")).run.result == {"mine": True}, "a late reply reaches no other run"


@refused_reconnections
async def test_a_request_whose_connection_breaks_is_made_again(
    bus: Bus, app: App, settings: Settings, broker: Broker, service: Member
) -> None:
    await service.hear(RENDER, answer_all_but_the_first)
    await make_task(bus, "request", service="invoices.render", retry={"attempts": 100, "backoff": 0.2})
    async with worker(bus, app, settings):
        await publish_command(bus, "r1")
        await eventually(lambda: service.heard)
        broker.restart()
        await eventually(lambda: len(service.heard) == 2)
        document = await ended(bus, "r1")
    assert document.run.result == {"done": True}
    assert {run_id for run_id, _ in attempts(service)} == {"r1"}
    assert (await failures(bus))[0] == "connection_lost"


async def test_a_request_whose_worker_is_killed_is_made_again_by_the_next(
    bus: Bus, app: App, settings: Settings, broker: Broker, service: Member, tmp_path: Path
) -> None:
    await service.hear(RENDER, answer_all_but_the_first)
    await make_task(bus, "request", service="invoices.render")
    first = Runwire("worker", cwd=tmp_path, RUNWIRE_NATS_URL=broker.url, RUNWIRE_ACK_WAIT="1")
    try:
        await publish_command(bus, "r1")
        await eventually(lambda: service.heard, within=30)
    finally:
        first.kill()
    async with worker(bus, app, settings):
        document = await ended(bus, "r1")
        await eventually(lambda: queue_is_empty(bus))
    assert document.run.result == {"done": True}
    assert attempts(service) == [("r1", "1"), ("r1", "2")]


async def test_a_message_reaches_all_services_that_listen(
    bus: Bus, app: App, settings: Settings, broker: Broker, service: Member
) -> None:
    await service.hear("messages.1764.>")
    async with member(bus, broker) as second:
        await second.hear("messages.1764.invoices.*")
        document = await run(bus, app, settings, "publish", subject="invoices.changed", payload={"invoice": 17})
        assert document.run.result == {"subject": "messages.1764.invoices.changed"}
        for listener in (service, second):
            [message] = await eventually(lambda listener=listener: listener.heard)
            assert (message.subject, message.data) == ("messages.1764.invoices.changed", b'{"invoice":17}')
            assert message.headers == {"Run-Id": "r1", "Run-Attempt": "1", "Task-Id": "1", "Chain-Id": "1764"}


async def test_a_message_that_nobody_listens_to_is_sent_all_the_same(bus: Bus, app: App, settings: Settings) -> None:
    document = await run(bus, app, settings, "publish", subject="invoices.changed")
    assert document.run.error is None


@refused_reconnections
async def test_a_message_without_a_broker_is_not_kept_for_later(
    bus: Bus, app: App, settings: Settings, broker: Broker, service: Member
) -> None:
    await service.hear("messages.1764.>")

    @app.action("publish while the broker is away")
    async def away(params: dict[str, Any], ctx: Any) -> None:
        broker.kill()
        await eventually(lambda: not bus.is_connected)
        try:
            await actions["publish"].handler(actions["publish"].parameters.validate_python({"subject": "it"}), ctx)
        finally:
            broker.start()

    actions = builtin_actions(bus).actions
    document = await run(bus, app, settings, "publish while the broker is away")
    assert document.run.error.code == "connection_lost"

    async def hears_again() -> bool:
        await bus.nc.publish("messages.1764.end", b"")
        return bool(service.heard)

    await eventually(hears_again, what="the service is back, and subscribed")
    assert {message.subject for message in service.heard} == {"messages.1764.end"}


# --- what other chains see ---------------------------------------------------------------------------------------


async def test_another_chain_sees_nothing_and_can_answer_nothing(
    bus: Bus, broker: Broker, app: App, settings: Settings, service: Member
) -> None:
    seen: list[Msg] = []

    async def see(message: Msg) -> None:
        seen.append(message)

    async with member(bus, broker, OTHER) as stranger:
        for subject in ("services.>", "messages.>"):
            await bus.nc.subscribe(subject, cb=see)
        for kind in ("services", "messages"):
            await stranger.hear(f"{kind}.{OTHER}.>")
            for subject in (f"{kind}.{CHAIN}.>", f"{kind}.>", f"{kind}.*.invoices.render"):
                await stranger.hear(subject)
        await stranger.hear("replies.>")
        await stranger.hear("_INBOX.>")
        await eventually(lambda: len(stranger.refused) == 8)

        async def forge_then_answer(message: Msg) -> None:
            stranger.refused.clear()
            for subject in (message.reply, RENDER, f"services.{OTHER}.invoices.render", "messages.1764.x"):
                await stranger.nc.publish(subject, b'{"forged": true}')
            await stranger.nc.flush()
            await message.respond(b'{"forged": false}')

        await service.hear(RENDER, forge_then_answer)
        await service.hear("messages.1764.>")
        await make_task(bus, "publish", task=2, subject="invoices.changed")
        await make_task(bus, "request", task=3, chain=OTHER, service="elsewhere")
        async with worker(bus, app, settings):
            await make_task(bus, "request", service="invoices.render")
            await publish_command(bus, "r1")
            assert (await ended(bus, "r1")).run.result == {"forged": False}
            await publish_command(bus, "r2", task=2)
            await ended(bus, "r2", task=2)
            await bus.nc.publish(f"messages.{OTHER}.end", b"")
            await eventually(lambda: stranger.heard)
        assert [message.subject for message in stranger.heard] == [f"messages.{OTHER}.end"]
        await eventually(lambda: len(stranger.refused) == 4)
        await eventually(lambda: len(service.heard) == 2)
        assert {message.subject for message in seen} <= {
            RENDER, "messages.1764.invoices.changed", f"messages.{OTHER}.end",
        }  # fmt: skip
        assert all(b"forged" not in message.data for message in seen)


async def test_a_service_can_only_answer_and_only_once(bus: Bus, app: App, settings: Settings, service: Member) -> None:
    done = asyncio.Event()

    async def answer_twice(message: Msg) -> None:
        await message.respond(b'{"answer": 1}')
        await message.respond(b'{"answer": 2}')
        for subject in (RENDER, "messages.1764.x", "_INBOX.x", "tasks.evt.1764.1.done"):
            await service.nc.publish(subject, b"{}", reply=message.reply)
        await service.nc.flush()
        done.set()

    await service.hear(RENDER, answer_twice)
    document = await run(bus, app, settings, service="invoices.render")
    await done.wait()
    assert document.run.result == {"answer": 1}
    assert len(service.refused) == 5
    assert len(service.heard) == 1


def test_a_service_may_take_as_long_as_a_task_to_answer() -> None:
    assert LONGEST_ANSWER.total_seconds() >= LONGEST_WAIT
