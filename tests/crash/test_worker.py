"""A worker that dies, freezes or is cut off, at each step of a run."""

from __future__ import annotations

import csv
import io

import pytest

from runwire import artifacts
from runwire.artifacts import STREAM, File
from runwire.domain.lifecycle import Change, Document
from runwire.domain.run import RunCode
from runwire.failpoints import Point
from runwire.messaging import subjects
from runwire.messaging.broker import Bus
from runwire.settings import Settings
from runwire.uploads import CHUNK
from tests.crash.app import ROWS, app
from tests.crash.processes import Processes, died, freeze, go_on, proxied, stands_still
from tests.support import CHAIN, ended, eventually, history, make_task, publish_command, queue_is_empty, worker


async def probe_task(bus: Bus, processes: Processes, task: int, seconds: float = 0) -> str:
    """A task whose action leaves a trace; returns the id its run is to have."""
    await make_task(bus, "probe", task=task, file=str(processes.trace), seconds=seconds)
    return f"run-{task}"


async def changes(bus: Bus, task: int) -> list[Change]:
    return [document.change for document in await history(bus, task=task)]


async def concluded(bus: Bus, task: int) -> list[Document]:
    return [document for document in await history(bus, task=task) if document.change is Change.CONCLUDED]


@pytest.mark.parametrize(
    ("point", "attempt", "begun"),
    [
        (Point.BEFORE_CLAIM, 1, 1),
        (Point.CLAIM_STORED, 2, 1),
        (Point.BEFORE_CONCLUSION, 2, 2),
        (Point.BEFORE_ACKNOWLEDGEMENT, 1, 1),
    ],
)
async def test_a_run_whose_worker_dies_at_any_step_ends_once(
    bus: Bus, processes: Processes, settings: Settings, task: int, point: str, attempt: int, begun: int
) -> None:
    run = await probe_task(bus, processes, task)
    await publish_command(bus, run, task=task)
    await died(processes.worker(f"{point}:kill"))
    assert not await queue_is_empty(bus)
    async with worker(bus, app, settings):
        document = await ended(bus, run, task=task)
        await eventually(lambda: queue_is_empty(bus))
    assert (document.run.code, document.run.attempt) == (RunCode.DONE, attempt)
    assert len(processes.executions()) == begun
    assert await changes(bus, task) == [Change.CREATED, *[Change.CLAIMED] * attempt, Change.CONCLUDED]


async def test_a_run_that_kills_every_worker_ends_as_attempts_exhausted(
    bus: Bus, processes: Processes, settings: Settings, task: int
) -> None:
    run = await probe_task(bus, processes, task)
    await publish_command(bus, run, task=task)
    for _ in range(2):
        await died(processes.worker(f"{Point.CLAIM_STORED}:kill", RUNWIRE_MAX_DELIVERIES="2"))
    async with worker(bus, app, settings.model_copy(update={"max_deliveries": 2})):
        document = await ended(bus, run, task=task)
        await eventually(lambda: queue_is_empty(bus))
    assert (document.run.error.code, document.run.attempt) == ("attempts_exhausted", 2)
    assert processes.executions() == []


async def test_an_end_whose_confirmation_is_lost_is_recognised(
    bus: Bus, processes: Processes, settings: Settings, task: int
) -> None:
    run = await probe_task(bus, processes, task)
    async with proxied(settings) as proxy:
        first = processes.worker(f"{Point.BEFORE_CONCLUSION}:stop", proxy=proxy)
        await publish_command(bus, run, task=task)
        await stands_still(first)
        proxy.mute()
        go_on(first)
        await ended(bus, run, task=task)  # stored, and the worker does not hear of it
        proxy.cut()
        proxy.heal()
        await first.says("run succeeded")
        await eventually(lambda: queue_is_empty(bus))
        assert "run fenced" not in first.output
    assert await changes(bus, task) == [Change.CREATED, Change.CLAIMED, Change.CONCLUDED]
    assert len(processes.executions()) == 1


