"""The audit trail of what is really called: edits, cancellations, deletions and limits, over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from runwire.domain import access
from runwire.domain.access import AccessLevel, TokenKind
from runwire.messaging import tokens
from runwire.messaging.broker import Bus
from runwire.settings import Settings
from tests.support import CHAIN, adapter, eventually, grant

BODY = {"chain": CHAIN, "desc": "a task", "target": {"action": "noop"}, "trigger": {}}


@pytest.fixture
async def http(settings: Settings, bus: Bus) -> AsyncIterator[httpx.AsyncClient]:
    async with adapter(settings) as client:
        yield client


async def rows(http: httpx.AsyncClient, *, of: int, **query: object) -> list[dict[str, Any]]:
    """The newest rows of the trail, as soon as there are so many."""

    async def enough() -> list[dict[str, Any]] | None:
        found = (await http.get("/audit", params=query)).json()
        return found if len(found) >= of else None

    return await eventually(enough, what=f"{of} rows of {query}")


async def test_edit_cancel_and_delete_are_told_with_who_did_it(http: httpx.AsyncClient) -> None:
    task = (await http.post("/tasks", json=BODY)).headers["location"]
    assert (await http.patch(task, json={"desc": "another"})).status_code == 200
    queued = await http.post(f"{task}/execute", headers={"Prefer": "respond-async"})  # there is no worker
    assert queued.status_code == 202
    assert (await http.post(f"{task}/cancel")).status_code == 200
    assert (await http.delete(task)).status_code == 204
    found = [row for row in await rows(http, of=4 + 2) if row["subject"] == task]
    assert sorted(row["action"] for row in found) == [
        "task.cancelled", "task.created", "task.deleted", "task.edited",
    ]  # fmt: skip
    assert {row["by"] for row in found} == {"tester"}
    (cancelled,) = [row for row in found if row["action"] == "task.cancelled"]
    assert cancelled["detail"]["run"] == queued.headers["run-id"]


async def test_a_deletion_by_force_tells_of_the_run_that_it_ended(http: httpx.AsyncClient) -> None:
    task = (await http.post("/tasks", json=BODY)).headers["location"]
    await http.post(f"{task}/execute", headers={"Prefer": "respond-async"})
    assert (await http.delete(f"{task}?force=true")).status_code == 204
    found = [row for row in await rows(http, of=3 + 2) if row["subject"] == task]
    assert {row["action"] for row in found} == {"task.created", "task.cancelled", "task.deleted"}


@pytest.mark.parametrize(
    ("limit", "call", "code"),
    [
        ({"rate_per_token": "3/minute"}, "/tasks/12345", "rate_limited"),
        ({"rate_per_chain": "3/minute"}, "/tasks/12345", "rate_limited"),
    ],
)
async def test_calls_over_a_limit_are_told(
    settings: Settings, bus: Bus, limit: dict[str, str], call: str, code: str
) -> None:
    noisy = access.create_token(
        "noisy", "secret", kind=TokenKind.ADMIN, levels={7: AccessLevel.MANAGER}, by="operator",
        now=datetime.now(UTC), expires=None,
    )  # fmt: skip
    async with adapter(settings.model_copy(update=limit)) as limited:
        await tokens.create(bus, noisy)
        statuses = [
            (await limited.get("/tasks", headers={"Authorization": "Bearer noisy:secret"})).status_code
            for _ in range(5)
        ]
    assert statuses == [200] * 3 + [429] * 2
    async with adapter(settings) as http:

        async def told() -> list[dict[str, Any]]:
            headers = {"Authorization": "Bearer noisy:secret"}
            return (await http.get("/audit?action=call.refused", headers=headers)).json()

        found = await eventually(told)
    assert {(row["by"], row["chain"], row["subject"], row["detail"]["code"]) for row in found} == {
        ("noisy", 7, "/tasks", code)
    }
    assert sum(row["detail"]["count"] for row in found) == 2


async def test_outstanding_runs_over_the_limit_are_told(settings: Settings, bus: Bus) -> None:
    async with adapter(settings.model_copy(update={"max_outstanding_per_chain": 1})) as http:
        first, second = [(await http.post("/tasks", json=BODY)).headers["location"] for _ in range(2)]
        answers = [await http.post(f"{task}/execute", headers={"Prefer": "respond-async"}) for task in (first, second)]
        assert [answer.status_code for answer in answers] == [202, 429]
        (row,) = await rows(http, of=1, action="call.refused")
    assert (row["chain"], row["by"], row["detail"]["code"]) == (CHAIN, "tester", "too_many_outstanding")


async def test_who_looks_for_somebody_elses_subscription_is_told(http: httpx.AsyncClient, bus: Bus) -> None:
    made = (await http.post("/subscriptions", json={"kind": "pull", "chain": CHAIN})).json()["id"]
    looking = [await grant(bus, token_id="colleague"), await grant(bus, 2000, AccessLevel.MANAGER, token_id="stranger")]
    for token, secret in looking:
        headers = {"Authorization": f"Bearer {token}:{secret}"}
        for call in (
            http.get(f"/subscriptions/{made}", headers=headers),
            http.delete(f"/subscriptions/{made}", headers=headers),
            http.get("/subscriptions/sub-1764-1-nobody", headers=headers),
        ):
            assert (await call).status_code == 404
    found = await rows(http, of=4, action="call.refused")
    assert {(row["chain"], row["by"], row["detail"]["method"], row["detail"]["code"]) for row in found} == {
        (CHAIN, token, method, "subscription_not_found")
        for token in ("colleague", "stranger")
        for method in ("GET", "DELETE")
    }
    assert sum(row["detail"]["count"] for row in found) == 4, "nothing is told of what is not there"
    assert made not in str(found)
