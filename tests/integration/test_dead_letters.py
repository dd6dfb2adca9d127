"""Dead letters: what is kept of a command, who sees it, and how it is asked for again, over the real stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial

import httpx
import pytest
from nats.aio.msg import Msg

from runwire.app import App
from runwire.doctor import _dead_letters
from runwire.domain import access
from runwire.domain.access import AccessLevel, TokenKind
from runwire.messaging import audit, chains, deadletters, subjects, tokens
from runwire.messaging.broker import UNAVAILABLE, Bus
from runwire.settings import Settings
from tests.support import (
    CHAIN,
    Broker,
    adapter,
    dead_letters,
    ended,
    events_nearly_full,
    eventually,
    make_task,
    publish_command,
    queue_is_empty,
    worker,
)

OTHER = 2001


async def put(bus: Bus, *, chain: int = CHAIN, task: int = 1, body: bytes = b"?", detail: str = "because") -> int:
    """A dead letter straight in the stream; its id."""
    headers = {"Run-Id": "r1", "Dead-Letter-Reason": "undecodable", "Dead-Letter-Detail": detail}
    return (await bus.js.publish(subjects.dead_letter(chain, task), body, headers=headers)).seq


async def hold(bus: Bus, level: AccessLevel, *of: int) -> dict[str, str]:
    """A token straight in the bucket, and the header that calls with it."""
    token = access.create_token(
        f"of-{level.name.lower()}", "secret", kind=TokenKind.ADMIN, levels=dict.fromkeys(of or (CHAIN,), level),
        by="operator", now=datetime.now(UTC), expires=None,
    )  # fmt: skip
    assert await tokens.create(bus, token)
    return {"Authorization": f"Bearer {token.id}:secret"}


def more_than(found: list[bytes], number: int) -> bool:
    return len(found) > number


async def ids(http: httpx.AsyncClient, headers: dict[str, str] | None = None, **query: int) -> list[int]:
    answer = await http.get("/dead_letters", params=query, headers=headers)
    assert answer.status_code == 200, answer.text
    return [letter["id"] for letter in answer.json()]


@pytest.fixture
async def http(settings: Settings, bus: Bus) -> AsyncIterator[httpx.AsyncClient]:
    async with adapter(settings) as client:
        yield client


# --- what is kept ----------------------------------------------------------------------------------------


async def test_whoever_publishes_one_is_answered_by_the_broker_alone(http: httpx.AsyncClient, bus: Bus) -> None:
    inbox, replies = bus.nc.new_inbox(), []

    async def note(message: Msg) -> None:
        replies.append(message.data)

    await bus.nc.subscribe(inbox, cb=note)
    for _ in range(20):  # what else answers to one comes before the broker answers to the last
        before = len(replies)
        await bus.nc.publish(subjects.dead_letter(CHAIN, 1), b"?", reply=inbox)
        await eventually(partial(more_than, replies, before))
    assert [json.loads(reply or b"{}").get("stream") for reply in replies] == ["DEADLETTERS"] * 20


async def test_a_dead_letter_shows_the_command_as_it_came(
    http: httpx.AsyncClient, bus: Bus, app: App, settings: Settings
) -> None:
    await make_task(bus)
    headers = {
        "Nats-Msg-Id": "order:17",
        "Run-Id": "not a run id",
        "CE-ID": "order-17",
        "Content-Type": "application/json",
        "Traceparent": "what\tever",
        "Authorization": "Bearer canary",
        "X-Api-Key": "canary",
        "Nats-Expected-Stream": "COMMANDS",
        "Dead-Letter-Reason": "forged",
    }
    async with worker(bus, app, settings):
        await bus.js.publish(f"tasks.cmd.{CHAIN}.1.execute", b'{"run"', headers=headers)
        stored = await eventually(lambda: dead_letters(bus))
    answer = await http.get(f"/dead_letters/{stored.seq}")
    letter = answer.json()
    assert letter == {
        "id": 1,
        "chain": CHAIN,
        "task": 1,
        "run": "bus-1",
        "reason": "undecodable",
        "subscription": None,
        "detail": "The CloudEvent has no specversion, source, type (a text that is not empty).",
        "date": letter["date"],
        "subject": f"tasks.cmd.{CHAIN}.1.execute",
        "headers": {
            "run-id": "not a run id",
            "nats-msg-id": "order:17",
            "ce-id": "order-17",
            "content-type": "application/json",
            "traceparent": "what ever",
        },
        "body": '{"run"',
        "body_base64": None,
        "bytes": 6,
    }
    assert datetime.now(UTC) - datetime.fromisoformat(letter["date"]) < timedelta(minutes=1)
    assert answer.headers["cache-control"] == "no-store"
    assert (await http.get("/dead_letters")).json() == [letter]
    assert "canary" not in str(stored.headers)


async def test_headers_are_kept_within_bounds(bus: Bus, app: App, settings: Settings) -> None:
    await make_task(bus)
    headers = {f"ce-x{number}": "\x07" + "v" * 1500 for number in range(40)} | {"ce-" + "n" * 80: "z", "ce-a.b": "z"}
    async with worker(bus, app, settings):
        await bus.js.publish(f"tasks.cmd.{CHAIN}.1.execute", b"", headers=headers)
        letter = deadletters.letter_in(await eventually(lambda: dead_letters(bus)))
    assert set(letter.headers) == {f"ce-x{number}" for number in range(40)}
    assert set(letter.headers.values()) == {"v" * 1000}


async def test_a_body_is_text_or_base64_and_a_list_shows_its_beginning(http: httpx.AsyncClient, bus: Bus) -> None:
    text, binary = ("ü" * 3000).encode(), b"\xff" * 3000
    first, second = await put(bus, body=text), await put(bus, body=binary)
    assert (await http.get(f"/dead_letters/{first}")).json()["body"] == text.decode()
    shown = (await http.get(f"/dead_letters/{second}")).json()
    assert (shown["body"], len(shown["body_base64"]), shown["bytes"]) == (None, 4000, 3000)
    binary_row, text_row = (await http.get("/dead_letters")).json()
    assert (text_row["body"], text_row["bytes"]) == ("ü" * 500, 6000)
    assert (binary_row["body"], len(binary_row["body_base64"]), binary_row["bytes"]) == (None, 1336, 3000)
    odd = await put(bus, body=b"x" + text)
    (row, *_) = (await http.get("/dead_letters?limit=1")).json()
    assert (row["id"], row["body"]) == (odd, "x" + "ü" * 499)


async def test_a_command_for_no_task_is_its_chains_dead_letter(
    http: httpx.AsyncClient, bus: Bus, app: App, settings: Settings
) -> None:
    await chains.ensure(bus, CHAIN)
    async with worker(bus, app, settings):
        await bus.js.publish(f"tasks.cmd.{CHAIN}.abc.execute", b"")
        await bus.js.publish("tasks.cmd.abc.7.execute", b"")
        await eventually(lambda: queue_is_empty(bus))
    assert (await bus.js.stream_info(subjects.DEADLETTERS)).state.messages == 2
    (letter,) = (await http.get("/dead_letters")).json()
    assert (letter["chain"], letter["task"], letter["subject"]) == (CHAIN, None, f"tasks.cmd.{CHAIN}.abc.execute")
    answer = await http.post(f"/dead_letters/{letter['id']}/replay")
    assert (answer.status_code, answer.json()["code"]) == (404, "task_not_found")


async def test_who_waits_for_a_command_hears_of_its_end_whatever_it_says_it_is(
    http: httpx.AsyncClient, bus: Bus, app: App, settings: Settings
) -> None:
    await make_task(bus)
    headers = {"Nats-Msg-Id": "r1", "Content-Type": "application/json"}
    await bus.js.publish(f"tasks.cmd.{CHAIN}.1.execute", b"\xff{", headers=headers)
    joining = asyncio.create_task(http.post("/tasks/1/execute?if_running=join", headers={"Prefer": "wait=15"}))
    await eventually(lambda: (1, "r1") in http.services.waiters._by_run)
    async with worker(bus, app, settings):
        answer = await joining
    assert (answer.status_code, answer.json()["run"]) == (409, "r1")
    assert answer.elapsed < timedelta(seconds=10), "told, not found out when the wait was over"


async def test_another_chain_ends_nobodys_wait(http: httpx.AsyncClient, bus: Bus) -> None:
    path = await http.post("/tasks", json={"chain": CHAIN, "desc": "", "target": {"action": "noop"}, "trigger": {}})
    task = int(path.headers["location"].rpartition("/")[2])
    with http.services.waiters.registered(task, "r1") as end:
        await put(bus, chain=OTHER, task=task, detail="forged")
        await put(bus, task=task, detail="mine")
        await eventually(end.done)
    assert str(end.exception()) == "mine"


# --- lists -----------------------------------------------------------------------------------------------


async def test_lists_are_newest_first_by_pages_and_of_ones_own_chains(http: httpx.AsyncClient, bus: Bus) -> None:
    mine, of_task_2 = [], []
    for number in range(60):
        await put(bus, chain=OTHER)
        if number % 7 == 0:
            mine.append(await put(bus))
        if number in {3, 50}:
            of_task_2.append(await put(bus, task=2))
    everything = sorted(mine + of_task_2, reverse=True)
    assert await ids(http) == everything
    assert await ids(http, chain=CHAIN) == everything
    assert await ids(http, task=2) == of_task_2[::-1]
    assert await ids(http, task=3) == []
    for limit in (1, 2, 5, 100):
        for offset in range(len(everything) + 2):
            assert await ids(http, limit=limit, offset=offset) == everything[offset : offset + limit]
    page = await http.get("/dead_letters?limit=4&offset=4")
    assert page.headers["x-total-count"] == str(len(everything))
    assert '</dead_letters?limit=4&offset=8>; rel="next"' in page.headers["link"]
    both = await hold(bus, AccessLevel.VIEWER, CHAIN, OTHER)
    newest = (await bus.js.stream_info(subjects.DEADLETTERS)).state.last_seq
    assert await ids(http, both, limit=100) == list(range(newest, 0, -1))[:100]
    assert (await http.get(f"/dead_letters?chain={OTHER}")).status_code == 403


async def test_a_page_reads_little_more_than_it_shows(
    http: httpx.AsyncClient, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a chain has had many in a short time, long ago."""
    burst = [await put(bus) for _ in range(200)]
    for _ in range(200):
        await put(bus, chain=OTHER)
    last = await put(bus)
    read: list[int] = []
    letter = deadletters._letter
    monkeypatch.setattr(deadletters, "_letter", lambda number, *rest: read.append(number) or letter(number, *rest))
    assert await ids(http, limit=5) == [last, *burst[:-5:-1]]
    assert sum(number > 0 for number in read) <= 10  # 0: one that the adapter hears of meanwhile
    read.clear()
    assert await ids(http, limit=5, offset=150) == burst[::-1][149:154]
    assert sum(number > 0 for number in read) <= 10


