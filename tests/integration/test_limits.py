"""Limits: off unless set; calls per token and chain, outstanding runs per chain."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime

import httpx
import pytest

from runwire import settings as configuration
from runwire.app import App
from runwire.domain.access import AccessLevel, AccessToken, TokenKind, digest
from runwire.domain.errors import SetupError
from runwire.messaging import chains, tokens
from runwire.messaging.broker import Bus
from runwire.settings import Settings
from tests.support import CHAIN, adapter, eventually, make_task, publish_command, queue_is_empty, worker

OTHER = 2


async def token(bus: Bus, name: str, *levels: int) -> dict[str, str]:
    """The headers of a manager of these chains."""
    made = AccessToken(
        id=name,
        kind=TokenKind.ADMIN,
        digest=digest("secret"),
        levels=dict.fromkeys(levels, AccessLevel.MANAGER),
        created=datetime.now(UTC),
    )
    await tokens.create(bus, made)
    return {"Authorization": f"Bearer {name}:secret"}


def limited(settings: Settings, **limits: object) -> Settings:
    return configuration.load(**(settings.model_dump() | limits))


async def test_nothing_is_limited_or_told_unless_it_is_set(bus: Bus, settings: Settings) -> None:
    await make_task(bus)
    async with adapter(settings) as http:
        answers = [await http.get("/tasks/1") for _ in range(50)]
    assert {answer.status_code for answer in answers} == {200}
    assert not any(name.startswith("ratelimit") for answer in answers for name in answer.headers)


async def test_every_answer_says_what_is_left(bus: Bus, settings: Settings) -> None:
    await make_task(bus)
    async with adapter(limited(settings, rate_per_token="5/minute", rate_per_chain="100/hour")) as http:
        found, missing = await http.get("/tasks/1"), await http.get("/tasks/99")
        alive = await http.get("/livez")
    assert found.headers["RateLimit-Policy"] == '"token";q=5;w=60, "chain";q=100;w=3600'
    assert found.headers["RateLimit"] == '"token";r=4;t=60, "chain";r=99;t=3600'
    assert missing.status_code == 404
    assert missing.headers["RateLimit"].startswith('"token";r=3;t=')
    assert "RateLimit" not in alive.headers


async def test_a_token_over_its_rate_is_refused_and_another_one_is_not(bus: Bus, settings: Settings) -> None:
    await make_task(bus)
    other = await token(bus, "other", CHAIN)
    async with adapter(limited(settings, rate_per_token="3/minute")) as http:
        answers = [await http.get("/tasks/1") for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert (await http.get("/tasks/1", headers=other)).status_code == 200
    refused = answers[-1]
    assert refused.headers["content-type"] == "application/problem+json"
    assert (refused.json()["code"], refused.json()["status"]) == ("rate_limited", 429)
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert refused.headers["RateLimit"].startswith('"token";r=0;t=')


async def test_a_refused_call_is_refused_before_its_body_is_read(bus: Bus, settings: Settings) -> None:
    async with adapter(limited(settings, rate_per_token="1/minute")) as http:
        await http.get("/tasks")
        assert (await http.post("/tasks", content=b"{ no json")).json()["code"] == "rate_limited"


async def test_after_retry_after_there_is_room(bus: Bus, settings: Settings) -> None:
    await make_task(bus)
    async with adapter(limited(settings, rate_per_token="4/second")) as http:
        for _ in range(3):
            answers = await asyncio.gather(*(http.get("/tasks/1") for _ in range(12)))
            refused = [answer for answer in answers if answer.status_code == 429]
            assert refused
            await asyncio.sleep(max(int(answer.headers["Retry-After"]) for answer in refused))
            assert (await http.get("/tasks/1")).status_code == 200


async def test_a_call_counts_for_the_chain_of_its_task(bus: Bus, settings: Settings) -> None:
    """A token of two chains uses up the rate of the one it asks about."""
    both = await token(bus, "both", CHAIN, OTHER)
    await make_task(bus, task=1)
    await make_task(bus, task=2, chain=OTHER)
    async with adapter(limited(settings, rate_per_chain="2/minute")) as http:
        statuses = [(await http.get("/tasks/1", headers=both)).status_code for _ in range(3)]
        assert statuses == [200, 200, 429]
        assert (await http.get("/tasks/1")).status_code == 429, "the chain's rate, whoever calls"
        assert (await http.get("/tasks/2", headers=both)).status_code == 200
        assert (await http.get("/tasks", headers=both)).status_code == 429, "a list is about all chains of the token"


async def test_another_chains_task_does_not_use_up_its_rate(bus: Bus, settings: Settings) -> None:
    stranger = await token(bus, "stranger", OTHER, 3)
    await make_task(bus, task=1)
    async with adapter(limited(settings, rate_per_chain="2/minute")) as http:
        for _ in range(5):
            assert (await http.get("/tasks/1", headers=stranger)).status_code == 404
        assert (await http.get("/tasks/1")).status_code == 200


async def test_wrong_secrets_do_not_use_up_the_rate_of_a_token(bus: Bus, settings: Settings) -> None:
    await make_task(bus)
    async with adapter(limited(settings, rate_per_token="2/minute")) as http:
        for _ in range(5):
            answer = await http.get("/tasks/1", headers={"Authorization": "Bearer tester:wrong"})
            assert (answer.status_code, "RateLimit" in answer.headers) == (401, False)
        assert (await http.get("/tasks/1")).status_code == 200


@pytest.mark.parametrize("rate", ["", "fast", "100", "0/second", "-1/second", "5/second; 10/minute", "1/fortnight"])
def test_a_rate_that_is_none_is_told_at_the_start(rate: str) -> None:
    with pytest.raises(SetupError, match=r"^RUNWIRE_RATE_PER_TOKEN: must be a number of calls and a time, such as"):
        configuration.load(rate_per_token=rate)


@pytest.mark.parametrize("most", [0, -1, "many"])
def test_a_number_of_runs_that_is_none_is_told_at_the_start(most: object) -> None:
    with pytest.raises(SetupError, match=r"^RUNWIRE_MAX_OUTSTANDING_PER_CHAIN: "):
        configuration.load(max_outstanding_per_chain=most)


# --- outstanding runs -------------------------------------------------------------------------------------


async def execute(http: httpx.AsyncClient, task: int) -> httpx.Response:
    return await http.post(f"/tasks/{task}/execute", headers={"Prefer": "respond-async"})


async def test_a_chain_with_as_many_runs_as_it_may_have_is_refused_and_another_is_not(
    bus: Bus, app: App, settings: Settings
) -> None:
    both = await token(bus, "both", CHAIN, OTHER)
    for task in range(1, 5):
        await make_task(bus, task=task)
    await make_task(bus, task=9, chain=OTHER)
    async with adapter(limited(settings, max_outstanding_per_chain=3)) as http:
        answers = [await execute(http, task) for task in range(1, 5)]
        assert [answer.status_code for answer in answers] == [202, 202, 202, 429]
        refused = answers[-1]
        assert refused.json()["code"] == "too_many_outstanding"
        assert refused.headers["Retry-After"] == "1"
        assert (await http.post("/tasks/9/execute", headers=both | {"Prefer": "wait=0"})).status_code == 202
        async with worker(bus, app, settings):
            await eventually(lambda: queue_is_empty(bus))
            await asyncio.sleep(1)  # as Retry-After says
            assert (await http.post("/tasks/4/execute")).status_code == 200


async def test_commands_on_the_bus_count_and_are_not_refused(bus: Bus, settings: Settings) -> None:
    for task in range(1, 6):
        await make_task(bus, task=task)
    async with adapter(limited(settings, max_outstanding_per_chain=2)) as http:
        for task in range(1, 5):
            await publish_command(bus, f"r{task}", task=task)
        assert (await execute(http, 5)).json()["code"] == "too_many_outstanding"
    assert await chains.outstanding(bus, CHAIN) == 4


async def test_of_many_calls_at_once_no_more_are_taken_than_there_is_room(bus: Bus, settings: Settings) -> None:
    await asyncio.gather(*(make_task(bus, task=task) for task in range(1, 61)))
    async with adapter(limited(settings, max_outstanding_per_chain=20)) as http:
        answers = await asyncio.gather(*(execute(http, task) for task in range(1, 61)))
        assert Counter(answer.status_code for answer in answers) == {202: 20, 429: 40}
        assert await chains.outstanding(bus, CHAIN) == 20


async def test_calls_that_were_not_accepted_do_not_take_the_room_of_others(bus: Bus, settings: Settings) -> None:
    for task in range(1, 4):
        await make_task(bus, task=task)
    async with adapter(limited(settings, max_outstanding_per_chain=2)) as http:
        assert (await execute(http, 1)).status_code == 202
        for _ in range(5):
            assert (await execute(http, 1)).status_code == 409
        assert (await execute(http, 2)).status_code == 202
        assert (await execute(http, 3)).status_code == 429
