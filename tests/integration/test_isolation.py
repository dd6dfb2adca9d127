"""What belongs to another chain looks like what does not exist, on every route.

Generated from the OpenAPI document. A route whose path names something this file has never heard of makes it fail:
say in :func:`resources` what a foreign one and a missing one are.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import pytest

from runwire.app import App
from runwire.domain.access import AccessLevel, AccessToken, TokenKind, digest
from runwire.domain.ids import uuid7
from runwire.messaging import subjects, tokens
from runwire.messaging.broker import Bus
from runwire.settings import Settings
from tests.hostile import Operation, filled, operations, quoted
from tests.support import CHAIN, TOKEN, adapter, dead_letters, eventually, lifecycle_now, publish_command, worker

STRANGERS = 2000
"""The chain of whoever should see nothing."""
NOBODYS = 2001
"""A chain that has nothing in it."""
MARK = "for the eyes of chain 1764 only"
EXPORT = {"action": "export", "export_index": "runs", "export_format": "csv"}


@dataclass(frozen=True)
class Resource:
    """One kind of thing that paths name: ids of equal length, so that answers can be compared byte by byte."""

    foreign: str
    missing: str
    own: str | None
    """One of the stranger's, to look for foreign things below it; None: nothing is below it."""


@dataclass
class World:
    """Two chains with the same in them, and a stranger to the first."""

    http: httpx.AsyncClient
    operations: list[Operation]
    resources: dict[str, Resource]
    """By the part of a path that stands before the id."""

    def headers(self, level: AccessLevel) -> dict[str, str]:
        return {"Authorization": f"Bearer stranger-{level}:secret"}


async def resources(http: httpx.AsyncClient, stranger: dict[str, str]) -> dict[str, Resource]:
    task, run = await _task_with_run(http, CHAIN, 7_001)
    own_task, own_run = await _task_with_run(http, STRANGERS, 7_003, **stranger)
    owner = TOKEN.partition(":")[0]
    bus = http.services.bus
    await bus.js.purge_stream(subjects.DEADLETTERS, seq=7_000_001)  # an id that stands nowhere else
    await publish_command(bus, None, task=7_009, body=MARK.encode())
    letter = await eventually(lambda: dead_letters(bus, task=7_009))
    made = await http.post("/subscriptions", json={"kind": "pull", "chain": CHAIN, "desc": MARK})
    assert made.status_code == 201, made.text
    subscription = made.json()["id"]
    return {
        "tasks": Resource(task, "7002", own_task),
        "runs": Resource(run, uuid7(), own_run),
        "access_tokens": Resource(owner, "x" * len(owner), None),
        "dead_letters": Resource(str(letter.seq), "7000002", None),
        "subscriptions": Resource(subscription, "x" * len(subscription), None),
    }


async def _task_with_run(http: httpx.AsyncClient, chain: int, task: int, **headers: str) -> tuple[str, str]:
    body = {"id": task, "chain": chain, "desc": MARK, "target": EXPORT, "trigger": {}}
    created = await http.post("/tasks", json=body, headers=headers)
    assert created.status_code == 201, created.text
    ended = await http.post(f"/tasks/{task}/execute", headers=headers)
    assert ended.json()["code"] == "DONE", ended.text
    return str(task), ended.headers["run-id"]


@pytest.fixture
async def world(settings: Settings, bus: Bus, app: App) -> AsyncIterator[World]:
    for level in AccessLevel:
        await tokens.create(
            bus,
            AccessToken(
                id=f"stranger-{level}",
                kind=TokenKind.ADMIN,
                digest=digest("secret"),
                levels={STRANGERS: level},
                created=lifecycle_now(),
            ),
        )
    async with adapter(settings) as http, worker(bus, app, settings):
        found = operations((await http.get("/openapi.json")).json())
        world = World(http, [operation for operation in found if operation.description["security"]], {})
        world.resources = await resources(http, world.headers(AccessLevel.MANAGER))
        yield world


def kinds(operation: Operation) -> list[tuple[str, str]]:
    """(name of the parameter, what it names) for each in the path."""
    return [(name, before) for before, name in re.findall(r"(?:/([^/{}]+))?/\{(\w+)\}", operation.path)]


def ids(world: World, operation: Operation, choice: tuple[str, ...]) -> dict[str, str]:
    """The path's ids: for each parameter a ``foreign``, a ``missing`` or the stranger's ``own`` one."""
    return {
        name: quoted(getattr(world.resources[kind], which))
        for (name, kind), which in zip(kinds(operation), choice, strict=True)
    }