async def test_what_was_deleted_meanwhile_leaves_no_hole(http: httpx.AsyncClient, bus: Bus) -> None:
    numbers = [await put(bus) for _ in range(20)]
    for number in numbers[5:15]:
        await bus.js.delete_msg(subjects.DEADLETTERS, number)
    kept = (numbers[:5] + numbers[15:])[::-1]
    assert await ids(http) == kept
    assert await ids(http, limit=3, offset=4) == kept[4:7]


async def test_an_empty_stream_is_an_empty_list(http: httpx.AsyncClient, bus: Bus) -> None:
    assert await ids(http) == []
    await put(bus)
    await bus.js.purge_stream(subjects.DEADLETTERS)
    assert await ids(http) == []


# --- replay and delete -----------------------------------------------------------------------------------


async def test_a_replay_is_a_run_of_its_own_with_the_reason_of_the_command(
    http: httpx.AsyncClient, bus: Bus, app: App, settings: Settings
) -> None:
    await chains.ensure(bus, CHAIN)
    async with worker(bus, app, settings):
        await publish_command(bus, "r1", body=b'{"reason": "order 17 was paid"}')  # before there is such a task
        stored = await eventually(lambda: dead_letters(bus))
        path = f"/dead_letters/{stored.seq}"
        early = await http.post(f"{path}/replay")
        assert (early.status_code, early.json()["code"]) == (404, "task_not_found")
        await eventually(lambda: queue_is_empty(bus))
        await make_task(bus)
        headers = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
        answer = await http.post(f"{path}/replay", headers=headers)
        assert answer.status_code == 202
        assert set(answer.json()) == {"code", "last_run_date", "last_modified", "created_date"}
        document = await ended(bus, answer.headers["run-id"])
        run = (await http.get(answer.headers["location"])).json()
    assert (document.run.code, run["source"], run["reason"]) == ("DONE", "http", "order 17 was paid")
    assert run["trace_id"] == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert run["id"] != "r1"
    assert (await http.get(path)).status_code == 200, "it stays until somebody deletes it"


