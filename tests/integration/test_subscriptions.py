"""Subscriptions that clients of the bus pull: who gets what, that nothing is lost, and who is not disturbed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import nats.errors
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.errors import NotFoundError

from runwire.domain.access import AccessLevel
from runwire.domain.subscription import pull_name, pull_names
from runwire.messaging import callout, streams, subjects, subscriptions, tokens
from runwire.messaging.broker import Bus
from runwire.settings import Settings
from tests.support import (
    CHAIN,
    Broker,
    adapter,
    eventually,
    grant,
    lifecycle_now,
    make_task,
    on_the_bus,
    refused_reconnections,
)

OTHER = 2000
"""Another chain."""


@pytest.fixture
async def http(settings: Settings, bus: Bus) -> AsyncIterator[httpx.AsyncClient]:
    async with adapter(settings) as client:
        yield client


class Subscriber:
    """A token, its HTTP header, its client of the bus, and what the broker complains of."""

    def __init__(self, http: httpx.AsyncClient, token: str, secret: str) -> None:
        self.token, self._secret = token, secret
        self.headers = {"Authorization": f"Bearer {token}:{secret}"}
        self.complaints: list[str] = []
        self._http = http
        self.client: Client

    async def connect(self, broker: Broker, **options: object) -> Subscriber:
        self.client = await on_the_bus(broker, self.token, self._secret, error_cb=self._complain, **options)
        return self

    async def _complain(self, error: Exception) -> None:
        self.complaints.append(str(error).lower())

    async def subscribe(self, chain: int = CHAIN, **fields: object) -> str:
        """A new subscription's id."""
        answer = await self._http.post(
            "/subscriptions", json={"kind": "pull", "chain": chain, **fields}, headers=self.headers
        )
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]

    async def pull(self, name: str, count: int, *, acknowledge: bool = True) -> list[Msg]:
        """The next so many events."""
        pulling = await self.client.jetstream().pull_subscribe_bind(name, stream=subjects.EVENTS)
        found: list[Msg] = []
        while len(found) < count:
            found += await pulling.fetch(count - len(found), timeout=10)
        for message in found if acknowledge else []:
            await message.ack_sync()
        await pulling.unsubscribe()
        return found

    async def nothing_more(self, name: str) -> None:
        pulling = await self.client.jetstream().pull_subscribe_bind(name, stream=subjects.EVENTS)
        with pytest.raises(nats.errors.TimeoutError):
            await pulling.fetch(1, timeout=0.3)
        await pulling.unsubscribe()

    async def is_refused(self, subject: str) -> None:
        text = f'permissions violation for publish to "{subject}"'.lower()
        await self.client.publish(subject, b"1", reply=self.client.new_inbox())
        await eventually(lambda: any(text in complaint for complaint in self.complaints), what=text)


@pytest.fixture
async def viewer(http: httpx.AsyncClient, bus: Bus, broker: Broker) -> AsyncIterator[Subscriber]:
    """Of chain CHAIN; that is enough to get events."""
    subscriber = Subscriber(http, *await grant(bus, level=AccessLevel.VIEWER, token_id="viewer"))
    yield await subscriber.connect(broker)
    await subscriber.client.close()


@pytest.fixture
async def stranger(http: httpx.AsyncClient, bus: Bus, broker: Broker) -> AsyncIterator[Subscriber]:
    """A manager of another chain."""
    subscriber = Subscriber(http, *await grant(bus, OTHER, AccessLevel.MANAGER, token_id="stranger"))
    yield await subscriber.connect(broker)
    await subscriber.client.close()


def seen(messages: list[Msg]) -> list[str]:
    return [message.subject for message in messages]


