"""The event store: the fence, its read-back, and ids that are unique over all chains."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from runwire.domain import lifecycle
from runwire.domain.errors import Conflict, NotAccepted
from runwire.domain.lifecycle import Document
from runwire.domain.run import Command, Source
from runwire.messaging import events
from runwire.messaging.broker import Bus
from tests.support import CHAIN, Broker, ended, history, lifecycle_now, make_task, publish_command, worker


def claim(document: Document, run: str = "r1") -> Document:
    command = Command(chain=CHAIN, task=1, run=run, source=Source.BUS, accepted=lifecycle_now(), sequence=1, delivery=1)
    return lifecycle.claim(document, command, claim_id=uuid4().hex, now=lifecycle_now())


async def test_the_last_event_is_the_state_of_the_task(bus: Bus) -> None:
    created = await make_task(bus)
    for leader in (False, True):
        head = await events.load(bus, CHAIN, 1, leader=leader)
        assert head.document == created
        assert head.sequence == 1
    assert await events.load(bus, CHAIN, 2) is None


async def test_of_two_writers_that_read_the_same_event_one_wins(bus: Bus) -> None:
    created = await make_task(bus)
    outcomes = await asyncio.gather(
        *(events.append(bus, claim(created, f"r{n}"), expected=1, event_id=uuid4().hex) for n in range(20)),
        return_exceptions=True,
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Conflict"] * 19 + ["int"]
    assert len(await history(bus)) == 2


async def test_an_append_whose_acknowledgement_was_lost_may_be_repeated(bus: Bus) -> None:
    created = await make_task(bus)
    first = await events.append(bus, claim(created), expected=1, event_id="mine")
    assert await events.append(bus, claim(created), expected=1, event_id="mine") == first
    with pytest.raises(Conflict):
        await events.append(bus, claim(created), expected=1, event_id="other")
    assert len(await history(bus)) == 2


async def test_an_append_waits_for_a_broker_that_is_away(bus: Bus, broker: Broker) -> None:
    created = await make_task(bus)
    broker.kill()
    append = asyncio.create_task(events.append_surely(bus, claim(created), expected=1, event_id="mine"))
    await asyncio.wait({append}, timeout=0.5)
    assert not append.done()
    broker.start()
    assert await asyncio.wait_for(append, 20) == 2


async def test_a_task_id_is_taken_once_over_all_chains(bus: Bus) -> None:
    await make_task(bus, task=5, chain=1)
    with pytest.raises(Conflict):
        await make_task(bus, task=5, chain=2)
    assert (await events.find(bus, 5)).document.task.chain == 1


async def test_a_full_event_stream_refuses_and_keeps_what_it_has(bus: Bus) -> None:
    info = await bus.js.stream_info("EVENTS")
    await bus.js.update_stream(info.config.evolve(max_bytes=2000))
    await make_task(bus, task=1)
    with pytest.raises(NotAccepted, match="full"):
        for task in range(2, 20):
            await make_task(bus, task=task)
    assert await events.load(bus, CHAIN, 1) is not None


async def test_the_history_of_a_chain_holds_its_ended_runs_and_no_other_chains(bus: Bus, app, settings) -> None:
    await make_task(bus, task=1)
    await make_task(bus, task=2, chain=99)
    async with worker(bus, app, settings):
        for number in range(5):
            await publish_command(bus, f"run-{number}")
            await ended(bus, f"run-{number}")
        await publish_command(bus, "foreign", task=2, chain=99)
        await ended(bus, "foreign", task=2, chain=99)
    runs = [document.run.id async for document in events.ended_runs(bus, CHAIN)]
    assert runs == [f"run-{number}" for number in range(5)]
    assert [document.run.id async for document in events.ended_runs(bus, 99)] == ["foreign"]
    assert [document async for document in events.ended_runs(bus, 12)] == []
