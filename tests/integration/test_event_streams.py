"""Server-sent events over real sockets: order, resuming without gap or repeat, and every way a stream ends."""

from __future__ import annotations

import asyncio
import json
import socket
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass
from uuid import uuid4

import httpx
import pytest
from nats.js.errors import NotFoundError

import runwire
from runwire.app import App
from runwire.bootstrap.adapter import _bind
from runwire.domain.access import AccessLevel, AccessToken, TokenKind, digest
from runwire.domain.lifecycle import Change, Document
from runwire.http import auth, streams
from runwire.messaging import events, stretch, subjects, tokens
from runwire.messaging.broker import Bus
from runwire.readmodel import feed
from runwire.settings import Settings
from tests.support import (
    CHAIN,
    HEADERS,
    Broker,
    adapter,
    connected,
    eventually,
    free_port,
    lifecycle_now,
    make_task,
    publish_command,
    worker,
)

OTHER = 2000


@dataclass
class Received:
    """One event as a client has read it."""

    id: int | str
    event: str
    data: dict

    @property
    def code(self) -> str:
        return self.data["type"].split(".")[3]


class Stream:
    """An open stream: reads one event after the other."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self.comments: list[str] = []
        self.retry: int | None = None
        self._lines = answer.aiter_lines()

    async def next(self, within: float = 15.0) -> Received | None:
        """The next event; None: the stream has ended."""
        async with asyncio.timeout(within):
            fields: dict[str, str] = {}
            async for line in self._lines:
                name, _, value = line.partition(": ")
                if not line and "data" in fields:
                    place = int(fields["id"]) if fields["id"].isdigit() else fields["id"]
                    return Received(place, fields["event"], json.loads(fields["data"]))
                if line.startswith(":"):
                    self.comments.append(value)
                elif name == "retry":
                    self.retry = int(value)
                elif name:
                    fields[name] = value
            return None

    async def take(self, count: int) -> list[Received]:
        return [await self.next() for _ in range(count)]

    async def rest(self) -> list[Received]:
        """Everything up to the end."""
        found = []
        while (event := await self.next()) is not None:
            found.append(event)
        return found


@asynccontextmanager
async def opened(http: httpx.AsyncClient, path: str, last: int | str | None = None, **options) -> AsyncIterator[Stream]:
    """A stream; the client hangs up at the end of the block."""
    headers = {**options.pop("headers", {}), **({"Last-Event-ID": str(last)} if last is not None else {})}
    async with http.stream("GET", path, headers=headers, **options) as answer:
        assert answer.status_code == 200, await answer.aread()
        yield Stream(answer)


@pytest.fixture
def app(app: App) -> App:
    @app.action("slow")
    async def slow(params: dict[str, object], ctx: runwire.Context) -> None:
        await asyncio.sleep(0.5)

    return app


@pytest.fixture
async def http(settings: Settings, bus: Bus) -> AsyncIterator[httpx.AsyncClient]:
    async with adapter(settings) as client:
        yield client


@pytest.fixture
async def live(http: httpx.AsyncClient, bus: Bus, app: App, settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """An adapter with a worker."""
    async with worker(bus, app, settings):
        yield http


def second(settings: Settings) -> Settings:
    """Of another adapter on the same broker."""
    return settings.model_copy(update={"data_dir": settings.data_dir / "second", "http_port": free_port()})


async def make_token(bus: Bus, token_id: str, levels: dict[int, AccessLevel], **fields: object) -> dict[str, str]:
    token = AccessToken(
        id=token_id, kind=TokenKind.ADMIN, digest=digest("secret"), levels=levels, created=lifecycle_now(), **fields
    )
    await tokens.create(bus, token)
    return {"Authorization": f"Bearer {token_id}:secret"}


async def deactivate(bus: Bus, token_id: str) -> None:
    bucket = await bus.bucket(subjects.TOKENS_BUCKET)
    token = await tokens.get(bus, token_id)
    await bucket.put(token_id, token.model_copy(update={"active": False}).model_dump_json().encode())


async def stored(bus: Bus, *, task: int | None = None) -> list[int]:
    """Sequences of the events that EVENTS holds, of one task or of all."""
    info = await bus.js.stream_info(subjects.EVENTS)
    found = []
    for sequence in range(max(1, info.state.first_seq), info.state.last_seq + 1):
        with suppress(NotFoundError):
            message = await bus.js.get_msg(subjects.EVENTS, sequence)
            if task is None or subjects.parse(message.subject)[1] == task:
                found.append(sequence)
    return found


async def append(bus: Bus, document: Document, **changes: object) -> int:
    """The task's next event, straight to the stream."""
    head = await events.load(bus, document.task.chain, document.task.id, leader=True)
    following = head.document.model_copy(update=changes)
    return await events.append(bus, following, expected=head.sequence, event_id=uuid4().hex)


