"""Actions that are plain functions: they block, never return, raise what they like, and the worker goes on."""

from __future__ import annotations

import threading
import time

import pytest

import runwire
from runwire.app import App
from runwire.domain.errors import SetupError
from runwire.domain.run import RunCode
from runwire.domain.task import RetryPolicy
from runwire.messaging import cancellation
from runwire.messaging.broker import Bus
from runwire.settings import Settings
from tests.support import CHAIN, ended, eventually, make_task, publish_command, worker


async def test_a_function_that_blocks_leaves_the_worker_to_others(bus: Bus, app: App, settings: Settings) -> None:
    may_end = threading.Event()

    @app.action("blocking")
    def blocking(params: dict[str, object], ctx: runwire.Context) -> dict[str, str]:
        ctx.log(f"attempt {ctx.attempt}")
        may_end.wait(30)
        return {"thread": threading.current_thread().name}

    await make_task(bus, "blocking", task=1)
    await make_task(bus, task=2)
    async with worker(bus, app, settings):
        await publish_command(bus, "slow", task=1)
        await publish_command(bus, "quick", task=2)
        await ended(bus, "quick", task=2)
        may_end.set()
        document = await ended(bus, "slow", task=1)
    assert document.run.code is RunCode.DONE
    assert document.run.attempt == 1  # the heartbeats went on
    assert document.run.result == {"thread": "blocking"}


async def test_more_functions_than_cores_run_at_once(bus: Bus, app: App, settings: Settings) -> None:
    all_here = threading.Barrier(7, timeout=20)

    @app.action("meet")
    def meet(params: dict[str, object], ctx: runwire.Context) -> None:
        all_here.wait()

    async with worker(bus, app, settings):
        for task in range(1, 8):
            await make_task(bus, "meet", task=task)
            await publish_command(bus, f"r{task}", task=task)
        for task in range(1, 8):
            assert (await ended(bus, f"r{task}", task=task)).run.code is RunCode.DONE


async def test_a_function_that_never_returns_ends_by_its_timeout(bus: Bus, app: App, settings: Settings) -> None:
    stopped = threading.Event()

    @app.action("endless")
    def endless(params: dict[str, object], ctx: runwire.Context) -> dict[str, str]:
        while not ctx.cancelled:
            time.sleep(0.01)
        stopped.set()
        return {"too": "late"}

    await make_task(bus, "endless", timeout=0.3)
    async with worker(bus, app, settings):
        await publish_command(bus, "r")
        document = await ended(bus, "r")
        assert (document.run.code, document.run.error.code) == (RunCode.ERROR, "timeout")
        await eventually(stopped.is_set)
    assert document.task.result is None


async def test_a_function_hears_that_its_run_was_cancelled(bus: Bus, app: App, settings: Settings) -> None:
    started, stopped = threading.Event(), threading.Event()

    @app.action("patient")
    def patient(params: dict[str, object], ctx: runwire.Context) -> None:
        started.set()
        while not ctx.cancelled:
            time.sleep(0.01)
        stopped.set()

    await make_task(bus, "patient")
    async with worker(bus, app, settings):
        await publish_command(bus, "r")
        await eventually(started.is_set)
        await cancellation.cancel(bus, CHAIN, 1, by="tester")
        await eventually(stopped.is_set, within=2)
    assert (await ended(bus, "r")).run.error.code == "cancelled"


@pytest.mark.parametrize(
    "raised", [ValueError("no"), SystemExit(3), KeyboardInterrupt(), StopIteration(1), GeneratorExit()]
)
async def test_whatever_a_function_raises_ends_its_run_alone(
    bus: Bus, app: App, settings: Settings, raised: BaseException
) -> None:
    @app.action("broken")
    def broken(params: dict[str, object], ctx: runwire.Context) -> None:
        raise raised

    await make_task(bus, "broken", task=1)
    await make_task(bus, task=2)
    async with worker(bus, app, settings):
        await publish_command(bus, "r1", task=1)
        document = await ended(bus, "r1", task=1)
        assert document.run.error.code == "handler_error"
        assert type(raised).__name__ in document.run.error.message
        await publish_command(bus, "r2", task=2)
        assert (await ended(bus, "r2", task=2)).run.code is RunCode.DONE


async def test_fail_and_retry_mean_the_same_from_a_function(bus: Bus, app: App, settings: Settings) -> None:
    @app.action("fussy")
    def fussy(params: dict[str, object], ctx: runwire.Context) -> dict[str, int]:
        if ctx.attempt == 1:
            raise runwire.Retry(after=0)
        raise runwire.Fail("never_again", "enough")

    await make_task(bus, "fussy", retry=RetryPolicy(attempts=5, backoff=0))
    async with worker(bus, app, settings):
        await publish_command(bus, "r")
        document = await ended(bus, "r")
    assert (document.run.error.code, document.run.attempt) == ("never_again", 2)


def test_what_is_no_function_is_refused_by_name() -> None:
    app = App()

    def generator(params: dict[str, object], ctx: runwire.Context):
        yield {}

    async def stream(params: dict[str, object], ctx: runwire.Context):
        yield {}

    for number, handler in enumerate((generator, stream, type)):
        with pytest.raises(SetupError, match=f"odd {number}"):
            app.action(f"odd {number}")(handler)
