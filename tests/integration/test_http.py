"""The HTTP adapter over real sockets, with a real broker and a worker behind it."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator
from uuid import uuid4

import httpx
import pytest

import runwire
from runwire.app import App
from runwire.domain.access import AccessLevel, AccessToken, TokenKind, digest
from runwire.domain.lifecycle import Change
from runwire.http import auth
from runwire.messaging import events, tokens
from runwire.messaging.broker import Bus
from runwire.settings import Settings
from tests.support import (
    CHAIN,
    HEADERS,
    Broker,
    adapter,
    ended,
    events_nearly_full,
    eventually,
    history,
    let_no_file_grow,
    lifecycle_now,
    make_task,
    publish_command,
    worker,
)

BODY = {"chain": CHAIN, "desc": "a task", "target": {"action": "noop"}, "trigger": {}}


@pytest.fixture
def app(app: App) -> App:
    @app.action("fail")
    async def fail(params: dict[str, object], ctx: runwire.Context) -> None:
        raise runwire.Fail("out_of_stock", "nothing left")

    @app.action("slow")
    async def slow(params: dict[str, object], ctx: runwire.Context) -> None:
        await asyncio.sleep(0.7)

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


async def create(http: httpx.AsyncClient, action: str = "noop", **fields: object) -> int:
    answer = await http.post("/tasks", json=BODY | {"target": {"action": action}} | fields)
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


async def make_token(bus: Bus, token_id: str, levels: dict[int, AccessLevel], **fields: object) -> dict[str, str]:
    token = AccessToken(
        id=token_id, kind=TokenKind.ADMIN, digest=digest("secret"), levels=levels, created=lifecycle_now(), **fields
    )
    await tokens.create(bus, token)
    return {"Authorization": f"Bearer {token_id}:secret"}


def is_problem(answer: httpx.Response, status: int, code: str) -> dict[str, object]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == status
    assert body["code"] == code
    assert body["type"] == "/problems/" + code.replace("_", "-")
    assert body["title"]
    assert body["detail"]
    assert body["instance"] == answer.request.url.path
    return body


# --- the first start -------------------------------------------------------------------------------------


async def test_the_documented_call_works_word_for_word(live: httpx.AsyncClient) -> None:
    answer = await live.post("/tasks/12345/execute")
    assert answer.status_code == 200
    assert list(answer.json()) == ["code", "last_run_date", "last_modified", "created_date"]
    assert answer.json()["code"] == "DONE"
    for name in ("last_run_date", "last_modified", "created_date"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", answer.json()[name])
    assert answer.headers["task-state"] == "DONE"
    assert answer.headers["location"] == f"/tasks/12345/runs/{answer.headers['run-id']}"


async def test_the_sample_exports_the_runs_so_far(live: httpx.AsyncClient, bus: Bus) -> None:
    from runwire import artifacts

    for _ in range(2):
        last = await live.post("/tasks/12345/execute")
    task = (await live.get("/tasks/12345")).json()
    result = task["result"]
    content = await artifacts.get(bus, f"{CHAIN}/12345/{last.headers['run-id']}/{result['file']}")
    lines = content.decode().splitlines()
    assert result == {"rows": 1, "bytes": len(content), "file": "Runs_Export-12345.csv"}
    assert lines[0].startswith("id,task,chain,code,attempt,source,accepted,started,finished,result")
    assert len(lines) == 2
    assert task["logs"][-1]["message"].startswith("exported 1 rows")


async def test_a_later_start_makes_no_second_token_or_sample(settings: Settings, bus: Bus) -> None:
    async with adapter(settings):
        pass
    other = settings.model_copy(update={"bootstrap_token": None})
    (settings.data_dir / "token").unlink()
    async with adapter(other) as http:
        assert (await http.get("/tasks")).status_code == 200
        assert not (settings.data_dir / "token").exists()
    assert len(await history(bus, task=12345)) == 1


async def test_a_first_start_that_was_interrupted_is_made_good(
    settings: Settings, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runwire import first_start

    generated = settings.model_copy(update={"bootstrap_token": None})

    async def crash(*_: object) -> bool:
        raise ConnectionResetError("killed here")

    with monkeypatch.context() as patch:
        patch.setattr(tokens, "create", crash)
        with pytest.raises(ConnectionResetError):
            await first_start.make_first_start(bus, generated)
    await first_start.make_first_start(bus, generated)
    token = (settings.data_dir / "token").read_text().strip()
    assert (settings.data_dir / "token").stat().st_mode & 0o777 == 0o600
    async with adapter(generated) as http:
        answer = await http.get("/tasks/12345", headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 200


# --- execute ---------------------------------------------------------------------------------------------


async def test_a_failed_run_is_a_successful_call_that_says_so_in_headers(live: httpx.AsyncClient) -> None:
    task = await create(live, "fail")
    answer = await live.post(f"/tasks/{task}/execute")
    assert (answer.status_code, answer.json()["code"]) == (200, "ERROR")
    assert (answer.headers["task-state"], answer.headers["task-error"]) == ("ERROR", "out_of_stock")


async def test_a_caller_that_wants_a_failing_status_gets_one(live: httpx.AsyncClient) -> None:
    task = await create(live, "fail")
    answer = await live.post(f"/tasks/{task}/execute?on_error=status")
    assert answer.status_code == 500
    body = answer.json()
    assert body["type"].endswith("/task-failed")
    assert body["code"] == "ERROR"
    assert {"last_run_date", "last_modified", "created_date"} <= set(body)
    assert body["error"] == {"code": "out_of_stock", "message": "nothing left"}
    assert answer.headers["task-error"] == "out_of_stock"
    fine = await create(live)
    assert (await live.post(f"/tasks/{fine}/execute?on_error=status")).status_code == 200
    is_problem(await live.post(f"/tasks/{fine}/execute?on_error=maybe"), 422, "invalid_fields")


async def test_the_reply_is_what_the_next_get_shows(live: httpx.AsyncClient) -> None:
    task = await create(live)
    for _ in range(20):
        answer = (await live.post(f"/tasks/{task}/execute")).json()
        state = (await live.get(f"/tasks/{task}")).json()["state"]
        assert answer == {name: state[name] for name in answer}


async def test_executes_right_after_each_other_are_never_refused(live: httpx.AsyncClient) -> None:
    task = await create(live)
    answers = [await live.post(f"/tasks/{task}/execute") for _ in range(100)]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.headers["run-id"] for answer in answers}) == 100


async def test_respond_async_is_202_at_once(http: httpx.AsyncClient) -> None:
    task = await create(http)
    answer = await http.post(f"/tasks/{task}/execute", headers={"Prefer": "respond-async"})
    assert answer.status_code == 202
    assert answer.json()["code"] == "READY"
    assert list(answer.json()) == ["code", "last_run_date", "last_modified", "created_date"]
    assert answer.headers["preference-applied"] == "respond-async"
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["location"].startswith(f"/tasks/{task}/runs/")
    assert "Prefer" in answer.headers["vary"]


async def test_a_wait_that_is_over_is_202_and_the_run_can_be_waited_for(live: httpx.AsyncClient) -> None:
    task = await create(live, "sleep", target={"action": "sleep", "seconds": 1.5})
    answer = await live.post(f"/tasks/{task}/execute", headers={"Prefer": "wait=1"})
    assert (answer.status_code, answer.json()["code"]) == (202, "INPROGRESS")
    assert answer.headers["preference-applied"] == "wait=1"
    run = await live.get(answer.headers["location"], headers={"Prefer": "wait=10"})
    assert (run.status_code, run.json()["code"]) == (200, "DONE")
    assert run.json()["result"] == {"slept": 1.5}


async def test_a_run_longer_than_the_first_second_is_waited_for(live: httpx.AsyncClient) -> None:
    """After a second the wait listens for a caller that hangs up; that must not cost the wait itself."""
    task = await create(live, target={"action": "sleep", "seconds": 1.4})
    answer = await live.post(f"/tasks/{task}/execute")
    assert (answer.status_code, answer.json()["code"]) == (200, "DONE")


@pytest.mark.parametrize("prefer", ["wait=soon", "wait=-1", "handling=lenient", ",,;", "wait"])
async def test_a_preference_that_makes_no_sense_is_ignored(live: httpx.AsyncClient, prefer: str) -> None:
    task = await create(live)
    assert (await live.post(f"/tasks/{task}/execute", headers={"Prefer": prefer})).status_code == 200


async def test_a_second_execute_of_a_running_task_is_refused_and_names_the_run(live: httpx.AsyncClient) -> None:
    task = await create(live, "slow")
    first = await live.post(f"/tasks/{task}/execute", headers={"Prefer": "respond-async"})
    busy = await live.post(f"/tasks/{task}/execute")
    assert is_problem(busy, 409, "task_busy")["run"] == first.headers["run-id"]
    assert (await live.get(first.headers["location"], headers={"Prefer": "wait=5"})).json()["code"] == "DONE"
    assert (await live.post(f"/tasks/{task}/execute")).status_code == 200


async def test_the_same_idempotency_key_is_one_run(live: httpx.AsyncClient, bus: Bus) -> None:
    task = await create(live, "slow")
    key = {"Idempotency-Key": '"order-17"'}
    answers = await asyncio.gather(*(live.post(f"/tasks/{task}/execute", headers=key) for _ in range(5)))
    again = await live.post(f"/tasks/{task}/execute", headers={"Idempotency-Key": "order-17"})
    assert [answer.status_code for answer in answers] == [200] * 5
    assert {answer.headers["run-id"] for answer in [*answers, again]} == {answers[0].headers["run-id"]}
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json() == answers[0].json()
    assert len([d for d in await history(bus, task=task) if d.change is Change.CONCLUDED]) == 1
    other = await live.post(f"/tasks/{task}/execute", headers={"Idempotency-Key": "order-18"})
    assert other.headers["run-id"] != again.headers["run-id"]


async def test_a_replay_still_works_after_many_other_runs(live: httpx.AsyncClient) -> None:
    task = await create(live)
    first = await live.post(f"/tasks/{task}/execute", headers={"Idempotency-Key": "k"})
    for _ in range(20):
        await live.post(f"/tasks/{task}/execute")
    again = await live.post(f"/tasks/{task}/execute", headers={"Idempotency-Key": "k"})
    assert again.headers["run-id"] == first.headers["run-id"]
    assert again.headers["idempotency-replayed"] == "true"


@pytest.mark.parametrize("key", ["", "x" * 256, "two words", "tab\there", '"open'])
async def test_a_malformed_idempotency_key_is_refused(http: httpx.AsyncClient, key: str) -> None:
    answer = await http.post("/tasks/12345/execute", headers={"Idempotency-Key": key})
    is_problem(answer, 400, "malformed_idempotency_key")


async def test_a_run_that_became_impossible_answers_404_at_once(
    http: httpx.AsyncClient, bus: Bus, app: App, settings: Settings
) -> None:
    """The task was deleted between the call's look at it and the worker's."""
    task = await create(http)
    calling = asyncio.create_task(http.post(f"/tasks/{task}/execute"))
    await eventually(lambda: len(http.services.waiters) == 1)
    head = await events.load(bus, CHAIN, task)
    gone = head.document.model_copy(update={"change": Change.DELETED})
    await events.append(bus, gone, expected=head.sequence, event_id=uuid4().hex)
    async with worker(bus, app, settings):
        is_problem(await asyncio.wait_for(calling, 10), 404, "task_not_found")


async def test_a_run_from_the_bus_and_one_from_http_are_the_same_kind_of_run(live: httpx.AsyncClient, bus: Bus) -> None:
    task = await create(live)
    await publish_command(bus, "from-the-bus", task=task)
    await ended(bus, "from-the-bus", task=task)
    over_http = (await live.post(f"/tasks/{task}/execute")).headers["run-id"]
    first = (await live.get(f"/tasks/{task}/runs/from-the-bus")).json()
    second = (await live.get(f"/tasks/{task}/runs/{over_http}")).json()
    assert (first.pop("source"), second.pop("source")) == ("bus", "http")
    assert set(first) == set(second)
    assert (first["code"], first["attempt"], first["error"]) == ("DONE", 1, None)


async def test_a_queued_run_is_ready(http: httpx.AsyncClient) -> None:
    task = await create(http)
    answer = await http.post(f"/tasks/{task}/execute", headers={"Prefer": "respond-async"})
    run = (await http.get(answer.headers["location"])).json()
    assert (run["code"], run["attempt"], run["source"], run["started"]) == ("READY", 0, "http", None)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", run["accepted"])


async def test_a_run_nobody_knows_is_not_found(http: httpx.AsyncClient) -> None:
    is_problem(await http.get("/tasks/12345/runs/nobody"), 404, "run_not_found")
    is_problem(await http.get("/tasks/12345/runs/no%20body"), 400, "malformed_id")


async def test_nobody_waits_any_more_when_all_calls_are_over(live: httpx.AsyncClient) -> None:
    ids = [await create(live, "slow") for _ in range(5)]
    await asyncio.gather(*(live.post(f"/tasks/{task}/execute", headers={"Prefer": "wait=0"}) for task in ids))
    await eventually(lambda: len(live.services.waiters) == 0)


async def test_a_caller_that_hangs_up_is_not_waited_for(http: httpx.AsyncClient, settings: Settings) -> None:
    task = await create(http)
    _reader, writer = await asyncio.open_connection("127.0.0.1", settings.http_port)
    head = f"POST /tasks/{task}/execute HTTP/1.1\r\nHost: x\r\nAuthorization: {HEADERS['Authorization']}\r\n\r\n"
    writer.write(head.encode())
    await eventually(lambda: len(http.services.waiters) == 1)
    writer.close()
    await eventually(lambda: len(http.services.waiters) == 0, within=5)


async def test_a_draining_adapter_answers_its_waiting_calls_with_202(http: httpx.AsyncClient) -> None:
    task = await create(http)
    calling = asyncio.create_task(http.post(f"/tasks/{task}/execute"))
    await eventually(lambda: len(http.services.waiters) == 1)
    http.services.drain()
    answer = await asyncio.wait_for(calling, 5)
    assert answer.status_code == 202
    assert answer.headers["location"]
    is_problem(await http.post(f"/tasks/{task}/execute"), 503, "draining")
    assert (await http.get("/readyz")).status_code == 503
    assert (await http.get("/livez")).status_code == 200


async def test_a_broker_that_cannot_write_is_503_at_once_and_not_ready_until_it_is_started_anew(
    http: httpx.AsyncClient, broker: Broker
) -> None:
    task = await create(http)
    let_no_file_grow(broker.process.pid)
    answer = await http.post(f"/tasks/{task}/execute", headers={"Prefer": "wait=0"})
    is_problem(answer, 503, "not_accepted")
    await eventually(lambda: http.services.pressure.broken, what="the adapter has looked at the streams")
    ready = await http.get("/readyz?verbose")
    assert ready.status_code == 503
    assert ready.json()["checks"]["streams"] == "the broker cannot write to its disk: file too large"
    for call in (
        http.post(f"/tasks/{task}/execute"),
        http.post("/tasks", json=BODY),
        http.patch(f"/tasks/{task}", json={"desc": "new"}, headers={"Content-Type": "application/merge-patch+json"}),
    ):
        refused = await asyncio.wait_for(call, 1)
        is_problem(refused, 503, "not_accepted")
        assert "cannot write to its disk (file too large); nothing was stored" in refused.json()["detail"]
    broker.restart()
    await eventually(lambda: not http.services.pressure.broken, what="the adapter has looked at the streams")
    answer = await http.post(f"/tasks/{task}/execute", headers={"Prefer": "respond-async"})
    assert answer.status_code == 202
    assert (await http.get("/readyz")).status_code == 200


async def test_a_broker_that_is_away_is_503_with_retry_after(http: httpx.AsyncClient, broker: Broker) -> None:
    task = await create(http)
    broker.kill()
    await eventually(lambda: not http.services.bus.is_connected)
    answer = await http.post(f"/tasks/{task}/execute", headers={"Prefer": "wait=1"})
    is_problem(answer, 503, "not_accepted")
    assert answer.headers["retry-after"]
    assert (await http.get("/readyz")).status_code == 503
    assert (await http.get("/livez")).status_code == 200
    broker.start()
    await eventually(lambda: http.services.bus.is_connected)
    after = await http.post(f"/tasks/{task}/execute", headers={"Prefer": "respond-async"})
    assert after.status_code in {202, 409}, "unknown means: it may have been accepted"


async def test_a_nearly_full_event_stream_takes_nothing_new(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await events_nearly_full(http, monkeypatch)
    is_problem(await http.post("/tasks/12345/execute"), 503, "not_accepted")
    is_problem(await http.post("/tasks", json=BODY), 503, "not_accepted")


async def test_more_waiting_calls_than_allowed_get_202_at_once(settings: Settings, bus: Bus) -> None:
    async with adapter(settings.model_copy(update={"max_waiters": 2})) as http:
        ids = [await create(http) for _ in range(3)]
        first = asyncio.create_task(http.post(f"/tasks/{ids[0]}/execute"))
        await eventually(lambda: len(http.services.waiters) == 1)
        assert (await http.post(f"/tasks/{ids[1]}/execute")).status_code == 202
        first.cancel()


async def test_two_adapters_show_the_same(settings: Settings, bus: Bus, live: httpx.AsyncClient, tmp_path) -> None:
    from tests.support import free_port

    other = settings.model_copy(update={"http_port": free_port(), "data_dir": tmp_path / "other"})
    async with adapter(other) as second:
        task = await create(live)
        answer = await second.post(f"/tasks/{task}/execute")
        assert answer.status_code == 200
        await eventually(lambda: _same(live, second, task))
        taken = await second.post("/tasks", json=BODY | {"id": task})
        is_problem(taken, 409, "id_taken")


async def _same(one: httpx.AsyncClient, other: httpx.AsyncClient, task: int) -> bool:
    return (await one.get(f"/tasks/{task}")).json() == (await other.get(f"/tasks/{task}")).json()


# --- tasks -----------------------------------------------------------------------------------------------


async def test_a_created_task_is_ready_and_readable_at_once(http: httpx.AsyncClient) -> None:
    body = {
        "chain": CHAIN,
        "desc": "Wallet export",
        "target": {"action": "export", "export_index": "wallet", "export_format": "csv", "campaign": 9, "extra": [1]},
        "trigger": {"once": "2026-12-24T18:00:00+01:00", "segment": "vip", "user_list": [1, 2]},
        "debug": "ticket 4",
        "timeout": 60,
        "deadline": 600,
        "retry": {"attempts": 3, "backoff": 5},
    }
    answer = await http.post("/tasks", json=body)
    assert answer.status_code == 201
    task = answer.json()
    assert answer.headers["location"] == f"/tasks/{task['id']}"
    assert list(task) == [
        "id", "chain", "desc", "state", "trigger", "target", "logs", "debug", "version", "result", "timeout",
        "deadline", "retry",
    ]  # fmt: skip
    assert task["target"] == body["target"]
    assert task["trigger"]["segment"] == "vip"
    assert (task["state"]["code"], task["state"]["last_run_date"], task["version"]) == ("READY", None, 1)
    assert (await http.get(f"/tasks/{task['id']}")).json() == task


async def test_ids_come_from_the_counter_and_skip_those_that_are_taken(http: httpx.AsyncClient) -> None:
    assert await create(http, id=2) == 2
    assert await create(http) == 1
    assert await create(http) > 2
    is_problem(await http.post("/tasks", json=BODY | {"id": 2}), 409, "id_taken")


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"desc": None}, "/desc"),
        ({"chain": "1764"}, "/chain"),
        ({"chain": 0}, "/chain"),
        ({"target": {}}, "/target/action"),
        ({"target": {"action": ""}}, "/target/action"),
        ({"trigger": None}, "/trigger"),
        ({"trigger": {"cron": "* * * *"}}, "/trigger/cron"),
        ({"trigger": {"once": "tomorrow"}}, "/trigger/once"),
        ({"surprise": 1}, "/surprise"),
        ({"timeout": 0}, "/timeout"),
        ({"retry": {"attempts": 0}}, "/retry/attempts"),
        ({"id": -4}, "/id"),
        ({"id": 2**60}, "/id"),
    ],
)
async def test_invalid_fields_are_pointed_at(http: httpx.AsyncClient, change: dict[str, object], pointer: str) -> None:
    problem = is_problem(await http.post("/tasks", json=BODY | change), 422, "invalid_fields")
    assert pointer in [error["pointer"] for error in problem["errors"]]


@pytest.mark.parametrize("body", [b"", b"not json", b"{", b'{"chain": 1,}', b"\xff\xfe", b"[" * 200_000])
async def test_a_body_that_is_no_json_is_refused(http: httpx.AsyncClient, body: bytes) -> None:
    is_problem(await http.post("/tasks", content=body), 400, "malformed_body")


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_that_is_too_large_is_refused(http: httpx.AsyncClient, chunked: bool) -> None:
    body = json.dumps(BODY | {"desc": "x" * 300_000}).encode()

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 10_000):
            yield body[start : start + 10_000]

    answer = await http.post("/tasks", content=chunks() if chunked else body)
    is_problem(answer, 413, "body_too_large")


async def test_a_task_larger_than_a_document_may_be_is_refused(http: httpx.AsyncClient) -> None:
    large = BODY | {"trigger": {"user_list": list(range(100_000, 105_000))}}
    is_problem(await http.post("/tasks", json=large), 413, "body_too_large")


async def test_lists_are_filtered_paged_and_counted(http: httpx.AsyncClient) -> None:
    for number in range(5):
        await create(http, f"action {number % 2}", target={"action": f"action {number % 2}", "campaign": number % 3})
    everything = await http.get("/tasks")
    assert [task["id"] for task in everything.json()] == [1, 2, 3, 4, 5, 12345]
    assert everything.headers["x-total-count"] == "6"
    assert len((await http.get("/tasks?action=action 1")).json()) == 2
    assert len((await http.get("/tasks?campaign_id=0")).json()) == 2
    assert len((await http.get("/tasks?status=READY")).json()) == 6
    assert (await http.get("/tasks?status=DONE")).json() == []
    page = await http.get("/tasks?limit=2&offset=2")
    assert [task["id"] for task in page.json()] == [3, 4]
    assert 'offset=4>; rel="next"' in page.headers["link"]
    assert 'offset=0>; rel="prev"' in page.headers["link"]
    follow = re.search(r'<([^>]*)>; rel="next"', page.headers["link"])[1]
    assert [task["id"] for task in (await http.get(follow)).json()] == [5, 12345]
    is_problem(await http.get("/tasks?limit=0"), 422, "invalid_fields")
    is_problem(await http.get("/tasks?status=RUNNING"), 422, "invalid_fields")


async def test_log_entries_are_paged_from_the_newest(live: httpx.AsyncClient) -> None:
    task = await create(live, "fail")
    for _ in range(6):
        await live.post(f"/tasks/{task}/execute")
    logs = (await live.get(f"/tasks/{task}?log_limit=100")).json()["logs"]
    assert len(logs) == 6
    assert set(logs[0]) == {"date", "level", "message", "run"}
    assert (await live.get(f"/tasks/{task}?log_limit=2")).json()["logs"] == logs[-2:]
    assert (await live.get(f"/tasks/{task}?log_limit=2&offset=1")).json()["logs"] == logs[-3:-1]
    assert (await live.get(f"/tasks/{task}?log_limit=0")).json()["logs"] == []


# --- who may do what -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer x", "Bearer tester:wrong", "Bearer nobody:secret", "Basic dGVzdGVyOng=", "Bearer :x"],
)
async def test_without_a_valid_token_nothing_is_told(http: httpx.AsyncClient, authorization: str | None) -> None:
    headers = {"Authorization": authorization} if authorization is not None else {}
    for method, path in (
        ("POST", "/tasks/12345/execute"),
        ("GET", "/tasks"),
        ("GET", "/tasks/12345"),
        ("POST", "/tasks"),
    ):
        async with httpx.AsyncClient(base_url=http.base_url) as anonymous:
            answer = await anonymous.request(method, path, headers=headers)
        is_problem(answer, 401, "unauthenticated")
        assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_all_bad_tokens_get_the_same_answer(http: httpx.AsyncClient, bus: Bus) -> None:
    inactive = await make_token(bus, "inactive", {CHAIN: AccessLevel.MANAGER}, active=False)
    expired = await make_token(bus, "expired", {CHAIN: AccessLevel.MANAGER}, expires=lifecycle_now())
    unknown, wrong = {"Authorization": "Bearer nobody:secret"}, {"Authorization": "Bearer tester:wrong"}
    answers = [await http.get("/tasks/12345", headers=headers) for headers in (inactive, expired, unknown, wrong)]
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.content for answer in answers}) == 1
    assert len({answer.headers["www-authenticate"] for answer in answers}) == 1


async def test_levels_allow_reading_executing_and_changing(live: httpx.AsyncClient, bus: Bus) -> None:
    viewer = await make_token(bus, "viewer", {CHAIN: AccessLevel.VIEWER})
    operator = await make_token(bus, "operator", {CHAIN: AccessLevel.OPERATOR})
    assert (await live.get("/tasks/12345", headers=viewer)).status_code == 200
    refused = await live.post("/tasks/12345/execute", headers=viewer)
    is_problem(refused, 403, "forbidden")
    assert 'error="insufficient_scope"' in refused.headers["www-authenticate"]
    assert (await live.post("/tasks/12345/execute", headers=operator)).status_code == 200
    is_problem(await live.post("/tasks", json=BODY, headers=operator), 403, "forbidden")


async def test_another_chains_task_looks_like_a_missing_one(http: httpx.AsyncClient, bus: Bus) -> None:
    foreign = await make_token(bus, "foreign", {99: AccessLevel.MANAGER})
    for method, path in (("GET", "/tasks/{}"), ("POST", "/tasks/{}/execute"), ("GET", "/tasks/{}/runs/r1")):
        hidden = await http.request(method, path.format(12345), headers=foreign)
        missing = await http.request(method, path.format(54321), headers=foreign)
        is_problem(hidden, 404, "task_not_found")
        assert hidden.text.replace("12345", "54321") == missing.text
    assert (await http.get("/tasks", headers=foreign)).json() == []
    is_problem(await http.post("/tasks", json=BODY, headers=foreign), 403, "forbidden")
    is_problem(await http.get(f"/tasks?chain={CHAIN}", headers=foreign), 403, "forbidden")


async def test_a_revoked_token_is_refused_within_seconds(
    http: httpx.AsyncClient, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "CACHE_SECONDS", 0.2)
    headers = await make_token(bus, "short", {CHAIN: AccessLevel.VIEWER})
    assert (await http.get("/tasks", headers=headers)).status_code == 200
    bucket = await bus.js.key_value("runwire-tokens")
    token = AccessToken.model_validate_json((await bucket.get("short")).value)
    await bucket.put("short", token.model_copy(update={"active": False}).model_dump_json().encode())

    async def refused() -> bool:
        return (await http.get("/tasks", headers=headers)).status_code == 401

    await eventually(refused, within=5)


# --- the rest --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["abc", "0", "-1", "1.5", "9" * 40, "%00", "1%2e0", "１"])
async def test_a_malformed_task_id_is_refused(http: httpx.AsyncClient, bad: str) -> None:
    is_problem(await http.post(f"/tasks/{bad}/execute"), 400, "malformed_id")
    is_problem(await http.get(f"/tasks/{bad}"), 400, "malformed_id")


async def test_no_such_path_and_no_such_method_are_problems(http: httpx.AsyncClient) -> None:
    is_problem(await http.get("/nothing"), 404, "not_found")
    answer = await http.delete("/tasks")
    is_problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"]


async def test_an_unexpected_error_is_told_neutrally(http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(http.services.reader, "task", broken)
    answer = await http.get("/tasks/12345")
    assert is_problem(answer, 500, "internal")
    assert "secret detail" not in answer.text


async def test_health_needs_no_token(http: httpx.AsyncClient) -> None:
    async with httpx.AsyncClient(base_url=http.base_url) as anonymous:
        assert (await anonymous.get("/livez")).json() == {"status": "ok"}
        assert (await anonymous.get("/readyz")).json() == {"status": "ok"}
        verbose = (await anonymous.get("/readyz?verbose")).json()
        assert verbose["checks"]["broker"] == "ok"
        assert verbose["waiting"] == 0
        assert (await anonymous.get("/docs")).status_code == 200


async def test_a_port_in_use_is_told_in_one_line(settings: Settings) -> None:
    from runwire.bootstrap.adapter import serve_adapter
    from runwire.domain.errors import SetupError

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", settings.http_port))
        taken.listen()
        with pytest.raises(SetupError, match=f"cannot listen on 127.0.0.1:{settings.http_port}"):
            serve_adapter(settings)


async def test_a_task_made_through_another_door_is_found_on_a_miss(http: httpx.AsyncClient, bus: Bus) -> None:
    await make_task(bus, task=4711)
    assert (await http.get("/tasks/4711")).status_code == 200
