"""The API over the bus: the same calls, answers, errors and rights as over HTTP, for whoever the broker says it is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from runwire.app import App, Context
from runwire.client.bus import BusClient
from runwire.domain.access import AccessLevel
from runwire.http import bus as bus_door
from runwire.messaging import subjects, tokens
from runwire.messaging.broker import Bus
from runwire.settings import Settings
from tests.support import CHAIN, Broker, adapter, eventually, grant, history, make_task, on_the_bus, worker

OTHER = 2000


class Caller:
    """A client of the bus, and what the broker complains of."""

    def __init__(self, token: str, chain: int) -> None:
        self.nc: Client
        self.token, self.chain = token, chain
        self.complaints: list[str] = []

    async def complain(self, error: Exception) -> None:
        self.complaints.append(str(error))

    async def ask(self, call: str, /, headers: dict[str, str] | None = None, **asked: Any) -> Msg:
        payload = json.dumps(asked).encode()
        subject = subjects.api(self.chain, self.token, f"tasks.{call}")
        return await self.nc.request(subject, payload, timeout=20, headers=headers)

    async def refused(self, call: str, /, headers: dict[str, str] | None = None, **asked: Any) -> tuple[int, str]:
        """(status, code) of a call that is refused; what the reply says about it agrees."""
        reply = await self.ask(call, headers, **asked)
        problem = json.loads(reply.data)
        assert reply.headers["Content-Type"] == "application/problem+json"
        assert reply.headers["Nats-Service-Error-Code"] == reply.headers["Http-Status"] == str(problem["status"])
        assert reply.headers["Nats-Service-Error"] == problem["detail"]
        return problem["status"], problem["code"]


@pytest.fixture
def app(app: App) -> App:
    app.gate = asyncio.Event()

    @app.action("waits")
    async def waits(params: dict[str, object], ctx: Context) -> None:
        await app.gate.wait()

    return app


@pytest.fixture
async def http(settings: Settings, bus: Bus, app: App) -> AsyncIterator[httpx.AsyncClient]:
    async with adapter(settings) as client, worker(bus, app, settings):
        yield client


@pytest.fixture
async def callers(http: httpx.AsyncClient, bus: Bus, broker: Broker) -> AsyncIterator[dict[str, Caller]]:
    """One of each level in CHAIN, and a manager of OTHER, by name."""
    found = {}
    for name, chain, level in (
        *((level.name.lower(), CHAIN, level) for level in AccessLevel),
        ("stranger", OTHER, AccessLevel.MANAGER),
    ):
        token, secret = await grant(bus, chain, level, token_id=name)
        caller = found[name] = Caller(token, chain)
        caller.nc = await on_the_bus(broker, token, secret, error_cb=caller.complain)
    yield found
    for caller in found.values():
        await caller.nc.close()


def body(task: int = 5, action: str = "noop", **fields: Any) -> dict[str, Any]:
    return {"id": task, "chain": CHAIN, "desc": "", "target": {"action": action}, "trigger": {}, **fields}


# --- the same calls ------------------------------------------------------------------------------------------


async def test_a_task_is_created_listed_executed_and_shown(callers: dict[str, Caller], http: httpx.AsyncClient) -> None:
    manager = callers["manager"]
    created = await manager.ask("create", **body())
    assert (created.headers["Http-Status"], json.loads(created.data)["state"]["code"]) == ("201", "READY")
    assert created.headers["Location"] == "/tasks/5"
    listed = await manager.ask("list", status="READY", action="noop", limit=10)
    assert [task["id"] for task in json.loads(listed.data)] == [5]
    assert listed.headers["X-Total-Count"] == "1"
    ended = await manager.ask("execute", id=5)
    assert list(json.loads(ended.data)) == ["code", "last_run_date", "last_modified", "created_date"]
    assert (ended.headers["Http-Status"], ended.headers["Task-State"]) == ("200", "DONE")
    run = (await http.get(ended.headers["Location"])).json()
    assert (run["id"], run["source"]) == (ended.headers["Run-Id"], "bus")
    shown = await manager.ask("get", id=5, log_limit=0)
    over_http = await http.get("/tasks/5?log_limit=0")
    assert (json.loads(shown.data), shown.headers["ETag"]) == (over_http.json(), over_http.headers["etag"])


async def test_a_run_that_takes_longer_than_the_caller_waits_is_202(
    callers: dict[str, Caller], http: httpx.AsyncClient, bus: Bus, app: App
) -> None:
    await make_task(bus, "waits")
    operator = callers["operator"]
    handed = await operator.ask("execute", {"Prefer": "wait=0"}, id=1)
    assert (handed.headers["Http-Status"], handed.headers["Preference-Applied"]) == ("202", "wait=0")
    assert await operator.refused("execute", id=1) == (409, "task_busy")
    joined = asyncio.create_task(operator.ask("execute", {"Prefer": "wait=15"}, id=1, if_running="join"))
    await eventually(lambda: (1, handed.headers["Run-Id"]) in http.services.waiters._by_run, what="it waits")
    app.gate.set()
    ended = await joined
    assert (ended.headers["Run-Id"], ended.headers["Task-State"]) == (handed.headers["Run-Id"], "DONE")


async def test_a_run_is_cancelled(callers: dict[str, Caller], bus: Bus) -> None:
    await make_task(bus, "waits")
    operator = callers["operator"]
    waiting = asyncio.create_task(operator.ask("execute", id=1))
    await eventually(lambda: _is_cancelled(operator), what="the run was there to be cancelled")
    ended = await waiting
    assert (ended.headers["Http-Status"], ended.headers["Task-Error"]) == ("200", "cancelled")
    assert await operator.refused("cancel", id=1) == (409, "not_running")


async def _is_cancelled(operator: Caller) -> bool:
    return (await operator.ask("cancel", id=1)).headers["Http-Status"] == "200"


async def test_a_repeated_key_is_the_same_run_through_either_door(
    callers: dict[str, Caller], bus: Bus, http: httpx.AsyncClient, broker: Broker
) -> None:
    await make_task(bus)
    token, secret = await grant(bus, token_id="both")
    caller = Caller(token, CHAIN)
    caller.nc = await on_the_bus(broker, token, secret)
    key = {"Idempotency-Key": "order-17"}
    first = await caller.ask("execute", key, id=1)
    again = await caller.ask("execute", key, id=1)
    credential = {"Authorization": f"Bearer {token}:{secret}"}
    over_http = await http.post("/tasks/1/execute", headers={**key, **credential})
    assert first.headers["Run-Id"] == again.headers["Run-Id"] == over_http.headers["run-id"]
    assert again.headers["Idempotency-Replayed"] == over_http.headers["idempotency-replayed"] == "true"
    await caller.nc.close()


MISFITS: list[tuple[str, bytes, tuple[int, str]]] = [
    ("get", b'{"id": 999}', (404, "task_not_found")),
    ("get", b"{}", (400, "malformed_id")),
    ("get", b'{"id": "1/execute"}', (400, "malformed_id")),
    ("get", b'{"id": [1]}', (400, "malformed_body")),
    ("get", b'{"id": 1, "id": 2}', (400, "malformed_body")),
    ("get", b"[1]", (400, "malformed_body")),
    ("get", b"{", (400, "malformed_body")),
    ("list", b'{"limit": 5000}', (422, "invalid_fields")),
    ("list", b'{"nonsense": 1}', (422, "invalid_fields")),
    ("list", b'{"chain": 2000}', (403, "forbidden")),
    ("create", b'{"chain": 2000, "desc": "", "target": {"action": "x"}, "trigger": {}}', (403, "forbidden")),
    ("create", b"", (400, "malformed_body")),
]


async def test_what_does_not_fit_is_a_problem(callers: dict[str, Caller]) -> None:
    manager = callers["manager"]
    for call, payload, expected in MISFITS:
        subject = subjects.api(CHAIN, manager.token, f"tasks.{call}")
        problem = json.loads((await manager.nc.request(subject, payload, timeout=10)).data)
        assert (problem["status"], problem["code"]) == expected, (call, payload)


async def test_a_reply_that_fits_into_no_message_is_a_problem(
    callers: dict[str, Caller], bus: Bus, broker: Broker
) -> None:
    for task in range(1, 71):
        await make_task(bus, task=task, text="x" * 15_000)
    manager = callers["manager"]
    await eventually(lambda: _total(manager, 71), what="all are listed")
    assert await manager.refused("list", limit=100) == (413, "reply_too_large")
    assert len(json.loads((await manager.ask("list", limit=50)).data)) == 50
    token, secret = await grant(bus)
    async with BusClient(CHAIN, url=broker.bus_url, token=f"{token}:{secret}") as client:
        assert [task.id async for task in client.list()][:70] == [*range(1, 71)]


async def _total(caller: Caller, count: int) -> bool:
    return (await caller.ask("list", limit=1)).headers["X-Total-Count"] == str(count)


# --- the same rights -----------------------------------------------------------------------------------------


async def test_levels_are_those_of_http(callers: dict[str, Caller], bus: Bus) -> None:
    await make_task(bus)
    viewer, operator = callers["viewer"], callers["operator"]
    assert (await viewer.ask("get", id=1)).headers["Http-Status"] == "200"
    assert await viewer.refused("execute", id=1) == (403, "forbidden")
    assert await viewer.refused("cancel", id=1) == (403, "forbidden")
    assert await operator.refused("create", **body(6)) == (403, "forbidden")
    assert (await operator.ask("execute", id=1)).headers["Task-State"] == "DONE"
    assert await callers["stranger"].refused("get", id=1) == (404, "task_not_found")
    assert json.loads((await callers["stranger"].ask("list")).data) == []


async def test_nobody_asks_in_anothers_name(callers: dict[str, Caller], bus: Bus) -> None:
    """Neither by its subject, nor by a reply that would be a request, nor by a header."""
    await make_task(bus)
    viewer, stranger = callers["viewer"], callers["stranger"]
    execute = subjects.api(CHAIN, "operator", "tasks.execute")
    for caller in (viewer, stranger):
        for subject in (execute, "api.*.*.tasks.execute", f"api.{CHAIN}.*.tasks.execute"):
            await caller.nc.publish(subject, b'{"id": 1}')
            await eventually(lambda c=caller, s=subject: any(s in said for said in c.complaints), what=subject)
    for caller in (viewer, stranger):
        await caller.nc.publish(subjects.api(caller.chain, caller.token, "tasks.list"), b"{}", reply=execute)
    await stranger.nc.publish(subjects.command(OTHER, 77), b'{"reason": "x"}', reply=execute)
    forged = {"Nats-Request-Info": '{"acc":"SVC","user":"operator"}', "Authorization": "Bearer operator:x"}
    assert await viewer.refused("execute", forged, id=1) == (403, "forbidden")
    ended = await callers["operator"].ask("execute", id=1)  # whatever was on its way before has come by now
    runs = {document.run.id for document in await history(bus) if document.run}
    assert runs == {ended.headers["Run-Id"]}, "nobody else has had it run"


async def test_a_token_that_is_good_no_more_is_not_served(bus: Bus, http: httpx.AsyncClient) -> None:
    """Even before its connection is cut; here we ask in its place."""
    await make_task(bus)
    past = datetime.now(UTC) - timedelta(hours=1)
    changes: tuple[dict[str, object], ...] = ({"active": False}, {"expires": past}, {"deleted": past}, {"levels": {}})
    for number, change in enumerate(changes):
        token, _ = await grant(bus, token_id=f"gone-{number}")
        await tokens.change(bus, token, lambda token, change=change: token.model_copy(update=change))
    for token in ("nobody", *(f"gone-{number}" for number in range(len(changes)))):
        reply = await bus.nc.request(subjects.api(CHAIN, token, "tasks.get"), b'{"id": 1}', timeout=10)
        assert (reply.headers["Http-Status"], json.loads(reply.data)["code"]) == ("401", "unauthenticated"), token


async def test_http_cannot_say_that_it_came_over_the_bus(http: httpx.AsyncClient) -> None:
    async with httpx.AsyncClient(base_url=http.base_url) as anonymous:
        answer = await anonymous.get("/tasks", headers={"runwire.caller": "tester", "runwire-caller": "tester"})
    assert answer.status_code == 401


async def test_a_chain_has_only_so_many_calls_in_hand(
    callers: dict[str, Caller], http: httpx.AsyncClient, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus_door, "MOST_CALLS", 1)
    await make_task(bus, "waits")
    waiting = asyncio.create_task(callers["operator"].ask("execute", {"Prefer": "wait=10"}, id=1))
    await eventually(lambda: len(http.services.waiters) == 1, what="the chain has as many calls as it may")
    assert await callers["viewer"].refused("list") == (503, "too_many_connections")
    assert json.loads((await callers["stranger"].ask("list")).data) == [], "another chain is not concerned"
    waiting.cancel()


# --- adapters ------------------------------------------------------------------------------------------------


async def test_clients_find_the_service(callers: dict[str, Caller]) -> None:
    viewer = callers["viewer"].nc
    pong = json.loads((await viewer.request("$SRV.PING", b"", timeout=10)).data)
    info = json.loads((await viewer.request("$SRV.INFO.runwire", b"", timeout=10)).data)
    assert (pong["name"], info["id"]) == ("runwire", pong["id"])
    assert info["endpoints"][0]["metadata"]["call"] == "POST /tasks"
    await viewer.publish("$SRV.STATS", b"")  # it tells of all chains
    await eventually(lambda: any("$srv.stats" in said.lower() for said in callers["viewer"].complaints))


async def test_operators_see_how_it_is_used(callers: dict[str, Caller], bus: Bus) -> None:
    await callers["viewer"].ask("get", id=999)
    stats = json.loads((await bus.nc.request("$SRV.STATS.runwire", b"", timeout=10)).data)
    used = {endpoint["name"]: endpoint for endpoint in stats["endpoints"]}["tasks-get"]
    assert (used["num_requests"], used["data"]) == (1, {"errors": 1, "in_hand": 0})


async def test_an_adapter_that_stops_answers_those_who_wait(
    settings: Settings, bus: Bus, broker: Broker, app: App
) -> None:
    await make_task(bus, "waits")
    async with worker(bus, app, settings):
        async with adapter(settings) as http:
            caller = Caller("own", CHAIN)
            caller.nc = await on_the_bus(broker, *await grant(bus, token_id="own"), error_cb=caller.complain)
            waiting = asyncio.create_task(caller.ask("execute", id=1))
            await eventually(lambda: _is_running(http))
        reply = await waiting
        app.gate.set()
    assert (reply.headers["Http-Status"], reply.headers["Task-State"]) == ("202", "INPROGRESS")
    await caller.nc.close()


async def _is_running(http: httpx.AsyncClient) -> bool:
    return (await http.get("/tasks/1")).json()["state"]["code"] == "INPROGRESS"


async def test_a_request_that_wants_no_reply_is_carried_out(http: httpx.AsyncClient, bus: Bus) -> None:
    await make_task(bus)
    await grant(bus, token_id="silent")
    await bus.nc.publish(subjects.api(CHAIN, "silent", "tasks.execute"), b'{"id": 1}')

    async def done() -> bool:
        return (await http.get("/tasks/1")).json()["state"]["code"] == "DONE"

    await eventually(done)
