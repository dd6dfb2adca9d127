"""One noisy chain does not slow another: over the bus, over HTTP, with runs that last for hours."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from datetime import UTC, datetime
from statistics import median

import pytest

import runwire
from runwire.app import App
from runwire.domain.access import AccessLevel, AccessToken, TokenKind, digest
from runwire.domain.run import Source
from runwire.messaging import chains, commands, deadletters, streams, subjects, tokens
from runwire.messaging.broker import Bus
from runwire.settings import Settings
from tests.support import (
    CHAIN,
    Broker,
    adapter,
    connected,
    dead_letters,
    ended,
    eventually,
    history,
    make_task,
    publish_command,
    queue_is_empty,
    worker,
)

QUIET = 2


class Endless:
    """An action whose runs never end by themselves, as seen from a test."""

    def __init__(self, app: App) -> None:
        self.running = 0

        @app.action("endless")
        async def endless(params: dict[str, object], ctx: runwire.Context) -> None:
            self.running += 1
            try:
                await asyncio.Event().wait()
            finally:
                self.running -= 1


async def make_token(bus: Bus, name: str, chain: int) -> str:
    """The credential of an operator of the chain."""
    token = AccessToken(
        id=name,
        kind=TokenKind.ADMIN,
        digest=digest("secret"),
        levels={chain: AccessLevel.OPERATOR},
        created=datetime.now(UTC),
    )
    await tokens.create(bus, token)
    return f"{name}:secret"


async def make_tasks(bus: Bus, count: int, action: str, *, chain: int, first: int) -> range:
    tasks = range(first, first + count)
    for start in range(0, count, 100):
        await asyncio.gather(*(make_task(bus, action, task=task, chain=chain) for task in tasks[start : start + 100]))
    return tasks


async def queue_all(bus: Bus, tasks: range, *, chain: int) -> None:
    for start in range(0, len(tasks), 100):
        await asyncio.gather(
            *(publish_command(bus, f"n{task}", task=task, chain=chain) for task in tasks[start : start + 100])
        )


async def time_of_a_run(bus: Bus, run: str, *, task: int = 1, chain: int = QUIET) -> float:
    """Seconds from the command to the event that ends its run."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def hear(message: object) -> None:
        if not done.done():
            done.set_result(None)

    subscription = await bus.nc.subscribe(f"tasks.evt.{chain}.{task}.done", cb=hear)
    await bus.nc.flush()
    began = time.monotonic()
    await publish_command(bus, run, task=task, chain=chain)
    await asyncio.wait_for(done, 30)
    took = time.monotonic() - began
    await subscription.unsubscribe()
    await eventually(lambda: is_acknowledged(bus, task, chain))
    return took


async def is_acknowledged(bus: Bus, task: int, chain: int) -> bool:
    return await commands.outstanding(bus, chain, task) is None


async def test_a_command_starts_at_once_beside_a_chain_full_of_endless_runs_and_thousands_waiting(
    bus: Bus, app: App, settings: Settings
) -> None:
    endless = Endless(app)
    await make_task(bus, task=1, chain=QUIET)
    await queue_all(bus, await make_tasks(bus, 2000, "endless", chain=CHAIN, first=10), chain=CHAIN)
    async with worker(bus, app, settings.model_copy(update={"grace_seconds": 0.1})):
        await eventually(lambda: endless.running == 7, what="the chain has its share of the 8 slots")
        times = [await time_of_a_run(bus, f"q{n}") for n in range(20)]
        assert endless.running == 7
    assert median(times) < 0.5
    assert max(times) < 2


async def test_a_command_is_done_promptly_beside_thousands_of_queued_ones(
    bus: Bus, app: App, settings: Settings
) -> None:
    await make_task(bus, task=1, chain=QUIET)
    tasks = await make_tasks(bus, 3000, "noop", chain=CHAIN, first=10)
    async with worker(bus, app, settings):
        alone = median([await time_of_a_run(bus, f"a{n}") for n in range(20)])
        await queue_all(bus, tasks, chain=CHAIN)
        beside = []
        while await chains.outstanding(bus, CHAIN) > 200 and len(beside) < 20:
            beside.append(await time_of_a_run(bus, f"b{len(beside)}"))
        assert len(beside) >= 3, "the queue was gone before anything was measured"
        await eventually(lambda: queue_is_empty(bus), within=60)
    assert median(beside) < max(10 * alone, 0.25)