def followers(http: httpx.AsyncClient) -> int:
    return len(http.services.feed)


# --- what is sent ----------------------------------------------------------------------------------------


async def test_a_run_is_seen_event_by_event(live: httpx.AsyncClient, bus: Bus) -> None:
    await make_task(bus, task=17)
    assert (await live.get("/tasks/17")).status_code == 200
    async with opened(live, "/tasks/17/events") as stream:
        run = (await live.post("/tasks/17/execute")).headers["run-id"]
        begun, done = await stream.take(2)
        assert stream.retry == 2000
        assert stream.answer.headers["content-type"].startswith("text/event-stream")
        assert stream.answer.headers["cache-control"] == "no-store"
        assert stream.answer.headers["x-accel-buffering"] == "no"
        assert "content-encoding" not in stream.answer.headers
    assert (begun.event, begun.code, done.code) == ("task.state", "inprogress", "done")
    assert [begun.id, done.id] == (await stored(bus, task=17))[1:]
    for event in (begun, done):
        streams.TaskEvent.model_validate_json(json.dumps(event.data))
        assert event.data["subject"] == event.data["data"]["run"]["id"] == run
        assert event.data["source"] == f"/chains/{CHAIN}/tasks/17"
    shown = (await live.get("/tasks/17")).json()
    del shown["logs"]
    assert done.data["data"]["task"] == shown
    assert done.data["data"]["run"] | {"progress": None} == (await live.get(f"/tasks/17/runs/{run}")).json()
    assert done.data["data"]["change"] == "concluded"


async def test_an_event_is_the_same_as_on_the_bus(live: httpx.AsyncClient, bus: Bus) -> None:
    await make_task(bus, task=17)
    await live.post("/tasks/17/execute")
    async with opened(live, "/tasks/17/events", last=0) as stream:
        received = await stream.take(3)
    for event in received:
        message = await bus.js.get_msg(subjects.EVENTS, event.id)
        sent = {name: value for name, value in event.data.items() if name != "data"}
        assert sent == {name[3:]: value for name, value in message.headers.items() if name.startswith("ce-")}
        original = json.loads(message.data)
        assert event.data["data"]["task"] == original["task"]


async def test_what_only_workers_need_is_not_sent(live: httpx.AsyncClient, bus: Bus) -> None:
    await make_task(bus, task=17)
    await live.post("/tasks/17/execute")
    async with opened(live, "/events", last=0) as stream:
        received = await stream.take(3)
    for event in received:
        assert set(event.data["data"]) == {"task", "run", "change"}
        assert not {"claim", "log_seq"} & set(event.data["data"]["run"] or {})


async def test_an_event_is_only_seen_once_get_shows_it(live: httpx.AsyncClient, bus: Bus) -> None:
    await make_task(bus, task=17)
    await live.get("/tasks/17")
    async with opened(live, "/tasks/17/events") as stream:
        for _ in range(20):
            await live.post("/tasks/17/execute", headers={"Prefer": "respond-async"})
            for _ in range(2):
                event = await stream.next()
                shown = (await live.get("/tasks/17")).json()
                assert shown["version"] >= event.data["data"]["task"]["version"]


