"""Runs of actions with `process` and `concurrency`, from the command to the event."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

import runwire
from runwire.app import App
from runwire.domain.errors import SetupError
from runwire.domain.lifecycle import Change
from runwire.domain.run import RunCode
from runwire.domain.task import RetryPolicy, StateCode
from runwire.messaging import cancellation
from runwire.messaging.broker import Bus
from runwire.settings import Settings
from tests.integration import process_actions
from tests.integration.process_actions import REFERENCE
from tests.support import (
    CHAIN,
    Broker,
    Runwire,
    child_pids,
    ended,
    eventually,
    history,
    is_alive,
    log_of,
    make_task,
    pid_left,
    publish_command,
    queue_is_empty,
    worker,
)

FAMILY = ("parent", "child", "escaped", "bare")


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"app": REFERENCE})


@pytest.fixture
def app() -> App:
    return process_actions.app


# --- process ---------------------------------------------------------------------------------------------


async def test_runs_end_as_their_functions_do_and_the_worker_goes_on(bus: Bus, app: App, settings: Settings) -> None:
    expected = {
        "exit 0": "killed",
        "segfault": "killed",
        "close": "killed",
        "raise": "handler_error",
        "sys.exit": "handler_error",
        "fail": "no_such_month",
    }
    for task, how in enumerate(expected, start=1):
        await make_task(bus, "crash", task=task, how=how)
    await make_task(bus, "exhaust", task=10, megabytes=500)
    await make_task(bus, "odd", task=11)
    await make_task(bus, "plain", task=12)
    async with worker(bus, app, settings):
        for task in (*range(1, len(expected) + 1), 10, 11):
            await publish_command(bus, f"r{task}", task=task)
        for task, code in enumerate(expected.values(), start=1):
            assert (await ended(bus, f"r{task}", task=task)).run.error.code == code
        assert (await ended(bus, "r10", task=10)).run.error.message == "MemoryError: it may take 100 MB of memory"
        assert (await ended(bus, "r11", task=11)).run.error.code == "invalid_result"
        await publish_command(bus, "r12", task=12)
        document = await ended(bus, "r12", task=12)
    assert document.run.code is RunCode.DONE
    assert document.run.result["context"][0] == "r12"


async def test_what_a_function_prints_and_logs_is_in_the_log_of_its_run(bus: Bus, app: App, settings: Settings) -> None:
    await make_task(bus, "talk")
    async with worker(bus, app, settings):
        await publish_command(bus, "r")
        await ended(bus, "r")
    assert sorted((line.level, line.message) for line in await log_of(bus)) == [
        ("info", "from a program"),
        ("info", "from a thread"),
        ("info", "no line end"),
        ("info", "printed"),
        ("info", "recorded 1"),
        ("warning", "complained"),
        ("warning", "logged"),
    ]


async def test_output_without_end_is_cut_in_the_log(bus: Bus, app: App, settings: Settings) -> None:
    await make_task(bus, "flood", megabytes=20)
    async with worker(bus, app, settings):
        await publish_command(bus, "r")
        await ended(bus, "r", within=30)
    lines = [line.message for line in await log_of(bus)]
    assert lines.count("0123456789abcde") == 1000
    assert lines.count("much") == 2000
    assert lines[-1].startswith(f"{20 * 65536 - 1000 + 8000:,} further lines were dropped")


async def test_secrets_are_hidden_in_what_a_process_shows(
    bus: Bus, app: App, settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("correct-horse")
    await make_task(bus, "secrets", method="secret", name="key")
    async with worker(bus, app, settings.model_copy(update={"secrets": tmp_path})):
        await publish_command(bus, "r")
        document = await ended(bus, "r")
    assert document.run.result == {"length": 13, "value": "***"}
    lines = [line.message for line in await log_of(bus)]
    assert "it is ***" in lines
    assert not [line for line in lines if "corr" in line], "nor at the place where a line is cut"


async def test_a_process_that_was_killed_is_tried_again(bus: Bus, app: App, settings: Settings) -> None:
    await make_task(bus, "crash", how="kill", retry=RetryPolicy(attempts=3, backoff=0, on=["killed"]))
    async with worker(bus, app, settings):
        await publish_command(bus, "r")
        assert (await ended(bus, "r")).run.attempt == 3


async def test_a_timeout_ends_a_function_that_never_returns(
    bus: Bus, app: App, settings: Settings, tmp_path: Path
) -> None:
    await make_task(bus, "endless", timeout=1, folder=str(tmp_path))
    await make_task(bus, "nothing", task=2)
    async with worker(bus, app, settings):
        await publish_command(bus, "r2", task=2)
        await ended(bus, "r2", task=2)  # the app is loaded
        await publish_command(bus, "r")
        pid = await pid_left(tmp_path, "endless")
        assert (await ended(bus, "r")).run.error.code == "timeout"
        assert not is_alive(pid)


async def test_a_cancel_ends_a_function_and_all_it_has_started(
    bus: Bus, app: App, settings: Settings, tmp_path: Path
) -> None:
    await make_task(bus, "family", folder=str(tmp_path))
    async with worker(bus, app, settings):
        await publish_command(bus, "r")
        pids = [await pid_left(tmp_path, name) for name in FAMILY]
        await cancellation.cancel(bus, CHAIN, 1, by="tester")
        await eventually(lambda: not any(map(is_alive, pids)), within=1)
    assert (await ended(bus, "r")).run.error.code == "cancelled"


async def test_four_that_compute_leave_the_worker_to_others(
    bus: Bus, app: App, settings: Settings, tmp_path: Path
) -> None:
    for task in range(1, 5):
        (tmp_path / str(task)).mkdir()
        await make_task(bus, "endless", task=task, folder=str(tmp_path / str(task)))
        await publish_command(bus, f"r{task}", task=task)
    await make_task(bus, "sleep", task=5, seconds=0)
    async with worker(bus, app, settings):
        for task in range(1, 5):
            await pid_left(tmp_path / str(task), "endless")
        until = time.monotonic() + 1.5 * settings.ack_wait  # were there no heartbeats, they would have begun again
        while (began := time.monotonic()) < until:
            await publish_command(bus, f"s{began}".replace(".", "_"), task=5)
            await ended(bus, f"s{began}".replace(".", "_"), task=5)
            assert time.monotonic() - began < 1
        for task in range(1, 5):
            assert [document.change for document in await history(bus, task=task)] == [Change.CREATED, Change.CLAIMED]


async def test_a_process_action_needs_a_name_to_load_it_by(bus: Bus, app: App, settings: Settings) -> None:
    nameless = settings.model_copy(update={"app": None})
    with pytest.raises(
        SetupError, match="'plain' runs in processes, which load it by name: say --app MODULE:ATTRIBUTE"
    ):
        async with worker(bus, app, nameless):
            pass


def worker_process(broker: Broker, folder: Path) -> Runwire:
    root = str(Path(__file__).parents[2])
    return Runwire(
        "worker", "--app", REFERENCE, cwd=folder, PYTHONPATH=root, RUNWIRE_NATS_URL=broker.url,
        RUNWIRE_STORE_BYTES=str(128 << 20), RUNWIRE_ACK_WAIT="1", RUNWIRE_GRACE_SECONDS="0.2",
    )  # fmt: skip


async def test_a_worker_that_is_killed_leaves_nothing_behind(bus: Bus, broker: Broker, tmp_path: Path) -> None:
    await make_task(bus, "family", folder=str(tmp_path))
    process = worker_process(broker, tmp_path)
    try:
        await publish_command(bus, "r")
        pids = [await pid_left(tmp_path, name) for name in FAMILY] + child_pids(process.process.pid)
        assert len(pids) == 5
        process.kill()
        await eventually(lambda: not any(map(is_alive, pids)), within=3)
    finally:
        process.kill()


async def test_a_worker_that_is_stopped_kills_its_processes_and_hands_back_their_runs(
    bus: Bus, broker: Broker, tmp_path: Path
) -> None:
    await make_task(bus, "family", folder=str(tmp_path))
    process = worker_process(broker, tmp_path)
    try:
        await publish_command(bus, "r")
        pids = [await pid_left(tmp_path, name) for name in FAMILY] + child_pids(process.process.pid)
        assert await process.stop(within=8) == 0
        assert not any(map(is_alive, pids))
        assert (await history(bus))[-1].change is Change.RELEASED
    finally:
        process.kill()


# --- concurrency -----------------------------------------------------------------------------------------


class Counted:
    """An action that counts how many of it run at once, and waits until it may end."""

    def __init__(self, app: App, limit: int, *, open_: bool = False) -> None:
        self.now = self.most = self.begun = 0
        self.may_end = asyncio.Event()
        if open_:
            self.may_end.set()

        @app.action("counted", concurrency=limit)
        async def counted(params: dict[str, object], ctx: runwire.Context) -> None:
            self.now += 1
            self.begun += 1
            self.most = max(self.most, self.now)
            try:
                await asyncio.sleep(0)
                await self.may_end.wait()
            finally:
                self.now -= 1


async def test_no_more_than_so_many_run_at_once_and_the_others_stay_ready(bus: Bus, settings: Settings) -> None:
    own = App()
    counted = Counted(own, 2)
    for task in range(1, 7):
        await make_task(bus, "counted", task=task)
        await publish_command(bus, f"r{task}", task=task)
    await make_task(bus, "sleep", task=9, seconds=0)
    async with worker(bus, own, settings) as consumer:
        await eventually(lambda: counted.now == 2)
        await publish_command(bus, "r9", task=9)
        await ended(bus, "r9", task=9)
        await eventually(lambda: consumer._slots.used == 2, what="those that wait hold no slot")
        waiting = [(await history(bus, task=task))[-1] for task in range(1, 7)]
        assert [document.task.state.code for document in waiting].count(StateCode.READY) == 4
        counted.may_end.set()
        for task in range(1, 7):
            document = await ended(bus, f"r{task}", task=task)
            assert (document.run.code, document.run.attempt) == (RunCode.DONE, 1)
        await eventually(lambda: queue_is_empty(bus))
    assert (counted.most, counted.begun) == (2, 6)


async def test_a_place_is_used_soon_when_it_is_free(bus: Bus, settings: Settings) -> None:
    own = App()
    counted = Counted(own, 1)
    for task in (1, 2):
        await make_task(bus, "counted", task=task)
        await publish_command(bus, f"r{task}", task=task)
    async with worker(bus, own, settings):
        await eventually(lambda: counted.begun == 1)
        began = time.monotonic()
        counted.may_end.set()
        await eventually(lambda: counted.begun == 2)
        assert time.monotonic() - began < 1


async def test_a_run_that_waits_for_a_place_can_be_cancelled(bus: Bus, settings: Settings) -> None:
    own = App()
    counted = Counted(own, 1)
    for task in (1, 2):
        await make_task(bus, "counted", task=task)
    async with worker(bus, own, settings):
        await publish_command(bus, "r1", task=1)
        await eventually(lambda: counted.now == 1)
        await publish_command(bus, "r2", task=2)
        await cancellation.cancel(bus, CHAIN, 2, by="tester")
        document = await ended(bus, "r2", task=2)
        assert (document.run.error.code, document.run.attempt) == ("cancelled", 0)
        counted.may_end.set()
        await ended(bus, "r1", task=1)
        await eventually(lambda: queue_is_empty(bus))
    assert counted.begun == 1


async def test_a_run_that_waits_for_a_place_waits_no_longer_than_its_deadline(
    bus: Bus, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runwire.worker.places.SHORTEST", 30.0)
    own = App()
    counted = Counted(own, 1)
    await make_task(bus, "counted", task=1)
    await make_task(bus, "counted", task=2, deadline=0.5)
    async with worker(bus, own, settings):
        await publish_command(bus, "r1", task=1)
        await eventually(lambda: counted.now == 1)
        await publish_command(bus, "r2", task=2)
        document = await ended(bus, "r2", task=2, within=5)
        assert (document.run.error.code, document.run.attempt) == ("deadline_exceeded", 0)
        counted.may_end.set()


async def test_an_attempt_that_is_cancelled_gives_its_place_back(bus: Bus, settings: Settings) -> None:
    own = App()
    counted = Counted(own, 1)
    for task in (1, 2):
        await make_task(bus, "counted", task=task)
    async with worker(bus, own, settings):
        await publish_command(bus, "r1", task=1)
        await eventually(lambda: counted.now == 1)
        await publish_command(bus, "r2", task=2)
        await cancellation.cancel(bus, CHAIN, 1, by="tester")
        await eventually(lambda: counted.begun == 2)
        counted.may_end.set()
        assert (await ended(bus, "r2", task=2)).run.code is RunCode.DONE


async def test_many_that_wait_all_get_their_turn(bus: Bus, settings: Settings) -> None:
    own = App()
    counted = Counted(own, 1, open_=True)
    for task in range(1, 21):
        await make_task(bus, "counted", task=task)
        await publish_command(bus, f"r{task}", task=task)
    async with worker(bus, own, settings):
        await eventually(lambda: queue_is_empty(bus))
    assert (counted.most, counted.begun) == (1, 20)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"concurrency": 0}, "concurrency must be a whole number from 1 on"),
        ({"concurrency": True}, "concurrency must be a whole number from 1 on"),
        ({"memory": 0.5, "process": True}, "memory must be a whole number from 1 on"),
        ({"memory": 100}, "memory needs process=True"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(options: dict[str, object], complaint: str) -> None:
    with pytest.raises(SetupError, match=f"action 'x': {complaint}"):
        App().action("x", **options)(process_actions.nothing)
