"""Clients of the bus: who is let in, what they may do, what they cannot forge, and how they lose it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client
from nats.js.errors import APIError

from runwire.doctor import _bus_logins
from runwire.domain import access
from runwire.domain.access import AccessLevel
from runwire.messaging import accounts, callout, subjects, tokens
from runwire.messaging.broker import Bus
from runwire.messaging.callout import Callout
from runwire.settings import Settings
from runwire.signing import claims_of, new_seed
from tests.support import (
    CHAIN,
    HEADERS,
    TOKEN,
    Broker,
    adapter,
    answering_logins,
    connected,
    eventually,
    free_port,
    grant,
    lifecycle_now,
    make_task,
    on_the_bus,
    refused_reconnections,
)

REFUSED = "-ERR 'Authorization Violation'"
OTHER = 2000
"""Another chain."""


class Services:
    """A client of each of two chains, all that they receive, and all that the broker complains of."""

    def __init__(self) -> None:
        self.complaints: list[str] = []
        self.seen: list[str] = []

    async def complain(self, error: Exception) -> None:
        self.complaints.append(str(error))

    async def see(self, message: nats.aio.msg.Msg) -> None:
        self.seen.append(message.subject)

    async def refuses(self, client: Client, subject: str, kind: str = "publish") -> None:
        """The broker complains of the client's use of this subject."""
        text = f'permissions violation for {kind} to "{subject}"'.lower()
        await eventually(lambda: any(text in complaint.lower() for complaint in self.complaints), what=text)


@pytest.fixture(scope="module")
def nats_config() -> Path:
    """With every account there is."""
    return Path(__file__).parents[2] / "nats.conf"


@pytest.fixture
async def callouts(bus: Bus, settings: Settings) -> AsyncIterator[Callout]:
    async with answering_logins(bus, settings) as callout:
        yield callout


@pytest.fixture
def services() -> Services:
    return Services()


@pytest.fixture
async def client(bus: Bus, broker: Broker, callouts: Callout, services: Services) -> AsyncIterator[Client]:
    """Of chain CHAIN, an operator's."""
    client = await on_the_bus(broker, *await grant(bus, token_id="own"), error_cb=services.complain)
    yield client
    await client.close()


@pytest.fixture
async def other(bus: Bus, broker: Broker, callouts: Callout, services: Services) -> AsyncIterator[Client]:
    """Of chain OTHER, listening to everything that it may."""
    client = await on_the_bus(broker, *await grant(bus, OTHER, token_id="other"), error_cb=services.complain)
    own = [subjects.whole_chain(OTHER), subjects.services_of(OTHER), subjects.messages_of(OTHER)]
    for subject in (*own, subjects.dead_letters_of(OTHER), subjects.inbox_of("other")):
        await client.subscribe(subject, cb=services.see)
    await client.flush()
    yield client
    await client.close()


async def knock(broker: Broker, user: str | None = None, secret: str | None = None, **options: str) -> str:
    """What the broker says to a login, PONG or REFUSED; by hand: nats-py leaks refused connections."""
    host, port = broker.bus_url.removeprefix("nats://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        connect = {
            "verbose": False,
            "lang": "test",
            "version": "1",
            "protocol": 1,
            "user": user,
            "pass": secret,
            **options,
        }
        writer.write(b"CONNECT " + json.dumps(connect).encode() + b"\r\nPING\r\n")
        async with asyncio.timeout(10):
            while (line := await reader.readline()).startswith((b"INFO", b"PING")):
                pass
        return line.decode().strip()
    finally:
        writer.close()
        await writer.wait_closed()


async def _say_nothing(_error: Exception) -> None:
    """The caller hears of it."""


async def change(bus: Bus, token_id: str, **fields: object) -> None:
    """As another process would change the token."""
    await tokens.change(bus, token_id, lambda token: token.model_copy(update=fields))


async def loses_its_connection(client: Client, lost: asyncio.Event) -> float:
    """Seconds until it is cut."""
    began = time.monotonic()
    async with asyncio.timeout(10):
        await lost.wait()
    return time.monotonic() - began


def noticing() -> tuple[asyncio.Event, dict[str, object]]:
    """(set when the connection is lost, options of the client)."""
    lost = asyncio.Event()

    async def notice() -> None:
        lost.set()

    return lost, {"disconnected_cb": notice, "error_cb": _say_nothing, "allow_reconnect": False}


# --- who is let in -------------------------------------------------------------------------------------------


