"""The AsyncAPI document: well formed, complete, and true: every message on a real bus is checked against it."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import jsonschema_rs
import pytest
import yaml
from nats.aio.client import Client
from nats.aio.msg import Msg
from pydantic import ValidationError

import runwire
from runwire.app import App
from runwire.domain.access import AccessLevel
from runwire.http import asyncapi_pages
from runwire.messaging import deadletters, subjects
from runwire.messaging.broker import Bus
from runwire.scheduler.scheduler import Scheduler
from runwire.settings import Settings
from tests.support import CHAIN, Broker, adapter, eventually, grant, on_the_bus, worker

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its models have fields named as methods of pydantic's
    from asyncapi3.models.asyncapi import AsyncAPI3

OUR_OWN = ("tasks.log.", "tasks.sch.", "tasks.due.", "tasks.key.", "tasks.aud.", "tasks.ids", "tasks.wrk.")
"""Subjects that no client may use."""
CALLS = {"create", "list", "get", "execute", "cancel"}
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
UNDESCRIBED = re.compile(r"Nats-Expected-.*|Nats-Msg-Id|Nats-Request-Info|Run-Source|Run-Tick")
"""Headers that are the broker's, or for it; and what our own commands say to our own workers."""


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return asyncapi_pages.document(Settings())


# --- well formed ---------------------------------------------------------------------------------------------


def test_the_document_is_valid(document: dict[str, Any]) -> None:
    AsyncAPI3.model_validate(document)


@pytest.mark.parametrize(
    ("path", "value"), [("operations/execute/action", "take"), ("channels/events/adress", "x"), ("info/title", None)]
)
def test_a_document_that_is_not_is_noticed(document: dict[str, Any], path: str, value: object) -> None:
    broken = json.loads(json.dumps(document))
    *parents, last = path.split("/")
    place = broken
    for name in parents:
        place = place[name]
    place[last] = value
    with pytest.raises(ValidationError):
        AsyncAPI3.model_validate(broken)


def test_no_reference_dangles(document: dict[str, Any]) -> None:
    references = set(re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(document)))
    assert references
    for reference in references:
        found: Any = document
        for name in reference.split("/"):
            found = found[name]


def test_nothing_is_described_that_is_not_used(document: dict[str, Any]) -> None:
    text = json.dumps(document)
    for kind in ("schemas", "messages", "securitySchemes"):
        assert document["components"][kind]
        for name in document["components"][kind]:
            assert f'"#/components/{kind}/{name}"' in text


def test_parameters_are_those_of_the_address(document: dict[str, Any]) -> None:
    for name, channel in document["channels"].items():
        assert re.findall(r"\{(\w+)\}", channel["address"] or "") == [*channel.get("parameters", {})], name


def test_every_message_has_an_example_that_fits_it(document: dict[str, Any]) -> None:
    contract = Contract(document)
    for name, message in document["components"]["messages"].items():
        for example in message["examples"]:
            headers = example.get("headers", {})
            complaints = contract.complaints(name, headers, example["payload"])
            assert not complaints, (name, complaints)
            assert set(headers) <= set(message.get("headers", {}).get("properties", {})), name


def test_fields_are_explained(document: dict[str, Any]) -> None:
    run = document["components"]["schemas"]["Run"]["properties"]
    assert run["attempt"]["description"].startswith("1 for the first")
    assert run["started"]["description"] == "When the first attempt began; null: it was cancelled before."
    assert "claim" not in run
    assert ":func:" not in json.dumps(document)


# --- served --------------------------------------------------------------------------------------------------


async def test_everybody_gets_it_in_three_forms(settings: Settings, bus: Bus) -> None:
    async with adapter(settings) as http:
        async with httpx.AsyncClient(base_url=http.base_url) as anonymous:
            page = await anonymous.get("/asyncapi")
            as_yaml = await anonymous.get("/asyncapi.yaml")
            as_json = await anonymous.get("/asyncapi.json")
    assert as_yaml.headers["content-type"] == "text/yaml; charset=utf-8"
    assert yaml.safe_load(as_yaml.text) == as_json.json()
    assert as_json.json()["asyncapi"] == "3.0.0"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for channel in as_json.json()["channels"].values():
        assert (channel["address"] or "") in page.text
    for name in as_json.json()["components"]["messages"]:
        assert name in page.text
    for secret in (settings.nats_url, settings.bus_key.get_secret_value()):
        assert secret not in page.text + as_yaml.text


