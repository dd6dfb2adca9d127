"""Edit, delete and cancel over HTTP, with a real broker and a worker behind it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from nats.js.errors import NotFoundError

import runwire
from runwire.app import App
from runwire.domain import lifecycle
from runwire.domain.access import AccessLevel
from runwire.domain.errors import Conflict, NotRunning, TaskNotFound
from runwire.domain.lifecycle import Change, Document
from runwire.domain.run import Command, Done, Source
from runwire.messaging import cancellation, commands, events, janitor
from runwire.messaging.broker import Bus
from runwire.settings import Settings
from runwire.worker import watch
from tests.integration.test_http import BODY, create, make_token
from tests.support import (
    CHAIN,
    Broker,
    adapter,
    dead_letters,
    ended,
    events_nearly_full,
    eventually,
    free_port,
    history,
    lifecycle_now,
    make_task,
    publish_command,
    queue_is_empty,
    worker,
)

FOUR = ["code", "last_run_date", "last_modified", "created_date"]


class Gate:
    """An action that waits until it is let go; knows how it was begun and how it ended."""

    def __init__(self, app: App, name: str = "gate") -> None:
        self.begun: list[dict[str, object]] = []
        self.stopped = 0
        self.opened = asyncio.Event()

        @app.action(name)
        async def gate(params: dict[str, object], ctx: runwire.Context) -> dict[str, object]:
            self.begun.append({**params, **ctx.filters})
            try:
                await self.opened.wait()
            except asyncio.CancelledError:
                self.stopped += 1
                raise
            return {"attempt": ctx.attempt}

    async def is_running(self, times: int = 1) -> None:
        await eventually(lambda: len(self.begun) >= times, what=f"the action was begun {times} times")


@pytest.fixture
def gate(app: App) -> Gate:
    return Gate(app)


@pytest.fixture
async def http(settings: Settings, bus: Bus) -> AsyncIterator[httpx.AsyncClient]:
    """An adapter without a worker."""
    async with adapter(settings) as client:
        yield client


@pytest.fixture
async def live(
    http: httpx.AsyncClient, bus: Bus, app: App, gate: Gate, settings: Settings
) -> AsyncIterator[httpx.AsyncClient]:
    """An adapter with a worker."""
    async with worker(bus, app, settings):
        yield http


async def start(http: httpx.AsyncClient, task: int) -> str:
    """A run that nobody waits for; returns its id."""
    answer = await http.post(f"/tasks/{task}/execute", headers={"Prefer": "respond-async"})
    assert answer.status_code == 202, answer.text
    return answer.headers["run-id"]


def finals(documents: list[Document]) -> list[tuple[str, str]]:
    """(run, DONE or its error code) of every run that ended."""
    return [
        (event.run.id, event.run.error.code if event.run.error else "DONE")
        for event in documents
        if event.change is Change.CONCLUDED
    ]


def is_gapless(documents: list[Document]) -> bool:
    return [event.task.version for event in documents] == list(range(1, len(documents) + 1))


# --- edit ----------------------------------------------------------------------------------------------


async def test_an_edit_is_answered_with_the_task_that_the_next_get_shows(http: httpx.AsyncClient, bus: Bus) -> None:
    task = await create(http, debug="on", timeout=5)
    patch = {"desc": "new", "target": {"campaign": 5}, "debug": None, "retry": {"attempts": 3}}
    answer = await http.patch(f"/tasks/{task}", json=patch)
    assert answer.status_code == 200, answer.text
    shown = answer.json()
    assert (shown["desc"], shown["target"], shown["debug"]) == ("new", {"action": "noop", "campaign": 5}, None)
    assert (shown["timeout"], shown["retry"]["attempts"], shown["version"]) == (5, 3, 2)
    again = await http.get(f"/tasks/{task}")
    assert (again.json(), again.headers["etag"]) == (shown, answer.headers["etag"])
    assert [found["id"] for found in (await http.get("/tasks?campaign_id=5")).json()] == [task]
    last = (await history(bus, task=task))[-1]
    assert (last.change, last.by) == (Change.EDITED, "tester")


@pytest.mark.parametrize("kind", ["application/merge-patch+json", "application/json", None])
async def test_a_patch_is_read_whatever_its_content_type(http: httpx.AsyncClient, kind: str | None) -> None:
    task = await create(http)
    headers = {"Content-Type": kind} if kind else {}
    answer = await http.patch(f"/tasks/{task}", content=b'{"desc": "new"}', headers=headers)
    assert answer.json()["desc"] == "new"


async def test_a_patch_that_changes_nothing_is_no_event(http: httpx.AsyncClient, bus: Bus) -> None:
    task = await create(http, debug="on")
    for patch in ({}, {"debug": "on", "trigger": {}}, {"target": {"gone": None}}):
        answer = await http.patch(f"/tasks/{task}", json=patch)
        assert (answer.status_code, answer.json()["version"]) == (200, 1)
    assert len(await history(bus, task=task)) == 1


async def test_a_bad_patch_is_refused_and_changes_nothing(http: httpx.AsyncClient) -> None:
    task = await create(http)
    for patch, pointer in (
        ({"id": task}, "/id"),
        ({"chain": CHAIN}, "/chain"),
        ({"state": {"code": "DONE"}}, "/state"),
        ({"target": {"action": None}}, "/target/action"),
        ({"timeout": -1}, "/timeout"),
    ):
        answer = await http.patch(f"/tasks/{task}", json=patch)
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer)
    assert (await http.patch(f"/tasks/{task}", content=b"{")).json()["code"] == "malformed_body"
    for size in (20_000, 300_000):
        answer = await http.patch(f"/tasks/{task}", json={"target": {"x": "x" * size}})
        assert answer.status_code == 413
    assert (await http.get(f"/tasks/{task}")).json()["version"] == 1


async def test_a_task_cannot_grow_beyond_its_size_bit_by_bit(http: httpx.AsyncClient) -> None:
    task = await create(http)
    codes = [(await http.patch(f"/tasks/{task}", json={"target": {f"x{n}": "x" * 3000}})).status_code for n in range(7)]
    assert codes == [200] * 5 + [413] * 2


async def test_the_entity_tag_is_the_quoted_version_everywhere(live: httpx.AsyncClient) -> None:
    created = await live.post("/tasks", json=BODY)
    assert created.headers["etag"] == '"1"'
    task = created.json()["id"]
    await live.post(f"/tasks/{task}/execute")
    shown = await live.get(f"/tasks/{task}")
    assert (shown.headers["etag"], shown.json()["version"]) == ('"3"', 3)
    assert (await live.head(f"/tasks/{task}")).headers["etag"] == '"3"'


@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
async def test_a_change_of_another_version_is_refused_as_stale(http: httpx.AsyncClient, method: str) -> None:
    task = await create(http)
    await http.patch(f"/tasks/{task}", json={"desc": "second"})
    body = {"json": {"desc": "third"}} if method == "PATCH" else {}
    for tag in ('"1"', 'W/"2"', '"1", "3"'):
        answer = await http.request(method, f"/tasks/{task}", headers={"If-Match": tag}, **body)
        assert (answer.status_code, answer.json()["code"], answer.headers["etag"]) == (412, "stale", '"2"')
    answer = await http.request(method, f"/tasks/{task}", headers={"If-Match": "2"}, **body)
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_if_match")
    assert (await http.get(f"/tasks/{task}")).json()["desc"] == "second"
    answer = await http.request(method, f"/tasks/{task}", headers={"If-Match": '"1", "2"'}, **body)
    assert answer.is_success


async def test_if_match_with_a_star_needs_the_task_only(http: httpx.AsyncClient) -> None:
    task = await create(http)
    assert (await http.patch(f"/tasks/{task}", headers={"If-Match": "*"}, json={"desc": "x"})).status_code == 200
    assert (await http.delete(f"/tasks/{task}", headers={"If-Match": "*"})).status_code == 204
    assert (await http.delete(f"/tasks/{task}", headers={"If-Match": "*"})).status_code == 404


async def test_of_many_edits_at_once_each_lands(http: httpx.AsyncClient, bus: Bus) -> None:
    task = await create(http)
    answers = await asyncio.gather(
        *(http.patch(f"/tasks/{task}", json={"target": {f"field{n}": n}}) for n in range(12))
    )
    assert {answer.status_code for answer in answers} == {200}
    assert sorted(answer.json()["version"] for answer in answers) == list(range(2, 14))
    shown = (await http.get(f"/tasks/{task}")).json()
    assert shown["target"] == {"action": "noop"} | {f"field{n}": n for n in range(12)}
    assert is_gapless(await history(bus, task=task))


async def test_of_many_edits_of_one_version_one_lands(http: httpx.AsyncClient) -> None:
    task = await create(http)
    answers = await asyncio.gather(
        *(http.patch(f"/tasks/{task}", json={"desc": f"{n}"}, headers={"If-Match": '"1"'}) for n in range(8))
    )
    assert sorted(answer.status_code for answer in answers) == [200] + [412] * 7


async def test_an_edit_of_a_running_task_takes_effect_with_the_next_run(
    http: httpx.AsyncClient, bus: Bus, app: App, settings: Settings
) -> None:
    seen: list[tuple[str, object, object]] = []
    going, opened = asyncio.Event(), asyncio.Event()

    @app.action("flaky")
    async def flaky(params: dict[str, object], ctx: runwire.Context) -> None:
        seen.append((ctx.run_id, params.get("word"), ctx.filters.get("segment")))
        going.set()
        await opened.wait()
        if ctx.attempt < 3:
            raise runwire.Retry(after=0.1)

    body = BODY | {
        "target": {"action": "flaky", "word": "old"},
        "trigger": {"segment": "old"},
        "retry": {"attempts": 3, "backoff": 0},
    }
    task = (await http.post("/tasks", json=body)).json()["id"]
    async with worker(bus, app, settings):
        run = await start(http, task)
        await going.wait()
        patch = {"target": {"word": "new"}, "trigger": {"segment": "new"}, "retry": None, "timeout": 0.5}
        assert (await http.patch(f"/tasks/{task}", json=patch)).status_code == 200
        shown = (await http.get(f"/tasks/{task}")).json()
        assert (shown["target"]["word"], shown["retry"], shown["state"]["code"]) == ("new", None, "INPROGRESS")
        opened.set()
        assert (await ended(bus, run, task=task)).run.attempt == 3
        assert [word for _, word, _ in seen] == ["old"] * 3
        assert [segment for _, _, segment in seen] == ["old"] * 3
        second = await http.post(f"/tasks/{task}/execute")
    assert seen[3:] == [(second.headers["run-id"], "new", "new")]
    assert (second.json()["code"], second.headers["task-error"]) == ("ERROR", "handler_error")  # no retry any more
    assert is_gapless(await history(bus, task=task))


async def test_a_queued_run_begins_with_the_newest_definition(
    http: httpx.AsyncClient, bus: Bus, app: App, gate: Gate, settings: Settings
) -> None:
    task = await create(http, "gate")
    run = await start(http, task)
    assert (await http.patch(f"/tasks/{task}", json={"target": {"word": "new"}})).status_code == 200
    gate.opened.set()
    async with worker(bus, app, settings):
        assert (await ended(bus, run, task=task)).run.error is None
    assert gate.begun == [{"word": "new"}]


async def test_a_worker_that_remembers_the_task_notices_that_it_was_edited(
    live: httpx.AsyncClient, bus: Bus, gate: Gate
) -> None:
    """What a worker wrote last it believes without asking: the fence has to correct it."""
    gate.opened.set()
    task = await create(live, "gate")
    await live.post(f"/tasks/{task}/execute")
    await live.patch(f"/tasks/{task}", json={"target": {"word": "new"}})
    assert (await live.post(f"/tasks/{task}/execute")).json()["code"] == "DONE"
    assert gate.begun == [{}, {"word": "new"}]
    documents = await history(bus, task=task)
    assert is_gapless(documents)
    assert documents[-1].task.target.parameters == {"word": "new"}


async def test_a_finished_task_that_is_edited_shows_its_state_and_its_runs_once(live: httpx.AsyncClient, bus) -> None:
    task = await create(live)
    run = (await live.post(f"/tasks/{task}/execute")).headers["run-id"]
    edited = (await live.patch(f"/tasks/{task}", json={"desc": "new"})).json()
    assert (edited["state"]["code"], edited["version"]) == ("DONE", 4)
    assert [document.run.id async for document in events.ended_runs(bus, CHAIN)] == [run]


# --- delete --------------------------------------------------------------------------------------------


async def test_a_deleted_task_is_nowhere_any_more(live: httpx.AsyncClient, bus: Bus) -> None:
    task = await create(live)
    run = (await live.post(f"/tasks/{task}/execute")).headers["run-id"]
    answer = await live.delete(f"/tasks/{task}")
    assert (answer.status_code, answer.content) == (204, b"")
    for method, path in (
        ("GET", ""),
        ("PATCH", ""),
        ("DELETE", ""),
        ("DELETE", "?force=true"),
        ("POST", "/execute"),
        ("POST", "/cancel"),
        ("GET", f"/runs/{run}"),
    ):
        refused = await live.request(method, f"/tasks/{task}{path}", json={} if method == "PATCH" else None)
        assert (refused.status_code, refused.json()["code"]) == (404, "task_not_found"), (method, path)
    assert task not in [found["id"] for found in (await live.get("/tasks")).json()]
    last = (await history(bus, task=task))[-1]
    assert (last.change, last.by) == (Change.DELETED, "tester")
    assert (await live.post("/tasks", json=BODY | {"id": task})).json()["code"] == "id_taken"


async def test_a_busy_task_is_not_deleted_unless_forced(live: httpx.AsyncClient, bus: Bus, gate: Gate) -> None:
    task = await create(live, "gate")
    waiting = asyncio.create_task(live.post(f"/tasks/{task}/execute"))
    await gate.is_running()
    refused = await live.delete(f"/tasks/{task}")
    assert (refused.status_code, refused.json()["code"]) == (409, "task_busy")
    forced = await live.delete(f"/tasks/{task}?force=true", headers={"If-Match": '"2"'})
    assert forced.status_code == 204, forced.text
    answer = await waiting
    assert (answer.json()["code"], answer.headers["task-error"]) == ("ERROR", "cancelled")
    assert answer.headers["run-id"] == refused.json()["run"]
    await eventually(lambda: gate.stopped == 1)
    await eventually(lambda: queue_is_empty(bus))
    assert [event.change.value for event in await history(bus, task=task)] == [
        "created", "claimed", "concluded", "deleted",
    ]  # fmt: skip


async def test_a_queued_task_is_not_deleted_unless_forced(
    http: httpx.AsyncClient, bus: Bus, app: App, settings: Settings
) -> None:
    task = await create(http)
    run = await start(http, task)
    refused = await http.delete(f"/tasks/{task}")
    assert (refused.status_code, refused.json()["run"]) == (409, run)
    assert (await http.delete(f"/tasks/{task}?force=true")).status_code == 204
    assert await queue_is_empty(bus)
    assert finals(await history(bus, task=task)) == [(run, "cancelled")]
    async with worker(bus, app, settings):
        assert await dead_letters(bus, task=task) is None


async def test_a_command_that_comes_after_the_deletion_is_a_dead_letter(live: httpx.AsyncClient, bus: Bus) -> None:
    task = await create(live)
    await live.delete(f"/tasks/{task}")
    await publish_command(bus, "late", task=task)
    await eventually(lambda: dead_letters(bus, task=task))
    await eventually(lambda: queue_is_empty(bus))
    assert (await history(bus, task=task))[-1].change is Change.DELETED


async def test_a_deletion_against_an_execute_comes_out_one_way_or_the_other(live: httpx.AsyncClient, bus: Bus) -> None:
    """204 and 404, or 409 and a run; nothing is written after the deletion, and nobody waits for ever."""
    seen = set()
    for n in range(50):
        task = await create(live)
        executing = asyncio.create_task(live.post(f"/tasks/{task}/execute"))
        await asyncio.sleep(0.0004 * (n % 20))
        deleted = await live.delete(f"/tasks/{task}")
        executed = await executing
        documents = await history(bus, task=task)
        seen.add((deleted.status_code, executed.status_code))
        if deleted.status_code == 204:
            assert documents[-1].change is Change.DELETED
            assert len(finals(documents)) == (1 if executed.status_code == 200 else 0)
        else:
            assert (deleted.status_code, executed.status_code) == (409, 200)
            assert documents[-1].change is Change.CONCLUDED
        assert is_gapless(documents)
    assert seen <= {(204, 404), (204, 200), (409, 200)}
    await eventually(lambda: queue_is_empty(bus))


async def test_of_many_deletions_one_succeeds(http: httpx.AsyncClient, bus: Bus) -> None:
    task = await create(http)
    answers = await asyncio.gather(*(http.delete(f"/tasks/{task}") for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [204] + [404] * 7
    assert len(await history(bus, task=task)) == 2


# --- what is left of deleted tasks ----------------------------------------------------------------------


async def lines_of(bus: Bus, task: int) -> int:
    info = await bus.js.stream_info("LOGS", subjects_filter=f"tasks.log.{CHAIN}.{task}")
    return sum((info.state.subjects or {}).values())


@pytest.fixture
def talker(app: App) -> App:
    @app.action("talk")
    async def talk(params: dict[str, object], ctx: runwire.Context) -> None:
        ctx.log("hello")

    return app


async def deleted_task(bus: Bus, app: App, settings: Settings, task: int) -> None:
    await make_task(bus, "talk", task=task)
    async with worker(bus, app, settings):
        await publish_command(bus, f"run-{task}", task=task)
        await ended(bus, f"run-{task}", task=task)
        await eventually(lambda: queue_is_empty(bus))
    await remove_task(bus, task)


async def remove_task(bus: Bus, task: int) -> int:
    head = await events.load(bus, CHAIN, task)
    return await events.append_confirmed(bus, lifecycle.delete(head.document, by="x"), expected=head.sequence)


async def test_a_task_deleted_long_ago_is_forgotten_with_its_lines(bus: Bus, talker: App, settings: Settings) -> None:
    await make_task(bus, task=1)
    await deleted_task(bus, talker, settings, 2)
    now = lifecycle_now()
    assert await janitor.sweep(bus, now=now + timedelta(days=janitor.DELETED_DAYS - 1)) == 0
    assert len(await history(bus, task=2)) == 4
    assert await janitor.sweep(bus, now=now + timedelta(days=janitor.DELETED_DAYS + 1)) == 1
    assert await history(bus, task=2) == []
    assert await lines_of(bus, 2) == 0
    assert len(await history(bus, task=1)) == 1
    assert await janitor.sweep(bus, now=now + timedelta(days=janitor.DELETED_DAYS + 1)) == 0
    await make_task(bus, task=2)  # the id is free again


async def test_an_id_that_was_taken_again_is_not_touched_by_a_late_sweep(
    bus: Bus, talker: App, settings: Settings
) -> None:
    """Two adapters sweep; between them the id is used for another task."""
    await deleted_task(bus, talker, settings, 2)
    long_after = lifecycle_now() + timedelta(days=janitor.DELETED_DAYS + 1)
    (deletion,) = await events.deleted_before(bus, long_after, limit=10)
    await events.purge_deleted(bus, deletion)
    await make_task(bus, "talk", task=2)
    async with worker(bus, talker, settings):
        await publish_command(bus, "second", task=2)
        await ended(bus, "second", task=2)
    await events.purge_deleted(bus, deletion)
    assert len(await history(bus, task=2)) == 3
    assert await lines_of(bus, 2) == 1


async def test_a_sweep_takes_the_oldest_first_and_so_many_at_most(bus: Bus) -> None:
    for task in range(1, 6):
        await make_task(bus, task=task)
        await remove_task(bus, task)
    long_after = lifecycle_now() + timedelta(days=1)
    assert [found.task for found in await events.deleted_before(bus, long_after, limit=3)] == [1, 2, 3]
    assert await events.deleted_before(bus, lifecycle_now() - timedelta(days=1), limit=3) == []


# --- cancel --------------------------------------------------------------------------------------------


async def test_a_queued_run_is_cancelled_without_any_worker(http: httpx.AsyncClient, bus: Bus, app, settings) -> None:
    task = await create(http)
    waiting = asyncio.create_task(http.post(f"/tasks/{task}/execute"))
    await eventually(lambda: commands.outstanding(bus, CHAIN, task))
    answer = await http.post(f"/tasks/{task}/cancel")
    assert answer.status_code == 200, answer.text
    assert list(answer.json()) == FOUR
    assert (answer.json()["code"], answer.json()["last_run_date"]) == ("ERROR", None)
    run = answer.headers["run-id"]
    assert answer.headers["location"] == f"/tasks/{task}/runs/{run}"
    assert (answer.headers["task-state"], answer.headers["task-error"]) == ("ERROR", "cancelled")
    executed = await waiting
    assert (executed.headers["run-id"], executed.headers["task-error"]) == (run, "cancelled")
    assert executed.json() == answer.json()
    assert await queue_is_empty(bus)
    shown = (await http.get(answer.headers["location"])).json()
    assert (shown["code"], shown["attempt"], shown["started"], shown["source"]) == ("ERROR", 0, None, "http")
    assert shown["accepted"] <= shown["finished"]
    assert shown["error"]["code"] == "cancelled"
    state = (await http.get(f"/tasks/{task}")).json()["state"]
    assert state == answer.json() | {"code": "ERROR"}
    assert (await history(bus, task=task))[-1].by == "tester"
    async with worker(bus, app, settings):
        assert (await http.post(f"/tasks/{task}/execute")).json()["code"] == "DONE"
    assert finals(await history(bus, task=task))[0] == (run, "cancelled")


async def test_a_running_run_is_cancelled_and_its_action_stopped_within_a_second(
    live: httpx.AsyncClient, bus: Bus, gate: Gate
) -> None:
    task = await create(live, "gate")
    waiting = asyncio.create_task(live.post(f"/tasks/{task}/execute"))
    await gate.is_running()
    began = time.monotonic()
    answer = await live.post(f"/tasks/{task}/cancel")
    await eventually(lambda: gate.stopped == 1, within=1.0)
    assert time.monotonic() - began < 1.0
    assert (await waiting).headers["task-error"] == "cancelled"
    assert (await waiting).json() == answer.json()
    assert await queue_is_empty(bus)
    gate.opened.set()
    assert (await live.post(f"/tasks/{task}/execute")).json()["code"] == "DONE"
    documents = await history(bus, task=task)
    assert [code for _, code in finals(documents)] == ["cancelled", "DONE"]
    assert is_gapless(documents)


async def test_a_cancelled_run_gives_its_slot_back(
    http: httpx.AsyncClient, bus: Bus, app: App, gate: Gate, settings: Settings
) -> None:
    async with worker(bus, app, settings.model_copy(update={"worker_slots": 1})) as only:
        first, second = await create(http, "gate"), await create(http)
        await start(http, first)
        await gate.is_running()
        assert (await http.post(f"/tasks/{first}/cancel")).status_code == 200
        assert (await http.post(f"/tasks/{second}/execute")).json()["code"] == "DONE"
        await eventually(lambda: not only._deliveries)
        assert not only._executor._watch._holds


async def test_a_run_that_waits_for_its_next_try_is_cancelled(
    http: httpx.AsyncClient, bus: Bus, app: App, settings: Settings
) -> None:
    @app.action("never")
    async def never(params: dict[str, object], ctx: runwire.Context) -> None:
        raise runwire.Retry(after=60)

    async with worker(bus, app, settings):
        body = BODY | {"target": {"action": "never"}, "retry": {"attempts": 9}}
        task = (await http.post("/tasks", json=body)).json()["id"]
        run = await start(http, task)

        async def is_waiting() -> bool:
            return (await history(bus, task=task))[-1].change is Change.RETRYING

        await eventually(is_waiting)
        answer = await http.post(f"/tasks/{task}/cancel?run={run}")
        assert (answer.status_code, answer.headers["run-id"]) == (200, run)
        assert await queue_is_empty(bus)
        assert finals(await history(bus, task=task)) == [(run, "cancelled")]


async def test_a_run_without_a_command_is_cancelled(http: httpx.AsyncClient, bus: Bus) -> None:
    """Its worker died, and the command was removed: nobody would ever end it."""
    task = await create(http)
    await abandoned(bus, task, "r1")
    answer = await http.post(f"/tasks/{task}/cancel")
    assert (answer.status_code, answer.headers["run-id"]) == (200, "r1")
    assert finals(await history(bus, task=task)) == [("r1", "cancelled")]


async def test_a_queued_run_behind_an_abandoned_one_is_the_one_that_is_cancelled(
    http: httpx.AsyncClient, bus: Bus
) -> None:
    task = await create(http)
    await abandoned(bus, task, "r1")
    await publish_command(bus, "r2", task=task)
    answer = await http.post(f"/tasks/{task}/cancel")
    assert (answer.status_code, answer.headers["run-id"]) == (200, "r2")
    assert finals(await history(bus, task=task)) == [("r1", "lost"), ("r2", "cancelled")]


async def abandoned(bus: Bus, task: int, run: str) -> Document:
    """A run that is INPROGRESS, with no command behind it."""
    head = await events.load(bus, CHAIN, task)
    command = Command(
        chain=CHAIN, task=task, run=run, source=Source.BUS, accepted=lifecycle_now(), sequence=0, delivery=1
    )
    document = lifecycle.claim(head.document, command, claim_id="gone", now=lifecycle_now())
    await events.append_confirmed(bus, document, expected=head.sequence)
    return document


async def test_with_nothing_to_cancel_the_answer_is_a_conflict(live: httpx.AsyncClient, gate: Gate) -> None:
    task = await create(live)
    for _ in range(2):
        refused = await live.post(f"/tasks/{task}/cancel")
        assert (refused.status_code, refused.json()["code"]) == (409, "not_running")
        await live.post(f"/tasks/{task}/execute")


async def test_another_run_than_the_one_that_is_meant_goes_on(live: httpx.AsyncClient, gate: Gate) -> None:
    task = await create(live, "gate")
    run = await start(live, task)
    await gate.is_running()
    refused = await live.post(f"/tasks/{task}/cancel?run=another")
    assert (refused.status_code, refused.json()["code"]) == (409, "not_running")
    assert (await live.post(f"/tasks/{task}/cancel?run=n%20o")).status_code == 422
    gate.opened.set()
    done = await live.get(f"/tasks/{task}/runs/{run}", headers={"Prefer": "wait=15"})
    assert done.json()["code"] == "DONE"


async def test_what_a_crashed_cancel_left_undone_is_done_by_the_next(http: httpx.AsyncClient, bus: Bus) -> None:
    """The event was stored, the command was not removed."""
    task = await create(http)
    run = await start(http, task)
    head, held = await events.load(bus, CHAIN, task), await commands.outstanding(bus, CHAIN, task)
    ending = lifecycle.cancel(head.document, commands.queued_run(held), by="x", now=lifecycle_now())
    await events.append_confirmed(bus, ending, expected=head.sequence)
    assert not await queue_is_empty(bus)
    answer = await http.post(f"/tasks/{task}/cancel")
    assert (answer.status_code, answer.headers["run-id"]) == (200, run)
    assert await queue_is_empty(bus)
    assert finals(await history(bus, task=task)) == [(run, "cancelled")]
    assert (await http.post(f"/tasks/{task}/cancel")).status_code == 409


async def test_the_command_of_a_cancelled_run_stands_in_nobodys_way(
    http: httpx.AsyncClient, bus: Bus, app: App, settings: Settings
) -> None:
    """Left behind by a crash between event and removal: the next execute, or the next worker, clears it away."""
    task = await create(http)
    for clear in ("execute", "worker"):
        first = await start(http, task)
        head, held = await events.load(bus, CHAIN, task), await commands.outstanding(bus, CHAIN, task)
        ending = lifecycle.cancel(head.document, commands.queued_run(held), by="x", now=lifecycle_now())
        await events.append_confirmed(bus, ending, expected=head.sequence)
        if clear == "worker":
            async with worker(bus, app, settings):
                await eventually(lambda: queue_is_empty(bus))
            assert finals(await history(bus, task=task))[-1] == (first, "cancelled")
        else:
            second = await start(http, task)
            async with worker(bus, app, settings):
                assert (await ended(bus, second, task=task)).run.error is None
                await eventually(lambda: queue_is_empty(bus))


async def test_a_broker_that_is_away_makes_a_cancel_503_and_the_next_one_ends_it(
    http: httpx.AsyncClient, bus: Bus, broker: Broker
) -> None:
    task = await create(http)
    run = await start(http, task)
    broker.kill()
    answer = await http.post(f"/tasks/{task}/cancel")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    broker.start()

    async def cancelled() -> bool:
        return (await http.post(f"/tasks/{task}/cancel")).status_code == 200

    await eventually(cancelled)
    assert finals(await history(bus, task=task)) == [(run, "cancelled")]


async def test_a_cancel_against_the_end_of_the_run_leaves_exactly_one_end(
    live: httpx.AsyncClient, bus: Bus, gate: Gate
) -> None:
    """Both at the same moment, at least fifty times and until it went each way."""
    seen: set[int] = set()
    for n in range(300):
        if n >= 50 and seen == {200, 409}:
            break
        gate.opened.clear()
        task = await create(live, "gate")
        executing = asyncio.create_task(live.post(f"/tasks/{task}/execute"))
        await gate.is_running(n + 1)
        cancelling = asyncio.create_task(live.post(f"/tasks/{task}/cancel"))
        await asyncio.sleep(0.0003 * (n % 16))
        gate.opened.set()
        cancelled, executed = await cancelling, await executing
        documents = await history(bus, task=task)
        ends = finals(documents)
        assert len(ends) == 1, ends
        assert executed.status_code == 200
        assert executed.headers.get("task-error", "DONE") == ends[0][1]
        assert (cancelled.status_code == 200) == (ends[0][1] == "cancelled"), (cancelled.text, ends)
        assert is_gapless(documents)
        seen.add(cancelled.status_code)
    assert seen == {200, 409}
    await eventually(lambda: queue_is_empty(bus))


async def test_a_cancel_against_the_claim_of_the_run_leaves_exactly_one_end(live: httpx.AsyncClient, bus: Bus) -> None:
    """The command is stored, and a worker is about to take it."""
    for n in range(50):
        task = await create(live)
        executing = asyncio.create_task(live.post(f"/tasks/{task}/execute"))
        await asyncio.sleep(0.0005 * (n % 12))
        cancelled = await live.post(f"/tasks/{task}/cancel")
        executed = await executing
        documents = await history(bus, task=task)
        ((_, end),) = finals(documents)
        assert executed.headers.get("task-error", "DONE") == end
        assert cancelled.status_code == (200 if end == "cancelled" else 409)
        assert is_gapless(documents)
    await eventually(lambda: queue_is_empty(bus))


async def test_of_many_cancels_at_once_there_is_one_end(live: httpx.AsyncClient, bus: Bus, gate: Gate) -> None:
    task = await create(live, "gate")
    await start(live, task)
    await gate.is_running()
    answers = await asyncio.gather(*(live.post(f"/tasks/{task}/cancel") for _ in range(8)))
    assert {answer.status_code for answer in answers} <= {200, 409}
    assert len(finals(await history(bus, task=task))) == 1


async def test_who_loses_the_race_for_a_cancel_to_another_cancel_has_cancelled_too(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_task(bus)
    await publish_command(bus, "r1")
    outstanding = commands.outstanding

    async def outstanding_then_lose(*arguments: object) -> object:
        monkeypatch.setattr(commands, "outstanding", outstanding)
        held = await outstanding(*arguments)
        await cancellation.cancel(bus, CHAIN, 1, by="first")
        return held

    monkeypatch.setattr(commands, "outstanding", outstanding_then_lose)
    assert (await cancellation.cancel(bus, CHAIN, 1, by="second")).document.by == "first"
    assert finals(await history(bus)) == [("r1", "cancelled")]


async def test_a_run_that_begins_after_the_cancelled_one_has_ended_is_left_alone(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cancel loses its race, and by the time it looks again the next run is queued."""
    created = await make_task(bus)
    await publish_command(bus, "r1")
    load = events.load

    async def load_then_lose(*arguments: object, **options: object) -> events.Head | None:
        head = await load(*arguments, **options)
        if head.sequence == 1:
            monkeypatch.setattr(events, "load", load)
            command = Command(
                chain=CHAIN, task=1, run="r1", source=Source.BUS, accepted=lifecycle_now(), sequence=1, delivery=1
            )
            working = lifecycle.claim(created, command, claim_id="c", now=lifecycle_now())
            await events.append_confirmed(bus, working, expected=1)
            done = lifecycle.conclude(working, Done(None), now=lifecycle_now())
            await events.append_confirmed(bus, done, expected=2)
        return head

    monkeypatch.setattr(events, "load", load_then_lose)
    outstanding = commands.outstanding

    async def outstanding_then_next(*arguments: object) -> object:
        held = await outstanding(*arguments)
        monkeypatch.setattr(commands, "outstanding", outstanding)
        await commands.remove(bus, held)
        await publish_command(bus, "r2")
        return held

    monkeypatch.setattr(commands, "outstanding", outstanding_then_next)
    with pytest.raises(NotRunning, match="r1"):
        await cancellation.cancel(bus, CHAIN, 1, by="x")
    assert finals(await history(bus)) == [("r1", "DONE")]
    assert commands.run_of(await commands.outstanding(bus, CHAIN, 1)) == "r2"