async def standing(http: httpx.AsyncClient, name: str) -> dict[str, Any]:
    answer = await http.get(f"/subscriptions/{name}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


# --- what a subscriber gets ------------------------------------------------------------------------------


async def test_a_subscriber_gets_what_happens_after_it_subscribed(bus: Bus, viewer: Subscriber) -> None:
    await make_task(bus, task=1)
    name = await viewer.subscribe()
    await make_task(bus, task=2)
    await make_task(bus, task=3, chain=OTHER)
    await make_task(bus, task=4)
    (first, second) = await viewer.pull(name, 2)
    assert seen([first, second]) == [f"tasks.evt.{CHAIN}.2.ready", f"tasks.evt.{CHAIN}.4.ready"]
    assert first.headers["ce-type"] == "dev.runwire.task.ready.v1"
    await viewer.nothing_more(name)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ["1.ready", "2.ready", "2.deleted"]),
        ({"tasks": [1]}, ["1.ready"]),
        ({"codes": ["deleted", "error"]}, ["2.deleted"]),
        ({"tasks": [2, 9], "codes": ["deleted", "done"]}, ["2.deleted"]),
    ],
)
async def test_it_gets_the_tasks_and_codes_that_it_asked_for(
    http: httpx.AsyncClient, bus: Bus, viewer: Subscriber, fields: dict[str, object], expected: list[str]
) -> None:
    name = await viewer.subscribe(**fields)
    await make_task(bus, task=1)
    await make_task(bus, task=2)
    assert (await http.delete("/tasks/2")).status_code == 204
    assert seen(await viewer.pull(name, len(expected))) == [f"tasks.evt.{CHAIN}.{end}" for end in expected]
    assert (await standing(http, name))["pending"] == 0


async def test_it_begins_at_a_sequence_or_a_time(bus: Bus, viewer: Subscriber) -> None:
    """The first event is the sample task's."""
    for task in (1, 2, 3):
        await make_task(bus, task=task)
    at = (await bus.js.get_msg(subjects.EVENTS, 3)).time
    everything = await viewer.subscribe(from_sequence=1)
    later = await viewer.subscribe(from_sequence=4)
    since = await viewer.subscribe(from_time=at.isoformat())
    assert len(await viewer.pull(everything, 4)) == 4
    assert seen(await viewer.pull(later, 1)) == [f"tasks.evt.{CHAIN}.3.ready"]
    assert seen(await viewer.pull(since, 2)) == [f"tasks.evt.{CHAIN}.{task}.ready" for task in (2, 3)]


@refused_reconnections
async def test_what_was_not_acknowledged_comes_again_also_after_a_restart_of_the_broker(
    http: httpx.AsyncClient, bus: Bus, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "SUBSCRIBER_WAIT", 1.0)
    subscriber = Subscriber(http, *await grant(bus, level=AccessLevel.VIEWER))
    await subscriber.connect(broker, max_reconnect_attempts=-1)
    name = await subscriber.subscribe()
    for task in (1, 2, 3, 4):
        await make_task(bus, task=task)
    await subscriber.pull(name, 1)
    await subscriber.pull(name, 1, acknowledge=False)
    broker.restart()
    await eventually(lambda: not subscriber.client.is_connected)
    await eventually(lambda: subscriber.client.is_connected)
    missing = {f"tasks.evt.{CHAIN}.{task}.ready" for task in (2, 3, 4)}
    while missing:  # one that was acknowledged right before the broker was killed may come, too
        missing.difference_update(seen(await subscriber.pull(name, 1)))
    await subscriber.client.close()


async def test_the_lag_can_be_seen(http: httpx.AsyncClient, bus: Bus, viewer: Subscriber) -> None:
    name = await viewer.subscribe(desc="billing", tasks=[1, 2, 3], codes=["ready"])
    fresh = await standing(http, name)
    assert (fresh["desc"], fresh["tasks"], fresh["codes"]) == ("billing", [1, 2, 3], ["ready"])
    assert (fresh["token"], fresh["chain"], fresh["kind"]) == ("viewer", CHAIN, "pull")
    assert (fresh["pending"], fresh["unacknowledged"], fresh["last_active"]) == (0, 0, None)
    for task in (1, 2, 3):
        await make_task(bus, task=task)
    await viewer.pull(name, 1)
    await viewer.pull(name, 1, acknowledge=False)
    lagging = await standing(http, name)
    assert (lagging["pending"], lagging["unacknowledged"], lagging["acknowledged"]) == (1, 1, 2)
    assert lagging["last_active"]
    shown = await http.get(f"/subscriptions/{name}", headers=viewer.headers)
    assert shown.json() == lagging