# --- true ----------------------------------------------------------------------------------------------------


class Contract:
    """What the document says, to hold messages against."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        self._messages = document["components"]["messages"]
        self._addresses = {
            name: re.compile(_pattern(channel))
            for name, channel in document["channels"].items()
            if channel["address"] is not None
        }

    def channel(self, subject: str) -> str | None:
        """The one whose address the subject fits; None: there is none."""
        return next((name for name, pattern in self._addresses.items() if pattern.fullmatch(subject)), None)

    def kinds(self, channel: str, message: Msg) -> dict[str, list[str]]:
        """Each message of the channel: what speaks against this being one."""
        payload = json.loads(message.data) if message.data.strip() else {}
        names = self._document["channels"][channel]["messages"]
        return {name: self.complaints(name, message.headers or {}, payload) for name in names}

    def complaints(self, name: str, headers: dict[str, str], payload: object) -> list[str]:
        message = self._messages[name]
        known = message.get("headers", {})
        return [
            *(f"headers: {error}" for error in self._errors(known, headers)),
            *(f"payload: {error}" for error in self._errors(message["payload"], payload)),
        ]

    def undescribed(self, channel: str, headers: dict[str, str]) -> set[str]:
        """The headers that no message of the channel knows."""
        known = [self._messages[name].get("headers", {}) for name in self._document["channels"][channel]["messages"]]
        names = {name for schema in known for name in schema.get("properties", {})}
        patterns = [UNDESCRIBED.pattern, *(p for schema in known for p in schema.get("patternProperties", {}))]
        return {header for header in headers if header not in names and not any(re.match(p, header) for p in patterns)}

    def _errors(self, schema: dict[str, Any], value: object) -> Iterator[str]:
        whole = {**schema, "components": self._document["components"]}
        for error in jsonschema_rs.Draft7Validator(whole, validate_formats=True).iter_errors(value):
            yield f"{error.instance_path} {error.message}"[:300]


def _pattern(channel: dict[str, Any]) -> str:
    pattern = re.escape(channel["address"])
    for name, about in channel["parameters"].items():
        values = "|".join(about["enum"]) if "enum" in about else about["x-pattern"].strip("^$")
        pattern = pattern.replace(rf"\{{{name}\}}", f"(?:{values})")
    return pattern


class Traffic:
    """All that goes over the bus."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Msg]] = []
        """(channel, message); the channel of what goes to an inbox is ``replies``."""
        self.strange: list[str] = []

    async def listen(self, contract: Contract, client: Client, *wanted: str) -> None:
        async def see(message: Msg) -> None:
            subject = message.subject
            channel = contract.channel(subject)
            if subject.startswith(("_INBOX_", "replies.")):
                channel = "replies"
            if channel is not None:
                self.seen.append((channel, message))
            elif not subject.startswith(OUR_OWN):
                self.strange.append(subject)

        for subject in wanted:
            await client.subscribe(subject, cb=see)
        await client.flush()

    def has(self, end: str, times: int = 1) -> bool:
        return sum(message.subject.endswith(end) for _, message in self.seen) >= times


@pytest.fixture
def app(app: App) -> App:
    @app.action("talks")
    async def talks(params: dict[str, object], ctx: runwire.Context) -> dict[str, object]:
        ctx.log("so far so good")
        ctx.progress(0.5, "half of it")
        if ctx.attempt == 1:
            raise runwire.Retry("not yet", after=0)
        return {"said": True}

    @app.action("fails")
    async def fails(params: dict[str, object], ctx: runwire.Context) -> None:
        raise runwire.Fail("not_today", "It is Tuesday.")

    return app


@pytest.fixture
async def http(settings: Settings, bus: Bus, app: App) -> AsyncIterator[httpx.AsyncClient]:
    scheduler = Scheduler(bus, settings)
    async with adapter(settings) as client, worker(bus, app, settings):
        await scheduler.start()
        yield client
        await scheduler.stop()


