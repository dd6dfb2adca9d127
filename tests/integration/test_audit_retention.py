"""A row of the audit trail lives as long as its message does: rebuilt equals live, whatever the streams forget."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest

from runwire.domain import access
from runwire.domain.access import AccessLevel, TokenKind
from runwire.domain.lifecycle import Change
from runwire.messaging import events, streams, subjects, tokens
from runwire.messaging.audit import Refusals
from runwire.messaging.broker import Bus
from runwire.readmodel.database import remove_database
from runwire.settings import Settings
from tests.integration.test_readmodel import Model, read_model
from tests.support import CHAIN, eventually, make_task

NOW = datetime.now(UTC)


@pytest.fixture
async def small(settings: Settings, bus: Bus, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """EVENTS keeps 4 events per task and state, AUDIT 6 messages per chain."""
    monkeypatch.setattr(streams, "REFUSALS_PER_CHAIN", 6)
    for stream, kept in ((subjects.EVENTS, 4), (subjects.AUDIT, 6)):
        info = await bus.js.stream_info(stream)
        await bus.js.update_stream(info.config.evolve(max_msgs_per_subject=kept))
    return settings.model_copy(update={"events_history": 4})


def rows(path: Path) -> list[tuple[object, ...]]:
    """The trail; the ordinals only count."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(
            "SELECT stream, sequence, chain, date, actor, action, subject, detail, source FROM audit ORDER BY 1, 2, 3"
        ).fetchall()


def counters(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as connection:
        return {source for (source,) in connection.execute("SELECT source FROM audited")}


async def all_read(bus: Bus, model: Model) -> None:
    for source in model.projector._sources:
        last = (await bus.js.stream_info(source.stream)).state.last_seq
        await eventually(lambda source=source, last=last: source.committed >= last, what=f"{source.stream} is read")


async def rebuilt(bus: Bus, small: Settings) -> list[tuple[object, ...]]:
    remove_database(small.read_model_path)
    async with read_model(bus, small):
        pass
    return rows(small.read_model_path)


async def append(bus: Bus, task: int, *changes: tuple[Change, str | None]) -> None:
    """Further events of the task, all in the state that it has."""
    head = await events.load(bus, CHAIN, task)
    sequence = head.sequence
    for change, by in changes:
        document = head.document.model_copy(update={"change": change, "by": by})
        sequence = await events.append(bus, document, expected=sequence, event_id=uuid4().hex)


async def test_events_that_were_pushed_out_take_their_rows_along(bus: Bus, small: Settings) -> None:
    async with read_model(bus, small) as model:
        for task in (1, 2, 3):
            await make_task(bus, task=task)
        await append(bus, 1, *[(Change.EDITED, "ada")] * 9)  # edits have a subject of their own
        await append(bus, 2, *[(Change.RELEASED, None)] * 3)
        await append(bus, 3, *[(Change.RELEASED, None)] * 4)  # pushes out the creation
        await all_read(bus, model)
    live = rows(small.read_model_path)
    assert sorted((row[6], row[5]) for row in live) == [
        ("/tasks/1", "task.created"), *[("/tasks/1", "task.edited")] * 4, ("/tasks/2", "task.created"),
    ]  # fmt: skip
    assert counters(small.read_model_path) == {
        f"tasks.evt.{CHAIN}.{rest}" for rest in ("1.ready", "1.edited", "2.ready")
    }
    assert await rebuilt(bus, small) == live


async def test_events_that_come_one_by_one_count_as_those_of_one_batch(bus: Bus, small: Settings) -> None:
    await make_task(bus, task=1)
    await make_task(bus, task=2)
    await append(bus, 1, (Change.RELEASED, None))
    async with read_model(bus, small) as model:  # a batch of what is there
        for _ in range(2):
            await append(bus, 1, (Change.RELEASED, None))
            await all_read(bus, model)
    assert len(rows(small.read_model_path)) == 2
    async with read_model(bus, small) as model:  # from where it stopped
        await append(bus, 1, (Change.RELEASED, None))
        await all_read(bus, model)
    live = rows(small.read_model_path)
    assert [row[6] for row in live] == ["/tasks/2"]
    assert await rebuilt(bus, small) == live


async def test_versions_of_a_token_that_the_bucket_forgot_are_forgotten_in_every_chain(
    bus: Bus, small: Settings
) -> None:
    async with read_model(bus, small) as model:
        levels = {1: AccessLevel.MANAGER, 2: AccessLevel.VIEWER}
        token = access.create_token(
            "t", "secret", kind=TokenKind.ADMIN, levels=levels, by="operator", now=NOW, expires=None
        )
        await tokens.create(bus, token)
        for number in range(70):
            await tokens.change(bus, "t", lambda found, n=number: access.describe(found, f"v{n}", by="ada", now=NOW))
        await all_read(bus, model)
    live = rows(small.read_model_path)
    assert len(live) == 2 * streams.TOKEN_HISTORY
    assert await rebuilt(bus, small) == live


async def test_a_flood_in_one_chain_costs_no_other_its_trail(bus: Bus, small: Settings) -> None:
    refusals = Refusals(bus)
    async with read_model(bus, small) as model:
        for chain, kinds in ((1, 2), (2, 500), (1, 1)):
            for number in range(kinds):
                refusals.note((chain,), token="t", method="GET", route="/", code=f"c{number}", now=NOW)
            await refusals.write()
        await all_read(bus, model)
    live = rows(small.read_model_path)
    assert [sum(row[2] == chain for row in live) for chain in (1, 2)] == [3, 6]
    assert await rebuilt(bus, small) == live


async def test_a_new_installation_keeps_so_many_refusals_of_a_chain(bus: Bus) -> None:
    config = (await bus.js.stream_info(subjects.AUDIT)).config
    assert config.max_msgs_per_subject == streams.REFUSALS_PER_CHAIN


async def test_a_stream_that_was_made_anew_takes_its_part_of_the_trail_along(bus: Bus, small: Settings) -> None:
    await make_task(bus, task=1)
    refusals = Refusals(bus)
    refusals.note((1,), token="t", method="GET", route="/", code="c", now=NOW)
    await refusals.write()
    async with read_model(bus, small):
        pass
    assert {row[0] for row in rows(small.read_model_path)} == {subjects.EVENTS, subjects.AUDIT}
    await bus.js.delete_stream(subjects.EVENTS)
    await streams.provision(bus, small)
    async with asyncio.timeout(10), read_model(bus, small):
        pass
    assert {row[0] for row in rows(small.read_model_path)} == {subjects.AUDIT}
    assert counters(small.read_model_path) == {"tasks.aud.1"}