async def test_a_frozen_worker_that_wakes_before_the_next_claim_ends_its_run(
    bus: Bus, processes: Processes, task: int
) -> None:
    run = await probe_task(bus, processes, task, seconds=1)
    first = processes.worker()
    await publish_command(bus, run, task=task)
    await processes.execution_begins()
    freeze(first)
    second = processes.worker(f"{Point.BEFORE_CLAIM}:stop")
    await stands_still(second)  # it was given the command, as nothing was heard of the first
    go_on(first)
    document = await ended(bus, run, task=task)
    go_on(second)
    await eventually(lambda: queue_is_empty(bus))
    assert (document.run.code, document.run.attempt) == (RunCode.DONE, 1)
    assert await changes(bus, task) == [Change.CREATED, Change.CLAIMED, Change.CONCLUDED]
    assert [line[2] for line in processes.executions()] == [str(first.process.pid)]


async def test_a_worker_cut_off_past_ack_wait_is_fenced(
    bus: Bus, processes: Processes, settings: Settings, task: int
) -> None:
    run = await probe_task(bus, processes, task, seconds=1)
    async with proxied(settings) as proxy:
        first = processes.worker(proxy=proxy)
        await publish_command(bus, run, task=task)
        await processes.execution_begins()
        proxy.stall()
        second = processes.worker()
        await processes.execution_begins(2)
        proxy.heal()
        await first.says("run fenced")
        document = await ended(bus, run, task=task)
        await second.says("run succeeded")
        await eventually(lambda: queue_is_empty(bus))
    assert (document.run.code, document.run.attempt) == (RunCode.DONE, 2)
    assert document.task.result == {"attempt": 2, "pid": second.process.pid}
    assert await changes(bus, task) == [Change.CREATED, Change.CLAIMED, Change.CLAIMED, Change.CONCLUDED]


async def test_a_command_that_cannot_be_run_is_one_dead_letter_though_its_worker_dies(
    bus: Bus, processes: Processes, settings: Settings, task: int
) -> None:
    await publish_command(bus, f"run-{task}", task=task)  # for a task that there is not
    await died(processes.worker(f"{Point.DEAD_LETTER_STORED}:kill"))
    async with worker(bus, app, settings):
        await eventually(lambda: queue_is_empty(bus))
    subject = f"tasks.dlq.{CHAIN}.{task}"
    info = await bus.js.stream_info(subjects.DEADLETTERS, subjects_filter=subject)
    assert info.state.subjects == {subject: 1}


@pytest.mark.parametrize("point", [f"{Point.CHUNK_STORED}:kill:2", f"{Point.BEFORE_FILE}:kill"])
async def test_half_a_file_is_never_seen_and_goes_with_the_next_attempt(
    bus: Bus, processes: Processes, settings: Settings, task: int, point: str
) -> None:
    run, before = f"run-{task}", await objects(bus)
    file = File(CHAIN, task, run, f"Numbers_Export-{task}.csv")
    await make_task(bus, "export", task=task, export_index="Numbers")
    await publish_command(bus, run, task=task)
    await died(processes.worker(point))
    assert await objects(bus) > before
    assert await artifacts.get(bus, file.object_name) is None
    async with worker(bus, app, settings):
        document = await ended(bus, run, task=task)
    content = await artifacts.get(bus, file.object_name)
    assert document.task.result == {"rows": ROWS, "bytes": len(content), "file": file.name}
    assert [row["number"] for row in csv.DictReader(io.StringIO(content.decode()))] == [str(n) for n in range(ROWS)]
    chunks = -(-len(content) // CHUNK)
    assert await objects(bus) == before + chunks + 1, "what the dead worker left is gone"


async def objects(bus: Bus) -> int:
    """Messages that the object store is made of."""
    return (await bus.js.stream_info(STREAM)).state.messages
