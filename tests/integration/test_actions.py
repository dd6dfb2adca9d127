"""The registry of actions: workers publish what they know, adapters list it and check new targets by it."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

import httpx
import pytest
from nats.js.api import StreamConfig
from pydantic import BaseModel, ConfigDict, Field

import runwire
from runwire.app import App
from runwire.domain.access import AccessLevel, TokenKind, create_token, new_credential
from runwire.domain.errors import SetupError
from runwire.domain.task import RetryPolicy
from runwire.messaging import actions, subjects, tokens
from runwire.messaging.broker import Bus
from runwire.settings import Settings
from runwire.worker.actions.builtin import builtin_actions
from runwire.worker.announcer import Announcer
from tests.support import (
    CHAIN,
    Broker,
    adapter,
    connected,
    ended,
    eventually,
    lifecycle_now,
    make_task,
    publish_command,
    worker,
)


class Line(BaseModel):
    model_config = ConfigDict(extra="forbid")
    product: Annotated[str, Field(min_length=1)]
    count: Annotated[int, Field(ge=1, le=99)] = 1


class Order(BaseModel):
    """What is bought, and by whom."""

    model_config = ConfigDict(extra="forbid")
    customer: Annotated[str, Field(description="Who buys.")]
    lines: Annotated[list[Line], Field(min_length=1)]
    speed: Literal["normal", "express"] = "normal"
    gift: Line | None = None


def shop(*names: str) -> App:
    """An App with actions of these names, all of which take an order."""
    app = App()
    for name in names:

        @app.action(name)
        async def order(params: Order, ctx: runwire.Context) -> dict[str, int]:
            """Send an order,
            to whoever it is for.

            More about it.
            """
            return {"items": sum(line.count for line in params.lines)}

    return app


@asynccontextmanager
async def announced(bus: Bus, app: App, *, refresh: float = 300) -> AsyncIterator[Announcer]:
    announcer = Announcer(bus, app, clock=lifecycle_now, refresh=refresh)
    await announcer.start()
    try:
        yield announcer
    finally:
        await announcer.stop()


async def names(bus: Bus) -> list[str]:
    return [entry.name for entry in await actions.listed(bus)]


async def published(bus: Bus, *expected: str) -> None:
    await eventually(lambda: _has(bus, expected), what=f"{expected} are published")


async def _has(bus: Bus, expected: tuple[str, ...]) -> bool:
    return set(expected) <= set(await names(bus))


@pytest.fixture
async def http(settings: Settings, bus: Bus) -> AsyncIterator[httpx.AsyncClient]:
    """An adapter that knows the actions `order` and `bulk issue rewards`."""
    async with announced(bus, shop("order", "bulk issue rewards")):
        await published(bus, "order", "bulk issue rewards")
        async with adapter(settings) as client:
            yield client


async def create(http: httpx.AsyncClient, target: dict[str, Any], **how: Any) -> httpx.Response:
    return await http.post("/tasks", json={"chain": CHAIN, "desc": "", "target": target, "trigger": {}}, **how)


def complaints(answer: httpx.Response) -> dict[str, str]:
    """Pointer -> reason."""
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_fields"), answer.text
    return {error["pointer"]: error["detail"] for error in answer.json()["errors"]}


GOOD = {"action": "order", "customer": "Ada", "lines": [{"product": "tea"}]}


# --- what is listed --------------------------------------------------------------------------------------


async def test_what_workers_know_is_listed_by_name_with_its_schema(http: httpx.AsyncClient) -> None:
    answer = await http.get("/actions")
    assert answer.status_code == 200
    assert [list(action) for action in answer.json()] == [["name", "description", "schema"]] * 2
    bulk, order = answer.json()
    assert (bulk["name"], order["name"]) == ("bulk issue rewards", "order")
    assert order["description"] == "Send an order, to whoever it is for."
    assert order["schema"]["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert order["schema"]["required"] == ["customer", "lines"]
    assert order["schema"]["properties"]["customer"]["description"] == "Who buys."


async def test_a_viewer_may_see_it_and_a_stranger_may_not(http: httpx.AsyncClient, bus: Bus) -> None:
    token_id, secret = new_credential()
    viewer = create_token(
        token_id,
        secret,
        kind=TokenKind.PRIVILEGED,
        levels={99: AccessLevel.VIEWER},
        by="tester",
        now=lifecycle_now(),
        expires=None,
    )
    await tokens.create_surely(bus, viewer)
    seen = await http.get("/actions", headers={"Authorization": f"Bearer {token_id}:{secret}"})
    assert len(seen.json()) == 2
    assert (await http.get("/actions", headers={"Authorization": ""})).status_code == 401
    assert (await http.get("/actions?limit=1")).status_code == 422


async def test_the_actions_of_several_workers_are_listed_together_as_they_come(
    http: httpx.AsyncClient, settings: Settings
) -> None:
    other = await connected(settings)
    async with announced(other, shop("refund")):

        async def all_three() -> bool:
            return [action["name"] for action in (await http.get("/actions")).json()] == [
                "bulk issue rewards",
                "order",
                "refund",
            ]

        await eventually(all_three, within=6, what="the adapter has seen the second worker's")
    await other.nc.close()


async def shorten(bus: Bus, seconds: float) -> None:
    """Entries are kept for so long."""
    config = (await bus.js.stream_info(subjects.ACTIONS_STREAM)).config
    await bus.js.update_stream(StreamConfig(**vars(config)).evolve(max_age=seconds, duplicate_window=seconds))


async def test_what_nobody_serves_any_more_goes_and_may_come_back(settings: Settings, bus: Bus) -> None:
    await shorten(bus, 2)
    async with adapter(settings) as http, announced(bus, shop("stays"), refresh=0.5):

        async def listed() -> list[str]:
            return [action["name"] for action in (await http.get("/actions")).json()]

        async with announced(bus, shop("goes")):
            await eventually(lambda: _is(listed, ["goes", "stays"]), what="both are listed")
            assert (await create(http, {"action": "goes"})).status_code == 422
        await eventually(lambda: _is(listed, ["stays"]), what="the one without a worker is gone")
        assert (await create(http, {"action": "goes"})).status_code == 201, "it is unknown again"
        async with announced(bus, shop("goes")):
            await eventually(lambda: _is(listed, ["goes", "stays"]), what="it is there again")


async def _is(listed: Any, expected: list[str]) -> bool:
    return await listed() == expected


async def test_of_two_versions_of_an_action_the_newest_worker_has_the_say(bus: Bus) -> None:
    old, new = App(), App()
    old.action("order", description="old")(_take_anything)
    new.action("order", description="new")(_take_anything)
    old.action("only here")(_take_anything)
    async with announced(bus, old, refresh=0.1):
        await published(bus, "order")
        async with announced(bus, new):
            await eventually(lambda: _described(bus, "order", "new"), what="the newer one was published")
            before = await _when(bus, "only here")
            await eventually(lambda: _is_later(bus, "only here", before), what="the older worker came by again")
            assert await _described(bus, "order", "new")
        await (await bus.bucket(subjects.ACTIONS_BUCKET)).purge(subjects.action_key("order"))  # as its time were over
        await eventually(lambda: _described(bus, "order", "old"), what="the one that is left has the say")


async def _take_anything(params: dict[str, object], ctx: runwire.Context) -> None:
    """Whatever."""


async def _entry(bus: Bus, name: str) -> actions.ActionEntry | None:
    return next((entry for entry in await actions.listed(bus) if entry.name == name), None)


async def _described(bus: Bus, name: str, description: str) -> bool:
    entry = await _entry(bus, name)
    return entry is not None and entry.description == description


async def _when(bus: Bus, name: str) -> Any:
    entry = await _entry(bus, name)
    assert entry is not None
    return entry.when


async def _is_later(bus: Bus, name: str, before: Any) -> bool:
    return await _when(bus, name) > before


HOSTILE = ("a.b.>", "*", "$KV", "../x", "\n\0", "é" * 200, "naïve 🙂", " ", "name", "schema", "{}")


async def test_a_name_may_be_any_text(settings: Settings, bus: Bus) -> None:
    async with announced(bus, shop(*HOSTILE)):
        await published(bus, *HOSTILE)
        async with adapter(settings) as http:
            found = [action["name"] for action in (await http.get("/actions")).json()]
            assert found == sorted(HOSTILE)
            for name in HOSTILE:
                assert "/target/customer" in complaints(await create(http, {"action": name}))
                assert (await create(http, {**GOOD, "action": name})).status_code == 201


@pytest.mark.parametrize(("name", "says"), [("", "needs a name"), ("x" * 201, "200"), ("\ud800", "surrogates")])
def test_a_name_that_no_task_could_have_is_refused(name: str, says: str) -> None:
    with pytest.raises(SetupError, match=says):
        App().action(name)(_take_anything)


async def test_an_action_with_a_schema_too_large_is_left_out_and_still_works(
    settings: Settings, bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    app = shop("order")
    app.action("endless", description="x" * 70_000)(_take_anything)
    with caplog.at_level(logging.WARNING, "runwire.worker"):
        async with announced(bus, app), worker(bus, app, settings):
            await published(bus, "order")
            assert await names(bus) == ["order"]
            await make_task(bus, "endless", retry=RetryPolicy())
            await publish_command(bus, "r")
            assert (await ended(bus, "r")).run.code == "DONE"
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "runwire.worker"]
    assert "'endless' is not listed" in warning
    assert "at most 65,536" in warning


async def test_the_bucket_itself_takes_no_more(bus: Bus) -> None:
    from nats.js.errors import APIError

    with pytest.raises(APIError, match="maximum"):
        await actions.put(bus, "order", b"x" * 70_000)


async def test_what_is_no_entry_does_no_harm(settings: Settings, bus: Bus) -> None:
    bucket = await bus.bucket(subjects.ACTIONS_BUCKET)
    about = {"description": "", "schema": {}, "worker": "w", "version": "0", "when": "2026-05-26T14:35:00Z"}
    await bucket.put("garbage", b"\xff")
    await bucket.put("array", b"[]")
    await bucket.put(subjects.action_key("one"), json.dumps({**about, "name": "another"}).encode())
    for name, check in (("remote", {"$ref": "http://127.0.0.1:1/schema"}), ("broken", {"type": 5})):
        entry = {**about, "name": name, "accepts": check}
        await bucket.put(subjects.action_key(name), json.dumps(entry).encode())
    async with adapter(settings) as http:
        assert [action["name"] for action in (await http.get("/actions")).json()] == ["broken", "remote"]
        for name in ("remote", "broken", "another"):
            assert (await create(http, {"action": name, "x": 1})).status_code == 201


class Endless(BaseModel):
    most: float = float("inf")
    maker: Any = object()


class Unspeakable(BaseModel):
    word: Annotated[str, Field(description="\ud800")]


class Touchy(BaseModel):
    n: int

    @classmethod
    def __get_pydantic_json_schema__(cls, *_: Any) -> Any:
        raise ZeroDivisionError


async def test_an_action_that_cannot_be_described_keeps_nothing_from_working(
    settings: Settings, bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    app = shop("order")

    @app.action("unspeakable")
    async def unspeakable(params: Unspeakable, ctx: runwire.Context) -> None:
        """Never mind."""

    @app.action("touchy")
    async def touchy(params: Touchy, ctx: runwire.Context) -> dict[str, int]:
        """Never mind."""
        return {"n": params.n}

    async with announced(bus, app), worker(bus, app, settings):
        await published(bus, "order")
        assert await names(bus) == ["order"]
        await make_task(bus, "touchy", n="7")
        await publish_command(bus, "r")
        assert (await ended(bus, "r")).run.result == {"n": 7}
    for name in ("unspeakable", "touchy"):
        assert f"{name!r} is not listed" in caplog.text


async def test_a_worker_of_another_make_may_use_references_and_the_plain_words(settings: Settings, bus: Bus) -> None:
    check = {
        "$ref": "#/$defs/order",
        "$defs": {
            "order": {
                "required": ["who"],
                "properties": {"who": {"minLength": 2}, "if": False, "n": {"multipleOf": 2}, "w": {"enum": ["a", 1]}},
            }
        },
    }
    about = {"description": "", "schema": {}, "worker": "w", "version": "0", "when": "2026-05-26T14:35:00Z"}
    entry = json.dumps({**about, "name": "foreign", "accepts": check})
    await (await bus.bucket(subjects.ACTIONS_BUCKET)).put(subjects.action_key("foreign"), entry.encode())
    async with adapter(settings) as http:
        assert complaints(await create(http, {"action": "foreign", "if": 1, "n": 3, "w": "b"})) == {
            "/target/who": "is required",
            "/target/if": "does not fit",
            "/target/n": "does not fit",
            "/target/w": "must be 'a' or 1",
        }
        assert (await create(http, {"action": "foreign", "who": "me", "n": 4})).status_code == 201


async def test_a_default_that_json_lacks_does_not_spoil_the_list(settings: Settings, bus: Bus) -> None:
    app = App()

    @app.action("endless")
    async def endless(params: Endless, ctx: runwire.Context) -> None:
        """Goes on."""

    async with announced(bus, app):
        await published(bus, "endless")
        async with adapter(settings) as http:
            text = (await http.get("/actions")).text
    (action,) = json.loads(text, parse_constant=pytest.fail)
    assert set(action["schema"]["properties"]) == {"most", "maker"}


async def test_the_built_in_actions_are_described(bus: Bus) -> None:
    async with announced(bus, builtin_actions(bus)):
        await published(bus, "export", "sleep")
        for entry in await actions.listed(bus):
            assert entry.description
            assert entry.parameters["properties"]
            assert (entry.version, bool(entry.worker)) == (runwire.__version__, True)


async def test_a_broker_that_is_away_takes_nothing_from_the_adapter(
    http: httpx.AsyncClient, bus: Bus, broker: Broker
) -> None:
    broker.kill()
    await eventually(lambda: not bus.is_connected)
    await eventually(lambda: not http.services.bus.is_connected)
    assert len(http.services.catalogue.entries()) == 2
    broker.start()
    await eventually(lambda: http.services.bus.is_connected)
    async with announced(bus, shop("refund")):
        await eventually(lambda: len(http.services.catalogue.entries()) == 3, what="it goes on from there")


# --- what is checked -------------------------------------------------------------------------------------


async def test_a_target_that_fits_is_taken(http: httpx.AsyncClient) -> None:
    assert (await create(http, GOOD)).status_code == 201


async def test_each_field_that_does_not_fit_is_pointed_at_in_words(http: httpx.AsyncClient) -> None:
    target = {
        "action": "order",
        "lines": [
            {"product": "tea", "count": 100},
            {"product": "", "count": "many"},
            {"count": 0, "colour/~": "red"},
            "tea",
        ],
        "speed": "slow",
        "gift": {"product": 5},
        "typo": 1,
    }
    assert complaints(await create(http, target)) == {
        "/target/customer": "is required",
        "/target/lines/0/count": "must be at most 99",
        "/target/lines/1/product": "must have at least 1 character",
        "/target/lines/1/count": "must be an integer",
        "/target/lines/2/product": "is required",
        "/target/lines/2/count": "must be at least 1",
        "/target/lines/2/colour~1~0": "is not expected here",
        "/target/lines/3": "must be an object",
        "/target/speed": "must be 'normal' or 'express'",
        "/target/gift/product": "must be text",
        "/target/typo": "is not expected here",
    }


async def test_the_answer_never_repeats_the_value(http: httpx.AsyncClient) -> None:
    answer = await create(http, {**GOOD, "speed": "hunter2", "customer": ["hunter2"], "gift": "hunter2"})
    assert len(complaints(answer)) == 3
    assert "hunter2" not in answer.text


async def test_what_the_worker_would_convert_is_taken_and_runs(
    http: httpx.AsyncClient, bus: Bus, settings: Settings
) -> None:
    target = {**GOOD, "lines": [{"product": "tea", "count": " 5 "}, {"product": "mug", "count": True}], "gift": None}
    answer = await create(http, target)
    assert answer.status_code == 201
    assert answer.json()["target"] == target, "stored as it was sent"
    async with worker(bus, shop("order"), settings):
        assert (await http.post(answer.headers["location"] + "/execute")).json()["code"] == "DONE"
        assert (await http.get(answer.headers["location"])).json()["result"] == {"items": 6}


async def test_what_only_the_worker_can_tell_fails_the_run(
    http: httpx.AsyncClient, bus: Bus, settings: Settings
) -> None:
    answer = await create(http, {**GOOD, "lines": [{"product": "tea", "count": "100"}]})
    assert answer.status_code == 201
    async with worker(bus, shop("order"), settings):
        run = await http.post(answer.headers["location"] + "/execute")
    assert run.headers["task-error"] == "invalid_parameters"


async def test_an_action_that_nobody_knows_is_taken(http: httpx.AsyncClient) -> None:
    assert (await create(http, {"action": "not yet", "anything": ["goes"]})).status_code == 201


async def test_an_edit_of_the_target_is_checked_as_it_would_be_stored(http: httpx.AsyncClient) -> None:
    task = (await create(http, GOOD)).headers["location"]
    refused = await http.patch(task, json={"target": {"speed": "slow", "customer": None}})
    assert set(complaints(refused)) == {"/target/speed", "/target/customer"}
    assert (await http.get(task)).json()["target"] == GOOD
    edited = await http.patch(task, json={"target": {"speed": "express"}})
    assert (edited.status_code, edited.json()["target"]) == (200, {**GOOD, "speed": "express"})
    other = await http.patch(task, json={"target": {"action": "bulk issue rewards", "lines": []}})
    assert complaints(other) == {"/target/lines": "must have at least 1 item"}


async def test_an_edit_of_something_else_asks_nothing_of_the_target(http: httpx.AsyncClient, bus: Bus) -> None:
    await make_task(bus, "order", task=5, stored="before the action was known")
    await eventually(lambda: _can_be_read(http, 5))
    assert (await http.patch("/tasks/5", json={"desc": "still here"})).status_code == 200
    assert "/target/customer" in complaints(await http.patch("/tasks/5", json={"target": {"stored": "again"}}))


async def _can_be_read(http: httpx.AsyncClient, task: int) -> bool:
    return (await http.get(f"/tasks/{task}")).status_code == 200


async def test_a_call_that_was_accepted_once_is_not_refused_when_it_is_repeated(
    http: httpx.AsyncClient, bus: Bus
) -> None:
    key = {"Idempotency-Key": "k"}
    first = await create(http, {"action": "later", "x": 1}, headers=key)
    assert first.status_code == 201
    async with announced(bus, shop("later")):
        await eventually(lambda: len(http.services.catalogue.entries()) == 3, what="the adapter knows the action")
        assert (await create(http, {"action": "later", "x": 1})).status_code == 422
        again = await create(http, {"action": "later", "x": 1}, headers=key)
        assert (again.status_code, again.json()["id"]) == (201, first.json()["id"])


async def test_deep_and_wide_data_is_answered(http: httpx.AsyncClient) -> None:
    deep: Any = "x"
    for _ in range(150):
        deep = [deep]
    assert complaints(await create(http, {**GOOD, "gift": deep})) == {"/target/gift": "must be an object or null"}
    wide = await create(http, {**GOOD, "lines": [{}] * 4000})
    assert len(wide.json()["errors"]) == 50
