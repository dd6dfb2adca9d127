"""The Python client against a real adapter and worker: waiting, repeating, resuming, over connections that break."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import runwire
from runwire.app import App
from runwire.client import Client, Event, Line, NoAnswer, NotFinished, Problem, Progress, RunFailed, calls
from runwire.domain.task import StateCode
from runwire.messaging.broker import Bus
from runwire.settings import Settings
from tests.support import CHAIN, TOKEN, adapter, eventually, make_task, worker
from tests.wire import Wire, wire


class InThreads:
    """A Client whose methods are awaited as an AsyncClient's are."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        if name in {"runs", "logs", "follow", "events", "list", "subscriptions"}:
            return lambda *args, **options: self._each(method(*args, **options))
        return lambda *args, **options: asyncio.to_thread(method, *args, **options)

    @staticmethod
    async def _each(items: Iterator[Any]) -> AsyncIterator[Any]:
        end = object()
        while (item := await asyncio.to_thread(next, items, end)) is not end:
            yield item


def url(port: int) -> str:
    return f"http://127.0.0.1:{port}"


@asynccontextmanager
async def client_of(port: int, kind: str = "coroutines", **options: Any) -> AsyncIterator[Any]:
    if kind == "threads":
        with runwire.Client(url(port), TOKEN, **options) as client:
            yield InThreads(client)
    else:
        async with runwire.AsyncClient(url(port), TOKEN, **options) as client:
            yield client


class Gate:
    """Holds runs up until it is opened; ``begun`` counts how often the action was begun."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.begun = 0

    async def has_begun(self) -> None:
        await eventually(lambda: self.begun > 0, what="the action was begun")


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def app(app: App, gate: Gate) -> App:
    @app.action("gated")
    async def gated(params: dict[str, object], ctx: runwire.Context) -> dict[str, int]:
        gate.begun += 1
        await gate.opened.wait()
        return {"begun": gate.begun}

    @app.action("chatty")
    async def chatty(params: dict[str, int], ctx: runwire.Context) -> None:
        for number in range(params["lines"]):
            ctx.log(f"line {number}")
            if number == params["lines"] // 2:
                ctx.progress(0.5, "half")
                gate.begun += 1
                await gate.opened.wait()

    @app.action("unlucky")
    async def unlucky(params: dict[str, object], ctx: runwire.Context) -> None:
        raise runwire.Fail("no_luck", "The dice fell badly.")

    return app


@pytest.fixture
async def working(bus: Bus, app: App, settings: Settings) -> AsyncIterator[None]:
    async with worker(bus, app, settings):
        yield


@pytest.fixture
async def served(settings: Settings, working: None) -> AsyncIterator[Any]:
    async with adapter(settings) as http:
        yield http


@pytest.fixture
async def cable(settings: Settings, served: Any) -> AsyncIterator[Wire]:
    """What the client's connections go through."""
    async with wire(settings.http_port) as between:
        yield between


@pytest.fixture(params=["threads", "coroutines"])
async def client(request: pytest.FixtureRequest, cable: Wire) -> AsyncIterator[Any]:
    async with client_of(cable.port, request.param) as made:
        yield made


@pytest.fixture
async def quick(cable: Wire) -> AsyncIterator[runwire.AsyncClient]:
    """Of one kind, where the two cannot differ."""
    async with client_of(cable.port) as made:
        yield made


async def cut_and_come_back(cable: Wire) -> None:
    before = cable.connections
    cable.cut()
    await eventually(lambda: cable.connections > before, what="the client came back")


# --- execute ---------------------------------------------------------------------------------------------------


