"""A read model catches up with what there is, also where the last messages of a stream are gone."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from runwire.messaging import subjects
from runwire.messaging.audit import Refusals
from runwire.messaging.broker import Bus
from runwire.settings import Settings
from tests.integration.test_readmodel import read_model
from tests.support import CHAIN, make_task

PATIENCE = 10


async def one_of_each(bus: Bus) -> None:
    """Something in every stream that the projector reads, and that may expire."""
    await make_task(bus, task=1)
    line = b'{"date": "2026-05-26T14:35:00Z", "level": "info", "message": "a line", "run": "r1"}'
    await bus.js.publish(subjects.log(CHAIN, 1), line)
    refusals = Refusals(bus)
    refusals.note((CHAIN,), token="t", method="GET", route="/tasks", code="forbidden", now=datetime.now(UTC))
    await refusals.write()


@pytest.mark.parametrize("stream", [subjects.EVENTS, subjects.LOGS, subjects.AUDIT])
async def test_a_stream_whose_messages_have_all_gone_keeps_nobody_waiting(
    bus: Bus, settings: Settings, stream: str
) -> None:
    await one_of_each(bus)
    await bus.js.purge_stream(stream)
    async with asyncio.timeout(PATIENCE), read_model(bus, settings):
        pass


@pytest.mark.parametrize("stream", [subjects.EVENTS, subjects.LOGS, subjects.AUDIT])
async def test_a_stream_whose_last_message_is_gone_is_read_up_to_the_one_before(
    bus: Bus, settings: Settings, stream: str
) -> None:
    await one_of_each(bus)
    await make_task(bus, task=2)
    await one_of_another(bus)
    await bus.js.delete_msg(stream, (await bus.js.stream_info(stream)).state.last_seq)
    async with asyncio.timeout(PATIENCE), read_model(bus, settings) as model:
        assert (await model.reader.document(1)).task.id == 1
        for source in model.projector._sources:
            if source.stream == stream:
                assert source.committed == (await bus.js.stream_info(stream)).state.last_seq - 1


async def one_of_another(bus: Bus) -> None:
    line = b'{"date": "2026-05-26T14:35:00Z", "level": "info", "message": "another", "run": "r2"}'
    await bus.js.publish(subjects.log(CHAIN, 2), line)
    refusals = Refusals(bus)
    refusals.note((CHAIN,), token="t", method="GET", route="/tasks", code="forbidden", now=datetime.now(UTC))
    await refusals.write()


async def test_a_read_model_that_is_up_to_date_starts_at_once_when_the_rest_has_gone(
    bus: Bus, settings: Settings
) -> None:
    await one_of_each(bus)
    async with read_model(bus, settings):
        pass
    await one_of_another(bus)
    for stream in (subjects.LOGS, subjects.AUDIT):
        await bus.js.purge_stream(stream)
    async with asyncio.timeout(PATIENCE), read_model(bus, settings) as model:
        assert (await model.reader.document(1)).task.id == 1