@pytest.fixture
async def ear(http: httpx.AsyncClient, bus: Bus, broker: Broker) -> AsyncIterator[Client]:
    """Another operator's, which listens. (Who subscribes to a request twice is not let answer it.)"""
    client = await on_the_bus(broker, *await grant(bus, token_id="ear"))
    yield client
    await client.close()


@pytest.fixture
async def client(http: httpx.AsyncClient, bus: Bus, broker: Broker) -> AsyncIterator[Client]:
    """An operator's, with two services: one that answers and one that does not want to."""
    client = await on_the_bus(broker, *await grant(bus, level=AccessLevel.MANAGER, token_id="own"))

    async def answer(message: Msg) -> None:
        await message.respond(b'{"printed": true}')

    async def refuse(message: Msg) -> None:
        headers = {subjects.SERVICE_ERROR: "printer jammed", subjects.SERVICE_ERROR_CODE: "400"}
        await client.publish(message.reply, b'{"code": "jammed"}', headers=headers)

    await client.subscribe(subjects.service(CHAIN, "print"), cb=answer)
    await client.subscribe(subjects.service(CHAIN, "jam"), cb=refuse)
    await client.flush()
    yield client
    await client.close()


async def everything_happens(http: httpx.AsyncClient, client: Client, traffic: Traffic) -> None:
    """Whatever clients can bring about, at least once."""

    async def task(number: int, action: str, **fields: Any) -> None:
        target = {"action": action, **fields.pop("target", {})}
        body = {"id": number, "chain": CHAIN, "desc": "", "trigger": {}, "target": target, **fields}
        assert (await http.post("/tasks", json=body)).status_code == 201

    async def execute(number: int, code: str = "DONE") -> None:
        assert (await http.post(f"/tasks/{number}/execute", headers={"traceparent": TRACE})).json()["code"] == code

    js = client.jetstream()
    headers = {subjects.MSG_ID: "order-17", "traceparent": TRACE, "tracestate": "rojo=1"}
    await task(1, "talks", retry={"attempts": 2})
    await js.publish(subjects.command(CHAIN, 1), b'{"reason": "the nightly one failed"}', headers=headers)
    await eventually(lambda: traffic.has(".1.done"))

    await task(2, "fails")
    await execute(2, "ERROR")
    event = {"specversion": "1.0", "id": "e1", "source": "/x", "type": "x", "data": {"reason": "why not"}}
    structured = {"Content-Type": "application/cloudevents+json"}
    binary = {"ce-specversion": "1.0", "ce-id": "e2", "ce-source": "/x", "ce-type": "x"}
    for number, payload, mode in ((7, json.dumps(event).encode(), structured), (8, b"", binary)):
        await task(number, "noop")
        await js.publish(subjects.command(CHAIN, number), payload, headers=mode)
        await eventually(lambda end=f".{number}.done": traffic.has(end))

    await task(3, "sleep", target={"seconds": 60}, trigger={"every": 1, "paused": True})
    await http.post("/tasks/3/execute", headers={"Prefer": "respond-async"})
    await eventually(lambda: traffic.has(".3.inprogress"))
    with pytest.raises(Exception, match="maximum messages per subject"):
        await js.publish(subjects.command(CHAIN, 3), b"{}")
    await http.patch("/tasks/3", json={"trigger": {"paused": False}})
    await eventually(lambda: traffic.has(".3.skipped"))
    assert (await http.post("/tasks/3/cancel")).status_code == 200
    await http.patch("/tasks/3", json={"trigger": {"paused": True}})
    assert (await http.delete("/tasks/3?force=true")).status_code == 204

    for number, action, fields, code in (
        (4, "request", {"service": "print", "payload": {"page": 1}}, "DONE"),
        (5, "request", {"service": "jam"}, "ERROR"),
        (6, "publish", {"subject": "pages.printed", "payload": {"page": 1}}, "DONE"),
    ):
        await task(number, action, target=fields)
        await execute(number, code)

    for call, asked in (
        ("create", {"id": 9, "chain": CHAIN, "desc": "", "target": {"action": "sleep", "seconds": 60}, "trigger": {}}),
        ("list", {"status": "READY", "limit": 2}),
        ("execute", {"id": 9, "if_running": "queue"}),
        ("get", {"id": 9, "log_limit": 1}),
        ("cancel", {"id": 9}),
    ):
        preference = {"Prefer": "respond-async", "traceparent": TRACE} if call == "execute" else None
        subject = subjects.api(CHAIN, "own", f"tasks.{call}")
        reply = await client.request(subject, json.dumps(asked).encode(), timeout=10, headers=preference)
        assert reply.headers["Http-Status"][0] == "2", reply.data
    await client.request(subjects.api(CHAIN, "own", "tasks.get"), b'{"id": 9999}', timeout=10)

    await js.publish(subjects.command(CHAIN, 999), b"{}")
    await eventually(lambda: traffic.has("dlq.1764.999"))