async def test_the_end_of_a_run_is_a_result(client: Any, bus: Bus, gate: Gate) -> None:
    gate.opened.set()
    await make_task(bus, "gated", task=1)
    await make_task(bus, "unlucky", task=2)
    done = await client.execute(1)
    assert (done.task, done.code, done.value, done.error) == (1, StateCode.DONE, {"begun": 1}, None)
    assert done.started <= done.finished
    assert done.run == (await client.run(1, done.run)).id
    failed = await client.execute(2)
    assert (failed.code, failed.value, failed.error.code) == (StateCode.ERROR, None, "no_luck")
    with pytest.raises(RunFailed, match="no_luck: The dice fell badly") as raised:
        await client.execute(2, raise_on_error=True)
    assert (raised.value.code, raised.value.message) == ("no_luck", "The dice fell badly.")
    assert (await client.run(2, raised.value.run)).code == "ERROR"


async def test_a_run_is_waited_for_longer_than_an_adapter_waits(
    quick: Any, bus: Bus, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "POLL", 1)
    await make_task(bus, "gated")
    executing = asyncio.create_task(quick.execute(1))
    await asyncio.wait([executing], timeout=2.5)
    assert not executing.done()
    gate.opened.set()
    assert (await executing).value == {"begun": 1}


async def test_a_wait_that_is_over_names_the_run_that_goes_on(quick: Any, bus: Bus, gate: Gate) -> None:
    await make_task(bus, "gated")
    with pytest.raises(NotFinished) as raised:
        await quick.execute(1, wait=1)
    assert isinstance(raised.value, TimeoutError)
    gate.opened.set()
    assert (await quick.wait_for(1, raised.value.run)).value == {"begun": 1}


async def test_a_run_whose_connections_break_is_answered_once_and_run_once(
    client: Any, bus: Bus, cable: Wire, gate: Gate
) -> None:
    await make_task(bus, "gated")
    executing = asyncio.create_task(client.execute(1))
    await gate.has_begun()
    for _ in range(3):
        await cut_and_come_back(cable)
    gate.opened.set()
    assert (await executing).value == {"begun": 1}
    assert [run.code async for run in client.runs(1)] == ["DONE"]


async def test_a_call_whose_answer_is_lost_takes_effect_once(quick: Any, bus: Bus, cable: Wire, gate: Gate) -> None:
    gate.opened.set()
    await make_task(bus, "gated", task=1)
    cable.swallows = True
    executing = asyncio.create_task(quick.execute(1))
    creating = asyncio.create_task(quick.create(chain=CHAIN, target={"action": "noop"}))
    await eventually(lambda: cable.connections > 4, what="both were sent again")
    cable.swallows = False
    assert (await executing).value == {"begun": 1}
    created = await creating
    assert [run.code async for run in quick.runs(1)] == ["DONE"]
    assert [task.id async for task in quick.list(action="noop")] == [created.id]


@pytest.mark.parametrize("kind", ["threads", "coroutines"])
async def test_an_adapter_may_restart_while_a_call_waits(
    bus: Bus, working: None, settings: Settings, gate: Gate, kind: str
) -> None:
    await make_task(bus, "gated")
    async with client_of(settings.http_port, kind) as client:
        async with adapter(settings) as http:
            executing = asyncio.create_task(client.execute(1))
            await gate.has_begun()
            http.services.drain()
        gate.opened.set()
        assert not executing.done()
        async with adapter(settings):
            assert (await executing).value == {"begun": 1}
            assert [run.code async for run in client.runs(1)] == ["DONE"]


async def test_calls_with_one_key_are_one_run(quick: Any, bus: Bus, gate: Gate) -> None:
    gate.opened.set()
    await make_task(bus, "gated")
    first = await quick.execute(1, idempotency_key='order "17"')
    again = await quick.execute(1, idempotency_key='order "17"')
    assert (again.run, again.value, again.replayed, first.replayed) == (first.run, {"begun": 1}, True, False)
    assert (await quick.execute(1)).run != first.run