async def test_a_token_opens_the_bus_and_a_command_is_acknowledged(bus: Bus, client: Client) -> None:
    await make_task(bus)
    ack = await client.jetstream().publish(subjects.command(CHAIN, 1), b"{}")
    assert ack.stream == subjects.COMMANDS
    with pytest.raises(APIError) as busy:
        await client.jetstream().publish(subjects.command(CHAIN, 1), b"{}")
    assert (busy.value.code, busy.value.err_code) == (503, 10077)


async def test_nobody_else_is_let_in(bus: Bus, broker: Broker, callouts: Callout) -> None:
    past = lifecycle_now() - timedelta(hours=1)
    token_id, secret = await grant(bus)
    expired, its_secret = await grant(bus, expires=past)
    inactive, another_secret = await grant(bus, active=False)
    answers = [
        await knock(broker, token_id, "wrong"),
        await knock(broker, "nobody", "wrong"),
        await knock(broker, token_id),
        await knock(broker, f"{token_id}:{secret}", secret),
        await knock(broker, expired, its_secret),
        await knock(broker, inactive, another_secret),
        await knock(broker, auth_token=f"{token_id}:{secret}"),
        await knock(broker, "runwire", secret),
        await knock(broker, callout.PROBE, secret),
        await knock(broker),
    ]
    assert set(answers) == {REFUSED}


async def test_a_token_of_several_chains_names_one(bus: Bus, broker: Broker, callouts: Callout) -> None:
    token_id, secret = await grant(bus, also={OTHER: AccessLevel.VIEWER})
    assert await knock(broker, token_id, secret) == REFUSED
    assert await knock(broker, f"{token_id}.3", secret) == REFUSED
    assert await knock(broker, f"{token_id}.0{CHAIN}", secret) == REFUSED
    client = await on_the_bus(broker, token_id, secret, user=f"{token_id}.{CHAIN}")
    assert (await client.jetstream().publish(subjects.command(CHAIN, 1), b"{}")).stream == subjects.COMMANDS
    await client.close()


async def test_both_secrets_work_while_they_overlap(bus: Bus, broker: Broker, callouts: Callout) -> None:
    token_id, former = await grant(bus)
    now = lifecycle_now()
    await tokens.change(
        bus,
        token_id,
        lambda token: access.rotate(
            token, "new", overlap=timedelta(hours=1), expires=now + timedelta(days=1), by="test", now=now
        ),
    )
    for secret in (former, "new"):
        await (await on_the_bus(broker, token_id, secret)).close()