async def answer(
    world: World, operation: Operation, path: dict[str, str], headers: dict[str, str], method: str | None = None
) -> tuple[int, list[tuple[str, str]], str]:
    """(status, headers but Date, body) of a call, the ids in them replaced by their names."""
    body = json.dumps(operation.example()).encode() if operation.has_json_body else b""
    request = world.http.build_request(
        method or operation.method,
        filled(operation.path, path),
        headers={**operation.usual_headers, **headers},
        content=body,
    )
    found = await world.http.send(request, stream=True)
    try:
        if not found.headers.get("content-type", "").startswith("text/event-stream"):
            await found.aread()

        def neutral(text: str) -> str:
            for name, value in path.items():
                text = text.replace(value, f"<{name}>")
            return text

        shown = sorted((name, neutral(value)) for name, value in found.headers.items() if name != "date")
        return found.status_code, shown, neutral(found.text) if found.is_stream_consumed else ""
    finally:
        await found.aclose()


def pairs(operation: Operation) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """What has to look alike: everything foreign or missing, and foreign or missing below what is the stranger's."""
    count = len(kinds(operation))
    return [
        (("own",) * above + ("foreign",) * (count - above), ("own",) * above + ("missing",) * (count - above))
        for above in range(count)
    ]


async def test_every_path_names_something_this_file_knows(world: World) -> None:
    named = {kind for operation in world.operations for _, kind in kinds(operation)}
    assert {"tasks", "runs"} <= named <= set(world.resources)
    for operation in world.operations:
        assert len(kinds(operation)) == len(operation.path_names), f"{operation}: an id that nothing stands before"


async def test_foreign_looks_like_missing(world: World) -> None:
    compared = 0
    for operation, level in itertools.product(world.operations, AccessLevel):
        declared = {found["name"]: str(found["example"]) for found in operation.parameters("header")}
        for foreign, missing in pairs(operation):
            for extra in ({}, declared) if declared else ({},):
                for method in (operation.method, "HEAD") if operation.method == "GET" else (operation.method,):
                    headers = {**world.headers(level), **extra}
                    one = await answer(world, operation, ids(world, operation, foreign), headers, method)
                    other = await answer(world, operation, ids(world, operation, missing), headers, method)
                    assert one == other, f"{method} {operation.path} {foreign} {level.name}"
                    assert 400 <= one[0] < 500, f"{operation} {one}"
                    compared += 1
            if level is AccessLevel.MANAGER:  # the last try had everything that the call may need
                assert one[0] == 404, f"{operation} {foreign}: {one}"
    assert compared


async def test_its_owner_finds_what_is_foreign_to_others(world: World) -> None:
    """Else the test above would compare two things that are missing."""
    owner = {"Authorization": f"Bearer {TOKEN}"}
    for operation in world.operations:
        if operation.method == "GET" and kinds(operation):
            path = ids(world, operation, ("foreign",) * len(kinds(operation)))
            status, _, body = await answer(world, operation, path, owner)
            assert status < 400, f"{operation} {status} {body}"


async def test_a_foreign_chain_looks_like_one_that_is_not_there(world: World) -> None:
    """Where it is named in a query, or in a body."""
    named = 0
    stranger = world.headers(AccessLevel.MANAGER)
    for operation in world.operations:
        if kinds(operation):
            continue
        has_query = "chain" in {found["name"] for found in operation.parameters("query")}
        has_field = operation.has_json_body and ("chain",) in operation.fields()
        if not (has_query or has_field):
            continue
        found = []
        for chain in (CHAIN, NOBODYS):
            query = {"chain": str(chain)} if has_query else {}
            body = {**operation.example(), "chain": chain} if has_field else None
            reply = await world.http.request(
                operation.method, operation.path, params=query, json=body, headers=stranger
            )
            found.append((reply.status_code, reply.text.replace(str(chain), "<chain>")))
        assert found[0] == found[1], operation
        assert found[0][0] == 403, f"{operation} {found[0]}"
        named += 1
    assert named >= 2


async def test_no_list_shows_what_is_foreign(world: World) -> None:
    shown = 0
    for operation in world.operations:
        if operation.method != "GET" or kinds(operation):
            continue
        for headers, expected in ((world.headers(AccessLevel.MANAGER), False), ({}, True)):
            async with world.http.stream("GET", operation.path, headers=headers) as reply:
                if reply.headers["content-type"].startswith("text/event-stream"):
                    continue  # has tests of its own
                text = (await reply.aread()).decode()
            if not expected:
                assert world.resources["tasks"].foreign not in text, operation
                assert world.resources["runs"].foreign not in text, operation
            elif world.resources["tasks"].foreign in text:
                shown += 1
    assert shown, "no list shows its owner anything"