async def test_a_busy_task_is_refused_joined_or_queued_for(quick: Any, bus: Bus, served: Any, gate: Gate) -> None:
    await make_task(bus, "gated")
    run = await quick.start(1)
    with pytest.raises(Problem) as raised:
        await quick.execute(1)
    assert (raised.value.code, raised.value.members["run"]) == ("task_busy", run)
    with pytest.raises(Problem, match=run):
        await quick.execute(1, if_running="queue", wait=1)
    joining = asyncio.create_task(quick.execute(1, if_running="join"))
    queueing = asyncio.create_task(quick.execute(1, if_running="queue"))
    waiters = served.services.waiters._by_run
    await eventually(lambda: len(waiters.get((1, run), ())) == 2, what="both wait for the run")
    gate.opened.set()
    assert (await joining).run == run
    queued = await queueing
    assert queued.run != run
    assert queued.value == {"begun": 2}


async def test_a_cancelled_run_is_an_error(quick: Any, bus: Bus, gate: Gate) -> None:
    await make_task(bus, "gated")
    executing = asyncio.create_task(quick.execute(1))
    await gate.has_begun()
    cancelled = await quick.cancel(1)
    result = await executing
    assert (result.run, result.error.code) == (cancelled, "cancelled")
    with pytest.raises(Problem, match="neither queued nor running"):
        await quick.cancel(1)


# --- an adapter that is away, or busy --------------------------------------------------------------------------


async def test_an_adapter_that_never_answers_is_told_of_after_the_timeout(settings: Settings) -> None:
    async with client_of(settings.http_port, timeout=0.5) as client:
        began = time.monotonic()
        with pytest.raises(NoAnswer, match=f"no answer from {url(settings.http_port)}"):
            await client.get(1)
        assert time.monotonic() - began < 5
        with pytest.raises(NotFinished) as raised:
            await client.execute(1, wait=0.3)
        assert raised.value.run is None