async def test_an_operator_may_cancel_and_a_manager_change(http: httpx.AsyncClient, bus: Bus) -> None:
    task = await create(http)
    viewer = await make_token(bus, "viewer", {CHAIN: AccessLevel.VIEWER})
    operator = await make_token(bus, "operator", {CHAIN: AccessLevel.OPERATOR})
    foreign = await make_token(bus, "foreign", {99: AccessLevel.MANAGER})
    for token, expected in ((viewer, (403, 403, 403)), (operator, (403, 403, 409)), (foreign, (404, 404, 404))):
        answers = [
            await http.patch(f"/tasks/{task}", json={"desc": "x"}, headers=token),
            await http.delete(f"/tasks/{task}", headers=token),
            await http.post(f"/tasks/{task}/cancel", headers=token),
        ]
        assert tuple(answer.status_code for answer in answers) == expected
    for method, path in (("PATCH", ""), ("DELETE", ""), ("POST", "/cancel")):
        missing = await http.request(method, f"/tasks/999{path}", headers=foreign, json={})
        assert missing.status_code == 404


# --- the worker ----------------------------------------------------------------------------------------


async def test_a_cancel_nobody_told_the_worker_of_is_found_on_its_rounds(
    bus: Bus, app: App, gate: Gate, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "LONG", 0.2)
    await make_task(bus, "gate")
    async with worker(bus, app, settings) as consumer:
        for subscription in consumer._executor._watch._subscriptions:
            await subscription.unsubscribe()
        await publish_command(bus, "r1")
        await gate.is_running()
        await cancellation.cancel(bus, CHAIN, 1, by="x")
        await eventually(lambda: gate.stopped == 1)
        await eventually(lambda: not consumer._deliveries)


