"""Log lines and progress in the event stream of a task: in order with its states, resumable, and never lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import httpx
import pytest

import runwire
from runwire.app import App
from runwire.domain import lifecycle
from runwire.domain.run import Command, Done, Source
from runwire.domain.task import LogEntry, LogLevel
from runwire.http import streams
from runwire.messaging import events, logs
from runwire.messaging.broker import Bus
from runwire.readmodel import interleave, tail
from runwire.settings import Settings
from tests.integration.test_event_streams import Received, Stream, opened, second
from tests.support import CHAIN, adapter, ended, eventually, lifecycle_now, make_task, publish_command, worker

LOGS = "/tasks/17/events?logs=true"
UNTIL = f"{LOGS}&until=final"


@pytest.fixture
def app(app: App) -> App:
    app.gate = asyncio.Event()

    @app.action("talk")
    async def talk(params: dict[str, object], ctx: runwire.Context) -> None:
        for number in range(int(params.get("lines", 3))):
            ctx.log(f"line {number}")
        ctx.progress(0.5, "half")
        if params.get("waits"):
            await app.gate.wait()
        ctx.log("last line")
        ctx.progress(1, "all")

    return app


@pytest.fixture
async def http(settings: Settings, bus: Bus) -> AsyncIterator[httpx.AsyncClient]:
    async with adapter(settings) as client:
        yield client


@pytest.fixture
async def live(http: httpx.AsyncClient, bus: Bus, app: App, settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    async with worker(bus, app, settings):
        yield http


async def prepared(http: httpx.AsyncClient, bus: Bus, **target: object) -> None:
    """The task 17, and an adapter that knows it."""
    await make_task(bus, "talk", task=17, **target)

    async def known() -> bool:
        return http.services.feed.position >= 2

    await eventually(known)


def said(received: list[Received]) -> list[str]:
    """What a client has got, in short."""
    return [event.code if event.event == "task.state" else event.data["message"] for event in received]


async def take_until(stream: Stream, *texts: str) -> list[Received]:
    """What comes until all of these have; reports overtake lines, lines never each other."""
    found: list[Received] = []
    while not set(texts) <= set(said(found)):
        found.append(await stream.next())
    return found


async def test_lines_and_progress_come_live_between_the_states(live: httpx.AsyncClient, bus: Bus, app: App) -> None:
    await prepared(live, bus, waits=True)
    async with opened(live, LOGS) as stream:
        run = (await live.post("/tasks/17/execute", headers={"Prefer": "respond-async"})).headers["run-id"]
        begun = await take_until(stream, "line 2", "half")
        assert sorted(said(begun)[1:]) == ["half", "line 0", "line 1", "line 2"]
        app.gate.set()
        rest = await take_until(stream, "done")
    assert said(begun)[0] == "inprogress"
    assert set(said(rest)) == {"last line", "all", "done"}
    assert {event.data["run"] for event in begun + rest if event.event != "task.state"} == {run}
    for event in begun + rest:
        if event.event == "task.log":
            streams.LineEvent.model_validate(event.data)
        elif event.event == "task.progress":
            streams.ProgressEvent.model_validate(event.data)
    lines = (await live.get(f"/tasks/17/runs/{run}/logs")).json()["lines"]
    seen = [event.data for event in begun + rest if event.event == "task.log"]
    assert [{name: line[name] for name in ("line", "date", "level", "message")} for line in seen] == lines


async def test_without_being_asked_for_no_lines_come(live: httpx.AsyncClient, bus: Bus) -> None:
    await prepared(live, bus)
    async with opened(live, "/tasks/17/events") as stream:
        await live.post("/tasks/17/execute")
        assert said(await stream.take(2)) == ["inprogress", "done"]


async def test_a_stream_until_the_end_has_the_whole_log_whenever_it_is_opened(
    live: httpx.AsyncClient, bus: Bus, app: App
) -> None:
    await prepared(live, bus, waits=True)
    await live.post("/tasks/17/execute", headers={"Prefer": "respond-async"})

    async def halfway() -> bool:
        return (await live.get("/tasks/17")).headers.get("task-progress") == "0.5"

    await eventually(halfway)
    async with opened(live, UNTIL) as stream:
        begun = await take_until(stream, "line 2", "half")
        app.gate.set()
        during = said(begun + await stream.rest())
    assert during[0] == "inprogress"
    assert [text for text in during if "line" in text] == ["line 0", "line 1", "line 2", "last line"]
    assert during[-1] == "done"
    async with opened(live, UNTIL) as stream:
        afterwards = said(await stream.rest())
    assert [text for text in afterwards if "line" in text] == ["line 0", "line 1", "line 2", "last line"]
    assert ("all" in afterwards, afterwards[-1]) == (True, "done")


async def test_a_stream_until_the_end_that_breaks_before_it_resumes(live: httpx.AsyncClient, bus: Bus) -> None:
    await prepared(live, bus)
    await live.post("/tasks/17/execute")
    async with opened(live, UNTIL) as stream:
        whole = await stream.rest()
    assert [text for text in said(whole) if "line" in text] == ["line 0", "line 1", "line 2", "last line"]
    for place, event in enumerate(whole[:-1]):
        async with opened(live, UNTIL, last=event.id) as stream:
            assert await stream.rest() == whole[place + 1 :]


async def test_a_stream_resumes_anywhere_without_gap_or_repeat(
    live: httpx.AsyncClient, bus: Bus, settings: Settings
) -> None:
    await prepared(live, bus)
    for number in range(3):
        await publish_command(bus, f"r{number}", task=17)
        await ended(bus, f"r{number}", task=17)
    async with adapter(second(settings)) as other:
        async with opened(other, LOGS, last="0-0") as stream:
            everything = []
            for _ in range(3):
                everything += await take_until(stream, "done")
        assert [said([event])[0] for event in everything if event.event == "task.state"] == [
            "ready", *["inprogress", "done"] * 3
        ]  # fmt: skip
        assert len({event.id for event in everything}) == len(everything)
        for place, event in enumerate(everything[:-1]):
            http = (live, other)[place % 2]
            async with opened(http, LOGS, last=event.id) as stream:
                assert await stream.take(len(everything) - place - 1) == everything[place + 1 :]


async def test_every_line_is_between_the_states_of_its_run(live: httpx.AsyncClient, bus: Bus) -> None:
    await prepared(live, bus, lines=20)
    async with opened(live, LOGS) as stream:
        for number in range(10):
            await publish_command(bus, f"r{number}", task=17)
            await ended(bus, f"r{number}", task=17)
        received = await take_until(stream, "done")
        for _ in range(9):
            received += await take_until(stream, "done")
    running = None
    lines = 0
    for event in received:
        if event.event == "task.state":
            running = event.data["subject"] if event.code == "inprogress" else None
        else:
            assert event.data["run"] == running
            lines += event.event == "task.log"
    assert lines == 210


async def test_who_reads_slowly_misses_nothing(
    live: httpx.AsyncClient, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "QUEUE_LINES", 5)
    monkeypatch.setattr(tail, "PAGE", 7)
    await prepared(live, bus, lines=300)
    async with opened(live, UNTIL) as stream:
        await live.post("/tasks/17/execute")
        received = said(await stream.rest())
    assert [text for text in received if text.startswith("line")] == [f"line {number}" for number in range(300)]
    assert received[-1] == "done"


async def ends_with_a_late_line(http: httpx.AsyncClient, bus: Bus, *, log_seq: int) -> None:
    """A run whose end says that its last line is the one at ``log_seq``."""
    head = await events.load(bus, CHAIN, 17, leader=True)
    command = Command(
        chain=CHAIN, task=17, run="late", source=Source.BUS, accepted=lifecycle_now(), sequence=1, delivery=1
    )
    claimed = lifecycle.claim(head.document, command, claim_id="c", now=lifecycle_now())
    sequence = await events.append(bus, claimed, expected=head.sequence, event_id=uuid4().hex)
    done = lifecycle.conclude(claimed, Done(None), now=lifecycle_now(), log_seq=log_seq)
    await events.append(bus, done, expected=sequence, event_id=uuid4().hex)
    await eventually(lambda: http.services.feed.position == sequence + 1)


async def test_the_end_of_a_run_waits_for_its_lines(http: httpx.AsyncClient, bus: Bus) -> None:
    await prepared(http, bus)
    async with opened(http, LOGS) as stream:
        await ends_with_a_late_line(http, bus, log_seq=1)
        assert said([await stream.next()]) == ["inprogress"]
        entry = LogEntry(date=lifecycle_now(), level=LogLevel.INFO, message="at last", run="late")
        await logs.publish(bus, CHAIN, 17, entry, line_id="x")
        assert said(await stream.take(2)) == ["at last", "done"]


async def test_the_end_of_a_run_does_not_wait_for_ever(
    http: httpx.AsyncClient, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interleave, "PATIENCE", 0.2)
    await prepared(http, bus)
    async with opened(http, LOGS) as stream:
        await ends_with_a_late_line(http, bus, log_seq=1)
        assert said(await stream.take(2)) == ["inprogress", "done"]


async def test_lines_of_a_run_that_has_not_begun_come_after_a_moment(
    live: httpx.AsyncClient, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interleave, "PATIENCE", 0.2)
    await make_task(bus, "nobody knows it", task=17)
    await eventually(lambda: live.services.feed.position >= 2)
    async with opened(live, LOGS) as stream:
        await publish_command(bus, "r1", task=17)
        assert said([await stream.next()])[0].startswith("waiting up to 1 s")


@pytest.mark.parametrize("event_id", ["1-", "-1", "1-2-3", "1-x", f"1-{2**53}"])
async def test_what_is_no_event_id_is_refused(http: httpx.AsyncClient, event_id: str) -> None:
    answer = await http.get("/tasks/12345/events", headers={"Last-Event-ID": event_id})
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_event_id")


async def test_an_id_with_lines_resumes_a_stream_without(live: httpx.AsyncClient, bus: Bus) -> None:
    await prepared(live, bus)
    await live.post("/tasks/17/execute")
    async with opened(live, "/tasks/17/events", last="3-1") as stream:
        assert said(await stream.take(1)) == ["done"]