async def test_a_heartbeat_breaks_the_silence(
    http: httpx.AsyncClient, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "HEARTBEAT", 0.1)
    monkeypatch.setattr(feed, "TICK", 0.05)
    task = await make_task(bus, task=17)
    async with opened(http, "/tasks/17/events") as stream:
        listening = asyncio.create_task(stream.next())
        await eventually(lambda: len(stream.comments) >= 3)
        await append(bus, task, change=Change.EDITED)
        assert (await listening).data["data"]["change"] == "edited"
    assert set(stream.comments) == {"ping"}


async def test_head_answers_headers_only(http: httpx.AsyncClient, bus: Bus) -> None:
    await make_task(bus, task=17)
    for path in ("/tasks/17/events", "/events"):
        answer = await http.head(path)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
    assert followers(http) == 0


# --- the chains ------------------------------------------------------------------------------------------


async def test_one_stream_shows_every_chain_of_the_token_and_no_other(http: httpx.AsyncClient, bus: Bus) -> None:
    both = await make_token(bus, "both", {CHAIN: AccessLevel.VIEWER, OTHER: AccessLevel.VIEWER})
    one = await make_token(bus, "one", {OTHER: AccessLevel.VIEWER})
    async with (
        opened(http, "/events", headers=both) as of_both,
        opened(http, "/events", headers=one) as of_one,
        opened(http, "/events", headers=both, params={"chain": CHAIN}) as narrowed,
    ):
        await make_task(bus, task=1, chain=CHAIN)
        await make_task(bus, task=2, chain=OTHER)
        await make_task(bus, task=3, chain=3000)
        await make_task(bus, task=4, chain=OTHER)
        await make_task(bus, task=5, chain=CHAIN)

        async def tasks(stream: Stream, count: int) -> list[int]:
            return [event.data["data"]["task"]["id"] for event in await stream.take(count)]

        assert await tasks(of_both, 4) == [1, 2, 4, 5]
        assert await tasks(of_one, 2) == [2, 4]
        assert await tasks(narrowed, 2) == [1, 5]
    async with opened(http, "/events", last=0, headers=both) as again:
        assert [event.data["data"]["task"]["id"] for event in await again.take(5)] == [12345, 1, 2, 4, 5]


async def test_a_chain_that_is_not_the_tokens_is_refused(http: httpx.AsyncClient) -> None:
    answer = await http.get("/events", params={"chain": OTHER})
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


async def test_only_events_of_one_state_live_and_resumed(live: httpx.AsyncClient, bus: Bus) -> None:
    await make_task(bus, task=17)
    await live.get("/tasks/17")
    async with opened(live, "/events", params={"code": "DONE"}) as stream:
        for _ in range(3):
            await live.post("/tasks/17/execute")
        received = await stream.take(3)
    assert {event.code for event in received} == {"done"}
    async with opened(live, "/events", last=received[0].id, params={"code": "DONE"}) as stream:
        assert [event.id for event in await stream.take(2)] == [event.id for event in received[1:]]


async def test_a_foreign_task_looks_like_a_missing_one(http: httpx.AsyncClient, bus: Bus) -> None:
    await make_task(bus, task=17, chain=OTHER)
    foreign, missing = await http.get("/tasks/17/events"), await http.get("/tasks/18/events")
    assert foreign.status_code == missing.status_code == 404
    assert foreign.text.replace("17", "18") == missing.text


# --- resuming --------------------------------------------------------------------------------------------


