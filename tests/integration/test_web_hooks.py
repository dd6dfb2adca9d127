"""Web hooks: receivers get every event at least once, signed; what is slow, down, gone or forbidden harms nobody."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from runwire.domain.access import AccessLevel
from runwire.domain.addresses import parse_exceptions
from runwire.messaging import deadletters, streams, subjects, subscriptions
from runwire.messaging.broker import Bus
from runwire.outgoing.exchange import Exchange
from runwire.outgoing.guard import Guard
from runwire.settings import Settings
from runwire.webhooks import sender
from runwire.webhooks.delivery import Patience
from runwire.webhooks.sender import WebHooks
from tests.integration.test_http_action import Answer, Received, Site, reply, site
from tests.support import CHAIN, Broker, adapter, connected, eventually, free_port, grant, make_task

QUICK = Patience(first=0.05, longest=0.2, attempts=1000, seconds=5)
LOOPBACK = "127.0.0.1/32"


@pytest.fixture
async def http(settings: Settings, bus: Bus) -> AsyncIterator[httpx.AsyncClient]:
    async with adapter(settings) as client:
        yield client


@asynccontextmanager
async def sending(bus: Bus, patience: Patience = QUICK, *, allow: str = LOOPBACK) -> AsyncIterator[WebHooks]:
    """What a worker does about web hooks."""
    hooks = WebHooks(bus, patience=patience, exchange=Exchange(Guard(parse_exceptions(allow))))
    await hooks.start()
    try:
        yield hooks
    finally:
        await hooks.stop()


async def hook(http: httpx.AsyncClient, url: str, **fields: object) -> dict[str, Any]:
    """A new web hook, as it was answered."""
    answer = await http.post("/subscriptions", json={"kind": "web_hook", "chain": CHAIN, "url": url, **fields})
    assert answer.status_code == 201, answer.text
    return answer.json()


async def standing(http: httpx.AsyncClient, made: dict[str, Any]) -> dict[str, Any]:
    answer = await http.get(f"/subscriptions/{made['id']}")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def is_done(http: httpx.AsyncClient, made: dict[str, Any]) -> bool:
    """Whether every event has been sent and settled."""
    found = await standing(http, made)
    return not found["pending"] and not found["unacknowledged"]


def is_signed(request: Received, secret: str) -> bool:
    """As a receiver finds out, without any code of ours."""
    name, at = request.headers["webhook-id"], request.headers["webhook-timestamp"]
    key = base64.b64decode(secret.removeprefix("whsec_"))
    expected = hmac.new(key, f"{name}.{at}.".encode() + request.body, hashlib.sha256).digest()
    return request.headers["webhook-signature"] == "v1," + base64.b64encode(expected).decode()


def tasks_in(requests: list[Received]) -> Counter[int]:
    """How often each task was in an event."""
    return Counter(json.loads(request.body)["data"]["task"]["id"] for request in requests)


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


@asynccontextmanager
async def site_at(port: int, *answers: Answer) -> AsyncIterator[Site]:
    """A receiver at a port that is known before it is there."""
    found = Site(list(answers) or [reply()], port=port)
    server = await asyncio.start_server(found.serve, "127.0.0.1", port)
    try:
        yield found
    finally:
        server.close()
        await eventually(lambda: not found.open, within=2, what="every connection is closed")


# --- what a receiver gets --------------------------------------------------------------------------------


async def test_a_receiver_gets_every_event_signed_and_as_the_bus_has_it(http: httpx.AsyncClient, bus: Bus) -> None:
    async with site(reply(204)) as there, sending(bus):
        made = await hook(http, f"{there.url}events?a=b", desc="CRM")
        document = await make_task(bus)
        await eventually(lambda: is_done(http, made))
        await eventually(lambda: there.requests)
    (request,) = there.requests
    stored = await bus.js.get_msg(subjects.EVENTS, subject=subjects.event(document))
    event = json.loads(request.body)
    assert (request.method, request.target) == ("POST", "/events?a=b")
    assert request.headers["content-type"] == "application/cloudevents+json"
    assert request.headers["webhook-id"] == stored.headers["ce-id"] == event["id"]
    assert (event["specversion"], event["type"]) == ("1.0", "dev.runwire.task.ready.v1")
    assert (event["sequence"], event["data"]) == (str(stored.seq), json.loads(stored.data))
    assert is_signed(request, made["secret"])
    assert not is_signed(request, (await hook(http, there.url))["secret"])


async def test_the_secret_is_shown_once(http: httpx.AsyncClient) -> None:
    made = await hook(http, "https://example.com/")
    assert made["secret"].startswith("whsec_")
    for path in ("/subscriptions", f"/subscriptions/{made['id']}"):
        shown = (await http.get(path)).text
        assert made["id"] in shown
        assert made["secret"] not in shown


async def test_it_gets_the_actions_tasks_and_codes_that_it_is_for(http: httpx.AsyncClient, bus: Bus) -> None:
    async with site() as there, sending(bus):
        by_action = await hook(http, there.url, actions=["sleep"])
        by_task = await hook(http, there.url, tasks=[3], codes=["ready"])
        for task, action in ((1, "noop"), (2, "sleep"), (3, "noop")):
            await make_task(bus, action, task=task)
        await eventually(lambda: len(there.requests) >= 2)
        for made in (by_action, by_task):
            await eventually(lambda made=made: is_done(http, made))
    assert tasks_in(there.requests) == {2: 1, 3: 1}


async def test_what_happened_before_any_worker_was_there_is_sent_from_where_it_begins(
    http: httpx.AsyncClient, bus: Bus
) -> None:
    for task in (1, 2):
        await make_task(bus, task=task)
    async with site() as there:
        await hook(http, there.url, from_sequence=3)
        await make_task(bus, task=3)
        async with sending(bus):
            await eventually(lambda: len(there.requests) == 2)
    assert tasks_in(there.requests) == {2: 1, 3: 1}


# --- failures --------------------------------------------------------------------------------------------


async def test_a_receiver_that_was_down_gets_everything_in_the_end(
    http: httpx.AsyncClient, bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "runwire.webhooks")
    port = free_port()
    async with sending(bus):
        made = await hook(http, f"http://127.0.0.1:{port}/secret-path")
        for task in range(1, 21):
            await make_task(bus, task=task)
        await eventually(lambda: sum("no connection" in record.message for record in caplog.records) > 25)
        async with site_at(port, reply(500), reply(503), reply(200)) as there:
            await eventually(lambda: is_done(http, made))
    assert tasks_in(there.requests).keys() == set(range(1, 21))
    assert len(there.requests) == 22, "each once, and the two that were refused"
    assert all(is_signed(request, made["secret"]) for request in there.requests)
    assert "secret-path" not in caplog.text


async def test_a_restart_of_the_broker_loses_nothing(http: httpx.AsyncClient, bus: Bus, broker: Broker) -> None:
    async with site() as there, sending(bus):
        await hook(http, there.url)
        for task in range(1, 6):
            await make_task(bus, task=task)
        await eventually(lambda: there.requests)
        broker.restart()
        await eventually(lambda: bus.is_connected and http.services.bus.is_connected)
        await bus.until_available(lambda: bus.js.stream_info(subjects.EVENTS))
        await make_task(bus, task=6)
        await eventually(lambda: tasks_in(there.requests).keys() == set(range(1, 7)))


async def test_what_a_receiver_never_takes_becomes_a_dead_letter_and_the_rest_goes_on(
    http: httpx.AsyncClient, bus: Bus
) -> None:
    async def picky(request: Received) -> bytes:
        return reply(422 if json.loads(request.body)["data"]["task"]["id"] == 2 else 200)

    async with picking(picky) as there, sending(bus, Patience(first=0.05, longest=0.1, attempts=3)):
        made = await hook(http, there.url)
        documents = {task: await make_task(bus, task=task) for task in (1, 2, 3)}
        await eventually(lambda: is_done(http, made))
    assert tasks_in(there.requests) == {1: 1, 2: 3, 3: 1}
    assert len({request.headers["webhook-id"] for request in there.requests}) == 3, "the same each time"
    letter = await bus.js.get_msg(subjects.DEADLETTERS, subject=subjects.dead_event(CHAIN, 2))
    event = await bus.js.get_msg(subjects.EVENTS, subject=subjects.event(documents[2]))
    assert letter.data == event.data
    assert letter.headers["ce-id"] == event.headers["ce-id"]
    assert letter.headers[subjects.DEAD_REASON] == "web_hook"
    assert letter.headers[subjects.DEAD_DETAIL].startswith("422")
    assert letter.headers[subjects.DEAD_SUBSCRIPTION] == made["id"]
    assert (await bus.js.stream_info(subjects.DEADLETTERS)).state.messages == 1
    assert await deadletters.last(bus, CHAIN, 2) is None, "no command of the task is dead"
    for query in ("", f"?chain={CHAIN}&task=2"):
        (shown,) = (await http.get(f"/dead_letters{query}")).json()
        assert (shown["reason"], shown["subscription"], shown["task"]) == ("web_hook", made["id"], 2)
    assert code(await http.post(f"/dead_letters/{shown['id']}/replay")) == (409, "not_a_command")
    assert (await http.delete(f"/dead_letters/{shown['id']}")).status_code == 204


@asynccontextmanager
async def picking(answer: Any) -> AsyncIterator[Site]:
    """A receiver that looks at what it gets before it answers."""
    async with site() as there:

        async def look(writer: asyncio.StreamWriter) -> None:
            writer.write(await answer(there.requests[-1]))
            writer.write_eof()

        there.answers = [look]
        yield there


async def test_a_receiver_that_is_gone_is_left_alone(http: httpx.AsyncClient, bus: Bus) -> None:
    async with site(reply(410)) as gone, site() as there:
        async with sending(bus):
            made = await hook(http, gone.url)
            await make_task(bus, task=1)

            async def is_disabled() -> bool:
                return (await standing(http, made))["disabled"] is not None

            await eventually(is_disabled)
            other = await hook(http, there.url, from_sequence=1)
            await make_task(bus, task=2)
            await eventually(lambda: is_done(http, other))
            await eventually(lambda: there.requests)
        async with sending(bus):  # nor does a worker that starts afterwards call it
            await eventually(lambda: _is_served(http, other))
            assert (await standing(http, made))["waiting"] == 0
    assert tasks_in(gone.requests) == {1: 1}
    assert (await standing(http, made))["unacknowledged"] + (await standing(http, made))["pending"] == 2


async def test_a_receiver_that_is_back_gets_what_it_did_not_take(
    http: httpx.AsyncClient, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "AFTER_GONE", 0.2)
    async with site(reply(410)) as there, sending(bus):
        made = await hook(http, there.url)
        await make_task(bus, task=1)

        async def is_disabled() -> bool:
            return (await standing(http, made))["disabled"] is not None

        await eventually(is_disabled)
        await make_task(bus, task=2)
        there.answers[:] = [reply()]
        there.requests.clear()
        resumed = await http.post(f"/subscriptions/{made['id']}/resume")
        assert (resumed.status_code, resumed.json()["disabled"]) == (200, None)
        await eventually(lambda: is_done(http, made))
        await make_task(bus, task=3)
        await eventually(lambda: tasks_in(there.requests).keys() == {1, 2, 3})
        assert (await http.post(f"/subscriptions/{made['id']}/resume")).status_code == 200, "it may be repeated"


async def test_a_new_secret_signs_beside_the_old_one_for_the_overlap(http: httpx.AsyncClient, bus: Bus) -> None:
    async with site() as there, sending(bus):
        made = await hook(http, there.url)
        path = f"/subscriptions/{made['id']}"
        rotated = await http.post(f"{path}/rotate")
        assert rotated.status_code == 200, rotated.text
        new, until = rotated.json()["secret"], datetime.fromisoformat(rotated.json()["previous_until"])
        assert new != made["secret"]
        assert abs(until - datetime.now(UTC) - timedelta(days=1)) < timedelta(minutes=1)
        assert new not in (await http.get(path)).text
        await sooner_or_later_signed(bus, there, new, made["secret"])
        last = (await http.post(f"{path}/rotate", json={"overlap": 0})).json()
        assert last["previous_until"] is None
        await sooner_or_later_signed(bus, there, last["secret"])


async def sooner_or_later_signed(bus: Bus, there: Site, *secrets: str) -> None:
    """From some event on, they have a signature by each of these, and no other."""

    async def are_so() -> bool:
        before = len(there.requests)
        await make_task(bus, task=before + 1)
        await eventually(lambda: len(there.requests) > before)
        request = there.requests[-1]
        given = request.headers["webhook-signature"].split()
        alone = [replace(request, headers={**request.headers, "webhook-signature": one}) for one in given]
        return len(given) == len(secrets) and all(any(is_signed(one, secret) for one in alone) for secret in secrets)

    await eventually(are_so)


async def test_only_managers_rotate_and_resume_and_only_web_hooks(http: httpx.AsyncClient, bus: Bus) -> None:
    made = await hook(http, "https://example.com/")
    pull = (await http.post("/subscriptions", json={"kind": "pull", "chain": CHAIN})).json()
    token_id, secret = await grant(bus)
    operator = {"Authorization": f"Bearer {token_id}:{secret}"}
    for call in ("rotate", "resume"):
        assert code(await http.post(f"/subscriptions/{pull['id']}/{call}")) == (409, "not_a_web_hook")
        refused = await http.post(f"/subscriptions/{made['id']}/{call}", headers=operator)
        assert code(refused) == (404, "subscription_not_found")
    for overlap in (-1, 604_801, "3600", 1.5):
        answer = await http.post(f"/subscriptions/{made['id']}/rotate", json={"overlap": overlap})
        assert code(answer) == (422, "invalid_fields")


async def test_two_rotations_at_the_same_time_leave_a_secret_that_somebody_knows(
    http: httpx.AsyncClient, bus: Bus
) -> None:
    made = await hook(http, "https://example.com/")
    answers = await asyncio.gather(*(http.post(f"/subscriptions/{made['id']}/rotate") for _ in range(2)))
    kept = (await subscriptions.find(bus, made["id"])).subscription
    assert kept.secret in [answer.json()["secret"] for answer in answers]


async def _is_served(http: httpx.AsyncClient, made: dict[str, Any]) -> bool:
    return (await standing(http, made))["waiting"] > 0


async def test_a_slow_receiver_delays_no_other(http: httpx.AsyncClient, bus: Bus) -> None:
    release = asyncio.Event()

    async def hang(_writer: asyncio.StreamWriter) -> None:
        await release.wait()

    async with site(hang) as slow, site() as quick, sending(bus) as sender:
        await hook(http, slow.url)
        fine = await hook(http, quick.url)
        for task in range(1, 11):
            await make_task(bus, task=task)
        await eventually(lambda: is_done(http, fine))
        assert tasks_in(quick.requests).keys() == set(range(1, 11))
        assert slow.connections <= 4
        release.set()
        await sender.stop()


async def test_a_receiver_that_does_not_answer_in_time_is_tried_again(http: httpx.AsyncClient, bus: Bus) -> None:
    hanging = asyncio.Event()

    async def hang(_writer: asyncio.StreamWriter) -> None:
        await hanging.wait()

    async with site(hang, reply(200)) as there, sending(bus, Patience(first=0.05, longest=0.1, seconds=0.3)):
        made = await hook(http, there.url)
        await make_task(bus)
        await eventually(lambda: is_done(http, made))
        hanging.set()
    assert tasks_in(there.requests) == {1: 2}


async def test_two_workers_share_the_events(http: httpx.AsyncClient, bus: Bus, settings: Settings) -> None:
    another = await connected(settings)
    async with site() as there, sending(bus), sending(another):
        made = await hook(http, there.url)
        for task in range(1, 31):
            await make_task(bus, task=task)
        await eventually(lambda: is_done(http, made))
    assert tasks_in(there.requests) == dict.fromkeys(range(1, 31), 1)
    await another.nc.close()


async def test_a_worker_that_stops_gives_back_what_it_has_in_hand(http: httpx.AsyncClient, bus: Bus) -> None:
    hanging = asyncio.Event()

    async def hang(_writer: asyncio.StreamWriter) -> None:
        await hanging.wait()

    async with site(hang, reply(200)) as there:
        made = await hook(http, there.url)
        async with sending(bus):
            await make_task(bus)
            await eventually(lambda: there.requests)
        async with sending(bus):  # well before the 30 s after which it would come again anyway
            await eventually(lambda: is_done(http, made), within=10)
        hanging.set()
    assert tasks_in(there.requests) == {1: 2}


async def test_what_a_worker_had_in_hand_when_it_died_comes_again(
    http: httpx.AsyncClient, bus: Bus, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "SUBSCRIBER_WAIT", 1.0)
    hanging = asyncio.Event()

    async def hang(_writer: asyncio.StreamWriter) -> None:
        await hanging.wait()

    doomed = await connected(settings)
    async with site(hang, reply(200)) as there:
        made = await hook(http, there.url)
        async with sending(doomed):
            await make_task(bus)
            await eventually(lambda: there.requests)
            await doomed.nc.close()  # from here on it can settle nothing
            async with sending(bus):
                await eventually(lambda: is_done(http, made))
            hanging.set()
    assert tasks_in(there.requests) == {1: 2}


async def test_a_deleted_hook_is_sent_nothing_more(http: httpx.AsyncClient, bus: Bus) -> None:
    async with site() as there, site() as other, sending(bus):
        made, kept = await hook(http, there.url), await hook(http, other.url)
        await make_task(bus, task=1)
        await eventually(lambda: there.requests)
        assert (await http.delete(f"/subscriptions/{made['id']}")).status_code == 204
        await make_task(bus, task=2)
        await eventually(lambda: is_done(http, kept))
        await eventually(lambda: tasks_in(other.requests) == {1: 1, 2: 1})
    assert tasks_in(there.requests) == {1: 1}


# --- whom it may reach -----------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1", "0.0.0.0"])
async def test_no_address_that_is_not_public_is_called(
    http: httpx.AsyncClient, bus: Bus, caplog: pytest.LogCaptureFixture, host: str
) -> None:
    caplog.set_level(logging.INFO, "runwire.webhooks")
    async with site() as there, sending(bus, allow=""):
        await hook(http, f"http://{host}:{there.port}/")
        await make_task(bus)
        await eventually(lambda: "may not be called" in caplog.text or "no connection" in caplog.text)
        assert there.connections == 0


async def test_the_operators_exceptions_are_those_of_the_http_action(
    http: httpx.AsyncClient, bus: Bus, settings: Settings
) -> None:
    async with site() as there:
        allowing = await connected(settings.model_copy(update={"http_allow": f"127.0.0.1:{there.port}"}))
        hooks = WebHooks(allowing)
        await hooks.start()
        await hook(http, there.url)
        await make_task(bus)
        await eventually(lambda: there.requests)
        await hooks.stop()
        await allowing.nc.close()


async def test_a_redirect_is_a_failure(http: httpx.AsyncClient, bus: Bus) -> None:
    async with site() as elsewhere, site(reply(302, location=elsewhere.url), reply(200)) as there, sending(bus):
        made = await hook(http, there.url)
        await make_task(bus)
        await eventually(lambda: is_done(http, made))
    assert tasks_in(there.requests) == {1: 2}
    assert elsewhere.connections == 0


# --- over HTTP -------------------------------------------------------------------------------------------


async def test_the_audit_trail_tells_who_made_and_ended_one(http: httpx.AsyncClient) -> None:
    made = await hook(http, "https://example.com/s3cret")
    await http.post(f"/subscriptions/{made['id']}/rotate")
    await http.post(f"/subscriptions/{made['id']}/resume")  # changes nothing
    await http.delete(f"/subscriptions/{made['id']}")

    async def told() -> list[dict[str, Any]]:
        rows = (await http.get("/audit")).json()
        found = [row for row in rows if row["action"].startswith("subscription.")]
        return found if len(found) == 3 else []

    rows = await eventually(told)
    assert {row["action"] for row in rows} == {
        "subscription.created", "subscription.rotated", "subscription.deleted",
    }  # fmt: skip
    assert {(row["by"], row["subject"], row["chain"]) for row in rows} == {
        ("tester", f"/subscriptions/{made['id']}", CHAIN)
    }
    assert "s3cret" not in str(rows)


async def test_web_hooks_are_the_managers(http: httpx.AsyncClient, bus: Bus) -> None:
    made = await hook(http, "https://example.com/")
    token_id, secret = await grant(bus)
    operator = {"Authorization": f"Bearer {token_id}:{secret}"}
    body = {"kind": "web_hook", "chain": CHAIN, "url": "https://example.com/"}
    assert code(await http.post("/subscriptions", json=body, headers=operator)) == (403, "forbidden")
    for method in ("GET", "DELETE"):
        answer = await http.request(method, f"/subscriptions/{made['id']}", headers=operator)
        assert code(answer) == (404, "subscription_not_found")
    assert (await http.get("/subscriptions", headers=operator)).json() == []
    token_id, secret = await grant(bus, level=AccessLevel.MANAGER)
    colleague = {"Authorization": f"Bearer {token_id}:{secret}"}
    assert [found["id"] for found in (await http.get("/subscriptions", headers=colleague)).json()] == [made["id"]]
    assert (await http.delete(f"/subscriptions/{made['id']}", headers=colleague)).status_code == 204


async def test_a_chain_has_so_many_web_hooks_at_most(http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscriptions, "MOST_HOOKS_PER_CHAIN", 1)
    await hook(http, "https://example.com/")
    body = {"kind": "web_hook", "chain": CHAIN, "url": "https://example.com/"}
    assert code(await http.post("/subscriptions", json=body)) == (409, "too_many_subscriptions")
    pull = await http.post("/subscriptions", json={"kind": "pull", "chain": CHAIN})
    assert pull.status_code == 201
    assert pull.json()["secret"] is None


@pytest.mark.parametrize(
    "url",
    ["", "example.com", "ftp://example.com/", "https://user:secret@example.com/", "https://exa mple.com/",
     "https://example.com:0/", "https://example.com:65536/", "https://münchen.example/", "https:///x", "file:///etc/passwd",
     "https://example.com/#\u0000", 7, None],
)  # fmt: skip
async def test_what_is_no_url_is_refused(http: httpx.AsyncClient, url: object) -> None:
    answer = await http.post("/subscriptions", json={"kind": "web_hook", "chain": CHAIN, "url": url})
    assert code(answer) == (422, "invalid_fields")
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/url"]


async def test_a_web_hook_waits_for_as_long_as_it_takes(http: httpx.AsyncClient, bus: Bus) -> None:
    """Unlike a pull subscription, it is not dropped when nobody asks for its events: no worker may be there."""
    made = await hook(http, "https://example.com/")
    assert not (await bus.js.consumer_info(subjects.EVENTS, made["id"])).config.inactive_threshold