async def test_two_chains_with_endless_runs_leave_room_for_a_third(bus: Bus, app: App, settings: Settings) -> None:
    endless = Endless(app)
    await make_task(bus, task=1, chain=QUIET)
    first = await make_tasks(bus, 50, "endless", chain=10, first=100)
    second = await make_tasks(bus, 50, "endless", chain=11, first=200)
    many = settings.model_copy(update={"worker_slots": 32, "grace_seconds": 0.1})
    async with worker(bus, app, many):
        await queue_all(bus, first, chain=10)
        await eventually(lambda: endless.running >= 25)
        await queue_all(bus, second, chain=11)
        await eventually(lambda: endless.running >= 30)
        assert await time_of_a_run(bus, "q") < 2
        assert endless.running < 32


async def test_the_chains_of_a_killed_worker_go_to_the_other_one(bus: Bus, app: App, settings: Settings) -> None:
    """A connection that dies with commands in hand, of two chains, is what a killed worker looks like."""
    endless, other = Endless(app), App()

    @other.action("endless")
    async def short(params: dict[str, object], ctx: runwire.Context) -> dict[str, int]:
        return {"attempt": ctx.attempt}

    for chain in (10, 11):
        await make_task(bus, "endless", task=chain, chain=chain)
    dying = await connected(settings)
    async with worker(dying, app, settings.model_copy(update={"grace_seconds": 0.1})):
        for chain in (10, 11):
            await publish_command(bus, f"r{chain}", task=chain, chain=chain)
        await eventually(lambda: endless.running == 2)
        await dying.nc.close()
        async with worker(bus, other, settings):
            for chain in (10, 11):
                document = await ended(bus, f"r{chain}", task=chain, chain=chain, within=settings.ack_wait + 10)
                assert document.task.result == {"attempt": 2}


async def test_calls_are_answered_promptly_beside_a_flood_of_another_chain_over_its_rate(
    bus: Bus, app: App, settings: Settings
) -> None:
    await make_task(bus, task=1, chain=QUIET)
    noisy = await make_tasks(bus, 32, "noop", chain=CHAIN, first=100)
    quiet = {"Authorization": f"Bearer {await make_token(bus, 'quiet', QUIET)}"}
    statuses: Counter[int] = Counter()
    times: list[float] = []
    async with (
        worker(bus, app, settings),
        adapter(settings.model_copy(update={"rate_per_chain": "30/second"})) as http,
    ):

        async def shout(task: int) -> None:
            while True:
                statuses[(await http.post(f"/tasks/{task}/execute")).status_code] += 1

        flood = [asyncio.create_task(shout(task)) for task in noisy]
        await eventually(lambda: statuses[429] > 100)
        for _ in range(20):
            began = time.monotonic()
            answer = await http.post("/tasks/1/execute", headers=quiet)
            times.append(time.monotonic() - began)
            assert (answer.status_code, answer.json()["code"]) == (200, "DONE")
            await asyncio.sleep(0.05)
        for caller in flood:
            caller.cancel()
        await asyncio.gather(*flood, return_exceptions=True)
    assert statuses[200] >= 30, "what is within the rate is carried out"
    assert set(statuses) <= {200, 429}
    assert median(times) < 0.5


# --- how workers learn of chains --------------------------------------------------------------------------


async def test_a_chain_made_while_a_worker_runs_is_served_at_once(bus: Bus, app: App, settings: Settings) -> None:
    async with worker(bus, app, settings):
        await make_task(bus, task=1, chain=77)
        assert await time_of_a_run(bus, "r1", chain=77) < 1