async def test_resuming_is_exact_under_load_on_two_adapters(
    live: httpx.AsyncClient, bus: Bus, settings: Settings
) -> None:
    """300 runs, a new connection every few events, on one adapter and then the other."""
    await make_task(bus, task=17)
    await live.get("/tasks/17")
    async with adapter(second(settings)) as other:
        got: list[int] = []
        expected = 1 + 2 * 300

        async def run_all() -> None:
            for _ in range(300):
                answer = await live.post("/tasks/17/execute")
                assert answer.json()["code"] == "DONE"

        running = asyncio.create_task(run_all())
        turn = 0
        while len(got) < expected:
            turn += 1
            http = (live, other)[turn % 2]
            async with opened(http, "/tasks/17/events", last=got[-1] if got else 0) as stream:
                received = await stream.take(min(1 + turn % 11, expected - len(got)))
                got += [event.id for event in received]
        await running
        assert got == await stored(bus, task=17)
        await eventually(lambda: followers(live) + followers(other) == 0)


async def test_a_client_that_falls_behind_misses_nothing(
    live: httpx.AsyncClient, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "QUEUE_EVENTS", 1)
    caught_up = 0
    between = events.between

    def counted(*arguments: object, **named: object):
        nonlocal caught_up
        caught_up += 1
        return between(*arguments, **named)

    monkeypatch.setattr(events, "between", counted)
    for task in range(1, 11):
        await make_task(bus, task=task)
    await live.get("/tasks/10")
    async with opened(live, "/events", last=0) as stream:
        await stream.take(11)  # and the sample
        for _ in range(5):
            await asyncio.gather(*(live.post(f"/tasks/{task}/execute") for task in range(1, 11)))
        received = [event.id for event in await stream.take(100)]
    assert received == (await stored(bus))[11:]
    assert caught_up > 1


async def test_a_client_that_does_not_read_is_cut_and_costs_little(
    live: httpx.AsyncClient, bus: Bus, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "WRITE_TIMEOUT", 0.5)
    task = await make_task(bus, task=17, note="x" * 15_000)
    await live.get("/tasks/17")
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", settings.http_port))
        request = f"GET /tasks/17/events HTTP/1.1\r\nHost: x\r\nAuthorization: {HEADERS['Authorization']}\r\n\r\n"
        client.sendall(request.encode())
        await eventually(lambda: followers(live) == 1)
        (follower,) = live.services.feed._followers["task", 17]
        for _ in range(400):
            await append(bus, task, change=Change.EDITED)
            assert follower._bytes <= feed.QUEUE_BYTES
        await eventually(lambda: followers(live) == 0)


@pytest.mark.parametrize("path", ["/tasks/17/events", "/tasks/17/events?logs=true", "/events?code=DONE"])
async def test_a_stream_on_which_nothing_has_come_is_resumed_where_it_began(
    live: httpx.AsyncClient, bus: Bus, path: str
) -> None:
    await make_task(bus, task=17)
    await live.post("/tasks/17/execute")
    async with opened(live, path) as stream:
        begun_at = (await anext(stream.answer.aiter_lines())).removeprefix("id: ")
    run = (await live.post("/tasks/17/execute")).headers["run-id"]
    async with opened(live, path, last=begun_at) as stream:
        received = await stream.next()
    assert received.data["data"]["run"]["id"] == run


async def test_what_a_client_got_from_an_adapter_that_was_ahead_is_not_repeated(
    http: httpx.AsyncClient, bus: Bus, settings: Settings
) -> None:
    task = await make_task(bus, task=17)
    await eventually(lambda: http.services.feed.position == 2)
    with closing(sqlite3.connect(settings.read_model_path, isolation_level=None)) as lock:
        lock.execute("BEGIN IMMEDIATE")  # holds the projector up
        ahead = await append(bus, task, change=Change.EDITED)
        async with opened(http, "/tasks/17/events", last=ahead) as stream:
            assert http.services.feed.position < ahead
            following = await append(bus, task, change=Change.EDITED)
            lock.execute("ROLLBACK")
            assert (await stream.next()).id == following


