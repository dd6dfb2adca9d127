"""Triggers over HTTP: what a body may say, what comes back, and when a task is said to run next."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from runwire.domain import lifecycle, ticks
from runwire.domain.run import ErrorCode
from runwire.messaging import events
from runwire.messaging.broker import Bus
from runwire.settings import Settings
from tests.integration.test_event_streams import append, opened
from tests.support import CHAIN, adapter, eventually, history, make_task

BODY = {"chain": CHAIN, "desc": "a task", "target": {"action": "noop"}}
NOTE = "once lies in the past: the task runs now"
PAST = "2020-02-29T12:00:00Z"


@pytest.fixture
async def http(settings: Settings, bus: Bus) -> AsyncIterator[httpx.AsyncClient]:
    """An adapter; nobody runs anything."""
    async with adapter(settings) as client:
        yield client


def now() -> datetime:
    return datetime.now(UTC)


async def create(http: httpx.AsyncClient, trigger: dict[str, object], **headers: str) -> httpx.Response:
    answer = await http.post("/tasks", json=BODY | {"trigger": trigger}, headers=headers)
    assert answer.status_code == 201, answer.text
    return answer


def complaints(answer: httpx.Response) -> dict[str, str]:
    """Pointer -> reason."""
    assert answer.status_code == 422, answer.text
    assert answer.json()["code"] == "invalid_fields"
    return {error["pointer"]: error["detail"] for error in answer.json()["errors"]}


# --- what a body may say ---------------------------------------------------------------------------------

BAD = [
    ({"cron": "0 18 * * *", "time_zone": "Europe/Nowhere"}, "time_zone", "IANA time zone database"),
    ({"time_zone": 1}, "time_zone", "string"),
    ({"cron": "0 0 30 2 *"}, "cron", "never fires"),
    ({"cron": "every day"}, "cron", "five fields"),
    ({"cron": "99 99 * * *"}, "cron", "cannot be read: 99 as minute"),
    ({"cron": "0 * * * * *"}, "cron", "seconds and years are not supported"),
    ({"cron": "@reboot"}, "cron", "not supported"),
    ({"cron": 5}, "cron", "string"),
    ({"cron": "* * * * *", "end": "2030-01-01T00:00:00Z", "start": "2030-01-01T00:00:30Z"}, "end", "later than start"),
    ({"every": 0}, "every", "at least a second"),
    ({"every": 0.5}, "every", "at least a second"),
    ({"every": 1.5}, "every", "whole seconds"),
    ({"every": 86_400 * 367}, "every", "at most 366 days"),
    ({"every": "PT1.5S"}, "every", "in whole numbers"),
    ({"every": "P1M"}, "every", "cannot be years or months"),
    ({"every": "hourly"}, "every", "ISO 8601 duration"),
    ({"every": True}, "every", "number of seconds"),
    ({"every": 60, "start": "2031-01-01T00:00:00Z", "end": "2030-01-01T00:00:00Z"}, "end", "later than start"),
    ({"repeat": "hourly"}, "repeat", "'daily', 'weekly' or 'monthly'"),
    ({"repeat": "daily", "once": "2031-01-01T00:00:00Z", "end": "2030-01-01T00:00:00Z"}, "end", "later than once"),
    ({"once": "9999-12-31T23:59:59Z"}, "once", "years 1970 to 2199"),
    ({"once": "2016-12-31T23:59:60Z"}, "once", "leap seconds"),
    ({"once": "2026-02-30T00:00:00Z"}, "once", "no date and time that exists"),
    ({"once": "2026-12-24T18:00:00"}, "once", "needs an offset"),
    ({"once": "tomorrow"}, "once", "ISO 8601 instant"),
    ({"once": 1_780_000_000}, "once", "string"),
    ({"once": "2030-01-01T00:00:00Z", "end": "2031-01-01T00:00:00Z"}, "end", "goes only with cron, every or repeat"),
    ({"start": "2030-01-01T00:00:00Z"}, "start", "goes only with cron, every or repeat"),
    ({"cron": "* * * * *", "every": 60}, "every", "does not go with cron"),
    ({"cron": "* * * * *", "once": "2030-01-01T00:00:00Z"}, "cron", "does not go with once"),
    ({"cron": "* * * * *", "repeat": "daily"}, "repeat", "does not go with cron"),
    ({"every": 60, "jitter": -1}, "jitter", "from 0 to 86400"),
    ({"every": 60, "jitter": True}, "jitter", "number of seconds"),
    ({"every": 60, "paused": "yes"}, "paused", "boolean"),
    ({"every": 60, "overlap": "queue"}, "overlap", "'skip' or 'wait'"),
    ({"every": 60, "catch_up": "some"}, "catch_up", "'latest', 'none' or 'all'"),
    ({"every": 60, "next": 5}, "next", "string"),
    ({"crom": "* * * * *"}, "crom", "not permitted"),
]


@pytest.mark.parametrize(("trigger", "field", "reason"), BAD)
async def test_what_makes_no_schedule_is_refused_with_the_field_and_the_reason(
    http: httpx.AsyncClient, trigger: dict[str, object], field: str, reason: str
) -> None:
    task = (await create(http, {})).json()["id"]
    for answer in (
        await http.post("/tasks", json=BODY | {"trigger": trigger}),
        await http.patch(f"/tasks/{task}", json={"trigger": trigger}),
    ):
        found = complaints(answer)
        assert list(found) == [f"/trigger/{field}"]
        assert reason in found[f"/trigger/{field}"]
    assert (await http.get(f"/tasks/{task}")).json()["trigger"] == {}


async def test_every_field_that_does_not_fit_is_told_at_once(http: httpx.AsyncClient) -> None:
    trigger = {"cron": "nonsense", "time_zone": "Nowhere", "start": "now", "jitter": -1}
    answer = await http.post("/tasks", json=BODY | {"trigger": trigger})
    assert list(complaints(answer)) == ["/trigger/cron", "/trigger/time_zone", "/trigger/start", "/trigger/jitter"]


@pytest.mark.parametrize("schedule", [{"every": 60}, {"cron": "* * * * *"}, {"repeat": "daily"}])
async def test_a_new_task_whose_schedule_is_over_is_refused(
    http: httpx.AsyncClient, schedule: dict[str, object]
) -> None:
    answer = await http.post("/tasks", json=BODY | {"trigger": schedule | {"end": PAST}})
    assert complaints(answer) == {"/trigger/end": "lies in the past: the task would never run by itself"}


async def test_an_edit_may_end_a_schedule_in_the_past(http: httpx.AsyncClient) -> None:
    task = (await create(http, {"every": 60})).json()["id"]
    answer = await http.patch(f"/tasks/{task}", json={"trigger": {"end": PAST}})
    assert (answer.status_code, answer.json()["trigger"]) == (200, {"every": 60, "end": PAST, "next": None})


@pytest.mark.parametrize(
    "trigger",
    [
        '{"once":"2099-05-26t14:35z","segment":{"b":1,"a":[null]},"user_list":[1,2]}',
        '{"every":900.0,"start":"2099-01-01T00:00:00,5+0100","jitter":0.5,"overlap":"wait","catch_up":"all"}',
        '{"cron":" 0  18 * * mon ","time_zone":"Europe/Amsterdam","paused":false,"end":"2099-01-01T00:00:00Z"}',
        '{"once":null,"repeat":null,"cron":"@daily","every":null,"time_zone":null,"paused":null,"jitter":null}',
    ],
)
async def test_a_trigger_is_kept_as_it_was_sent(http: httpx.AsyncClient, bus: Bus, trigger: str) -> None:
    body = json.dumps(BODY)[:-1] + f', "id": 5, "trigger": {trigger}}}'
    assert (await http.post("/tasks", content=body)).status_code == 201
    (document,) = await history(bus, task=5)
    assert json.dumps(document.task.trigger, sort_keys=True) == json.dumps(json.loads(trigger), sort_keys=True)


async def test_a_client_may_send_back_what_it_got(http: httpx.AsyncClient, bus: Bus) -> None:
    first = (await create(http, {"cron": "0 18 * * *", "time_zone": "Europe/Amsterdam"})).json()
    assert first["trigger"]["next"]
    same = await http.patch(f"/tasks/{first['id']}", json={"trigger": first["trigger"]})
    assert (same.status_code, same.json()["version"]) == (200, 1)
    edited = await http.patch(f"/tasks/{first['id']}", json={"trigger": first["trigger"] | {"jitter": 5}})
    assert edited.json()["version"] == 2
    copied = await create(http, first["trigger"])
    for task in (first["id"], copied.json()["id"]):
        assert all("next" not in document.task.trigger for document in await history(bus, task=task))


async def test_what_was_stored_once_stands_in_no_edits_way(http: httpx.AsyncClient, bus: Bus) -> None:
    """Time zones vanish, and earlier versions took what this one does not."""
    await make_task(bus, task=1, trigger={"cron": "0 18 * * *", "time_zone": "Mars/Base"})
    await make_task(bus, task=2, trigger={"once": "9999-12-31T23:59:59Z"})
    await make_task(bus, task=3, trigger={"every": 60, "end": PAST})
    for task in (1, 2, 3):
        assert (await http.patch(f"/tasks/{task}", json={"desc": "new"})).status_code == 200
        kept = (await http.patch(f"/tasks/{task}", json={"trigger": {"segment": "vip"}})).json()["trigger"]
        assert (kept["segment"], kept["next"]) == ("vip", None)
    assert list(complaints(await http.patch("/tasks/1", json={"trigger": {"jitter": 5}}))) == ["/trigger/time_zone"]


async def test_a_call_that_is_repeated_is_not_refused_because_time_has_passed(http: httpx.AsyncClient) -> None:
    end = now() + timedelta(seconds=1)
    trigger = {"every": 1, "end": end.isoformat()}
    first = await create(http, trigger, **{"Idempotency-Key": "k"})
    await eventually(lambda: now() > end, what="the schedule is over")
    again = await create(http, trigger, **{"Idempotency-Key": "k"})
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json()["id"] == first.json()["id"]
    assert list(complaints(await http.post("/tasks", json=BODY | {"trigger": trigger}))) == ["/trigger/end"]


# --- when it runs next -----------------------------------------------------------------------------------


async def test_every_view_of_a_task_says_when_it_runs_next(http: httpx.AsyncClient) -> None:
    trigger = {"once": "2099-12-24T18:00:00.2+01:00"}
    created = await create(http, trigger)
    task = created.json()["id"]
    edited = await http.patch(f"/tasks/{task}", json={"desc": "new"})
    expected = trigger | {"next": "2099-12-24T17:00:01Z"}
    assert "task-note" not in created.headers
    assert created.json()["trigger"] == edited.json()["trigger"] == expected
    assert (await http.get(f"/tasks/{task}")).json()["trigger"] == expected
    listed = (await http.get("/tasks")).json()
    assert [found["trigger"] for found in listed if found["id"] == task] == [expected]
    async with opened(http, f"/tasks/{task}/events", last=0) as stream:
        for event in await stream.take(2):
            assert event.data["data"]["task"]["trigger"] == expected


async def test_a_repeating_task_says_its_next_time_not_one_that_has_passed(http: httpx.AsyncClient) -> None:
    before = now()
    found = (await create(http, {"repeat": "daily", "once": "2020-01-01T00:00:00Z"})).json()
    coming = datetime.fromisoformat(found["trigger"]["next"])
    assert before < coming <= now() + timedelta(days=1)
    assert (coming.hour, coming.minute, coming.second) == (0, 0, 0)


@pytest.mark.parametrize("trigger", [{}, {"segment": "vip"}, {"once": None, "time_zone": "UTC", "overlap": "wait"}])
async def test_a_task_that_runs_only_by_hand_says_no_next_time(
    http: httpx.AsyncClient, trigger: dict[str, object]
) -> None:
    created = (await create(http, trigger)).json()
    assert created["trigger"] == trigger
    assert (await http.get(f"/tasks/{created['id']}")).json()["trigger"] == trigger
    assert trigger in [found["trigger"] for found in (await http.get("/tasks")).json()]


async def test_a_paused_task_has_no_next_time_until_it_goes_on(http: httpx.AsyncClient) -> None:
    created = (await create(http, {"cron": "0 0 1 1 *", "paused": True})).json()
    assert created["trigger"]["next"] is None
    edited = (await http.patch(f"/tasks/{created['id']}", json={"trigger": {"paused": None}})).json()
    assert edited["trigger"]["next"] == f"{now().year + 1}-01-01T00:00:00Z"


async def test_a_stored_trigger_that_nobody_can_read_has_no_next_time(http: httpx.AsyncClient, bus: Bus) -> None:
    await make_task(bus, trigger={"cron": "0 18 * * *", "time_zone": "Mars/Base"})

    async def listed() -> list[dict[str, object]]:
        return [found["trigger"] for found in (await http.get("/tasks")).json() if found["id"] == 1]

    (shown,) = await eventually(listed, what="the task is in the list")
    assert shown["next"] is None
    assert (await http.get("/tasks/1")).json()["trigger"] == shown


async def test_a_deleted_task_does_not_run_again(http: httpx.AsyncClient) -> None:
    task = (await create(http, {"every": 60})).json()["id"]
    assert (await http.delete(f"/tasks/{task}")).status_code == 204
    async with opened(http, "/events?code=DELETED", last=0) as stream:
        (event,) = await stream.take(1)
    assert event.data["data"]["task"]["trigger"] == {"every": 60, "next": None}


# --- a time that has passed ------------------------------------------------------------------------------


def runs_now(answer: httpx.Response, before: datetime) -> bool:
    coming = datetime.fromisoformat(answer.json()["trigger"]["next"])
    return before <= coming < now() + timedelta(seconds=1)


async def test_a_new_task_whose_time_has_passed_says_that_it_runs_now(http: httpx.AsyncClient) -> None:
    before = now()
    answer = await create(http, {"once": PAST}, **{"Idempotency-Key": "k"})
    assert answer.headers["task-note"] == NOTE
    assert runs_now(answer, before)
    again = await create(http, {"once": PAST}, **{"Idempotency-Key": "k"})
    assert again.headers["task-note"] == NOTE


async def test_an_edit_to_a_time_that_has_passed_says_so_and_no_other_edit_does(http: httpx.AsyncClient) -> None:
    task = (await create(http, {})).json()["id"]
    before = now()
    answer = await http.patch(f"/tasks/{task}", json={"trigger": {"once": PAST}})
    assert answer.headers["task-note"] == NOTE
    assert runs_now(answer, before)
    for patch in ({"desc": "new"}, {"trigger": {"once": PAST}}):
        other = await http.patch(f"/tasks/{task}", json=patch)
        assert other.status_code == 200
        assert "task-note" not in other.headers


@pytest.mark.parametrize("trigger", [{"once": PAST, "paused": True}, {"once": PAST, "repeat": "daily"}])
async def test_what_does_not_run_now_has_no_note(http: httpx.AsyncClient, trigger: dict[str, object]) -> None:
    assert "task-note" not in (await create(http, trigger)).headers


async def test_a_replay_tells_of_the_task_as_it_was_created(http: httpx.AsyncClient) -> None:
    due = (now() + timedelta(seconds=1)).replace(microsecond=0) + timedelta(seconds=1)
    first = await create(http, {"once": due.isoformat()}, **{"Idempotency-Key": "k"})
    await eventually(lambda: now() > due, what="its time has come")
    again = await create(http, {"once": due.isoformat()}, **{"Idempotency-Key": "k"})
    assert again.json() == first.json()
    assert "task-note" not in again.headers


# --- ticks that were not run -----------------------------------------------------------------------------


async def skip(bus: Bus, *, task: int = 1) -> lifecycle.Document:
    """A tick of the task is recorded as skipped, as the forwarder does it."""
    head = await events.load(bus, CHAIN, task, leader=True)
    due = datetime(2026, 11, 24, 18, tzinfo=UTC)
    ticks_ = ticks.Skipped(first=due, last=due, ticks=1, reason=ErrorCode.MISSED)
    record = ticks.record(b"key", head.document.task, 1, ticks_, now=now(), log_seq=0)
    document = lifecycle.skip(head.document, record, until=due)
    await append(bus, document, **dict(document))
    return document


async def test_skipped_ticks_are_in_the_history_with_the_reason(http: httpx.AsyncClient, bus: Bus) -> None:
    await make_task(bus, trigger={"cron": "0 18 * * *"})
    record = (await skip(bus)).skipped

    async def skipped() -> list[dict[str, object]]:
        return (await http.get("/tasks/1/runs?code=SKIPPED")).json()

    (shown,) = await eventually(skipped, what="the tick is in the history")
    assert (shown["id"], shown["code"], shown["source"], shown["attempt"]) == (record.id, "SKIPPED", "schedule", 0)
    assert shown["error"]["code"] == "missed"
    assert shown["result"] == {"ticks": 1, "first": "2026-11-24T18:00:00Z", "last": "2026-11-24T18:00:00Z"}
    assert (await http.get("/tasks/1/runs")).json() == [shown]
    assert (await http.get("/tasks/1/runs?code=DONE")).json() == []
    assert (await http.get(f"/tasks/1/runs/{record.id}")).json() == shown


async def test_skipped_ticks_are_events_with_what_was_skipped(http: httpx.AsyncClient, bus: Bus) -> None:
    await make_task(bus, trigger={"cron": "0 18 * * *"})
    record = (await skip(bus)).skipped
    async with opened(http, "/events?code=SKIPPED", last=0) as stream:
        (event,) = await stream.take(1)
    assert (event.code, event.data["data"]["change"], event.data["data"]["run"]) == ("skipped", "skipped", None)
    assert event.data["data"]["skipped"] == record.public()


async def test_a_skipped_tick_is_no_end_of_a_run(http: httpx.AsyncClient, bus: Bus) -> None:
    await make_task(bus, trigger={"cron": "0 18 * * *"})
    async with opened(http, "/tasks/1/events?until=final") as stream:
        assert (await stream.take(1))[0].code == "ready"
        await skip(bus)
        assert (await stream.take(1))[0].code == "skipped"
        assert (await http.delete("/tasks/1")).status_code == 204
        assert [event.code for event in await stream.rest()] == ["deleted"]