async def test_a_command_for_a_chain_without_a_consumer_is_found(bus: Bus, app: App, settings: Settings) -> None:
    """Its tasks are older than this version, or its consumer was deleted."""
    await make_task(bus, task=1, chain=77)
    await bus.js.delete_consumer("COMMANDS", "workers-77")
    async with worker(bus, app, settings):
        await publish_command(bus, "r1", chain=77)
        await ended(bus, "r1", chain=77)
        await bus.js.delete_consumer("COMMANDS", "workers-77")
        await publish_command(bus, "r2", chain=77)
        await ended(bus, "r2", chain=77)


async def test_a_command_over_http_makes_sure_of_the_consumer(bus: Bus, settings: Settings) -> None:
    await make_task(bus, task=1, chain=77)
    await bus.js.delete_consumer("COMMANDS", "workers-77")
    bus.chains.clear()
    await commands.publish(bus, 77, 1, "r1", source=Source.HTTP, patience=5)

    async def is_queued() -> bool:  # the broker counts what a new consumer has to do a moment later
        return await chains.outstanding(bus, 77) == 1

    await eventually(is_queued)


@pytest.mark.parametrize("subject", ["tasks.cmd.abc.1.execute", "tasks.cmd.007.1.execute", "tasks.cmd.0.1.execute"])
async def test_a_command_whose_subject_names_no_chain_becomes_a_dead_letter(
    bus: Bus, app: App, settings: Settings, subject: str
) -> None:
    await bus.js.publish(subject, b"{}")
    async with worker(bus, app, settings):
        await eventually(lambda: queue_is_empty(bus))
    letter = await dead_letters(bus, chain=0, task=0) or await dead_letters(bus, chain=7, task=1)
    assert deadletters.letter_in(letter).reason == "undecodable"
    assert letter.headers["Dead-Letter-Subject"] == subject


async def test_the_consumer_that_all_chains_shared_goes_and_what_it_had_in_hand_comes_again(
    bus: Bus, app: App, settings: Settings
) -> None:
    await make_task(bus)
    await bus.js.delete_consumer("COMMANDS", f"workers-{CHAIN}")
    shared = streams.workers_config(settings, CHAIN).evolve(
        name="workers", durable_name="workers", filter_subject=subjects.ALL_COMMANDS
    )
    await bus.js.add_consumer("COMMANDS", shared)
    await publish_command(bus, "r1")
    old = await bus.js.pull_subscribe_bind("workers", "COMMANDS")
    await old.fetch(1, timeout=5)
    await streams.provision(bus, settings)
    async with worker(bus, app, settings):
        assert (await ended(bus, "r1")).task.state.code == "DONE"


async def test_a_stream_of_an_earlier_version_comes_to_take_more_than_a_thousand_chains(
    bus: Bus, settings: Settings
) -> None:
    info = await bus.js.stream_info("COMMANDS")
    await bus.js.update_stream(info.config.evolve(max_consumers=-1))
    await streams.provision(bus, settings)
    assert (await bus.js.stream_info("COMMANDS")).config.max_consumers == streams.MAX_CHAINS


async def test_five_hundred_chains_are_served_also_after_the_broker_was_killed(
    bus: Bus, broker: Broker, app: App, settings: Settings
) -> None:
    many = range(1000, 1500)
    await asyncio.gather(*(make_task(bus, task=chain, chain=chain) for chain in many))
    async with worker(bus, app, settings):
        for name in ("before", "after"):
            fresh = await connected(settings)
            await asyncio.gather(*(publish_command(fresh, f"{name}-{c}", task=c, chain=c) for c in many))
            await eventually(lambda bus=fresh: queue_is_empty(bus), within=60)
            await fresh.nc.close()
            if name == "before":
                broker.restart()
                await eventually(lambda: bus.is_connected)
    fresh = await connected(settings)
    for chain in (1000, 1250, 1499):
        assert [d.run.id for d in await history(fresh, task=chain, chain=chain) if d.change == "concluded"] == [
            f"before-{chain}",
            f"after-{chain}",
        ]
    await fresh.nc.close()
