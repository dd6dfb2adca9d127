"""The projection: rows and position together, rebuilt equals live, and waking whoever waits."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import runwire
from runwire.app import App
from runwire.bootstrap.adapter import start_projector
from runwire.domain.errors import SetupError
from runwire.domain.lifecycle import Change
from runwire.domain.run import RunCode
from runwire.messaging import events, streams
from runwire.messaging.broker import Bus
from runwire.readmodel import projection
from runwire.readmodel.database import Database, open_database, remove_database
from runwire.readmodel.heads import Heads
from runwire.readmodel.projector import Projector
from runwire.readmodel.reader import Reader, TaskFilter
from runwire.readmodel.waiters import Waiters
from runwire.settings import Settings
from tests.support import (
    CHAIN,
    Broker,
    connected,
    ended,
    eventually,
    make_task,
    publish_command,
    queue_is_empty,
    worker,
)


class Model:
    """A read model with everything around it."""

    def __init__(self, database: Database, projector: Projector, reader: Reader, waiters: Waiters) -> None:
        self.database, self.projector, self.reader, self.waiters = database, projector, reader, waiters

    async def reads(self, sequence: int) -> None:
        await asyncio.wait_for(self.projector.milestones.wait(sequence), 15)


@asynccontextmanager
async def read_model(bus: Bus, settings: Settings) -> AsyncIterator[Model]:
    database = await open_database(settings.read_model_path)
    heads, waiters = Heads(), Waiters(100)
    projector = await start_projector(bus, database, heads, waiters, settings)
    try:
        yield Model(database, projector, Reader(database, heads), waiters)
    finally:
        await projector.stop()
        await database.close()


def rows(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """Everything the file says; the ordinals only count."""
    with sqlite3.connect(path) as connection:
        found = {
            "task": connection.execute("SELECT * FROM task ORDER BY id").fetchall(),
            "run": connection.execute(
                "SELECT task, id, code, sequence, document FROM run ORDER BY sequence"
            ).fetchall(),
            "log": connection.execute("SELECT * FROM log ORDER BY task, sequence").fetchall(),
            "progress": connection.execute("SELECT * FROM progress ORDER BY task").fetchall(),
            "position": connection.execute("SELECT * FROM position ORDER BY stream").fetchall(),
            "tally": connection.execute("SELECT * FROM tally WHERE tasks <> 0 ORDER BY 1, 2, 3, 4").fetchall(),
        }
    connection.close()
    return found


async def run_some(bus: Bus, app: App, settings: Settings, runs: int) -> None:
    async with worker(bus, app, settings):
        for number in range(runs):
            await publish_command(bus, f"r{number}", task=1 + number % 3)
            await ended(bus, f"r{number}", task=1 + number % 3)
        await eventually(lambda: queue_is_empty(bus))


@pytest.fixture
def app(app: App) -> App:
    @app.action("mixed")
    async def mixed(params: dict[str, object], ctx: runwire.Context) -> dict[str, str]:
        ctx.log(f"run {ctx.run_id}")
        ctx.progress(0.5, ctx.run_id)
        if ctx.run_id.endswith(("3", "7")):
            raise ValueError("unlucky")
        return {"run": ctx.run_id}

    return app


async def test_a_deleted_file_is_rebuilt_to_the_same_rows(bus: Bus, app: App, settings: Settings) -> None:
    small = settings.model_copy(update={"events_history": 4})
    info = await bus.js.stream_info("EVENTS")
    await bus.js.update_stream(info.config.evolve(max_msgs_per_subject=4))
    for task in (1, 2, 3):
        await make_task(bus, "mixed", task=task)
    async with read_model(bus, small) as model:
        await run_some(bus, app, small, 30)
        last = (await bus.js.stream_info("EVENTS")).state.last_seq
        await model.reads(last)
        await eventually(lambda: model.projector._logs.committed > 30)
    live = rows(settings.read_model_path)
    remove_database(settings.read_model_path)
    async with read_model(bus, small):
        pass
    rebuilt = rows(settings.read_model_path)
    assert rebuilt == live
    assert len(live["run"]) >= 12
    assert len(live["progress"]) == 3


async def test_reading_goes_on_where_it_stopped(bus: Bus, app: App, settings: Settings) -> None:
    await make_task(bus, task=1)
    async with read_model(bus, settings) as model:
        await model.reads(1)
    await make_task(bus, task=2)
    async with read_model(bus, settings) as model:
        assert (await model.reader.document(1)).task.id == 1
        assert (await model.reader.document(2)).task.id == 2
        assert model.projector._events.delivered == 1, "only what is new was read"


async def test_rows_and_position_are_stored_together_or_not_at_all(bus: Bus, settings: Settings) -> None:
    database = await open_database(settings.read_model_path)

    def half(connection: sqlite3.Connection) -> None:
        projection.set_position(connection, "EVENTS", "x", 7)
        raise sqlite3.OperationalError("database or disk is full")

    with pytest.raises(sqlite3.OperationalError):
        await database.transact(half)
    assert await database.read(lambda connection: projection.position("EVENTS", connection)) == ("", 0)
    await database.transact(lambda connection: projection.set_position(connection, "EVENTS", "x", 8))
    await database.close()


async def test_a_full_disk_stops_the_projection_and_not_the_reading(
    bus: Bus, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with read_model(bus, settings) as model:
        await make_task(bus, task=1)
        await model.reads(1)

        def full(*_: object, **__: object) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(projection, "apply_events", full)
            await make_task(bus, task=2)
            await eventually(lambda: model.projector.trouble)
            assert (await model.reader.document(1)).task.id == 1
            assert await model.reader.document(2) is None
        await model.reads(2)
        assert (await model.reader.document(2)).task.id == 2
        assert model.projector.trouble is None


async def test_a_broker_restart_leaves_no_gap_and_no_repeat(
    bus: Bus, broker: Broker, app: App, settings: Settings
) -> None:
    async with read_model(bus, settings) as model:
        await make_task(bus, task=1)
        await model.reads(1)
        for round_ in range(3):
            broker.restart()
            other = await connected(settings)
            await make_task(other, task=10 + round_)
            await model.reads(2 + round_)
            await other.nc.close()
        tasks, total = await model.reader.tasks(TaskFilter(chains=(CHAIN,)), limit=10, offset=0)
    assert [found.task["id"] for found in tasks] == [1, 10, 11, 12]
    assert total == 4


async def test_a_stream_that_was_made_anew_is_read_from_the_start(bus: Bus, settings: Settings) -> None:
    async with read_model(bus, settings) as model:
        await make_task(bus, task=1)
        await make_task(bus, task=2)
        await model.reads(2)
    await bus.js.delete_stream("EVENTS")
    await streams.provision(bus, settings)
    await make_task(bus, task=3)
    async with read_model(bus, settings) as model:
        tasks, _ = await model.reader.tasks(TaskFilter(chains=(CHAIN,)), limit=10, offset=0)
    assert [found.task["id"] for found in tasks] == [3]


async def test_messages_lost_on_the_way_are_noticed_and_read_again(bus: Bus, settings: Settings) -> None:
    async with read_model(bus, settings) as model:
        source = model.projector._events
        source.delivered = -5  # as if five messages had gone missing
        await make_task(bus, task=1)
        await model.reads(1)
        assert (await model.reader.document(1)).task.id == 1


async def test_whoever_waits_is_woken_with_what_the_next_read_shows(bus: Bus, app: App, settings: Settings) -> None:
    await make_task(bus, "mixed")
    async with read_model(bus, settings) as model, worker(bus, app, settings):
        with model.waiters.registered(1, "r1") as end:
            await publish_command(bus, "r1")
            run = await asyncio.wait_for(end, 10)
            found = await model.reader.task(1, log_limit=10, log_offset=0)
        assert run.result == {"run": "r1"}
        assert found.document.run == run
        assert [entry["message"] for entry in found.logs] == ["run r1"]
        assert len(model.waiters) == 0


async def test_a_completion_faster_than_anybody_can_wait_is_not_missed(bus: Bus, app: App, settings: Settings) -> None:
    """The waiter is registered before the command is published, so 200 of 200 are woken."""
    await make_task(bus)
    async with read_model(bus, settings) as model, worker(bus, app, settings):
        for number in range(200):
            with model.waiters.registered(1, f"r{number}") as end:
                await publish_command(bus, f"r{number}")
                assert (await asyncio.wait_for(end, 10)).code is RunCode.DONE
            await eventually(lambda: queue_is_empty(bus))


async def test_a_deleted_task_disappears_with_its_runs(bus: Bus, app: App, settings: Settings) -> None:
    await make_task(bus, "mixed")
    async with read_model(bus, settings) as model:
        async with worker(bus, app, settings):
            await publish_command(bus, "r1")
            await ended(bus, "r1")
        head = await events.load(bus, CHAIN, 1)
        gone = head.document.model_copy(update={"change": Change.DELETED})
        await model.reads(await events.append(bus, gone, expected=head.sequence, event_id="gone"))
        assert await model.reader.document(1) is None
        assert await model.reader.run(1, "r1") is None


async def test_a_second_process_on_the_same_file_is_refused(settings: Settings) -> None:
    first = await open_database(settings.read_model_path)
    with pytest.raises(SetupError, match="in use"):
        await open_database(settings.read_model_path)
    await first.close()
    again = await open_database(settings.read_model_path)
    await again.close()


async def test_a_file_that_is_no_database_is_told_in_one_line(settings: Settings) -> None:
    settings.data_dir.mkdir(exist_ok=True)
    settings.read_model_path.write_bytes(b"this is not a database, not at all" * 100)
    with pytest.raises(SetupError, match="can be deleted"):
        await open_database(settings.read_model_path)


async def test_events_that_no_row_could_hold_do_not_stop_the_projection(bus: Bus, settings: Settings) -> None:
    """Nobody but us writes events; should one be odd all the same, the others still have to be read."""
    odd = (await make_task(bus, task=1, campaign=10**30)).model_dump_json()
    await bus.js.publish(f"tasks.evt.{CHAIN}.2.ready", odd.encode())
    await bus.js.publish(f"tasks.evt.{CHAIN}.3.ready", b"no event at all")
    await make_task(bus, task=4, campaign=7)
    async with read_model(bus, settings) as model:
        await model.reads(4)
        everything, _ = await model.reader.tasks(TaskFilter(chains=(CHAIN,)), limit=10, offset=0)
        of_campaign, total = await model.reader.tasks(TaskFilter(chains=(CHAIN,), campaign=7), limit=10, offset=0)
    assert [found.task["id"] for found in everything] == [1, 4]
    assert ([found.task["id"] for found in of_campaign], total) == ([4], 1)