async def test_an_event_that_the_fence_refused_stops_nobody(bus: Bus, app: App, gate: Gate, settings: Settings) -> None:
    """A core subscription hears it all the same."""
    await make_task(bus, "gate")
    async with worker(bus, app, settings) as consumer:
        await publish_command(bus, "r1")
        await gate.is_running()
        head = await events.load(bus, CHAIN, 1)
        refused = lifecycle.cancel(head.document, head.document.run, by="x", now=lifecycle_now())
        with pytest.raises(Conflict):
            await events.append(bus, refused, expected=head.sequence - 1, event_id="refused")
        await eventually(lambda: consumer._executor._watch._errands)
        await eventually(lambda: not consumer._executor._watch._errands)
        gate.opened.set()
        assert (await ended(bus, "r1")).run.error is None
    assert gate.stopped == 0


async def test_a_cancel_between_claim_and_action_stops_the_action(
    bus: Bus, app: App, gate: Gate, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker hears of it before its own claim is confirmed to it."""
    await make_task(bus, "gate")
    append = events.append_surely

    async def append_and_cancel(bus_: Bus, document: Document, *, expected: int, event_id: str) -> int:
        sequence = await append(bus_, document, expected=expected, event_id=event_id)
        if document.change is Change.CLAIMED:
            await cancellation.cancel(bus, CHAIN, 1, by="x")
            (hold,) = consumer._executor._watch._holds[CHAIN, 1]
            await eventually(lambda: hold.is_taken_away)
        return sequence

    monkeypatch.setattr(events, "append_surely", append_and_cancel)
    async with worker(bus, app, settings) as consumer:
        await publish_command(bus, "r1")
        await ended(bus, "r1")
        await eventually(lambda: not consumer._deliveries)
    assert gate.begun == []
    assert finals(await history(bus)) == [("r1", "cancelled")]


async def test_a_result_that_comes_after_the_cancel_is_dropped(bus: Bus, app: App, settings: Settings) -> None:
    """An action that takes its being stopped for a reason to hurry."""
    late = asyncio.Event()

    @app.action("stubborn")
    async def stubborn(params: dict[str, object], ctx: runwire.Context) -> dict[str, object]:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            late.set()
        return {"too": "late"}

    await make_task(bus, "stubborn")
    async with worker(bus, app, settings) as consumer:
        await publish_command(bus, "r1")
        await eventually(lambda: consumer._executor._watch._holds)

        async def is_claimed() -> bool:
            return len(await history(bus)) == 2

        await eventually(is_claimed)
        await cancellation.cancel(bus, CHAIN, 1, by="x")
        await asyncio.wait_for(late.wait(), 5)
        await eventually(lambda: not consumer._deliveries)
    assert finals(await history(bus)) == [("r1", "cancelled")]
    assert (await history(bus))[-1].task.result is None


async def test_a_stopped_run_is_no_timeout_and_is_not_handed_back(
    bus: Bus, app: App, gate: Gate, settings: Settings
) -> None:
    await make_task(bus, "gate", timeout=30)
    async with worker(bus, app, settings) as consumer:
        await publish_command(bus, "r1")
        await gate.is_running()
        await cancellation.cancel(bus, CHAIN, 1, by="x")
        await eventually(lambda: not consumer._deliveries)
    assert [event.change.value for event in await history(bus)] == ["created", "claimed", "concluded"]


async def test_a_cancel_of_a_deleted_or_missing_task_is_not_found(bus: Bus) -> None:
    with pytest.raises(TaskNotFound):
        await cancellation.cancel(bus, CHAIN, 1, by="x")
    await make_task(bus)
    await remove_task(bus, 1)
    with pytest.raises(TaskNotFound):
        await cancellation.cancel(bus, CHAIN, 1, by="x")


async def test_an_append_is_recognised_although_others_have_written_on_top_of_it(bus: Bus) -> None:
    """Its acknowledgement was lost, and by the time it is repeated the task has gone on."""
    created = await make_task(bus)
    definition = lifecycle.Definition(chain=CHAIN, desc="x", target=created.task.target, trigger={})
    mine = lifecycle.edit(created, definition, by="x", now=datetime.now(UTC))
    first = await events.append(bus, mine, expected=1, event_id="mine")
    await events.append_confirmed(bus, lifecycle.delete(mine, by="x"), expected=first)
    assert await events.append(bus, mine, expected=1, event_id="mine") == first
    with pytest.raises(Conflict):
        await events.append(bus, mine, expected=1, event_id="other")
    with pytest.raises(NotFoundError):
        await bus.js.get_msg("EVENTS", first + 2)


# --- at the edges --------------------------------------------------------------------------------------


async def test_a_garbled_command_can_be_cancelled_when_no_worker_throws_it_away(http: httpx.AsyncClient, bus: Bus):
    task = await create(http)
    sequence = (await publish_command(bus, None, task=task, body=b"garbage")).seq
    answer = await http.post(f"/tasks/{task}/cancel")
    assert (answer.status_code, answer.headers["run-id"]) == (200, f"bus-{sequence}")
    assert await queue_is_empty(bus)


async def test_a_nearly_full_event_stream_takes_no_edit_but_lets_go(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = await create(http), await create(http)
    await start(http, first)
    await events_nearly_full(http, monkeypatch)
    refused = await http.patch(f"/tasks/{first}", json={"desc": "new"})
    assert (refused.status_code, refused.json()["code"]) == (503, "not_accepted")
    assert (await http.post(f"/tasks/{first}/cancel")).status_code == 200
    assert (await http.delete(f"/tasks/{second}")).status_code == 204


async def test_a_draining_adapter_changes_nothing_any_more(http: httpx.AsyncClient) -> None:
    task = await create(http)
    http.services.drain()
    for method, path in (("PATCH", ""), ("DELETE", ""), ("POST", "/cancel")):
        answer = await http.request(method, f"/tasks/{task}{path}", json={"desc": "new"} if method == "PATCH" else None)
        assert (answer.status_code, answer.json()["code"]) == (503, "draining")
    assert (await http.get(f"/tasks/{task}")).json()["version"] == 1


async def test_an_edit_through_one_adapter_is_seen_through_another(
    http: httpx.AsyncClient, bus: Bus, settings: Settings, tmp_path
) -> None:
    task = await create(http)
    elsewhere = settings.model_copy(update={"data_dir": tmp_path / "other", "http_port": free_port()})
    async with adapter(elsewhere) as other:
        both = await asyncio.gather(
            http.patch(f"/tasks/{task}", json={"target": {"left": 1}}),
            other.patch(f"/tasks/{task}", json={"target": {"right": 1}}),
        )
        assert [answer.status_code for answer in both] == [200, 200]

        async def shown(client: httpx.AsyncClient) -> bool:
            found = (await client.get(f"/tasks/{task}")).json()
            return found["version"] == 3 and found["target"] == {"action": "noop", "left": 1, "right": 1}

        await eventually(lambda: shown(http))
        await eventually(lambda: shown(other))
        run = await start(other, task)
        assert (await http.post(f"/tasks/{task}/cancel")).headers["run-id"] == run
        assert (await http.delete(f"/tasks/{task}")).status_code == 204

        async def gone() -> bool:
            return (await other.get(f"/tasks/{task}")).status_code == 404

        await eventually(gone)
        assert (await other.post(f"/tasks/{task}/cancel")).status_code == 404
