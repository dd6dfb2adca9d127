"""Idempotency-Key and if_running over real sockets: one run, one task, whatever happens in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.js.api import StreamConfig
from starlette.requests import Request

import runwire
from runwire.app import App
from runwire.domain.access import AccessLevel
from runwire.domain.errors import MalformedKey, TaskBusy
from runwire.domain.lifecycle import Change
from runwire.domain.run import Source
from runwire.http import idempotency, waiting
from runwire.messaging import commands, events, keys, subjects
from runwire.messaging.broker import Bus
from runwire.messaging.keys import RunRecord, TaskRecord
from runwire.settings import Settings
from tests.integration.test_http import BODY, create, is_problem, make_token
from tests.support import (
    CHAIN,
    HEADERS,
    Broker,
    adapter,
    ended,
    eventually,
    free_port,
    history,
    make_task,
    publish_command,
    queue_is_empty,
    worker,
)

KEY = {"Idempotency-Key": "k-1"}
ASYNC = {"Prefer": "respond-async"}
ANYTHING = st.characters(min_codepoint=0x21, max_codepoint=0x7E)
ANYTHING_QUOTED = st.characters(min_codepoint=0x20, max_codepoint=0x7E)


@pytest.fixture
def gate() -> asyncio.Event:
    """Runs of the action `gated` end when it is set."""
    return asyncio.Event()


@pytest.fixture
def app(app: App, gate: asyncio.Event) -> App:
    @app.action("gated")
    async def gated(params: dict[str, object], ctx: runwire.Context) -> None:
        await gate.wait()
        if params.get("once"):  # the next run waits again
            gate.clear()

    @app.action("nap")
    async def nap(params: dict[str, object], ctx: runwire.Context) -> None:
        await asyncio.sleep(0.3)

    @app.action("fail")
    async def fail(params: dict[str, object], ctx: runwire.Context) -> None:
        raise runwire.Fail("out_of_stock", "nothing left")

    return app


@pytest.fixture
async def http(settings: Settings, bus: Bus) -> AsyncIterator[httpx.AsyncClient]:
    """An adapter without a worker."""
    async with adapter(settings) as client:
        yield client


@pytest.fixture
async def live(http: httpx.AsyncClient, bus: Bus, app: App, settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """An adapter with a worker."""
    async with worker(bus, app, settings):
        yield http


@pytest.fixture
async def second(settings: Settings, bus: Bus, tmp_path) -> AsyncIterator[httpx.AsyncClient]:
    """Another adapter of the same installation."""
    async with another_adapter(settings, tmp_path / "second") as client:
        yield client


@asynccontextmanager
async def another_adapter(settings: Settings, data_dir) -> AsyncIterator[httpx.AsyncClient]:
    async with adapter(settings.model_copy(update={"http_port": free_port(), "data_dir": data_dir})) as client:
        yield client


def replayed(answer: httpx.Response) -> bool:
    return answer.headers.get("idempotency-replayed") == "true"


async def run(http: httpx.AsyncClient, task: int, headers: dict[str, str] | None = None, **query: str):
    return await http.post(f"/tasks/{task}/execute", headers=headers or {}, params=query)


async def occupy(http: httpx.AsyncClient, task: int) -> str:
    """The task gets a run that somebody else asked for; returns its id once it is in progress."""
    accepted = await run(http, task, ASYNC)
    assert accepted.status_code == 202, accepted.text

    async def in_progress() -> bool:
        return (await http.get(f"/tasks/{task}")).json()["state"]["code"] == "INPROGRESS"

    await eventually(in_progress, what="the task is busy")
    return accepted.headers["run-id"]


def waiting_for(http: httpx.AsyncClient, task: int, run_id: str) -> int:
    """How many calls of this adapter wait for the end of the run."""
    return len(http.services.waiters._by_run.get((task, run_id), ()))


async def concluded(bus: Bus, task: int) -> list[str]:
    """The runs of the task that have ended, in order."""
    return [found.run.id for found in await history(bus, task=task) if found.change is Change.CONCLUDED]


async def the_record(bus: Bus, kind):
    """The only record in KEYS, and the message it is kept in."""
    message = await bus.js.get_msg(subjects.KEYS, subject=subjects.ALL_KEYS)
    return kind.model_validate_json(message.data), message


async def records(bus: Bus) -> int:
    return (await bus.js.stream_info(subjects.KEYS)).state.messages


async def end_is_kept(bus: Bus) -> bool:
    record, _ = await the_record(bus, RunRecord)
    return record.ended is not None


class Crash(Exception):
    """The adapter dies here."""


@asynccontextmanager
async def crash_in(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> AsyncIterator[None]:
    async def crash(*_: object, **__: object) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, crash)
        yield


# --- the key itself --------------------------------------------------------------------------------------


def request_with(*values: bytes) -> Request:
    return Request({"type": "http", "headers": [(b"idempotency-key", value) for value in values]})


@given(st.text(ANYTHING, min_size=1, max_size=255).filter(lambda key: key[0] != '"'))
def test_any_visible_ascii_is_a_key(key: str) -> None:
    assert idempotency.parse_key(request_with(key.encode())) == key


@given(st.text(ANYTHING_QUOTED, min_size=1, max_size=255))
def test_a_quoted_key_may_hold_anything_and_is_the_same_as_a_bare_one(key: str) -> None:
    quoted = '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'
    assert idempotency.parse_key(request_with(quoted.encode())) == key
    name = idempotency.name_of(b"secret", "/tasks", "token", key)
    assert subjects.key(name) == f"tasks.key.{name}"
    assert idempotency.name_behind(b"secret", 7, idempotency.run_of(b"secret", name, 7)) == name
    assert len(idempotency.run_of(b"secret", name, 7)) <= 64


@pytest.mark.parametrize("key", [b"", b'"', b'""', b'"a', b'"a\\b"', b'"a"b"', b"a b", b"\xe4", b"a" * 256, b"a\x7f"])
def test_what_is_no_key_is_refused(key: bytes) -> None:
    with pytest.raises(MalformedKey):
        idempotency.parse_key(request_with(key))


def test_two_keys_are_refused() -> None:
    with pytest.raises(MalformedKey):
        idempotency.parse_key(request_with(b"a", b"b"))


def test_names_depend_on_everything_they_are_made_of() -> None:
    given_names = {
        idempotency.name_of(secret, route, token, key)
        for secret in (b"1", b"2")
        for route in ("/a", "/b")
        for token in ("t", "u")
        for key in ("k", "l")
    }
    assert len(given_names) == 16
    name = given_names.pop()
    assert idempotency.run_of(b"1", name, 7) != idempotency.run_of(b"1", name, 8)


def test_a_run_id_that_somebody_made_up_leads_to_no_record() -> None:
    name = idempotency.name_of(b"secret", "/tasks", "token", "key")
    ours = idempotency.run_of(b"secret", name, 7)
    for made_up in (ours[:-1] + ("A" if ours[-1] != "A" else "B"), f"key-{name}", "key-" + "A" * 32, "r-1"):
        assert idempotency.name_behind(b"secret", 7, made_up) is None
    assert idempotency.name_behind(b"secret", 8, ours) is None


async def test_keys_with_unusual_characters_work_over_the_wire(live: httpx.AsyncClient) -> None:
    task = await create(live)
    for key in ("!#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", "a.b.>", "*", '"two words"', '"a\\"b"'):
        first = await run(live, task, {"Idempotency-Key": key})
        again = await run(live, task, {"Idempotency-Key": key})
        assert first.headers["run-id"] == again.headers["run-id"]
        assert (replayed(first), replayed(again)) == (False, True)


# --- execute ---------------------------------------------------------------------------------------------


async def test_the_same_key_replays_the_whole_answer(live: httpx.AsyncClient) -> None:
    task = await create(live, "fail")
    first = await run(live, task, KEY)
    await run(live, task)
    again = await run(live, task, KEY)
    assert again.json() == first.json()
    assert replayed(again)
    assert not replayed(first)
    for name in ("run-id", "location", "task-state", "task-error"):
        assert again.headers[name] == first.headers[name]
    assert (await run(live, task, KEY, on_error="status")).headers["idempotency-replayed"] == "true"


async def test_the_same_key_with_another_task_is_422(live: httpx.AsyncClient, bus: Bus) -> None:
    task, other = await create(live), await create(live)
    await run(live, task, KEY)
    is_problem(await run(live, other, KEY), 422, "key_reused")
    assert await concluded(bus, other) == []
    assert replayed(await run(live, task, KEY | {"Prefer": "wait=3"}, on_error="status")), "the same, asked otherwise"


async def test_a_key_belongs_to_its_token(live: httpx.AsyncClient, bus: Bus) -> None:
    task, other = await create(live), await create(live)
    mine = await run(live, task, KEY)
    their = await make_token(bus, "their", {CHAIN: AccessLevel.MANAGER})
    assert (await run(live, other, their | KEY)).status_code == 200
    theirs = await run(live, task, their | {"Idempotency-Key": "k-2"})
    assert theirs.headers["run-id"] != mine.headers["run-id"]


async def test_the_key_of_a_create_is_not_that_of_an_execute(live: httpx.AsyncClient) -> None:
    made = await live.post("/tasks", json=BODY, headers=KEY)
    assert made.status_code == 201
    assert (await run(live, made.json()["id"], KEY)).status_code == 200


async def test_twenty_callers_on_two_adapters_get_one_run(
    live: httpx.AsyncClient, second: httpx.AsyncClient, bus: Bus
) -> None:
    task = await create(live, "nap")
    answers = await asyncio.gather(*(run((live, second)[number % 2], task, KEY) for number in range(20)))
    assert [answer.status_code for answer in answers] == [200] * 20, [answer.text for answer in answers]
    assert len({answer.headers["run-id"] for answer in answers}) == 1
    assert len({answer.content for answer in answers}) == 1
    assert await concluded(bus, task) == [answers[0].headers["run-id"]]


async def test_a_running_run_is_waited_for_on_another_adapter(
    live: httpx.AsyncClient, second: httpx.AsyncClient, gate: asyncio.Event
) -> None:
    task = await create(live, "gated")
    first = await run(live, task, KEY | ASYNC)
    joined = asyncio.create_task(run(second, task, KEY))
    await eventually(lambda: len(second.services.waiters) == 1)
    gate.set()
    answer = await joined
    assert (answer.status_code, answer.json()["code"]) == (200, "DONE")
    assert answer.headers["run-id"] == first.headers["run-id"]
    assert not replayed(answer)


async def test_a_key_survives_a_kill_of_the_broker(live: httpx.AsyncClient, bus: Bus, broker: Broker) -> None:
    task = await create(live)
    first = await run(live, task, KEY)
    made = await live.post("/tasks", json=BODY, headers=KEY)
    broker.restart()
    again = await run(live, task, KEY)
    assert again.status_code == 200, again.text
    assert again.headers["run-id"] == first.headers["run-id"]
    assert replayed(again)
    await eventually(lambda: live.services.bus.is_connected)
    assert (await live.post("/tasks", json=BODY, headers=KEY)).json() == made.json()
    assert await concluded(bus, task) == [first.headers["run-id"]]


async def test_a_key_survives_a_restart_of_everything_without_the_read_model(
    settings: Settings, bus: Bus, app: App, broker: Broker
) -> None:
    async with adapter(settings) as http, worker(bus, app, settings):
        task = await create(http)
        first = await run(http, task, KEY)
        made = await http.post("/tasks", json=BODY, headers=KEY)
    broker.restart()
    settings.read_model_path.unlink()
    async with adapter(settings) as http:
        again = await run(http, task, KEY)
        made_again = await http.post("/tasks", json=BODY, headers=KEY)
    assert (again.status_code, again.json()) == (200, first.json())
    assert replayed(again)
    assert (made_again.status_code, made_again.json()) == (201, made.json())
    assert replayed(made_again)


async def test_a_run_that_the_history_has_lost_is_not_run_again(settings: Settings, bus: Bus, app: App) -> None:
    """Two runs are kept, and a document remembers 16; the record remembers its own."""
    bus_settings = settings.model_copy(update={"events_history": 2})
    current = (await bus.js.stream_info(subjects.EVENTS)).config
    await bus.js.update_stream(StreamConfig(**vars(current)).evolve(max_msgs_per_subject=2))
    async with adapter(bus_settings) as http, worker(bus, app, bus_settings):
        task = await create(http)
        first = await run(http, task, KEY)
        await eventually(lambda: end_is_kept(bus))
        for _ in range(18):
            await run(http, task)
        assert (await http.get(first.headers["location"])).status_code == 404
        again = await run(http, task, KEY)
        assert await queue_is_empty(bus)
    assert (again.status_code, again.json()) == (200, first.json())
    assert again.headers["run-id"] == first.headers["run-id"]
    assert replayed(again)


async def test_a_replay_is_what_the_next_get_of_that_adapter_shows(
    live: httpx.AsyncClient, second: httpx.AsyncClient, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other adapter's read model lags; the record is there already."""
    task = await create(live)
    await eventually(lambda: second.services.reader.document(task))
    database, free = second.services.reader._database, asyncio.Event()
    transact = database.transact

    async def transact_later(function: object) -> object:
        await free.wait()
        return await transact(function)

    monkeypatch.setattr(database, "transact", transact_later)
    first = await run(live, task, KEY)
    await eventually(lambda: end_is_kept(bus))
    calling = asyncio.create_task(run(second, task, KEY))
    await eventually(lambda: second.services.milestones._heap, what="it waits for its read model")
    free.set()
    assert (await calling).json() == first.json()
    state = (await second.get(f"/tasks/{task}")).json()["state"]
    assert first.json() == {name: state[name] for name in first.json()}