async def test_calls_over_the_rate_are_made_when_there_is_room(
    bus: Bus, working: None, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    await make_task(bus)
    limited = settings.model_copy(update={"rate_per_token": "2/second"})
    async with adapter(limited), client_of(settings.http_port) as client:
        tasks = await asyncio.gather(*(client.get(1) for _ in range(6)))
        assert [task.id for task in tasks] == [1] * 6
        assert "trying again" in caplog.text
        async with client_of(settings.http_port, timeout=0) as impatient:
            with pytest.raises(Problem) as raised:
                await asyncio.gather(*(impatient.get(1) for _ in range(6)))
    assert (raised.value.code, raised.value.status) == ("rate_limited", 429)
    assert raised.value.retry_after > 0


async def test_a_stopping_adapter_is_asked_again_after_its_time(quick: Any, bus: Bus, served: Any, caplog: Any) -> None:
    await make_task(bus)
    served.services.draining = True
    executing = asyncio.create_task(quick.execute(1))
    await eventually(lambda: "stopping; try again" in caplog.text, what="the client was refused")
    refused = time.monotonic()
    served.services.draining = False
    assert (await executing).code == "DONE"
    assert time.monotonic() - refused > 1.5, "Retry-After says 2 s"


# --- streams ---------------------------------------------------------------------------------------------------


async def test_events_go_on_without_gap_or_repeat_when_the_connection_breaks(
    client: Any, bus: Bus, cable: Wire
) -> None:
    await make_task(bus)
    async with aclosing(client.events(after="0")) as events:
        seen = [await anext(events), await anext(events)]
        for _ in range(3):
            cable.cut()
            await client.execute(1)
            seen += [await anext(events), await anext(events)]
    assert [(event.task.id, event.code) for event in seen] == [
        (12345, "ready"), (1, "ready"), *[(1, "inprogress"), (1, "done")] * 3,
    ]  # fmt: skip
    places = [int(event.id) for event in seen]
    assert places == sorted(set(places))
    assert (seen[1].run, seen[-1].run.code, seen[-1].change) == (None, "DONE", "concluded")
    async with aclosing(client.events(1, code="done", after=seen[3].id)) as later:
        assert (await anext(later)).id == seen[5].id


async def test_an_event_that_comes_while_the_first_connection_is_broken_is_not_missed(
    quick: Any, bus: Bus, served: Any, cable: Wire
) -> None:
    await make_task(bus)
    async with aclosing(quick.events(code="done")) as events:
        coming = asyncio.ensure_future(anext(events))
        await eventually(lambda: len(served.services.feed) == 1, what="the stream is open")
        cable.to = 1  # where nobody listens
        cable.cut()
        done = await served.post("/tasks/1/execute")
        cable.to = served.base_url.port
        assert (await coming).run.id == done.headers["run-id"]


async def test_the_events_of_a_task_end_with_it(quick: Any, bus: Bus) -> None:
    await make_task(bus, task=1)
    await make_task(bus, task=2)
    async with aclosing(quick.events(1, after="0")) as events:
        assert (await anext(events)).change == "created"
        await quick.execute(2)
        await quick.delete(await quick.get(1))
        assert [event.change async for event in events] == ["deleted"]


async def test_a_stream_that_is_refused_for_now_is_opened_later(bus: Bus, working: None, settings: Settings) -> None:
    await make_task(bus)
    narrow = settings.model_copy(update={"max_streams": 1})
    async with adapter(narrow) as http, client_of(settings.http_port) as client:
        async with http.stream("GET", "/events") as first:
            assert first.status_code == 200
            waiting = asyncio.ensure_future(anext(client.events(after="0")))
            await asyncio.wait([waiting], timeout=0.5)
            assert not waiting.done()
        assert (await waiting).code == "ready"


async def test_a_run_is_followed_to_its_end_with_every_line_once(
    client: Any, bus: Bus, cable: Wire, gate: Gate
) -> None:
    await make_task(bus, "chatty", lines=20)
    run = await client.start(1)
    await gate.has_begun()
    seen = []
    async for item in client.follow(1, run):
        seen.append(item)
        if isinstance(item, Progress):
            cable.cut()
            gate.opened.set()
    assert [item.message for item in seen if isinstance(item, Line)] == [f"line {number}" for number in range(20)]
    assert [item.fraction for item in seen if isinstance(item, Progress)] == [0.5]
    assert isinstance(seen[-1], Event)
    assert (seen[-1].code, seen[-1].run.id) == ("done", run)
    lines = [line async for line in client.logs(1, run, follow=True)]
    assert [line.message for line in lines] == [f"line {number}" for number in range(20)]
    assert [line.message async for line in client.logs(1, run, after=lines[17].line)] == ["line 18", "line 19"]


async def test_of_a_run_that_another_came_after_the_log_is_read(quick: Any, bus: Bus, gate: Gate) -> None:
    gate.opened.set()
    await make_task(bus, "chatty", lines=3)
    run = (await quick.execute(1)).run
    await quick.execute(1)
    assert [item.message async for item in quick.follow(1, run)] == ["line 0", "line 1", "line 2"]


# --- tasks -----------------------------------------------------------------------------------------------------


async def test_a_task_is_created_changed_and_deleted(client: Any) -> None:
    made = await client.create(chain=CHAIN, target={"action": "noop"}, desc="one", trigger={"every": 60}, timeout=5)
    assert (made.desc, made.timeout, made.state.code) == ("one", 5, StateCode.READY)
    assert made.trigger["next"]
    changed = await client.update(made, desc="two", trigger={"paused": True})
    assert (changed.desc, changed.trigger["every"], changed.trigger["paused"]) == ("two", 60, True)
    with pytest.raises(Problem) as raised:
        await client.update(made, desc="three")
    assert (raised.value.code, raised.value.status, raised.value.members["version"]) == ("stale", 412, changed.version)
    assert (await client.update(made.id, desc="three")).desc == "three"
    with pytest.raises(Problem, match="changed"):
        await client.delete(changed)
    await client.delete(made.id)
    with pytest.raises(Problem) as raised:
        await client.get(made.id)
    assert (raised.value.code, raised.value.status) == ("task_not_found", 404)


async def test_what_is_wrong_with_a_field_is_told(quick: Any) -> None:
    with pytest.raises(Problem) as raised:
        await quick.create(chain=CHAIN, target={"action": "noop"}, trigger={"cron": "never"})
    assert (raised.value.code, raised.value.status) == ("invalid_fields", 422)
    (error,) = raised.value.errors
    assert error.pointer == "/trigger/cron"
    assert str(raised.value) == f"The request has invalid fields. /trigger/cron: {error.detail}"


async def test_lists_go_on_over_their_pages(quick: Any, bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "PAGE", 2)
    for task in range(1, 6):
        await make_task(bus, task=task)
    runs = [(await quick.execute(1)).run for _ in range(4)]
    assert [task.id async for task in quick.list(action="noop")] == [1, 2, 3, 4, 5]
    assert [task.id async for task in quick.list(limit=3)] == [1, 2, 3]
    assert [task.id async for task in quick.list(status="DONE")] == [1]
    assert [run.id async for run in quick.runs(1)] == runs[::-1]


async def test_a_download_goes_on_where_it_was_cut_off(
    client: Any, bus: Bus, cable: Wire, tmp_path: Path, app: App
) -> None:
    task = await client.create(chain=CHAIN, target={"action": "export", "export_index": "tasks"}, desc="x" * 2000)
    for number in range(40):
        await make_task(bus, task=1000 + number)
    await client.execute(task)
    cable.breaks_after = 3000
    before = cable.connections
    path = await client.download(task, tmp_path)
    assert cable.connections - before > 2
    cable.breaks_after = None
    link = (await client.request("GET", f"/tasks/{task.id}/download_url")).json()["url"]
    async with runwire.AsyncClient(url(cable.port), TOKEN) as other:
        whole = await other.request("GET", link)
    assert path == tmp_path / f"Tasks_Export-{task.id}.csv"
    assert path.read_bytes() == whole.content
    assert not list(tmp_path.glob("*.part"))  # noqa: ASYNC240


def test_a_worker_does_not_load_the_client() -> None:
    script = "import sys, runwire; assert 'runwire.client' not in sys.modules; print(runwire.Client.__name__)"
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "Client\n"
    )