async def test_a_replay_of_what_could_not_be_read_is_a_run_all_the_same(
    http: httpx.AsyncClient, bus: Bus, app: App, settings: Settings
) -> None:
    await make_task(bus)
    number = await put(bus, body=b"\xff")
    async with worker(bus, app, settings):
        answer = await http.post(f"/dead_letters/{number}/replay")
        document = await ended(bus, answer.headers["run-id"])
    assert (document.run.code, document.run.reason) == ("DONE", f"replay of dead letter {number}")


async def test_a_replay_is_refused_as_an_execute_would_be(
    http: httpx.AsyncClient, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_task(bus)
    await make_task(bus, task=2, chain=OTHER)
    number, elsewhere = await put(bus), await put(bus, task=2)
    assert (await http.post(f"/dead_letters/{elsewhere}/replay")).status_code == 404
    both = await hold(bus, AccessLevel.OPERATOR, CHAIN, OTHER)
    assert (await http.post(f"/dead_letters/{elsewhere}/replay", headers=both)).status_code == 404
    first = await http.post(f"/dead_letters/{number}/replay")
    busy = await http.post(f"/dead_letters/{number}/replay")
    assert (busy.status_code, busy.json()["code"]) == (409, "task_busy")
    assert busy.json()["run"] == first.headers["run-id"]
    await events_nearly_full(http, monkeypatch)
    full = await http.post(f"/dead_letters/{number}/replay")
    assert (full.status_code, full.json()["code"]) == (503, "not_accepted")


async def test_levels(http: httpx.AsyncClient, bus: Bus) -> None:
    await make_task(bus)
    number = await put(bus)
    viewer, operator = await hold(bus, AccessLevel.VIEWER), await hold(bus, AccessLevel.OPERATOR)
    path = f"/dead_letters/{number}"
    assert await ids(http, viewer) == [number]
    assert (await http.get(path, headers=viewer)).status_code == 200
    assert (await http.post(f"{path}/replay", headers=viewer)).status_code == 403
    assert (await http.post(f"{path}/replay", headers=operator)).status_code == 202
    assert (await http.delete(path, headers=operator)).status_code == 403
    assert (await http.delete(path)).status_code == 204
    for method, call in (("GET", path), ("DELETE", path), ("POST", f"{path}/replay")):
        answer = await http.request(method, call)
        assert (answer.status_code, answer.json()["code"]) == (404, "dead_letter_not_found")
    assert (await http.get("/dead_letters/0")).status_code == 400


async def test_replay_and_delete_stand_in_the_audit_trail(http: httpx.AsyncClient, bus: Bus) -> None:
    await make_task(bus)
    mine, foreign = await put(bus), await put(bus, chain=OTHER)
    run = (await http.post(f"/dead_letters/{mine}/replay")).headers["run-id"]
    await http.post(f"/dead_letters/{mine}/replay")  # refused: nothing was done
    await http.delete(f"/dead_letters/{mine}")
    await http.get(f"/dead_letters/{foreign}")

    async def rows() -> list[dict[str, object]] | None:
        found = [row for row in (await http.get("/audit")).json() if row["action"].startswith("dead_letter.")]
        return found if len(found) == 2 else None

    deleted, replayed = await eventually(rows)
    assert (replayed["action"], replayed["by"], replayed["subject"]) == (
        "dead_letter.replayed", "tester", f"/dead_letters/{mine}",
    )  # fmt: skip
    assert replayed["detail"] == {"run": run, "task": 1}
    assert (deleted["action"], deleted["detail"]) == ("dead_letter.deleted", {"reason": "undecodable", "bytes": 1})
    other = await hold(bus, AccessLevel.MANAGER, OTHER)

    async def told() -> list[dict[str, object]]:
        return (await http.get("/audit?action=call.refused", headers=other)).json()

    (refused,) = await eventually(told)
    assert (refused["subject"], refused["detail"]["code"]) == ("/dead_letters/{id}", "dead_letter_not_found")


async def test_a_deed_that_the_broker_does_not_take_now_is_told_later(bus: Bus, broker: Broker) -> None:
    refusals = audit.Refusals(bus)
    deed = audit.deed(CHAIN, by="tester", action="dead_letter.replayed", subject="/dead_letters/1", run="r1")
    broker.kill()
    await refusals.record(deed)
    broker.start()

    async def written() -> bool:
        try:
            await refusals.write()
            return (await bus.js.stream_info(subjects.AUDIT)).state.messages == 1
        except UNAVAILABLE:
            return False

    await eventually(written)
    stored = await bus.js.get_msg(subjects.AUDIT, subject=subjects.audit(CHAIN))
    assert audit.decode(stored.data) == deed


# --- operating -------------------------------------------------------------------------------------------


async def test_the_doctor_counts_those_of_a_day(bus: Bus) -> None:
    for _ in range(3):
        await put(bus)
    finding = await _dead_letters(bus)
    assert (finding.ok, finding.detail) == (True, "3 in the last 24 hours")
    assert await deadletters.count_since(bus, datetime.now(UTC) + timedelta(hours=1)) == 0
    consumers = (await bus.js.stream_info(subjects.DEADLETTERS)).state.consumer_count
    assert consumers == 0, "counting leaves nothing behind"


def test_nothing_is_given_up_by_the_broker_itself(settings: Settings) -> None:
    """So that no advisory has to be listened to: every command that is not run has gone through a worker."""
    from runwire.messaging.streams import workers_config

    assert workers_config(settings, CHAIN).max_deliver == -1