async def test_a_record_that_was_lost_does_no_harm(live: httpx.AsyncClient, bus: Bus) -> None:
    task = await create(live)
    first = await run(live, task, KEY)
    await eventually(lambda: end_is_kept(bus))
    await bus.js.purge_stream(subjects.KEYS)
    again = await run(live, task, KEY)
    assert again.headers["run-id"] == first.headers["run-id"]
    assert replayed(again)


async def test_a_key_is_kept_for_a_day_after_the_end(live: httpx.AsyncClient, bus: Bus, gate: asyncio.Event) -> None:
    task = await create(live, "gated")
    calling = asyncio.create_task(run(live, task, KEY))
    await eventually(lambda: _any_record(bus))
    _, message = await the_record(bus, RunRecord)
    assert message.headers["Nats-TTL"] == "90000s"
    gate.set()
    answer = await calling
    await eventually(lambda: end_is_kept(bus))
    record, message = await the_record(bus, RunRecord)
    assert 86_300 <= int(message.headers["Nats-TTL"][:-1]) <= 86_400
    assert (record.request, record.run, record.ended.code) == (str(task), answer.headers["run-id"], "DONE")


async def _any_record(bus: Bus) -> bool:
    return await records(bus) > 0


async def test_a_run_that_outlasts_its_record_gets_it_back(
    live: httpx.AsyncClient, bus: Bus, gate: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "KEPT_UNTIL_ENDED", timedelta(seconds=1))
    task, other = await create(live, "gated"), await create(live)
    await run(live, task, KEY | ASYNC)

    async def expired() -> bool:
        return await records(bus) == 0

    await eventually(expired, what="the record expired")
    gate.set()
    await eventually(lambda: _any_record(bus), what="the end was seen")
    is_problem(await run(live, other, KEY), 422, "key_reused")
    assert replayed(await run(live, task, KEY))