# --- subscriptions ---------------------------------------------------------------------------------------


async def test_subscriptions_are_made_listed_shown_and_deleted(client: Any) -> None:
    since = datetime(2026, 5, 26, 14, 35, tzinfo=UTC)
    pull = await client.create_subscription(chain=CHAIN, tasks=[1], codes=["done"], from_time=since, desc="billing")
    hook = await client.create_subscription(
        chain=CHAIN, kind="web_hook", url="https://example.com/events", actions=["noop"], from_sequence=1
    )
    assert (pull.kind, pull.tasks, pull.codes, pull.from_time, pull.secret) == ("pull", (1,), ("done",), since, None)
    assert (hook.url, hook.actions, hook.from_sequence) == ("https://example.com/events", ("noop",), 1)
    assert hook.secret.startswith("whsec_")
    assert hook.secret not in repr(hook)
    assert {found.id async for found in client.subscriptions(chain=CHAIN)} == {pull.id, hook.id}
    assert [found.id async for found in client.subscriptions(limit=1)] != []
    shown = await client.subscription(hook)
    assert (shown.id, shown.secret) == (hook.id, None)
    rotated = await client.rotate_subscription(hook, overlap=60)
    assert rotated.secret not in {None, hook.secret}
    assert rotated.previous_until > hook.created
    assert (await client.resume_subscription(hook)).disabled is None
    await client.delete_subscription(hook)
    with pytest.raises(Problem, match="There is no subscription"):
        await client.subscription(hook.id)
    await client.delete_subscription(pull.id)
