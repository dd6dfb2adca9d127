"""A trace goes round with the run: over HTTP or the bus, into its command, its events, its action and the log."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import unquote

import httpx
import pytest

from runwire.app import App, Context
from runwire.domain import trace
from runwire.domain.addresses import parse_exceptions
from runwire.domain.lifecycle import Change
from runwire.messaging.broker import Bus
from runwire.outgoing.exchange import Exchange
from runwire.outgoing.guard import Guard
from runwire.settings import Settings
from runwire.webhooks.delivery import Patience
from runwire.webhooks.sender import WebHooks
from tests.integration.test_http_action import reply, site
from tests.support import CHAIN, adapter, ended, eventually, history, make_task, worker

ID, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT, STATE = f"00-{ID}-{SPAN}-01", 'rojo="50%",congo=t61 rcWkgMzE'
IN_TRACE = {"traceparent": PARENT, "tracestate": STATE}


@dataclass
class World:
    """An adapter and a worker whose action `look` writes down its context; the first try of each run fails."""

    http: httpx.AsyncClient
    bus: Bus
    seen: list[Context]

    async def headers(self) -> list[dict[str, str]]:
        """Of every event, in order."""
        last = (await self.bus.js.stream_info("EVENTS")).state.last_seq
        events = [await self.bus.js.get_msg("EVENTS", sequence) for sequence in range(1, last + 1)]
        return [event.headers for event in events if event.subject.startswith(f"tasks.evt.{CHAIN}.1.")]


@pytest.fixture
async def world(bus: Bus, app: App, settings: Settings) -> AsyncIterator[World]:
    seen: list[Context] = []

    @app.action("look")
    async def look(params: dict[str, object], ctx: Context) -> None:
        seen.append(ctx)
        if ctx.attempt == 1:
            raise ValueError("once more")

    await make_task(bus, "look", retry={"attempts": 2, "backoff": 0.01})
    async with adapter(settings) as http, worker(bus, app, settings):
        yield World(http, bus, seen)


async def test_a_run_goes_on_in_the_trace_of_its_call(world: World, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "runwire.worker"):
        answer = await world.http.post("/tasks/1/execute", headers=IN_TRACE)
    run = (await world.http.get(answer.headers["location"])).json()
    assert (run["code"], run["trace_id"]) == ("DONE", ID)
    first, second = world.seen
    assert (first.traceparent, first.tracestate) == (second.traceparent, second.tracestate)
    mine = trace.parse(first.traceparent, first.tracestate)
    assert (mine.id, mine.state) == (ID, STATE)
    assert first.traceparent != PARENT, "the run has a span of its own"
    created, *course = await world.headers()
    assert not {name for name in created if "trace" in name}
    assert len(course) == 4, "claimed, retrying, claimed, concluded"
    for headers in course:
        assert headers["traceparent"] == headers["ce-traceparent"] == first.traceparent
        assert headers["tracestate"] == unquote(headers["ce-tracestate"]) == STATE
        assert headers["ce-tracestate"] == "rojo=%2250%25%22,congo=t61%20rcWkgMzE"
    assert f"run succeeded task=1 run={run['id']} attempt=2 action=look trace={ID} " in caplog.text


@pytest.mark.parametrize(
    "headers", [{}, {"traceparent": "nonsense", "tracestate": "a=b"}, {"traceparent": PARENT.replace("00-", "ff-", 1)}]
)
async def test_without_a_valid_trace_there_is_none(
    world: World, headers: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "runwire.worker"):
        answer = await world.http.post("/tasks/1/execute", headers=headers)
    assert answer.status_code == 200
    assert (await world.http.get(answer.headers["location"])).json()["trace_id"] is None
    assert {(ctx.traceparent, ctx.tracestate) for ctx in world.seen} == {(None, None)}
    assert not {name for event in await world.headers() for name in event if "trace" in name}
    assert "trace=" not in caplog.text


async def test_two_traceparents_are_none(world: World) -> None:
    twice = [*world.http.headers.multi_items(), ("traceparent", PARENT), ("traceparent", PARENT)]
    answer = await world.http.post("/tasks/1/execute", headers=twice)
    assert (await world.http.get(answer.headers["location"])).json()["trace_id"] is None


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (IN_TRACE, b""),
        ({"Traceparent": PARENT, "Tracestate": STATE}, b"{}"),
        (
            {"content-type": "application/cloudevents+json", "traceparent": "nonsense"},
            json.dumps({"specversion": "1.0", "id": "1", "source": "s", "type": "t", **IN_TRACE}).encode(),
        ),
    ],
)
async def test_a_command_on_the_bus_may_bring_its_trace(world: World, headers: dict[str, str], body: bytes) -> None:
    subject = f"tasks.cmd.{CHAIN}.1.execute"
    await world.bus.js.publish(subject, body, headers={**headers, "Run-Id": "r1"})
    document = await ended(world.bus, "r1")
    assert document.run.trace == trace.of_run(trace.parse(PARENT, STATE), "r1")
    assert world.seen[0].traceparent == document.run.trace.parent


async def test_a_queued_run_shows_its_trace_and_an_edit_is_no_part_of_it(bus: Bus, settings: Settings) -> None:
    await make_task(bus)
    async with adapter(settings) as http:
        queued = await http.post("/tasks/1/execute", headers={**IN_TRACE, "Prefer": "respond-async"})
        assert (await http.get(queued.headers["location"])).json()["trace_id"] == ID
        assert (await http.post("/tasks/1/cancel")).status_code == 200
        assert (await http.get(queued.headers["location"])).json()["trace_id"] == ID
        assert (await http.patch("/tasks/1", json={"desc": "another"})).status_code == 200
        shown = []
        async with http.stream("GET", "/events?last_event_id=0") as stream:
            async for line in stream.aiter_lines():
                if line.startswith("data: ") and (event := json.loads(line[6:]))["data"]["task"]["id"] == 1:
                    shown.append(event)
                if len(shown) == 3:
                    break
    changes = [document.change for document in await history(bus)]
    assert changes == [Change.CREATED, Change.CONCLUDED, Change.EDITED]
    assert [event.get("tracestate") for event in shown] == [None, STATE, None]
    assert ["traceparent" in event for event in shown] == [False, True, False]
    assert shown[1]["data"]["run"]["trace_id"] == ID


async def test_each_request_to_a_web_hook_is_a_span_below_the_runs(world: World) -> None:
    exchange = Exchange(Guard(parse_exceptions("127.0.0.1/32")))
    hooks = WebHooks(world.bus, patience=Patience(first=0.05, longest=0.1), exchange=exchange)
    await hooks.start()
    async with site(reply(503), reply(200)) as there:
        body = {"kind": "web_hook", "chain": CHAIN, "url": there.url, "codes": ["done", "edited"]}
        assert (await world.http.post("/subscriptions", json=body)).status_code == 201
        await world.http.post("/tasks/1/execute", headers=IN_TRACE)
        await eventually(lambda: len(there.requests) == 2)
        await world.http.patch("/tasks/1", json={"desc": "another"})
        await eventually(lambda: len(there.requests) == 3)
        await hooks.stop()
    first, again, edited = there.requests
    event = json.loads(first.body)
    of_run = world.seen[0].traceparent
    assert (event["traceparent"], event["tracestate"]) == (of_run, STATE)
    sent = [request.headers["traceparent"] for request in (first, again)]
    assert len({*sent, of_run, PARENT}) == 4
    for request in (first, again):
        mine = trace.parse(request.headers["traceparent"], request.headers["tracestate"])
        assert (mine.id, mine.state) == (ID, STATE)
    assert not {name for name in edited.headers if "trace" in name}