async def test_a_key_whose_time_is_over_can_be_used_for_something_else(
    live: httpx.AsyncClient, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "KEPT", timedelta(seconds=2))
    task, other = await create(live), await create(live)
    await run(live, task, KEY)
    await eventually(lambda: end_is_kept(bus))

    async def accepted() -> httpx.Response | None:
        answer = await run(live, other, KEY)
        return answer if answer.status_code == 200 else None

    answer = await eventually(accepted, what="the key is free again")
    assert not replayed(answer)


async def test_an_adapter_that_stops_leaves_no_end_unrecorded(settings: Settings, bus: Bus, app: App) -> None:
    async with adapter(settings) as http, worker(bus, app, settings):
        task = await create(http)
        await asyncio.gather(*(run(http, task, KEY | {"Prefer": "wait=5"}) for _ in range(3)))
    assert await end_is_kept(bus)


async def test_a_bus_client_cannot_write_records(live: httpx.AsyncClient, bus: Bus) -> None:
    task = await create(live)
    await publish_command(bus, "key-" + "A" * 32, task=task)
    await ended(bus, "key-" + "A" * 32, task=task)
    await run(live, task, KEY)
    await eventually(lambda: end_is_kept(bus))
    assert await records(bus) == 1


async def test_a_run_nobody_was_told_of_is_started_by_the_next_call(
    live: httpx.AsyncClient, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The adapter dies between the record and the command."""
    task = await create(live)
    async with crash_in(monkeypatch, commands, "publish"):
        assert (await run(live, task, KEY)).status_code == 500
    assert await records(bus) == 1
    answer = await run(live, task, KEY)
    assert (answer.status_code, replayed(answer)) == (200, False)
    assert await concluded(bus, task) == [answer.headers["run-id"]]


async def test_a_call_that_died_after_the_command_is_one_run(
    live: httpx.AsyncClient, second: httpx.AsyncClient, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = await create(live)
    async with crash_in(monkeypatch, waiting.Call, "wait_for_end"):
        assert (await run(live, task, KEY)).status_code == 500
    answer = await run(second, task, KEY)
    assert (answer.status_code, answer.json()["code"]) == (200, "DONE")
    assert await concluded(bus, task) == [answer.headers["run-id"]]


async def test_a_run_that_came_and_went_is_not_taken_for_refused(
    live: httpx.AsyncClient, bus: Bus, broker: Broker, gate: asyncio.Event
) -> None:
    """The broker has forgotten the command in a crash, and the task is busy with the next run by now."""
    task = await create(live, target={"action": "gated", "once": True})
    gate.set()
    first = await run(live, task, KEY)
    await eventually(lambda: queue_is_empty(bus))
    blocking = await occupy(live, task)
    broker.restart()
    await eventually(lambda: bus.is_connected)
    run_id = first.headers["run-id"]
    await commands.publish(bus, CHAIN, task, run_id, source=Source.HTTP, patience=15)
    with pytest.raises(TaskBusy):
        await commands.publish(bus, CHAIN, task, "another", source=Source.HTTP, patience=15)
    gate.set()
    await ended(bus, blocking, task=task)
    assert await concluded(bus, task) == [run_id, blocking]


async def test_a_key_that_was_refused_as_busy_is_tried_again(
    live: httpx.AsyncClient, bus: Bus, gate: asyncio.Event
) -> None:
    task = await create(live, "gated")
    blocking = await occupy(live, task)
    assert is_problem(await run(live, task, KEY), 409, "task_busy")["run"] == blocking
    gate.set()
    await ended(bus, blocking, task=task)
    answer = await run(live, task, KEY)
    assert (answer.status_code, replayed(answer)) == (200, False)
    assert answer.headers["run-id"] != blocking


async def test_a_key_that_was_not_accepted_is_tried_again(live: httpx.AsyncClient, bus: Bus, broker: Broker) -> None:
    task = await create(live)
    broker.kill()
    await eventually(lambda: not live.services.bus.is_connected)
    refused = await run(live, task, KEY | {"Prefer": "wait=1"})
    is_problem(refused, 503, "not_accepted")
    assert refused.headers["retry-after"]
    broker.start()
    await eventually(lambda: live.services.bus.is_connected)
    answer = await run(live, task, KEY)
    assert answer.status_code == 200, answer.text
    assert len(await concluded(bus, task)) == 1


async def test_without_room_for_a_key_nothing_is_started(http: httpx.AsyncClient, bus: Bus) -> None:
    task = await create(http)
    before = (await bus.js.stream_info(subjects.EVENTS)).state.last_seq
    current = (await bus.js.stream_info(subjects.KEYS)).config
    await bus.js.update_stream(StreamConfig(**vars(current)).evolve(max_bytes=100))
    is_problem(await run(http, task, KEY), 503, "not_accepted")
    is_problem(await http.post("/tasks", json=BODY, headers=KEY), 503, "not_accepted")
    assert await queue_is_empty(bus)
    assert (await bus.js.stream_info(subjects.EVENTS)).state.last_seq == before
    assert await records(bus) == 0
    assert (await run(http, task, ASYNC)).status_code == 202, "without a key all is as ever"


async def test_a_call_without_a_key_leaves_no_record(live: httpx.AsyncClient, bus: Bus) -> None:
    await run(live, await create(live))
    assert await records(bus) == 0


# --- create ----------------------------------------------------------------------------------------------


async def test_the_same_key_creates_one_task(http: httpx.AsyncClient, bus: Bus) -> None:
    first = await http.post("/tasks", json=BODY, headers=KEY)
    again = await http.post("/tasks", json=dict(reversed(BODY.items())), headers=KEY)
    assert (again.status_code, again.content) == (201, first.content)
    assert (replayed(first), replayed(again)) == (False, True)
    assert again.headers["location"] == first.headers["location"]
    assert len((await http.get("/tasks")).json()) == 2, "the sample and the one"
    _, message = await the_record(bus, TaskRecord)
    assert message.headers["Nats-TTL"] == "86400s"


async def test_a_replayed_create_shows_the_task_as_it_was_created(live: httpx.AsyncClient) -> None:
    first = await live.post("/tasks", json=BODY, headers=KEY)
    task = first.json()["id"]
    await run(live, task)
    assert (await live.post("/tasks", json=BODY, headers=KEY)).json() == first.json()
    assert (await live.get(f"/tasks/{task}")).json()["state"]["code"] == "DONE"


async def test_the_same_key_with_another_body_is_422(http: httpx.AsyncClient) -> None:
    await http.post("/tasks", json=BODY, headers=KEY)
    is_problem(await http.post("/tasks", json=BODY | {"desc": "another"}, headers=KEY), 422, "key_reused")
    is_problem(await http.post("/tasks", json=BODY | {"id": 9}, headers=KEY), 422, "key_reused")
    assert len((await http.get("/tasks")).json()) == 2


async def test_twenty_creates_on_two_adapters_make_one_task(
    http: httpx.AsyncClient, second: httpx.AsyncClient, bus: Bus
) -> None:
    clients = (http, second)
    answers = await asyncio.gather(
        *(clients[number % 2].post("/tasks", json=BODY, headers=KEY) for number in range(20))
    )
    assert [answer.status_code for answer in answers] == [201] * 20, [answer.text for answer in answers]
    assert len({answer.content for answer in answers}) == 1
    (task,) = {answer.json()["id"] for answer in answers}
    for client in clients:
        assert (await client.get(f"/tasks/{task}")).status_code == 200
    assert len((await http.get("/tasks")).json()) == 2


async def test_a_replay_on_another_adapter_can_be_read_there(
    http: httpx.AsyncClient, second: httpx.AsyncClient
) -> None:
    for number in range(10):
        key = {"Idempotency-Key": f"k-{number}"}
        task = (await http.post("/tasks", json=BODY, headers=key)).json()["id"]
        assert (await second.post("/tasks", json=BODY, headers=key)).json()["id"] == task
        assert task in [found["id"] for found in (await second.get("/tasks")).json()]


async def test_a_task_that_was_only_planned_is_created_by_the_next_call(
    http: httpx.AsyncClient, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The adapter dies between the record and the event."""
    async with crash_in(monkeypatch, events, "append"):
        assert (await http.post("/tasks", json=BODY, headers=KEY)).status_code == 500
    planned, _ = await the_record(bus, TaskRecord)
    answer = await http.post("/tasks", json=BODY, headers=KEY)
    assert (answer.status_code, answer.json()["id"], replayed(answer)) == (201, planned.task, False)
    assert len(await history(bus, task=planned.task)) == 1


@pytest.mark.parametrize("runs_since", [0, 2])
async def test_a_task_whose_creation_was_not_noted_down_is_recognised(
    live: httpx.AsyncClient, bus: Bus, monkeypatch: pytest.MonkeyPatch, runs_since: int
) -> None:
    """The adapter dies between the event and the record of it; the task may have been used since."""
    async with crash_in(monkeypatch, keys, "overwrite"):
        assert (await live.post("/tasks", json=BODY, headers=KEY)).status_code == 500
    planned, _ = await the_record(bus, TaskRecord)
    assert planned.sequence is None
    for _ in range(runs_since):
        await run(live, planned.task)
    answer = await live.post("/tasks", json=BODY, headers=KEY)
    assert (answer.status_code, answer.json()["id"], replayed(answer)) == (201, planned.task, True)
    assert answer.json()["version"] == 1
    assert (await the_record(bus, TaskRecord))[0].sequence
    assert len([found for found in await history(bus, task=planned.task) if found.change is Change.CREATED]) == 1


async def test_a_planned_id_that_went_to_somebody_else_is_replaced(
    http: httpx.AsyncClient, second: httpx.AsyncClient, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with crash_in(monkeypatch, events, "append"):
        await http.post("/tasks", json=BODY, headers=KEY)
    planned, _ = await the_record(bus, TaskRecord)
    await make_task(bus, task=planned.task)
    answers = await asyncio.gather(*(client.post("/tasks", json=BODY, headers=KEY) for client in (http, second) * 3))
    assert [answer.status_code for answer in answers] == [201] * 6, [answer.text for answer in answers]
    (task,) = {answer.json()["id"] for answer in answers}
    assert task != planned.task
    assert (await history(bus, task=task))[0].task.desc == BODY["desc"]
    assert (await history(bus, task=planned.task))[0].task.desc == "made by a test"
    assert replayed(await http.post("/tasks", json=BODY, headers=KEY))


async def test_a_wanted_id_that_is_taken_never_turns_into_a_success(http: httpx.AsyncClient) -> None:
    wanted = BODY | {"id": 7}
    assert (await http.post("/tasks", json=wanted | {"desc": "somebody else's"})).status_code == 201
    for _ in range(3):
        is_problem(await http.post("/tasks", json=wanted, headers=KEY), 409, "id_taken")
    assert (await http.get("/tasks/7")).json()["desc"] == "somebody else's"


async def test_a_wanted_id_is_given_once_per_key(http: httpx.AsyncClient) -> None:
    wanted = BODY | {"id": 7}
    assert (await http.post("/tasks", json=wanted, headers=KEY)).status_code == 201
    assert replayed(await http.post("/tasks", json=wanted, headers=KEY))
    is_problem(await http.post("/tasks", json=wanted, headers={"Idempotency-Key": "k-2"}), 409, "id_taken")


async def test_a_create_with_a_malformed_key_is_refused(http: httpx.AsyncClient) -> None:
    answer = await http.post("/tasks", json=BODY, headers={"Idempotency-Key": "two words"})
    is_problem(answer, 400, "malformed_idempotency_key")


async def test_the_event_of_a_keyed_create_has_an_id_nobody_can_guess(http: httpx.AsyncClient, bus: Bus) -> None:
    task = (await http.post("/tasks", json=BODY, headers=KEY)).json()["id"]
    head = await events.first(bus, task)
    assert len(head.event_id) == 32
    assert "k-1" not in head.event_id


# --- if_running=join -------------------------------------------------------------------------------------


async def test_join_waits_for_the_run_the_task_is_busy_with(
    live: httpx.AsyncClient, bus: Bus, gate: asyncio.Event
) -> None:
    task = await create(live, "gated")
    blocking = await occupy(live, task)
    joining = asyncio.create_task(run(live, task, if_running="join"))
    await eventually(lambda: waiting_for(live, task, blocking) == 1)
    gate.set()
    answer = await joining
    assert (answer.status_code, answer.json()["code"]) == (200, "DONE")
    assert answer.headers["run-id"] == blocking
    assert answer.headers["location"] == f"/tasks/{task}/runs/{blocking}"
    assert answer.headers["run-joined"] == "true"
    assert not replayed(answer)
    assert await concluded(bus, task) == [blocking]


async def test_join_of_a_task_that_is_free_is_a_run_of_its_own(live: httpx.AsyncClient) -> None:
    answer = await run(live, await create(live), if_running="join")
    assert (answer.status_code, "run-joined" in answer.headers) == (200, False)


async def test_join_does_not_wait_longer_than_the_caller(live: httpx.AsyncClient, gate: asyncio.Event) -> None:
    task = await create(live, "gated")
    blocking = await occupy(live, task)
    for prefer in ("respond-async", "wait=1"):
        answer = await run(live, task, {"Prefer": prefer}, if_running="join")
        assert (answer.status_code, answer.json()["code"]) == (202, "INPROGRESS")
        assert (answer.headers["run-id"], answer.headers["run-joined"]) == (blocking, "true")
    gate.set()


async def test_join_works_with_a_run_from_the_bus_on_another_adapter(
    live: httpx.AsyncClient, second: httpx.AsyncClient, bus: Bus, gate: asyncio.Event
) -> None:
    task = await create(live, "gated")
    await publish_command(bus, "from-the-bus", task=task)
    joining = asyncio.create_task(run(second, task, if_running="join"))
    await eventually(lambda: waiting_for(second, task, "from-the-bus") == 1)
    gate.set()
    assert (await joining).headers["run-id"] == "from-the-bus"


async def test_a_key_that_joined_a_run_stands_for_that_run(
    live: httpx.AsyncClient, second: httpx.AsyncClient, bus: Bus, gate: asyncio.Event
) -> None:
    task = await create(live, "gated")
    blocking = await occupy(live, task)
    pending = await run(live, task, KEY | ASYNC, if_running="join")
    assert (pending.status_code, pending.headers["run-id"]) == (202, blocking)
    repeated = asyncio.create_task(run(second, task, KEY))
    await eventually(lambda: waiting_for(second, task, blocking) == 1)
    gate.set()
    answer = await repeated
    assert (answer.headers["run-id"], answer.headers["run-joined"], replayed(answer)) == (blocking, "true", False)
    again = await run(live, task, KEY)
    assert (again.headers["run-id"], replayed(again), again.json()) == (blocking, True, answer.json())
    assert await concluded(bus, task) == [blocking]
    record, message = await the_record(bus, RunRecord)
    assert (record.run, record.ended.code) == (blocking, "DONE")
    assert int(message.headers["Nats-TTL"][:-1]) <= 86_400
    is_problem(await run(live, await create(live), KEY), 422, "key_reused")


async def test_callers_with_one_key_that_join_at_once_get_one_run(
    live: httpx.AsyncClient, second: httpx.AsyncClient, bus: Bus, gate: asyncio.Event
) -> None:
    task = await create(live, "gated")
    blocking = await occupy(live, task)
    joining = [asyncio.create_task(run((live, second)[n % 2], task, KEY, if_running="join")) for n in range(8)]
    await eventually(lambda: sum(waiting_for(adapter, task, blocking) for adapter in (live, second)) == 8)
    gate.set()
    assert {answer.headers["run-id"] for answer in await asyncio.gather(*joining)} == {blocking}


async def test_joining_a_run_that_cannot_be_carried_out_is_409_and_the_key_stays_free(
    http: httpx.AsyncClient, bus: Bus, app: App, settings: Settings
) -> None:
    task = await create(http)
    await publish_command(bus, "garbled", task=task, body=b"no json")
    joining = asyncio.create_task(run(http, task, KEY, if_running="join"))
    await eventually(lambda: waiting_for(http, task, "garbled") == 1)
    async with worker(bus, app, settings):
        is_problem(await joining, 409, "task_busy")
        answer = await run(http, task, KEY)
    assert (answer.status_code, answer.json()["code"]) == (200, "DONE")
    assert "run-joined" not in answer.headers


# --- if_running=queue ------------------------------------------------------------------------------------


async def test_queue_waits_for_its_turn(live: httpx.AsyncClient, bus: Bus, gate: asyncio.Event) -> None:
    task = await create(live, "gated")
    blocking = await occupy(live, task)
    queueing = asyncio.create_task(run(live, task, if_running="queue"))
    await eventually(lambda: len(live.services.lines) == 1)
    gate.set()
    answer = await queueing
    assert (answer.status_code, answer.json()["code"]) == (200, "DONE")
    assert await concluded(bus, task) == [blocking, answer.headers["run-id"]]
    await eventually(lambda: len(live.services.lines) + len(live.services.waiters) == 0)


async def test_queue_is_first_come_first_served(live: httpx.AsyncClient, bus: Bus, gate: asyncio.Event) -> None:
    task = await create(live, "gated")
    blocking = await occupy(live, task)
    order: list[asyncio.Task[httpx.Response]] = []
    for number in range(6):
        order.append(asyncio.create_task(run(live, task, if_running="queue")))
        await eventually(lambda expected=number: _in_line(live, task) == expected + 1)
    gate.set()
    answers = await asyncio.gather(*order)
    assert {answer.status_code for answer in answers} == {200}
    assert await concluded(bus, task) == [blocking, *(answer.headers["run-id"] for answer in answers)]


def _in_line(http: httpx.AsyncClient, task: int) -> int:
    return len(http.services.lines._by_task.get(task, ()))


async def test_queues_of_two_adapters_all_get_their_turn(
    live: httpx.AsyncClient, second: httpx.AsyncClient, bus: Bus
) -> None:
    task = await create(live, "nap")
    answers = await asyncio.gather(*(run((live, second)[number % 2], task, if_running="queue") for number in range(6)))
    assert [answer.status_code for answer in answers] == [200] * 6, [answer.text for answer in answers]
    assert len(set(await concluded(bus, task))) == 6


async def test_a_wait_that_is_over_before_the_turn_comes_is_409(
    live: httpx.AsyncClient, bus: Bus, gate: asyncio.Event
) -> None:
    task = await create(live, "gated")
    blocking = await occupy(live, task)
    answers = await asyncio.gather(*(run(live, task, {"Prefer": "wait=1"}, if_running="queue") for _ in range(3)))
    for answer in answers:
        assert is_problem(answer, 409, "task_busy")["run"] == blocking
    gate.set()
    await ended(bus, blocking, task=task)
    await eventually(lambda: queue_is_empty(bus))
    assert await concluded(bus, task) == [blocking], "nothing was accepted"


async def test_a_turn_that_comes_late_leaves_the_rest_of_the_wait(
    live: httpx.AsyncClient, bus: Bus, gate: asyncio.Event
) -> None:
    task = await create(live, target={"action": "gated", "once": True})
    await publish_command(bus, "from-the-bus", task=task)
    queueing = asyncio.create_task(run(live, task, {"Prefer": "wait=4"}, if_running="queue"))
    await eventually(lambda: len(live.services.lines) == 1)
    gate.set()
    answer = await queueing
    assert answer.status_code == 202, answer.text
    gate.set()
    assert (await live.get(answer.headers["location"], headers={"Prefer": "wait=9"})).json()["code"] == "DONE"


@pytest.mark.parametrize("prefer", ["respond-async", "wait=0"])
async def test_queue_without_a_wait_is_one_try(live: httpx.AsyncClient, gate: asyncio.Event, prefer: str) -> None:
    task = await create(live, "gated")
    assert (await run(live, task, {"Prefer": prefer}, if_running="queue")).status_code == 202
    is_problem(await run(live, task, {"Prefer": prefer}, if_running="queue"), 409, "task_busy")
    gate.set()


async def test_a_lost_wake_up_costs_a_second_and_no_more(
    live: httpx.AsyncClient, gate: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = await create(live, "gated")
    await occupy(live, task)
    queueing = asyncio.create_task(run(live, task, {"Prefer": "wait=10"}, if_running="queue"))
    await eventually(lambda: len(live.services.waiters) == 2)
    with monkeypatch.context() as patch:
        patch.setattr(live.services.waiters, "ended", lambda run: None)
        gate.set()
        answer = await asyncio.wait_for(queueing, 15)
    assert answer.status_code == 200


async def test_a_blocking_command_that_is_no_run_gives_way(
    http: httpx.AsyncClient, bus: Bus, app: App, settings: Settings
) -> None:
    task = await create(http)
    await publish_command(bus, "garbled", task=task, body=b"no json")
    queueing = asyncio.create_task(run(http, task, if_running="queue"))
    await eventually(lambda: len(http.services.lines) == 1)
    async with worker(bus, app, settings):
        answer = await queueing
    assert (answer.status_code, answer.json()["code"]) == (200, "DONE")


async def test_a_caller_that_hangs_up_leaves_the_line_and_starts_nothing(
    live: httpx.AsyncClient, bus: Bus, settings: Settings, gate: asyncio.Event
) -> None:
    task = await create(live, "gated")
    blocking = await occupy(live, task)
    head = (
        f"POST /tasks/{task}/execute?if_running=queue HTTP/1.1\r\nHost: x\r\nAuthorization: {HEADERS['Authorization']}"
    )
    writers = []
    for number in range(2):  # the first one waits for the run, the second for the first
        _reader, writer = await asyncio.open_connection("127.0.0.1", settings.http_port)
        writer.write(f"{head}\r\n\r\n".encode())
        writers.append(writer)
        await eventually(lambda expected=number: _in_line(live, task) == expected + 1)
    for writer in writers:
        writer.close()
    await eventually(lambda: len(live.services.lines) + len(live.services.waiters) == 0)
    gate.set()
    await ended(bus, blocking, task=task)
    await eventually(lambda: queue_is_empty(bus))
    assert await concluded(bus, task) == [blocking]


async def test_a_draining_adapter_sends_its_line_away(live: httpx.AsyncClient, gate: asyncio.Event) -> None:
    task = await create(live, "gated")
    await occupy(live, task)
    queueing = [asyncio.create_task(run(live, task, if_running="queue")) for _ in range(3)]
    await eventually(lambda: _in_line(live, task) == 3)
    live.services.drain()
    for answer in await asyncio.wait_for(asyncio.gather(*queueing), 10):
        is_problem(answer, 503, "draining")
    gate.set()


async def test_no_more_callers_queue_than_may_wait(settings: Settings, bus: Bus, app: App, gate: asyncio.Event) -> None:
    few = settings.model_copy(update={"max_waiters": 3})
    async with adapter(few) as http, worker(bus, app, few):
        task = await create(http, "gated")
        await occupy(http, task)
        queueing = asyncio.create_task(run(http, task, if_running="queue"))
        await eventually(lambda: len(http.services.waiters) == 2, what="one for its run, one for the blocking one")
        is_problem(await run(http, task, if_running="queue"), 409, "task_busy")
        gate.set()
        assert (await queueing).status_code == 200


async def test_a_key_that_queued_is_one_run(
    live: httpx.AsyncClient, second: httpx.AsyncClient, bus: Bus, gate: asyncio.Event
) -> None:
    task = await create(live, "gated")
    blocking = await occupy(live, task)
    queueing = [asyncio.create_task(run((live, second)[n % 2], task, KEY, if_running="queue")) for n in range(4)]
    await eventually(lambda: _in_line(live, task) == _in_line(second, task) == 2)
    gate.set()
    answers = await asyncio.gather(*queueing)
    assert {answer.status_code for answer in answers} == {200}
    (mine,) = {answer.headers["run-id"] for answer in answers}
    assert await concluded(bus, task) == [blocking, mine]


async def test_if_running_takes_two_words_only(http: httpx.AsyncClient) -> None:
    is_problem(await run(http, 12345, if_running="wait"), 422, "invalid_fields")
    document = (await http.get("/openapi.json")).json()
    execute = document["paths"]["/tasks/{id}/execute"]["post"]
    (parameter,) = [found for found in execute["parameters"] if found["name"] == "if_running"]
    assert parameter["schema"]["enum"] == ["join", "queue"]
    assert {"Idempotency-Replayed", "Run-Joined"} <= set(execute["responses"]["200"]["headers"])
    create_headers = document["paths"]["/tasks"]["post"]["responses"]["201"]["headers"]
    assert "Idempotency-Replayed" in create_headers