async def test_who_never_acknowledges_stops_getting_events_and_disturbs_nobody(
    http: httpx.AsyncClient, bus: Bus, viewer: Subscriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(streams, "SUBSCRIBER_PENDING", 3)
        silent = await viewer.subscribe()
    orderly = await viewer.subscribe()
    for task in range(1, 7):
        await make_task(bus, task=task)
    await viewer.pull(silent, 3, acknowledge=False)
    await viewer.nothing_more(silent)
    assert len(await viewer.pull(orderly, 6)) == 6
    stuck = await standing(http, silent)
    assert (stuck["pending"], stuck["unacknowledged"]) == (3, 3)
    assert (await standing(http, orderly))["pending"] == 0


async def test_one_that_nobody_uses_is_gone_after_its_time(
    http: httpx.AsyncClient, viewer: Subscriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "IDLE_DAYS", 0.2 / streams.DAY)
    name = await viewer.subscribe()

    async def is_gone() -> bool:
        return (await http.get(f"/subscriptions/{name}")).status_code == 404

    await eventually(is_gone)
    assert await viewer.subscribe() in pull_names(CHAIN, "viewer")


async def test_a_usual_one_is_kept_for_a_week_without_use(bus: Bus, viewer: Subscriber) -> None:
    config = (await bus.js.consumer_info(subjects.EVENTS, await viewer.subscribe())).config
    assert config.inactive_threshold == timedelta(days=7).total_seconds()
    assert config.max_deliver == -1


# --- who may use it --------------------------------------------------------------------------------------


async def test_a_subscription_works_with_its_own_token_only(
    http: httpx.AsyncClient, bus: Bus, broker: Broker, viewer: Subscriber, stranger: Subscriber
) -> None:
    colleague = await Subscriber(http, *await grant(bus, level=AccessLevel.MANAGER)).connect(broker)
    name = await viewer.subscribe()
    await make_task(bus)
    for somebody in (colleague, stranger):
        for subject in subjects.pulling(name):
            await somebody.is_refused(subject.replace(">", "1.1.1.1.0"))
    assert (await standing(http, name))["waiting"] == 0
    (event,) = await viewer.pull(name, 1, acknowledge=False)
    await colleague.is_refused(event.reply)
    assert (await standing(http, name))["unacknowledged"] == 1
    await colleague.client.close()


@pytest.mark.parametrize(
    "subject",
    [
        f"$JS.API.CONSUMER.MSG.NEXT.EVENTS.{pull_name(OTHER, 0, 'viewer')}",
        "$JS.API.CONSUMER.MSG.NEXT.EVENTS.*",
        "$JS.API.CONSUMER.MSG.NEXT.EVENTS.alarm-setters",
        "$JS.API.CONSUMER.INFO.EVENTS.alarm-setters",
        "$JS.ACK.EVENTS.alarm-setters.1.1.1.1.0",
        f"$JS.API.CONSUMER.CREATE.EVENTS.{pull_name(CHAIN, 0, 'viewer')}",
        f"$JS.API.CONSUMER.DURABLE.CREATE.EVENTS.{pull_name(CHAIN, 0, 'viewer')}",
        f"$JS.API.CONSUMER.DELETE.EVENTS.{pull_name(CHAIN, 0, 'viewer')}",
        "$JS.API.CONSUMER.NAMES.EVENTS",
        "$JS.API.STREAM.INFO.EVENTS",
    ],
)
async def test_nothing_else_of_the_broker_is_open(viewer: Subscriber, subject: str) -> None:
    await viewer.is_refused(subject)


async def test_a_forged_reply_steers_events_to_nobody(bus: Bus, viewer: Subscriber, stranger: Subscriber) -> None:
    """Whoever fetches says where the events go; they do not leave the account, and become no commands."""
    heard: list[str] = []

    async def hear(message: Msg) -> None:
        heard.append(message.subject)

    for subject in (subjects.whole_chain(OTHER), subjects.inbox_of("stranger"), subjects.services_of(OTHER)):
        await stranger.client.subscribe(subject, cb=hear)
    await stranger.client.flush()
    name = await viewer.subscribe()
    forged = [
        f"tasks.evt.{OTHER}.1.done",
        "_INBOX_stranger.x",
        subjects.service(OTHER, "invoices"),
        subjects.command(CHAIN, 7),
        f"tasks.evt.{CHAIN}.7.done",
        f"$JS.API.STREAM.PURGE.{subjects.EVENTS}",
        subjects.reply("x"),
    ]
    for task in range(len(forged) + 1):
        await make_task(bus, task=100 + task)
    for reply in forged:
        await viewer.client.publish(subjects.pulling(name)[1], b"1", reply=reply)
    await viewer.pull(name, 1)  # asked for last, so all that was forged has been answered
    await make_task(bus, task=6, chain=OTHER)  # what was on its way before it has arrived when this one has
    await eventually(lambda: f"tasks.evt.{OTHER}.6.ready" in heard)
    assert heard == [f"tasks.evt.{OTHER}.6.ready"]
    assert (await bus.js.stream_info(subjects.COMMANDS)).state.messages == 0
    assert (await bus.js.stream_info(subjects.EVENTS)).state.messages == 1 + len(forged) + 2


async def test_a_token_that_is_switched_off_gets_no_more(http: httpx.AsyncClient, bus: Bus, broker: Broker) -> None:
    lost = asyncio.Event()

    async def notice() -> None:
        lost.set()

    subscriber = Subscriber(http, *await grant(bus, level=AccessLevel.VIEWER))
    await subscriber.connect(broker, allow_reconnect=False, disconnected_cb=notice)
    await subscriber.subscribe()
    await tokens.change(bus, subscriber.token, lambda token: token.model_copy(update={"active": False}))
    async with asyncio.timeout(10):
        await lost.wait()
    await subscriber.client.close()


async def test_the_permissions_name_every_subscription_a_token_can_have(bus: Bus) -> None:
    token_id, _ = await grant(bus, level=AccessLevel.VIEWER, also={OTHER: AccessLevel.OPERATOR})
    token = await tokens.get(bus, token_id)
    allowed = callout.permissions(token, CHAIN)["pub"]["allow"]
    pulling = [subject for subject in allowed if subject.startswith("$JS.")]
    assert pulling == [subject for name in pull_names(CHAIN, token_id) for subject in subjects.pulling(name)]
    assert not any("*" in subject or str(OTHER) in subject for subject in pulling)


# --- over HTTP -------------------------------------------------------------------------------------------


async def test_what_makes_no_subscription_is_refused(http: httpx.AsyncClient) -> None:
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    for fields, pointer in (
        ({"tasks": [0]}, "/tasks/0"),
        ({"tasks": [1, 1]}, "/tasks"),
        ({"tasks": list(range(1, 102))}, "/tasks"),
        ({"tasks": list(range(1, 101)), "codes": ["done", "error", "ready"]}, ""),
        ({"codes": ["finished"]}, "/codes/0"),
        ({"codes": ["DONE"]}, "/codes/0"),
        ({"actions": ["export"]}, "/actions"),
        ({"from_sequence": 0}, "/from_sequence"),
        ({"from_sequence": "1"}, "/from_sequence"),
        ({"from_time": tomorrow}, "/from_time"),
        ({"from_time": "1969-01-01T00:00:00Z"}, "/from_time"),
        ({"from_sequence": 1, "from_time": "2026-01-01T00:00:00Z"}, ""),
        ({"desc": "x" * 501}, "/desc"),
        ({"desc": "\x00"}, "/desc"),
        ({"kind": "push"}, ""),
        ({"id": "sub-1-1-x"}, "/id"),
        ({"chain": "1764"}, "/chain"),
    ):
        answer = await http.post("/subscriptions", json={"kind": "pull", "chain": CHAIN, **fields})
        assert code(answer) == (422, "invalid_fields"), fields
        assert answer.json()["errors"][0]["pointer"] == pointer, fields
    assert (await http.get("/subscriptions")).json() == []


async def test_one_sees_ones_own_and_a_manager_sees_all_of_the_chain(
    http: httpx.AsyncClient, bus: Bus, viewer: Subscriber, stranger: Subscriber
) -> None:
    operator = Subscriber(http, *await grant(bus, level=AccessLevel.OPERATOR))
    one, another, third = await viewer.subscribe(), await viewer.subscribe(), await operator.subscribe()
    foreign = await stranger.subscribe(OTHER)

    async def listed(headers: dict[str, str] | None = None, query: str = "") -> set[str]:
        answer = await http.get(f"/subscriptions{query}", headers=headers)
        assert int(answer.headers["x-total-count"]) == len(answer.json())
        return {found["id"] for found in answer.json()}

    assert await listed(viewer.headers) == {one, another}
    assert await listed(operator.headers) == {third}
    assert await listed() == {one, another, third}
    assert await listed(query=f"?chain={CHAIN}") == {one, another, third}
    assert await listed(stranger.headers) == {foreign}
    assert code(await http.get(f"/subscriptions?chain={OTHER}")) == (403, "forbidden")
    assert code(await http.get(f"/subscriptions/{one}", headers=operator.headers)) == (404, "subscription_not_found")
    page = await http.get("/subscriptions?limit=1&offset=1")
    assert (len(page.json()), page.headers["x-total-count"]) == (1, "3")


async def test_subscribing_needs_a_token_of_the_chain(http: httpx.AsyncClient, stranger: Subscriber) -> None:
    body = {"kind": "pull", "chain": CHAIN}
    assert code(await http.post("/subscriptions", json=body, headers=stranger.headers)) == (403, "forbidden")


async def test_a_deleted_subscription_is_gone(http: httpx.AsyncClient, bus: Bus, viewer: Subscriber) -> None:
    operator = Subscriber(http, *await grant(bus, level=AccessLevel.OPERATOR))
    own, managed = await viewer.subscribe(), await viewer.subscribe()
    path = f"/subscriptions/{own}"
    assert code(await http.delete(path, headers=operator.headers)) == (404, "subscription_not_found")
    assert (await http.delete(path, headers=viewer.headers)).status_code == 204
    assert code(await http.delete(path, headers=viewer.headers)) == (404, "subscription_not_found")
    assert code(await http.get(path)) == (404, "subscription_not_found")
    assert (await http.delete(f"/subscriptions/{managed}")).status_code == 204
    with pytest.raises(NotFoundError):
        await bus.js.consumer_info(subjects.EVENTS, managed)


@pytest.mark.parametrize("name", ["alarm-setters", "sub-0-1-viewer", "sub-1764-x-viewer", "hook-1764-1"])
async def test_no_other_consumer_can_be_reached(http: httpx.AsyncClient, bus: Bus, name: str) -> None:
    await bus.js.add_consumer(subjects.EVENTS, name=name, durable_name=name)
    for method in ("GET", "DELETE"):
        assert code(await http.request(method, f"/subscriptions/{name}")) == (404, "subscription_not_found")
    assert (await bus.js.consumer_info(subjects.EVENTS, name)).name == name
    assert (await http.get("/subscriptions")).json() == []


async def test_an_id_that_is_none_is_refused(http: httpx.AsyncClient) -> None:
    for name in ("a.b", "sub*", "x" * 101, "ü"):
        assert code(await http.get(f"/subscriptions/{name}")) == (400, "malformed_id")


async def test_a_token_has_ten_at_most_each_under_a_name_of_its_own(
    http: httpx.AsyncClient, viewer: Subscriber
) -> None:
    made = await asyncio.gather(*(viewer.subscribe() for _ in range(10)))
    assert sorted(made) == sorted(pull_names(CHAIN, "viewer"))
    eleventh = {"kind": "pull", "chain": CHAIN}
    answer = await http.post("/subscriptions", json=eleventh, headers=viewer.headers)
    assert code(answer) == (409, "too_many_subscriptions")
    await http.delete(f"/subscriptions/{made[3]}")
    assert await viewer.subscribe() == made[3]


async def test_a_chain_has_so_many_at_most(
    http: httpx.AsyncClient, viewer: Subscriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriptions, "MOST_PER_CHAIN", 1)
    await viewer.subscribe()
    answer = await http.post("/subscriptions", json={"kind": "pull", "chain": CHAIN})
    assert code(answer) == (409, "too_many_subscriptions")


async def test_one_whose_acknowledgement_was_lost_is_made_once(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    from runwire.domain.subscription import Subscription, SubscriptionKind

    request, lost = bus.nc.request, []

    async def losing(subject: str, *arguments: object, **options: object) -> Msg:
        answer = await request(subject, *arguments, **options)
        if ".CREATE." in subject and not lost:
            lost.append(subject)
            raise TimeoutError
        return answer

    monkeypatch.setattr(bus.nc, "request", losing)
    wanted = Subscription(id="", kind=SubscriptionKind.PULL, chain=CHAIN, token="t", created=lifecycle_now(), mark="m")
    made = await subscriptions.make(bus, wanted)
    assert lost
    assert [info.name for info in await bus.js.consumers_info(subjects.EVENTS)] == [made.id]


async def test_events_of_an_earlier_version_takes_more_than_a_thousand_subscriptions(
    bus: Bus, settings: Settings
) -> None:
    config = (await bus.js.stream_info(subjects.EVENTS)).config
    await bus.js.update_stream(config.evolve(max_consumers=-1))
    await streams.provision(bus, settings)
    assert (await bus.js.stream_info(subjects.EVENTS)).config.max_consumers == streams.MAX_SUBSCRIPTIONS