async def test_every_token_is_known_however_many_there_are(
    bus: Bus, broker: Broker, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runwire.messaging.mirror.WINDOW", 10)
    made = [await grant(bus) for _ in range(45)]
    async with answering_logins(bus, settings):
        made += [await grant(bus) for _ in range(25)]
        for token in (made[0], made[44], made[-1]):
            await (await on_the_bus(broker, *token)).close()


async def test_our_own_processes_do_not_need_it(settings: Settings, bus: Bus, broker: Broker) -> None:
    """Nobody answers logins here."""
    another = await connected(settings)
    assert (await another.js.stream_info(subjects.EVENTS)).config.name == subjects.EVENTS
    await another.nc.close()
    token_id, secret = await grant(bus)
    began = time.monotonic()
    assert await knock(broker, token_id, secret) == REFUSED
    assert 1.5 < time.monotonic() - began < 3.5


@refused_reconnections
async def test_a_client_that_does_not_give_up_comes_back_with_the_adapters(
    bus: Bus, settings: Settings, broker: Broker
) -> None:
    lost, options = noticing()
    async with answering_logins(bus, settings):
        client = await on_the_bus(
            broker, *await grant(bus), **{**options, "allow_reconnect": True, "max_reconnect_attempts": -1}
        )
    broker.restart()
    await lost.wait()
    await eventually(lambda: bus.is_connected)
    assert not client.is_connected
    async with answering_logins(bus, settings):
        await eventually(lambda: client.is_connected, what="the client is back")
    await client.close()


async def test_the_answer_survives_a_restart_of_the_broker(bus: Bus, broker: Broker, callouts: Callout) -> None:
    token_id, secret = await grant(bus)
    broker.restart()
    await eventually(lambda: bus.is_connected)

    async def lets_in() -> bool:
        return await knock(broker, token_id, secret) == "PONG"

    await eventually(lets_in, within=10)


async def test_a_key_that_the_broker_does_not_know_opens_nothing(bus: Bus, settings: Settings, broker: Broker) -> None:
    stranger = settings.model_copy(update={"bus_key": settings.bus_key.__class__(new_seed())})
    async with answering_logins(bus, stranger):
        token_id, secret = await grant(bus)
        assert await knock(broker, token_id, secret) == REFUSED
        finding = await _bus_logins(bus)
    assert not finding.ok
    assert "no pair" in finding.detail


# --- what a client may do ------------------------------------------------------------------------------------


async def test_a_client_sees_its_chains_events_and_no_others(bus: Bus, client: Client, services: Services) -> None:
    await client.subscribe(subjects.whole_chain(CHAIN), cb=services.see)
    await client.flush()
    await make_task(bus, task=8, chain=OTHER)
    await make_task(bus, task=9)
    await eventually(lambda: services.seen)
    assert services.seen == [f"tasks.evt.{CHAIN}.9.ready"]


async def test_a_client_sees_its_chains_dead_letters_and_no_others(
    bus: Bus, client: Client, other: Client, services: Services
) -> None:
    await client.subscribe(subjects.dead_letters_of(CHAIN), cb=services.see)
    await client.flush()
    for chain in (OTHER, CHAIN, OTHER):
        await bus.js.publish(subjects.dead_letter(chain, 9), b"?", headers={"Dead-Letter-Reason": "undecodable"})
    await eventually(lambda: len(services.seen) == 3)
    assert sorted(services.seen) == [f"tasks.dlq.{CHAIN}.9", *[f"tasks.dlq.{OTHER}.9"] * 2]


async def test_a_viewer_sees_events_and_publishes_nothing(
    bus: Bus, broker: Broker, callouts: Callout, services: Services
) -> None:
    viewer = await on_the_bus(broker, *await grant(bus, level=AccessLevel.VIEWER), error_cb=services.complain)
    await viewer.subscribe(subjects.whole_chain(CHAIN), cb=services.see)
    await viewer.publish(subjects.command(CHAIN, 1), b"{}")
    await services.refuses(viewer, subjects.command(CHAIN, 1))
    for subject in (subjects.services_of(CHAIN), subjects.messages_of(CHAIN)):
        await viewer.subscribe(subject)
        await services.refuses(viewer, subject, "subscription")
    await make_task(bus)
    await eventually(lambda: services.seen)
    assert (await bus.js.stream_info(subjects.COMMANDS)).state.messages == 0
    await viewer.close()


@pytest.mark.parametrize(
    "subject",
    [
        subjects.command(OTHER, 1),
        f"tasks.cmd.{CHAIN}.>",
        "tasks.cmd.*.1.execute",
        f"tasks.cmd.{CHAIN}.1.cancel",
        f"tasks.evt.{CHAIN}.1.done",
        subjects.dead_letter(CHAIN, 1),
        subjects.log(CHAIN, 1),
        subjects.alarm(CHAIN, 1),
        subjects.due(CHAIN, 1),
        f"$KV.{subjects.TOKENS_BUCKET}.own",
        "$JS.API.INFO",
        f"$JS.API.STREAM.INFO.{subjects.EVENTS}",
        f"$JS.API.STREAM.PURGE.{subjects.EVENTS}",
        f"$JS.API.DIRECT.GET.{subjects.EVENTS}",
        f"$JS.API.CONSUMER.CREATE.{subjects.EVENTS}",
        f"$JS.API.CONSUMER.MSG.NEXT.{subjects.COMMANDS}.{subjects.workers(CHAIN)}",
        f"$JS.ACK.{subjects.COMMANDS}.{subjects.workers(CHAIN)}.1.1.1.1.0",
        "$SYS.REQ.SERVER.PING.CONNZ",
        subjects.LOGINS,
        "_INBOX_other.x",
        subjects.ROLL_CALL,
        subjects.service(CHAIN, "invoices"),
        subjects.message(CHAIN, "invoices"),
        subjects.reply("x"),
    ],
)
async def test_a_client_may_not_publish_to(client: Client, services: Services, subject: str) -> None:
    await client.publish(subject, b"{}")
    await services.refuses(client, subject)


@pytest.mark.parametrize(
    "subject",
    [">", "*.*.*.*.*", "tasks.>", "tasks.evt.>", f"tasks.evt.{OTHER}.>", "tasks.evt.*.1.done", "tasks.cmd.>",
     "tasks.dlq.>", f"tasks.dlq.{OTHER}.>", "tasks.dlq.*.1",
     "tasks.log.>", "_INBOX.>", "_INBOX_other.>", "$JS.>", "$SYS.>", "$KV.>", subjects.LOGINS,
     "services.>", f"services.{OTHER}.>", "messages.>", f"messages.{OTHER}.x", "replies.>", "replies.*"],
)  # fmt: skip
async def test_a_client_may_not_subscribe_to(client: Client, services: Services, subject: str) -> None:
    await client.subscribe(subject, cb=services.see)
    await services.refuses(client, subject, "subscription")


async def test_a_forged_reply_reaches_nobody(
    bus: Bus, client: Client, other: Client, callouts: Callout, services: Services
) -> None:
    """An acknowledgement goes where the publisher says, but never out of its own account."""
    await make_task(bus, task=5, chain=OTHER)
    await eventually(lambda: services.seen)
    forged = [
        f"tasks.evt.{OTHER}.5.done",
        f"tasks.evt.{CHAIN}.1.done",
        subjects.dead_letter(OTHER, 5),
        subjects.command(OTHER, 5),
        subjects.command(CHAIN, 99),
        subjects.alarm(OTHER, 5),
        "_INBOX_other.x",
        subjects.service(OTHER, "invoices"),
        subjects.message(OTHER, "invoices"),
        subjects.reply("x"),
        f"$KV.{subjects.TOKENS_BUCKET}.other",
        f"$JS.API.STREAM.PURGE.{subjects.EVENTS}",
        "$SYS.REQ.SERVER.PING.CONNZ",
    ]
    for task, reply in enumerate(forged, start=10):
        await client.publish(subjects.command(CHAIN, task), b"{}", reply=reply)
    await eventually(lambda: _queued(bus, len(forged)), what="the commands themselves were taken")
    await make_task(bus, task=6, chain=OTHER)  # what was on its way before it has arrived when this one has
    await eventually(lambda: f"tasks.evt.{OTHER}.6.ready" in services.seen)
    assert services.seen == [f"tasks.evt.{OTHER}.5.ready", f"tasks.evt.{OTHER}.6.ready"]
    assert (await bus.js.stream_info(subjects.EVENTS)).state.messages == 2
    queue = await bus.js.stream_info(subjects.COMMANDS, subjects_filter=">")
    assert set(queue.state.subjects or {}) == {subjects.command(CHAIN, 10 + n) for n in range(len(forged))}
    assert await tokens.get(bus, "other") is not None


async def _queued(bus: Bus, count: int) -> bool:
    return (await bus.js.stream_info(subjects.COMMANDS)).state.messages == count


async def test_an_acknowledgement_cannot_be_forged_by_a_reply(client: Client, services: Services) -> None:
    reply = f"$JS.ACK.{subjects.COMMANDS}.{subjects.workers(OTHER)}.1.1.1.1.0"
    await client.publish(subjects.command(CHAIN, 1), b"{}", reply=reply)
    text = "permissions violation for publish with reply"
    await eventually(lambda: any(text in complaint.lower() for complaint in services.complaints))


async def test_clients_of_a_chain_do_not_read_each_others_replies(
    bus: Bus, broker: Broker, client: Client, services: Services
) -> None:
    second = await on_the_bus(broker, *await grant(bus, token_id="second"), error_cb=services.complain)
    await second.subscribe(subjects.inbox_of("own"), cb=services.see)
    await services.refuses(second, subjects.inbox_of("own"), "subscription")
    assert b"seq" in (await client.request(subjects.command(CHAIN, 1), b"{}")).data
    assert services.seen == []
    await second.close()


async def test_a_wildcard_in_a_commands_subject_stays_in_the_chain(bus: Bus, client: Client) -> None:
    """The permission covers it like any task's id; it is one message, and of no task."""
    subject = f"tasks.cmd.{CHAIN}.*.execute"
    await client.jetstream().publish(subject, b"{}")
    assert (await bus.js.stream_info(subjects.COMMANDS, subjects_filter=">")).state.subjects == {subject: 1}


# --- accounts ------------------------------------------------------------------------------------------------


async def test_every_chain_has_an_account_of_its_own_and_keeps_it(
    bus: Bus, broker: Broker, settings: Settings, client: Client, other: Client
) -> None:
    given, _ = await accounts.taken(bus)
    assert given == {CHAIN: "B001", OTHER: "B002"}
    async with answering_logins(bus, settings):  # another adapter
        third = await on_the_bus(broker, *await grant(bus, OTHER))
        await third.close()
    assert (await accounts.taken(bus))[0] == given


async def test_adapters_give_accounts_out_at_the_same_time(bus: Bus, callouts: Callout) -> None:
    adapters = [accounts.Accounts(bus) for _ in range(4)]
    found = await asyncio.gather(*(adapters[n % 4].give(1 + n // 4) for n in range(40)))
    given, _ = await accounts.taken(bus)
    assert len(set(given.values())) == len(given) == 10
    assert [given[1 + n // 4] for n in range(40)] == found


async def test_a_chain_for_which_no_account_is_left_knock(bus: Bus, broker: Broker, callouts: Callout) -> None:
    everything = dict(enumerate(sorted(await accounts.pool(bus)), start=1001))
    assert len(everything) == 256
    bucket = await bus.bucket(subjects.SETTINGS_BUCKET)
    await bucket.put(accounts.KEY, json.dumps(everything).encode())
    token_id, secret = await grant(bus)
    assert await knock(broker, token_id, secret) == REFUSED
    await (await on_the_bus(broker, *await grant(bus, 1256))).close()
    finding = await _bus_logins(bus)
    assert not finding.ok
    assert "256 of 256" in finding.detail


# --- how it is lost ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [{"active": False}, {"active": False, "deleted": lifecycle_now()}, {"digest": access.digest("rotated")}],
    ids=["deactivated", "deleted", "rotated"],
)
async def test_a_connection_is_cut_when_its_token_no_longer_opens_it(
    bus: Bus, broker: Broker, callouts: Callout, fields: dict[str, object], client: Client
) -> None:
    lost, options = noticing()
    token_id, secret = await grant(bus)
    doomed = await on_the_bus(broker, token_id, secret, **options)
    await change(bus, token_id, **fields)
    assert await loses_its_connection(doomed, lost) < 3
    assert await knock(broker, token_id, secret) == REFUSED
    assert client.is_connected


async def test_an_expired_token_loses_its_connection(bus: Bus, broker: Broker, callouts: Callout) -> None:
    lost, options = noticing()
    expiry = lifecycle_now() + timedelta(seconds=2)
    token = await grant(bus, expires=expiry)
    client = await on_the_bus(broker, *token, **options)
    assert await loses_its_connection(client, lost) < 4
    await eventually(lambda: lifecycle_now() > expiry)
    assert await knock(broker, *token) == REFUSED


async def test_the_former_secret_loses_its_connections_when_the_overlap_is_over(
    bus: Bus, broker: Broker, callouts: Callout
) -> None:
    lost, options = noticing()
    token_id, former = await grant(bus)
    client = await on_the_bus(broker, token_id, former, **options)
    now = lifecycle_now()
    await tokens.change(
        bus,
        token_id,
        lambda token: access.rotate(
            token, "new", overlap=timedelta(seconds=2), expires=now + timedelta(days=1), by="test", now=now
        ),
    )
    renewed = await on_the_bus(broker, token_id, "new")
    assert await loses_its_connection(client, lost) < 6
    assert renewed.is_connected
    await renewed.close()
    await client.close()


async def test_what_was_revoked_while_no_adapter_was_up_is_cut_when_one_starts(
    bus: Bus, broker: Broker, settings: Settings
) -> None:
    lost, options = noticing()
    token_id, secret = await grant(bus)
    async with answering_logins(bus, settings):
        client = await on_the_bus(broker, token_id, secret, **options)
    await change(bus, token_id, active=False)
    assert client.is_connected
    async with answering_logins(bus, settings):
        assert await loses_its_connection(client, lost) < 3
    await client.close()


async def test_a_description_that_changes_cuts_nobody(bus: Bus, broker: Broker, callouts: Callout) -> None:
    lost, options = noticing()
    token_id, secret = await grant(bus)
    kept, (doomed_id, its_secret) = await on_the_bus(broker, token_id, secret, **options), await grant(bus)
    doomed_lost, more = noticing()
    doomed = await on_the_bus(broker, doomed_id, its_secret, **more)
    await change(bus, token_id, desc="another")
    await change(bus, doomed_id, active=False)
    await loses_its_connection(doomed, doomed_lost)
    assert not lost.is_set()
    await kept.close()
    await doomed.close()


async def test_a_login_is_good_for_hours_and_not_all_end_at_once(bus: Bus, broker: Broker, callouts: Callout) -> None:
    questions: list[bytes] = []

    async def remember(question: nats.aio.msg.Msg) -> None:
        questions.append(question.data)

    await bus.nc.subscribe(subjects.LOGINS, cb=remember)
    await bus.nc.flush()
    token = await grant(bus)
    await (await on_the_bus(broker, *token)).close()
    login = callout.parse_login(await eventually(lambda: questions and questions[0]))
    assert (login.user, login.password) == token
    ends = []
    for _ in range(20):
        allowed = callouts._admit(login)
        ends.append(claims_of((await callouts._client(login, allowed)).encode())["exp"] - time.time())
    assert all(3 * 3600 - 5 < left <= 6 * 3600 for left in ends)
    assert max(ends) - min(ends) > 60


# --- over the API, with two adapters -------------------------------------------------------------------------


async def test_a_token_made_through_one_adapter_and_deleted_through_another(
    bus: Bus, broker: Broker, settings: Settings
) -> None:
    lost, options = noticing()
    second = settings.model_copy(update={"http_port": free_port(), "data_dir": settings.data_dir / "second"})
    async with adapter(settings) as one, adapter(second) as two:
        made = (
            await one.post("/access_tokens", json={"kind": "privileged", "chain": CHAIN, "level": "operator"})
        ).json()
        client = await on_the_bus(broker, made["id"], made["secret"], **options)
        assert (await client.jetstream().publish(subjects.command(CHAIN, 12345), b"{}")).stream == subjects.COMMANDS
        await knock(broker, made["id"], "wrong")
        assert (await two.delete(f"/access_tokens/{made['id']}")).status_code == 204
        assert await loses_its_connection(client, lost) < 3

        async def told() -> list[dict[str, object]]:
            rows = (await one.get("/audit?action=call.refused")).json()
            return [row for row in rows if row["by"] == made["id"] and row["subject"] == "bus"]

        rows = await eventually(told)
        assert (rows[0]["detail"]["method"], rows[0]["detail"]["code"]) == ("CONNECT", "unauthenticated")


async def test_the_same_token_opens_both_doors(broker: Broker, settings: Settings) -> None:
    async with adapter(settings) as http:
        client = await on_the_bus(broker, *TOKEN.split(":"))
        assert (await http.get("/tasks", headers=HEADERS)).status_code == 200
        await client.close()


# --- floods --------------------------------------------------------------------------------------------------


async def test_refusals_are_bounded_and_keep_nobody_out(bus: Bus, broker: Broker, callouts: Callout) -> None:
    token_id, secret = await grant(bus)
    flood = [asyncio.create_task(knock(broker, f"nobody-{n}", "x")) for n in range(150)]
    began = time.monotonic()
    client = await on_the_bus(broker, token_id, secret, connect_timeout=5)
    assert time.monotonic() - began < 2
    answers = await asyncio.gather(*flood)
    assert set(answers) == {REFUSED}
    await client.close()


async def test_garbled_questions_are_left_alone(bus: Bus, broker: Broker, callouts: Callout) -> None:
    for question in (b"", b"x.y.z", b"a.e30.c", b"a.W10.c", b"a.eyJuYXRzIjp7fX0.c"):
        await bus.nc.publish(subjects.LOGINS, question, reply=bus.nc.new_inbox())
    await (await on_the_bus(broker, *await grant(bus))).close()


# --- doctor --------------------------------------------------------------------------------------------------


async def test_doctor_says_whether_logins_are_answered(bus: Bus, settings: Settings) -> None:
    async with answering_logins(bus, settings):
        finding = await _bus_logins(bus)
        assert finding.ok
        assert finding.detail.endswith("0 of 256 accounts have a chain")
    finding = await _bus_logins(bus)
    assert not finding.ok
    assert "no adapter answers" in finding.detail


async def test_the_probe_opens_nothing(bus: Bus, broker: Broker, callouts: Callout, services: Services) -> None:
    from runwire.messaging import site

    secret = callout.probe_secret(await site.server_key(bus))
    probe = await nats.connect(broker.bus_url, user=callout.PROBE, password=secret, error_cb=services.complain)
    await probe.publish(subjects.command(CHAIN, 1), b"{}")
    await services.refuses(probe, subjects.command(CHAIN, 1))
    await probe.subscribe("tasks.evt.>")
    await services.refuses(probe, "tasks.evt.>", "subscription")
    await probe.close()