async def test_what_a_replica_does_not_have_yet_comes_from_the_leader(
    http: httpx.AsyncClient, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    for task in (1, 2, 3):
        await make_task(bus, task=task)
    await eventually(lambda: http.services.feed.position == 4)
    read = stretch.read

    async def behind(*arguments: object, **named: object):
        async for message in read(*arguments, **named):
            yield message
            return  # as if the replica had no more

    monkeypatch.setattr(stretch, "read", behind)
    async with opened(http, "/events", last=0) as stream:
        assert [event.id for event in await stream.take(4)] == [1, 2, 3, 4]


async def test_an_id_beyond_the_stream_means_from_now(http: httpx.AsyncClient, bus: Bus) -> None:
    task = await make_task(bus, task=17)
    await eventually(lambda: http.services.feed.position == 2)
    async with opened(http, "/tasks/17/events", last=4_000_000) as stream:
        following = await append(bus, task, change=Change.EDITED)
        assert (await stream.next()).id == following


async def test_an_id_beyond_the_stream_does_not_pass_for_the_final_one(live: httpx.AsyncClient, bus: Bus) -> None:
    await make_task(bus, task=17)
    await live.post("/tasks/17/execute")
    async with opened(live, "/tasks/17/events", last=4_000_000, params={"until": "final"}) as stream:
        assert [event.code for event in await stream.rest()] == ["done"]


async def test_the_id_may_stand_in_the_query_and_the_header_wins(live: httpx.AsyncClient, bus: Bus) -> None:
    await make_task(bus, task=17)
    await live.post("/tasks/17/execute")
    sequences = await stored(bus, task=17)
    async with opened(live, "/tasks/17/events", params={"last_event_id": sequences[0]}) as stream:
        assert (await stream.next()).id == sequences[1]
    query = {"last_event_id": sequences[0]}
    async with opened(live, "/tasks/17/events", last=sequences[1], params=query) as stream:
        assert (await stream.next()).id == sequences[2]


@pytest.mark.parametrize("value", ["abc", "-1", "1.5", "9" * 30, "99999999999999999", "\u0661".encode()])
async def test_an_id_that_is_no_number_is_refused(http: httpx.AsyncClient, bus: Bus, value: str | bytes) -> None:
    answer = await http.get("/events", headers={"Last-Event-ID": value})
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_event_id")


async def test_resuming_is_exact_over_a_broker_restart(
    live: httpx.AsyncClient, bus: Bus, broker: Broker, settings: Settings
) -> None:
    """Whether the stream goes on or ends, what the client gets in all is what EVENTS holds."""
    await make_task(bus, task=17)
    await live.get("/tasks/17")
    got: list[int] = []

    async def listen() -> None:
        while True:
            with suppress(httpx.HTTPError, AssertionError):
                async with opened(live, "/tasks/17/events", last=got[-1] if got else 0) as stream:
                    while (event := await stream.next(within=30)) is not None:
                        got.append(event.id)
            await asyncio.sleep(0.05)

    listening = asyncio.create_task(listen())
    for round_ in range(2):
        for number in range(5):
            run = f"r{round_}-{number}"
            answer = await live.post("/tasks/17/execute", headers={"Idempotency-Key": run})
            if number == 1:
                broker.restart()
            assert answer.status_code in {200, 202, 503}
    other = await connected(settings)
    answer = await eventually(lambda: succeeded(live, "last"))
    expected = await stored(other, task=17)
    await eventually(lambda: len(got) >= len(expected))
    listening.cancel()
    assert got == expected
    await other.nc.close()


async def succeeded(http: httpx.AsyncClient, key: str) -> bool:
    return (await http.post("/tasks/17/execute", headers={"Idempotency-Key": key})).status_code == 200


async def test_events_that_are_gone_are_left_out(settings: Settings, broker: Broker, app: App) -> None:
    """Only as far back as the stream keeps events, per task and state."""
    short = settings.model_copy(update={"events_history": 2})
    bus = await connected(short)
    async with adapter(short) as http, worker(bus, app, short):
        await make_task(bus, task=17)
        for _ in range(5):
            assert (await http.post("/tasks/17/execute")).json()["code"] == "DONE"
        async with opened(http, "/tasks/17/events", last=0, params={"until": "final"}) as stream:
            received = await stream.rest()
        assert [event.id for event in received] == await stored(bus, task=17)
        assert [event.code for event in received] == ["ready", "inprogress", "done", "inprogress", "done"]
    await bus.nc.close()


# --- until the final state ---------------------------------------------------------------------------------


async def test_until_final_begins_with_the_state_and_ends_with_the_run(live: httpx.AsyncClient, bus: Bus) -> None:
    await make_task(bus, "slow", task=17)
    await live.get("/tasks/17")
    asked = await live.post("/tasks/17/execute", headers={"Prefer": "respond-async"})
    assert asked.status_code == 202
    async with opened(live, "/tasks/17/events", params={"until": "final"}) as stream:
        received = await stream.rest()
    assert received[0].code in {"ready", "inprogress"}
    assert received[-1].code == "done"
    assert [event.id for event in received] == (await stored(bus, task=17))[-len(received) :]
    await eventually(lambda: followers(live) == 0)


async def test_until_final_of_a_task_at_rest_ends_at_once_and_then_for_good(live: httpx.AsyncClient, bus: Bus) -> None:
    await make_task(bus, task=17)
    await live.post("/tasks/17/execute")
    final = {"params": {"until": "final"}}
    async with opened(live, "/tasks/17/events", **final) as stream:
        (only,) = await stream.rest()
    assert only.code == "done"
    again = await live.get("/tasks/17/events", headers={"Last-Event-ID": str(only.id)}, **final)
    assert (again.status_code, again.content) == (204, b"")
    async with opened(live, "/tasks/17/events", last=only.id - 1, **final) as stream:
        assert [event.id for event in await stream.rest()] == [only.id]


async def test_until_final_does_not_take_the_last_runs_end_for_the_queued_ones(
    http: httpx.AsyncClient, bus: Bus, app: App, settings: Settings
) -> None:
    await make_task(bus, task=17)
    async with worker(bus, app, settings):
        await http.post("/tasks/17/execute")
    await publish_command(bus, "queued", task=17)
    async with opened(http, "/tasks/17/events", params={"until": "final"}) as stream:
        first = await stream.next()
        async with worker(bus, app, settings):
            received = await stream.rest()
    assert [first.code, *(event.code for event in received)] == ["done", "inprogress", "done"]
    assert received[-1].data["subject"] == "queued"
    async with opened(http, "/tasks/17/events", last=first.id, params={"until": "final"}) as stream:
        assert [event.id for event in await stream.rest()] == [event.id for event in received]


async def test_an_edit_of_a_final_task_is_no_end(
    http: httpx.AsyncClient, bus: Bus, app: App, settings: Settings
) -> None:
    task = await make_task(bus, task=17)
    async with worker(bus, app, settings):
        await http.post("/tasks/17/execute")
    await publish_command(bus, "queued", task=17)
    async with opened(http, "/tasks/17/events", params={"until": "final"}) as stream:
        await stream.next()
        await append(bus, task, change=Change.EDITED)
        async with worker(bus, app, settings):
            assert [event.data["data"]["change"] for event in await stream.rest()] == ["edited", "claimed", "concluded"]


async def test_a_deleted_task_ends_its_streams(http: httpx.AsyncClient, bus: Bus) -> None:
    task = await make_task(bus, task=17)
    await http.get("/tasks/17")
    async with opened(http, "/tasks/17/events") as stream, opened(http, "/events") as of_chain:
        await append(bus, task, change=Change.DELETED)
        (deleted,) = await stream.rest()
        assert (await of_chain.next()).code == "deleted"
        assert deleted.code == "deleted"
        assert followers(http) == 1
    assert (await http.get("/tasks/17/events", headers={"Last-Event-ID": "1"})).status_code == 404


# --- every other end -----------------------------------------------------------------------------------------


async def test_hanging_up_frees_everything_at_once(http: httpx.AsyncClient, bus: Bus) -> None:
    await make_task(bus, task=17)
    await http.get("/tasks/17")
    for path in ("/tasks/17/events", "/events"):
        async with opened(http, path):
            await eventually(lambda: followers(http) == 1)
        await eventually(lambda: followers(http) == 0, within=1)
    assert not http.services.feed._followers


async def test_a_revoked_token_is_cut_off(http: httpx.AsyncClient, bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "CACHE_SECONDS", 0.2)
    token = await make_token(bus, "leaver", {CHAIN: AccessLevel.VIEWER})
    async with opened(http, "/events", headers=token) as stream, opened(http, "/events") as of_another:
        await deactivate(bus, "leaver")
        assert await stream.next(within=5) is None
        assert followers(http) == 1
        await make_task(bus, task=17)
        assert (await of_another.next()).data["data"]["task"]["id"] == 17


async def test_an_expired_token_is_cut_off_while_events_come(http: httpx.AsyncClient, bus: Bus) -> None:
    from datetime import timedelta

    token = await make_token(
        bus, "guest", {CHAIN: AccessLevel.VIEWER}, expires=lifecycle_now() + timedelta(seconds=1.5)
    )
    task = await make_task(bus, task=17)
    async with opened(http, "/events", headers=token) as stream:

        async def busy() -> None:
            while True:
                await append(bus, task, change=Change.EDITED)

        writing = asyncio.create_task(busy())
        received = await stream.rest()
        writing.cancel()
    assert received


async def test_there_is_a_limit_of_open_streams(settings: Settings, bus: Bus) -> None:
    async with adapter(settings.model_copy(update={"max_streams": 2})) as http:
        async with opened(http, "/events"), opened(http, "/events"):
            answer = await http.get("/events")
            assert (answer.status_code, answer.json()["code"]) == (503, "too_many_streams")
            assert answer.headers["retry-after"]
        await eventually(lambda: followers(http) == 0)
        async with opened(http, "/events"):
            pass


async def test_without_a_broker_a_stream_that_has_to_catch_up_ends(
    http: httpx.AsyncClient, bus: Bus, broker: Broker
) -> None:
    await make_task(bus, task=17)
    await http.get("/tasks/17")
    broker.kill()
    async with opened(http, "/tasks/17/events", last=0) as stream:
        assert await stream.rest() == []
    await eventually(lambda: followers(http) == 0)


async def test_the_system_cuts_connections_that_nobody_reads(settings: Settings) -> None:
    """Also those whose client vanished without a word; the option is handed down to every connection."""
    with _bind(settings) as listener, socket.socket() as client:
        listener.listen()
        client.connect(listener.getsockname())
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000


async def test_an_adapter_that_stops_ends_its_streams_in_an_orderly_way(http: httpx.AsyncClient) -> None:
    async with opened(http, "/events") as stream:
        http.services.drain()
        assert await stream.rest() == []
    answer = await http.get("/events")
    assert (answer.status_code, answer.json()["code"]) == (503, "draining")


async def test_a_stream_that_was_made_anew_ends_what_followed_the_old_one(http: httpx.AsyncClient, bus: Bus) -> None:
    await make_task(bus, task=17)
    await eventually(lambda: http.services.feed.position == 2)
    async with opened(http, "/events") as stream:
        http.services.feed.position = 1_000  # as if the old stream had come that far
        await make_task(bus, task=18)
        assert await stream.rest() == []
    async with opened(http, "/events", last=1_000) as stream:
        await make_task(bus, task=19)
        assert (await stream.next()).data["data"]["task"]["id"] == 19


async def test_nobody_follows_nothing_is_kept(live: httpx.AsyncClient, bus: Bus) -> None:
    await make_task(bus, task=17)
    await live.post("/tasks/17/execute")
    async with opened(live, "/tasks/17/events"):
        await live.post("/tasks/12345/execute")  # another task: not for this follower
        (follower,) = live.services.feed._followers["task", 17]
        assert not follower._queue
    await eventually(lambda: followers(live) == 0)
    assert live.services.feed.position == max(await stored(bus))
