"""Whatever a caller sends, the answer is one that is documented: never a 5xx, never silence.

The cases are generated from the OpenAPI document (tests/hostile.py): a new endpoint is covered the moment it is in it.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import hypothesis
import pytest
from hypothesis import strategies as st

from runwire.app import App
from runwire.messaging.broker import Bus
from runwire.settings import Settings
from tests.hostile import BODIES, HEADER_VALUES, TEXTS, VALUES, Operation, filled, operations, quoted, with_value
from tests.support import CHAIN, HEADERS, adapter, worker

PATIENCE = 15.0
"""Seconds after which an answer counts as none."""
AT_ONCE = 8
SHARE = int(os.environ.get("FUZZ_SHARE", "8"))
"""One in so many of the hostile values is sent to each place; `make fuzz` sends them all."""
"""Calls in flight."""
FROM_THE_FRAMEWORK = {"not_found": 404, "method_not_allowed": 405}
"""What a path that leads nowhere is answered with, whatever it was made from."""
pytestmark = pytest.mark.timeout(180)  # thousands of calls each
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=40)
    | st.datetimes().map(str),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


@dataclass
class Caller:
    """Sends hostile calls, keeps what was wrong with the answers."""

    http: httpx.AsyncClient
    document: dict[str, Any]
    wrong: list[str] = field(default_factory=list)
    calls: int = 0
    ids: dict[str, str] = field(default_factory=dict)

    @property
    def operations(self) -> list[Operation]:
        return operations(self.document)

    async def prepare(self, operation: Operation) -> None:
        """A task and a run of it, for the ids in the path; of other things the documented examples."""
        self.ids = {parameter["name"]: quoted(parameter["example"]) for parameter in operation.parameters("path")}
        if operation.path.startswith("/tasks/{id}"):
            body = {"chain": CHAIN, "desc": "", "target": {"action": "noop"}, "trigger": {}}
            self.ids["id"] = str((await self.http.post("/tasks", json=body)).json()["id"])
            run = await self.http.post(f"/tasks/{self.ids['id']}/execute")
            self.ids["run"] = run.headers["run-id"]

    async def send(
        self,
        operation: Operation,
        case: str,
        *,
        path: dict[str, str] | None = None,
        query: str = "",
        headers: dict[str, bytes] | None = None,
        body: bytes | None = None,
        expect: Callable[[int], bool] = lambda _status: True,
    ) -> None:
        """One call; path and query stand on the wire as they are given."""
        self.calls += 1
        target = filled(operation.path, self.ids | (path or {})) + (f"?{query}" if query else "")
        case = f"{operation} {case}"
        content = body if body is not None else b""
        if body is None and operation.has_json_body:
            content = json.dumps(operation.example()).encode()
        request = self.http.build_request(
            operation.method,
            "/",
            headers={**HEADERS, **operation.usual_headers, **(headers or {})},
            content=content,
            extensions={"target": target.encode(), "timeout": httpx.Timeout(PATIENCE).as_dict()},
        )
        try:
            answer = await self.http.send(request, stream=True)
            try:
                if not answer.headers.get("content-type", "").startswith("text/event-stream"):
                    await answer.aread()
                    self._check(operation, case, answer)
                    if not expect(answer.status_code):
                        self.wrong.append(f"{case}: {answer.status_code} {answer.text[:200]}")
            finally:
                await answer.aclose()
        except httpx.HTTPError as error:
            self.wrong.append(f"{case}: {error!r}")
        else:
            if operation.method == "DELETE" and answer.status_code < 300:
                await self.prepare(operation)

    def _check(self, operation: Operation, case: str, answer: httpx.Response) -> None:
        status = answer.status_code
        problem = _problem_with(answer)
        if problem:
            self.wrong.append(f"{case}: {status} {problem}: {answer.text[:200]}")
            return
        code = answer.json()["code"] if status >= 400 else ""
        if FROM_THE_FRAMEWORK.get(code) != status and status not in operation.statuses | {304}:
            self.wrong.append(f"{case}: {status} is not documented: {answer.text[:200]}")
        if status >= 500:
            self.wrong.append(f"{case}: {status} {answer.text[:200]}")

    async def each(self, calls: list[Any]) -> None:
        """Some at once; what deletes and makes anew, one after the other."""
        for start in range(0, len(calls), AT_ONCE):
            await asyncio.gather(*calls[start : start + AT_ONCE])

    def verdict(self) -> None:
        assert self.calls, "nothing was tried"
        assert not self.wrong, f"{len(self.wrong)} of {self.calls}:\n" + "\n".join(self.wrong[:25])


def _problem_with(answer: httpx.Response) -> str | None:
    """What is not well formed about an answer."""
    if answer.headers.get("x-injected"):
        return "a header was injected"
    if answer.status_code < 400:
        if "json" in answer.headers.get("content-type", ""):
            json.loads(answer.content, parse_constant=_no_constant)
        return None
    if answer.headers.get("content-type") != "application/problem+json":
        return "is no problem"
    body = json.loads(answer.content, parse_constant=_no_constant)
    if body.get("status") != answer.status_code and body.get("code") not in {"DONE", "ERROR"}:
        return "has another status in its body"
    for name in ("type", "title", "detail", "instance", "code"):
        if not isinstance(body.get(name), str) or not body[name]:
            return f"has no {name}"
    if body["type"] != "/problems/" + body["code"].replace("_", "-"):
        return "has a type that is not its code's"
    if answer.status_code == 422:
        for error in body.get("errors", []):
            place = {"pointer", "parameter", "header"} & set(error)
            if not error.get("detail") or len(place) != 1:
                return "points at nothing"
            if "pointer" in place and error["pointer"] and not error["pointer"].startswith("/"):
                return "has a pointer that is none"
        if body["code"] == "invalid_fields" and not body.get("errors"):
            return "says nothing about what is invalid"
    return None


def _no_constant(text: str) -> None:
    raise AssertionError(f"an answer holds {text}")


@pytest.fixture
async def caller(settings: Settings, bus: Bus, app: App) -> AsyncIterator[Caller]:
    """One adapter for many calls, and a worker, so that nothing waits for long."""
    quick = settings.model_copy(update={"wait_seconds": 1.0, "action_wait": 0.2})
    async with adapter(quick) as http, worker(bus, app, quick):
        yield Caller(http, (await http.get("/openapi.json")).json())


async def test_every_field_of_every_body(caller: Caller) -> None:
    """Each field gets one in SHARE values, and others at the next endpoint that has such a field."""
    met: Counter[str] = Counter()
    for operation in caller.operations:
        if not operation.has_json_body:
            continue
        await caller.prepare(operation)
        example = operation.example()
        calls = []
        for path in operation.fields():
            place = "/".join(path)
            values = VALUES[met[place] % SHARE :: SHARE]
            met[place] += 1
            calls += [
                caller.send(operation, f"{place} = {value!r:.60}", body=with_value(example, path, value))
                for value in values
            ]
        await caller.each(calls)
    answer = await caller.http.get("/tasks?limit=1000")  # what was let in does no harm
    assert answer.status_code == 200
    json.loads(answer.content, parse_constant=_no_constant)
    caller.verdict()


async def test_a_number_that_json_does_not_have_is_refused_everywhere(caller: Caller) -> None:
    for operation in caller.operations:
        if operation.has_json_body:
            await caller.prepare(operation)
            for path in operation.fields():
                for value in (float("nan"), float("inf"), "<1e400>", "\ud800"):
                    body = with_value(operation.example(), path, value)
                    await caller.send(
                        operation, f"{path} = {value!r}", body=body, expect=lambda status: status in {400, 404}
                    )
    caller.verdict()


async def test_every_body_as_a_whole(caller: Caller) -> None:
    for operation in caller.operations:
        await caller.prepare(operation)
        required = operation.description.get("requestBody", {}).get("required", False)
        for name, body in BODIES.items():

            def refused(status: int, required: bool = required, name: str = name) -> bool:
                return not required or 400 <= status < 500 or (name == "empty" and status < 500)

            await caller.send(operation, f"body: {name}", body=body, expect=refused)
    caller.verdict()


async def test_a_member_that_comes_twice_is_refused(caller: Caller) -> None:
    for operation in caller.operations:
        if operation.has_json_body:
            await caller.prepare(operation)
            example = operation.example()
            text = json.dumps(example)
            for name, value in example.items():
                body = f"{{{json.dumps(name)}: {json.dumps(value)}, {text[1:]}"
                await caller.send(operation, f"{name} twice", body=body.encode(), expect=lambda status: status == 400)
    caller.verdict()


async def test_every_parameter_of_every_query(caller: Caller) -> None:
    for number, operation in enumerate(caller.operations):
        await caller.prepare(operation)
        names = [parameter["name"] for parameter in operation.parameters("query")]
        texts = TEXTS[number % SHARE :: SHARE]
        queries = [f"{name}={text}" for name in names for text in texts]
        queries += [f"{name}=1&{name}=1" for name in names] + [f"{name}[]=1" for name in names] + names
        queries += ["no_such=1", "=", "&", "&&=&", "%00=%00", "%ff=%ff", "?", "a" * 4000, "&".join(["x=1"] * 1000)]
        await caller.each([caller.send(operation, f"?{query:.60}", query=query) for query in queries])
    caller.verdict()


async def test_every_id_in_every_path(caller: Caller) -> None:
    for number, operation in enumerate(caller.operations):
        if operation.path_names:
            await caller.prepare(operation)
        texts = TEXTS[number % SHARE :: SHARE]
        for name in operation.path_names:
            await caller.each([caller.send(operation, f"{name} = {text:.60}", path={name: text}) for text in texts])
    caller.verdict()


async def test_every_header(caller: Caller) -> None:
    """A header that an endpoint reads gets every value; those that all of them read, one in SHARE, in turn."""
    for number, operation in enumerate(caller.operations):
        await caller.prepare(operation)
        own = [parameter["name"] for parameter in operation.parameters("header")]
        calls = [(name, value) for name in own for value in HEADER_VALUES]
        for place, name in enumerate(
            ("Authorization", "Content-Type", "Accept", "Range", "If-Match", "If-None-Match"), start=number
        ):
            if name not in own:
                calls += [(name, value) for value in HEADER_VALUES[place % SHARE :: SHARE]]
        await caller.each(
            [caller.send(operation, f"{name}: {value!r:.60}", headers={name: value}) for name, value in calls]
        )
    caller.verdict()


async def test_random_documents_in_every_body(caller: Caller) -> None:
    """Any JSON value in any field, any value instead of any body."""
    loop = asyncio.get_running_loop()
    for operation in caller.operations:
        if operation.has_json_body:
            await caller.prepare(operation)
            await asyncio.to_thread(_random_bodies(caller, operation, loop))
    caller.verdict()


def _random_bodies(caller: Caller, operation: Operation, loop: asyncio.AbstractEventLoop) -> Callable[[], None]:
    """The property, to be run in a thread: the adapter lives in the loop."""
    example = operation.example()

    @hypothesis.settings(max_examples=400 // SHARE, deadline=None, derandomize=True, database=None)
    @hypothesis.given(value=JSON_VALUES, place=st.none() | st.sampled_from(operation.fields()))
    def holds(value: Any, place: tuple[str, ...] | None) -> None:
        body = json.dumps(value).encode() if place is None else with_value(example, place, value)
        before = len(caller.wrong)
        sent = caller.send(operation, f"{body!r:.200}", body=body)
        asyncio.run_coroutine_threadsafe(sent, loop).result(PATIENCE)
        assert len(caller.wrong) == before, caller.wrong[-1]

    return holds
