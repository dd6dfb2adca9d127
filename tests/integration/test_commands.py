"""Publishing a command: what the broker accepts, refuses, and what its refusals mean."""

from __future__ import annotations

import asyncio

import pytest

from runwire.domain import lifecycle
from runwire.domain.errors import NotAccepted, TaskBusy
from runwire.domain.run import Command, Done, Source
from runwire.messaging import commands, events
from runwire.messaging.broker import Bus
from tests.support import CHAIN, Broker, lifecycle_now, make_task, publish_command


async def publish(bus: Bus, run: str, *, task: int = 1, patience: float = 2.0) -> None:
    await commands.publish(bus, CHAIN, task, run, source=Source.HTTP, patience=patience)


async def stored(bus: Bus) -> int:
    return (await bus.js.stream_info("COMMANDS")).state.messages


async def test_a_command_is_stored_with_its_run_and_source(bus: Bus) -> None:
    await publish(bus, "r1")
    message = await commands.outstanding(bus, CHAIN, 1)
    assert commands.run_of(message) == "r1"
    assert message.headers["Run-Source"] == "http"


async def test_the_same_run_published_twice_is_stored_once(bus: Bus) -> None:
    await publish(bus, "r1")
    await publish(bus, "r1")
    assert await stored(bus) == 1


async def test_a_second_run_is_refused_while_one_is_outstanding(bus: Bus) -> None:
    await make_task(bus)
    await publish(bus, "r1")
    with pytest.raises(TaskBusy) as busy:
        await publish(bus, "r2")
    assert busy.value.run == "r1"


async def test_a_server_without_a_majority_is_not_believed_that_the_task_is_busy(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one leads by now, and may have taken the command: that is not known, and no refusal."""
    monkeypatch.setattr(Bus, "is_clustered", True)
    monkeypatch.setattr(commands, "has_majority", lambda _info: False)
    await make_task(bus)
    await publish(bus, "r1")
    with pytest.raises(NotAccepted):
        await publish(bus, "r2", patience=0.5)
    monkeypatch.setattr(commands, "has_majority", lambda _info: True)
    with pytest.raises(TaskBusy):
        await publish(bus, "r2")


async def test_of_many_publishers_one_wins(bus: Bus) -> None:
    await make_task(bus)
    outcomes = await asyncio.gather(*(publish(bus, f"r{n}") for n in range(30)), return_exceptions=True)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["NoneType"] + ["TaskBusy"] * 29


async def test_the_command_of_a_run_that_has_ended_does_not_stand_in_the_way(bus: Bus) -> None:
    """The worker died between the last event and its acknowledgement."""
    document = await make_task(bus)
    await publish(bus, "r1")
    command = Command(
        chain=CHAIN, task=1, run="r1", source=Source.HTTP, accepted=lifecycle_now(), sequence=1, delivery=1
    )
    working = lifecycle.claim(document, command, claim_id="c", now=lifecycle_now())
    await events.append(bus, working, expected=1, event_id="claim")
    done = lifecycle.conclude(working, Done(None), now=lifecycle_now())
    await events.append(bus, done, expected=2, event_id="done")
    await publish(bus, "r2")
    assert commands.run_of(await commands.outstanding(bus, CHAIN, 1)) == "r2"


async def test_a_message_id_that_somebody_else_has_used_does_not_silence_the_run(bus: Bus) -> None:
    """Deduplication is stream-wide: another tenant could guess an id."""
    await bus.js.publish("tasks.cmd.99.9.execute", b"{}", headers={"Nats-Msg-Id": "guessed"})
    await publish(bus, "guessed")
    assert commands.run_of(await commands.outstanding(bus, CHAIN, 1)) == "guessed"


async def test_a_full_command_stream_is_not_taken_for_a_busy_task(bus: Bus) -> None:
    info = await bus.js.stream_info("COMMANDS")
    await bus.js.update_stream(info.config.evolve(max_bytes=300))
    await publish(bus, "r1", task=1)
    with pytest.raises(NotAccepted, match="full"):
        for task in range(2, 9):
            await publish(bus, f"r{task}", task=task)


async def test_a_broker_that_comes_back_in_time_gets_the_command_once(bus: Bus, broker: Broker) -> None:
    broker.kill()
    publishing = asyncio.create_task(publish(bus, "r1", patience=20))
    await asyncio.wait({publishing}, timeout=0.4)
    broker.start()
    await publishing
    assert await stored(bus) == 1


async def test_a_broker_that_stays_away_makes_the_outcome_unknown(bus: Bus, broker: Broker) -> None:
    broker.kill()
    with pytest.raises(NotAccepted, match="may or may not"):
        await publish(bus, "r1", patience=0.6)


async def test_a_thousand_commands_that_wait_for_their_next_try_hold_up_nobody(bus: Bus) -> None:
    """By default a consumer hands out no more than 1,000 that are not acknowledged, and those count."""
    many = 1100
    await make_task(bus)
    for begin in range(1, many + 1, 100):
        await asyncio.gather(*(publish_command(bus, f"r{task}", task=task) for task in range(begin, begin + 100)))
    worker = await bus.js.pull_subscribe_bind(f"workers-{CHAIN}", "COMMANDS")
    for _ in range(many // 100):
        for message in await worker.fetch(100, timeout=5):
            await message.nak(delay=60)
    await publish_command(bus, "next", task=many + 1)
    (message,) = await worker.fetch(1, timeout=5)
    assert message.subject == f"tasks.cmd.{CHAIN}.{many + 1}.execute"
