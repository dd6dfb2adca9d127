"""An adapter that dies in the middle of a batch: rows and position are there together, or neither is."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from uuid import uuid4

from runwire.domain import lifecycle
from runwire.domain.lifecycle import Change
from runwire.domain.run import Command, Done, Source
from runwire.failpoints import Point
from runwire.messaging import codec, events, subjects
from runwire.messaging.broker import Bus
from runwire.settings import Settings
from tests.crash.processes import Processes, died
from tests.integration.test_readmodel import read_model, rows
from tests.support import CHAIN, free_port, lifecycle_now, make_task

TASKS, RUNS = 5, 8


async def run_some(bus: Bus, first: int) -> None:
    """Tasks with runs that have ended, written as a worker writes them."""
    for task in range(first, first + TASKS):
        document = await make_task(bus, task=task)
        sequence = (await events.load(bus, CHAIN, task)).sequence
        for number in range(RUNS):
            command = Command(
                chain=CHAIN, task=task, run=f"{task}-{number}", source=Source.BUS, accepted=lifecycle_now(),
                sequence=number + 1, delivery=1,
            )  # fmt: skip
            claimed = lifecycle.claim(document, command, claim_id=uuid4().hex, now=lifecycle_now())
            document = lifecycle.conclude(claimed, Done(None), now=lifecycle_now())
            for following in (claimed, document):
                sequence = await events.append(bus, following, expected=sequence, event_id=uuid4().hex)


def told(path: Path) -> tuple[int, set[int], set[str]]:
    """(position of EVENTS, tasks, runs) that the file has."""
    with closing(sqlite3.connect(path)) as connection:
        position = connection.execute("SELECT sequence FROM position WHERE stream = ?", (subjects.EVENTS,)).fetchone()
        tasks = {task for (task,) in connection.execute("SELECT id FROM task")}
        runs = {run for (run,) in connection.execute("SELECT id FROM run")}
    return (position[0] if position else 0), tasks, runs


async def up_to(bus: Bus, position: int) -> tuple[int, set[int], set[str]]:
    """The same, as it follows from the events up to there."""
    tasks, runs = set(), set()
    for sequence in range(1, position + 1):
        document = codec.decode((await bus.js.get_msg(subjects.EVENTS, sequence)).data)
        tasks.add(document.task.id)
        if document.change is Change.CONCLUDED:
            runs.add(document.run.id)
    return position, tasks, runs


async def test_a_projection_that_dies_in_a_batch_reads_on_and_comes_to_what_a_rebuilt_one_has(
    bus: Bus, processes: Processes, settings: Settings, tmp_path: Path
) -> None:
    file = tmp_path / "data/readmodel.db"
    for number, point in enumerate((Point.ROWS_WRITTEN, Point.BEFORE_COMMIT, Point.COMMITTED)):
        await run_some(bus, 100 * (number + 1))
        await died(processes.start("adapter", failpoint=f"{point}:kill", RUNWIRE_HTTP_PORT=str(free_port())))
        assert told(file) == await up_to(bus, told(file)[0])
    assert told(file)[0] > 0, "the last one died after its commit"
    await run_some(bus, 400)
    last, rebuilt = await events.last_sequence(bus), settings.model_copy(update={"data_dir": tmp_path / "rebuilt"})
    async with read_model(bus, settings) as live, read_model(bus, rebuilt) as anew:
        await live.reads(last)
        await anew.reads(last)
    live, rebuilt = rows(file), rows(rebuilt.read_model_path)
    assert len(live["run"]) == 4 * TASKS * RUNS
    for table in live.keys() - {"position"}:
        assert live[table] == rebuilt[table], table