async def test_every_message_on_the_bus_is_as_the_document_says(
    http: httpx.AsyncClient, client: Client, ear: Client, bus: Bus
) -> None:
    document = (await http.get("/asyncapi.json")).json()
    contract, ours, theirs = Contract(document), Traffic(), Traffic()
    await ours.listen(contract, bus.nc, "tasks.>", "services.>", "messages.>", "replies.>", "api.>")
    await theirs.listen(contract, client, subjects.inbox_of("own"))
    heard = [subjects.whole_chain(CHAIN), subjects.dead_letters_of(CHAIN)]
    await theirs.listen(contract, ear, *heard, subjects.services_of(CHAIN), subjects.messages_of(CHAIN))
    await everything_happens(http, client, theirs)
    given_up = await bus.js.pull_subscribe(f"tasks.evt.{CHAIN}.1.done", stream=subjects.EVENTS)
    (event,) = await given_up.fetch(1, timeout=5)
    await deadletters.bury_event(bus, event, subscription="hook-1764-5f2c", detail="The receiver answered 500.")
    await eventually(lambda: theirs.has(".web_hook"))

    kinds_seen: set[str] = set()
    for channel, message in (*ours.seen, *theirs.seen):
        found = contract.kinds(channel, message)
        fitting = {name for name, complaints in found.items() if not complaints}
        assert fitting, (message.subject, message.headers, message.data, found)
        kinds_seen |= fitting
        if channel != "replies":  # what services reply is theirs
            assert not contract.undescribed(channel, message.headers or {}), message.subject
    assert ours.strange == theirs.strange == [], "subjects that the document does not know"
    assert kinds_seen == set(document["components"]["messages"]), "each kind of message was seen"
    assert {channel for channel, _ in theirs.seen} == set(document["channels"]) - {"commands", *CALLS}


GARBLED: list[tuple[bytes, dict[str, str]]] = [
    (b'{"runs": "x"}', {}),
    (b"[]", {}),
    (b'{"run": "no id!"}', {}),
    (b"{}", {"Run-Id": "no id!"}),
    (b"{}", {"ce-id": "17"}),
    (b"{}", {"Content-Type": "application/cloudevents+json"}),
]


async def test_what_the_document_does_not_allow_is_not_run(
    document: dict[str, Any], settings: Settings, bus: Bus, app: App
) -> None:
    contract, heard = Contract(document), Traffic()
    await heard.listen(contract, bus.nc, subjects.dead_letters_of(CHAIN))
    async with worker(bus, app, settings):
        for task, (payload, headers) in enumerate(GARBLED, start=1):
            command = Msg(bus.nc, subject=subjects.command(CHAIN, task), data=payload, headers=headers)
            assert all(contract.kinds("commands", command).values()), (payload, headers)
            await bus.js.publish(command.subject, payload, headers=headers)
        nobodys = f"tasks.cmd.{CHAIN}.007.execute"
        assert contract.channel(nobodys) is None
        await bus.js.publish(nobodys, b"{}")
        await eventually(lambda: len(heard.seen) == len(GARBLED) + 1, what="they are all dead letters")
    assert heard.strange == []
    for _, letter in heard.seen:
        assert letter.headers[subjects.DEAD_REASON] == "undecodable"
        assert not contract.kinds("deadLetters", letter)["DeadLetter"]
