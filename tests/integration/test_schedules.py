"""Schedules on a real broker, in real seconds: alarms ring, are replaced, are caught up with; forwarders die."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from runwire.app import App, Context
from runwire.domain import lifecycle, ticks
from runwire.domain.lifecycle import Change, Definition, Document
from runwire.domain.run import ErrorCode, RunCode, Source, Tick
from runwire.domain.schedule import schedule_of
from runwire.domain.ticks import Alarm
from runwire.messaging import alarms, commands, events, site, subjects
from runwire.messaging.broker import Bus
from runwire.scheduler import forwarder, forwarding
from runwire.scheduler.reconciler import Report, reconcile
from runwire.scheduler.scheduler import Scheduler
from runwire.settings import Settings
from tests.support import (
    CHAIN,
    Broker,
    answering_logins,
    connected,
    ended,
    eventually,
    grant,
    history,
    make_task,
    on_the_bus,
    publish_command,
    queue_is_empty,
    worker,
)


def now() -> datetime:
    return datetime.now(UTC)


def soon(seconds: float) -> str:
    """So many seconds from now, as a trigger says it."""
    return (now() + timedelta(seconds=seconds)).isoformat()


@asynccontextmanager
async def scheduling(bus: Bus, settings: Settings) -> AsyncIterator[Scheduler]:
    scheduler = Scheduler(bus, settings)
    await scheduler.start()
    try:
        yield scheduler
    finally:
        await scheduler.stop()


@pytest.fixture
async def scheduler(bus: Bus, settings: Settings) -> AsyncIterator[Scheduler]:
    async with scheduling(bus, settings) as running:
        yield running


async def edit(bus: Bus, *, task: int = 1, **fields: object) -> Document:
    """The task with other fields in its definition, as a PATCH leaves it."""
    head = await events.load(bus, CHAIN, task, leader=True)
    before = head.document.task
    definition = Definition(
        chain=CHAIN, desc=before.desc, target=before.target, trigger=fields.pop("trigger", before.trigger), **fields
    )
    document = lifecycle.edit(head.document, definition, by="tester", now=now())
    await events.append_confirmed(bus, document, expected=head.sequence)
    return document


async def delete(bus: Bus, *, task: int = 1) -> None:
    head = await events.load(bus, CHAIN, task, leader=True)
    await events.append_confirmed(bus, lifecycle.delete(head.document, by="tester"), expected=head.sequence)


async def alarm(bus: Bus, *, task: int = 1) -> Alarm | None:
    found = await alarms.pending(bus, CHAIN, task)
    return found.alarm if found else None


async def has_alarm(bus: Bus, *, task: int = 1) -> Alarm:
    async def look() -> Alarm | None:
        return await alarm(bus, task=task)

    return await eventually(look, what="the task has an alarm")


async def has_no_alarm(bus: Bus, *, task: int = 1) -> None:
    async def look() -> bool:
        return await alarm(bus, task=task) is None

    await eventually(look, what="the task has no alarm")


async def runs(bus: Bus, *, task: int = 1) -> list[Document]:
    """The documents that ended a run, oldest first."""
    return [document for document in await history(bus, task=task) if document.change is Change.CONCLUDED]


async def skips(bus: Bus, *, task: int = 1) -> list[Document]:
    return [document for document in await history(bus, task=task) if document.change is Change.SKIPPED]


async def has_run(bus: Bus, times: int = 1, *, task: int = 1) -> list[Document]:
    async def look() -> list[Document] | None:
        ended = await runs(bus, task=task)
        return ended if len(ended) >= times else None

    return await eventually(look, what=f"{times} runs have ended")


async def command_of(bus: Bus, *, task: int = 1) -> str:
    """The run whose command is outstanding, as soon as there is one."""

    async def look() -> str | None:
        message = await commands.outstanding(bus, CHAIN, task)
        return commands.run_of(message) if message else None

    return await eventually(look, what="a command is outstanding")


async def skipped(bus: Bus, times: int = 1, *, task: int = 1) -> list[Document]:
    async def look() -> list[Document] | None:
        found = await skips(bus, task=task)
        return found if len(found) >= times else None

    return await eventually(look, what=f"{times} records of skipped ticks")


# --- firing ----------------------------------------------------------------------------------------------


async def test_a_tick_that_has_rung_is_run_even_if_the_workers_clock_is_behind(
    bus: Bus, settings: Settings, app: App
) -> None:
    scheduler = Scheduler(bus, settings, clock=lambda: now() - timedelta(days=2))
    await scheduler.start()
    try:
        async with worker(bus, app, settings):
            await make_task(bus, trigger={"once": soon(0.5)})
            assert len(await eventually(lambda: runs(bus), within=3)) == 1
    finally:
        await scheduler.stop()


async def test_a_task_runs_once_at_its_time_and_not_before(
    bus: Bus, app: App, settings: Settings, scheduler: Scheduler
) -> None:
    due = now() + timedelta(seconds=1)
    await make_task(bus, trigger={"once": due.isoformat()})
    async with worker(bus, app, settings):
        (ended,) = await has_run(bus)
    assert ended.run.code is RunCode.DONE
    assert ended.run.source is Source.SCHEDULE
    assert ended.run.tick.due == due
    assert ended.schedule.cursor == due
    claimed = [document for document in await history(bus) if document.change is Change.CLAIMED]
    assert len(claimed) == 1
    assert await alarm(bus) is None


async def test_no_command_is_published_before_its_time(bus: Bus, scheduler: Scheduler) -> None:
    due = now() + timedelta(seconds=1)
    await make_task(bus, trigger={"once": due.isoformat()})
    await command_of(bus)
    message = await commands.outstanding(bus, CHAIN, 1)
    assert due <= message.time < due + timedelta(seconds=0.5)


async def test_a_task_runs_every_second_at_every_tick(
    bus: Bus, app: App, settings: Settings, scheduler: Scheduler
) -> None:
    created = await make_task(bus, trigger={"every": 1})
    async with worker(bus, app, settings):
        ended = await has_run(bus, 3)
    begin = created.task.state.created_date
    due = [(document.run.tick.due - begin).total_seconds() for document in ended]
    assert due[:3] == list(range(int(due[0]), int(due[0]) + 3))
    assert len({document.run.id for document in ended}) == len(ended)
    assert await skips(bus) == []


async def test_a_task_without_a_time_has_no_alarm(bus: Bus, scheduler: Scheduler) -> None:
    await make_task(bus, task=1, trigger={"segment": "vip"})
    await make_task(bus, task=2, trigger={"every": 3600})
    await has_alarm(bus, task=2)
    assert await alarm(bus, task=1) is None


async def test_a_past_once_runs_now(bus: Bus, app: App, settings: Settings, scheduler: Scheduler) -> None:
    await make_task(bus, trigger={"once": "2020-02-29T12:00:00Z"})
    async with worker(bus, app, settings):
        (ended,) = await has_run(bus)
    assert ended.run.tick.due == datetime(2020, 2, 29, 12, tzinfo=UTC)
    assert await skips(bus) == []


async def test_jitter_moves_the_alarm_and_not_the_tick(bus: Bus, scheduler: Scheduler) -> None:
    await make_task(bus, trigger={"every": 3600, "jitter": 600})
    await has_alarm(bus)
    found = await alarms.pending(bus, CHAIN, 1)
    delay = found.rings_at - found.alarm.due
    assert timedelta() <= delay <= timedelta(seconds=600)
    assert delay == ticks.delay_of({"jitter": 600}, 1)


# --- changes of the task -----------------------------------------------------------------------------------


async def test_another_trigger_replaces_the_alarm(bus: Bus, scheduler: Scheduler) -> None:
    await make_task(bus, trigger={"every": 3600})
    before = await has_alarm(bus)
    edited = await edit(bus, trigger={"every": 7200})

    async def replaced() -> Alarm | None:
        found = await alarm(bus)
        return found if found and found.version == edited.task.version else None

    after = await eventually(replaced)
    assert after.due > before.due
    info = await bus.js.stream_info(subjects.SCHEDULES)
    assert info.state.messages == 1


async def test_another_description_leaves_the_alarm_alone(bus: Bus, scheduler: Scheduler) -> None:
    await make_task(bus, trigger={"every": 3600})
    before = await has_alarm(bus)
    await edit(bus, debug="louder")
    await make_task(bus, task=2, trigger={"every": 3600})
    await has_alarm(bus, task=2)  # the events before it have been dealt with
    assert await alarm(bus) == before


async def test_a_paused_task_has_no_alarm_and_makes_up_for_nothing(
    bus: Bus, app: App, settings: Settings, scheduler: Scheduler
) -> None:
    await make_task(bus, trigger={"every": 1, "paused": True})
    await make_task(bus, task=2, trigger={"every": 1})
    async with worker(bus, app, settings):
        await has_run(bus, 2, task=2)
        assert await runs(bus) == []
        resumed_at = now()
        await edit(bus, trigger={"every": 1})
        (first, *_) = await has_run(bus, 1)
    assert first.run.tick.due > resumed_at
    assert await skips(bus) == []


async def test_a_deleted_task_has_no_alarm(bus: Bus, scheduler: Scheduler) -> None:
    await make_task(bus, trigger={"every": 3600})
    await has_alarm(bus)
    await delete(bus)
    await has_no_alarm(bus)


async def test_an_alarm_of_an_earlier_trigger_comes_to_nothing(bus: Bus, app: App, settings: Settings) -> None:
    await make_task(bus, trigger={"every": 3600})
    edited = await edit(bus, trigger={"every": 7200})
    stale = Alarm(version=1, due=now())
    await alarms.put(bus, CHAIN, 1, stale, at=now(), expected=0)
    async with scheduling(bus, settings), worker(bus, app, settings):

        async def is_replaced() -> bool:
            found = await alarm(bus)
            return found is not None and found.version == edited.task.version

        await eventually(is_replaced)
        await due_alarms_are_dealt_with(bus)
    assert await runs(bus) == []


async def due_alarms_are_dealt_with(bus: Bus) -> None:
    async def none_left() -> bool:
        info = await bus.js.stream_info(subjects.SCHEDULES, subjects_filter=subjects.ALL_DUE)
        return not info.state.subjects

    await eventually(none_left, what="no rung alarm is left")


# --- run by hand ---------------------------------------------------------------------------------------------


async def test_a_run_by_hand_neither_moves_nor_uses_up_the_schedule(
    bus: Bus, app: App, settings: Settings, scheduler: Scheduler
) -> None:
    due = now() + timedelta(seconds=1.5)
    await make_task(bus, trigger={"once": due.isoformat()})
    before = await has_alarm(bus)
    async with worker(bus, app, settings):
        await publish_command(bus, "by-hand")
        (by_hand,) = await has_run(bus)
        assert by_hand.run.source is Source.BUS
        assert await alarm(bus) == before
        _, scheduled = await has_run(bus, 2)
    assert scheduled.run.source is Source.SCHEDULE
    assert scheduled.run.tick.due == due


async def test_a_command_that_only_claims_to_be_a_tick_moves_nothing(
    bus: Bus, app: App, settings: Settings, scheduler: Scheduler
) -> None:
    created = await make_task(bus, trigger={"every": 3600})
    headers = {"Run-Id": "sch-forged", "Run-Source": "schedule", "Run-Tick": "1 2199-01-01T00:00:00+00:00"}
    await bus.js.publish(subjects.command(CHAIN, 1), b"{}", headers=headers)
    async with worker(bus, app, settings):
        (ended,) = await has_run(bus)
    assert ended.run.source is Source.BUS
    assert ended.schedule == created.schedule


# --- overlap -------------------------------------------------------------------------------------------------


async def test_a_tick_that_finds_the_task_busy_is_recorded_as_skipped(bus: Bus, scheduler: Scheduler) -> None:
    await make_task(bus, trigger={"every": 1})
    await publish_command(bus, "in-the-way")  # there is no worker: it stays
    (record, *_) = await skipped(bus)
    assert record.skipped.code is RunCode.SKIPPED
    assert record.skipped.error.code == ErrorCode.OVERLAP
    assert "in-the-way" in record.skipped.error.message
    assert record.skipped.source is Source.SCHEDULE
    assert record.skipped.result["ticks"] == 1
    assert record.run is None
    line = await bus.js.get_msg(subjects.LOGS, subject=subjects.log(CHAIN, 1))
    assert b"in-the-way" in line.data
    assert record.skipped.id.encode() in line.data


async def test_a_command_that_comes_after_the_record_that_its_tick_was_skipped_starts_nothing(
    bus: Bus, app: App, settings: Settings
) -> None:
    """Two forwarders had the alarm, and the task was busy to one of them only."""
    async with scheduling(bus, settings):
        await make_task(bus, trigger={"every": 1})
        await publish_command(bus, "in-the-way")
        (record, *_) = await skipped(bus)
    due, run = record.skipped.tick, record.skipped.id
    async with worker(bus, app, settings):
        await ended(bus, "in-the-way")
        await commands.publish(bus, CHAIN, 1, run, source=Source.SCHEDULE, patience=5, tick=due)
        await eventually(partial(queue_is_empty, bus))
    assert run not in {document.run.id for document in await runs(bus)}


async def test_ticks_that_are_skipped_one_after_the_other_share_records(
    bus: Bus, app: App, settings: Settings, scheduler: Scheduler
) -> None:
    await make_task(bus, trigger={"every": 1})
    await publish_command(bus, "in-the-way")
    await skipped(bus)

    (record,) = await skips(bus)

    async def three_more_have_passed() -> bool:
        found = await alarm(bus)
        return found is not None and found.due > record.skipped.tick.due + timedelta(seconds=3)

    await eventually(three_more_have_passed)
    assert len(await skips(bus)) == 1
    async with worker(bus, app, settings):
        await has_run(bus, 2)
        first, second, *_ = await skipped(bus, 2)
    assert first.skipped.result["ticks"] == 1
    assert second.skipped.result["ticks"] >= 3
    assert datetime.fromisoformat(second.skipped.result["first"]) == first.skipped.tick.due + timedelta(seconds=1)


async def test_a_run_goes_on_over_a_skipped_tick(bus: Bus, app: App, settings: Settings, scheduler: Scheduler) -> None:
    may_end = asyncio.Event()

    @app.action("patient")
    async def patient(params: dict[str, object], ctx: Context) -> dict[str, int]:
        await may_end.wait()
        return {"answer": 42}

    await make_task(bus, "patient", trigger={"every": 1})
    async with worker(bus, app, settings):
        (record, *_) = await skipped(bus)
        may_end.set()
        (ended, *_) = await has_run(bus)
    assert ended.run.id == record.run.id
    assert ended.run.result == {"answer": 42}
    assert ended.run.attempt == 1


async def test_a_tick_may_wait_for_the_task(bus: Bus, app: App, settings: Settings, scheduler: Scheduler) -> None:
    may_end = asyncio.Event()

    @app.action("patient")
    async def patient(params: dict[str, object], ctx: Context) -> None:
        await may_end.wait()

    await make_task(bus, "patient", trigger={"every": 2, "overlap": "wait"})
    async with worker(bus, app, settings):
        await publish_command(bus, "by-hand")
        await eventually(lambda: any(forwarder_waits(scheduler)))
        assert await skips(bus) == []
        may_end.set()
        by_hand, waited, *_ = await has_run(bus, 2)
    assert by_hand.run.id == "by-hand"
    assert waited.run.source is Source.SCHEDULE


def forwarder_waits(scheduler: Scheduler) -> set[asyncio.Task[None]]:
    return scheduler._forwarder._waiting


async def test_ticks_that_pass_while_one_waits_are_recorded_and_ring_no_storm(
    bus: Bus, app: App, settings: Settings, scheduler: Scheduler
) -> None:
    started: list[str] = []
    may_end = asyncio.Event()

    @app.action("patient")
    async def patient(params: dict[str, object], ctx: Context) -> None:
        started.append(ctx.run_id)
        await may_end.wait()

    await make_task(bus, "patient", trigger={"every": 1, "overlap": "wait"})
    async with worker(bus, app, settings):
        for number in range(1, 4):
            may_end.clear()
            await eventually(lambda number=number: len(started) == number)
            await eventually(lambda: any(forwarder_waits(scheduler)))
            waited_since = now()
            await eventually(lambda since=waited_since: now() > since + timedelta(seconds=2))
            may_end.set()
        await has_run(bus, 3)
    messages = (await bus.js.stream_info(subjects.SCHEDULES)).state.last_seq
    assert messages < 30  # an alarm and its ringing for each tick, twice when it waits
    run = {document.run.tick.due for document in await runs(bus)}
    assert {record.skipped.error.code for record in await skips(bus)} == {ErrorCode.OVERLAP}
    for record in await skips(bus):
        assert record.skipped.tick.due not in run


async def test_a_task_that_runs_once_waits_rather_than_be_skipped(
    bus: Bus, app: App, settings: Settings, scheduler: Scheduler
) -> None:
    await make_task(bus, trigger={"once": soon(0.5)})
    await publish_command(bus, "in-the-way")
    await eventually(lambda: any(forwarder_waits(scheduler)))
    async with worker(bus, app, settings):
        _, scheduled = await has_run(bus, 2)
    assert scheduled.run.source is Source.SCHEDULE
    assert await skips(bus) == []


async def test_a_tick_that_waits_is_taken_over_and_is_not_missed(
    bus: Bus, app: App, settings: Settings, monkeypatch
) -> None:
    monkeypatch.setattr(ticks, "LATE", timedelta(seconds=0.5))
    due = now() + timedelta(seconds=0.5)
    await make_task(bus, trigger={"once": due.isoformat(), "catch_up": "none"})
    await publish_command(bus, "in-the-way")
    async with scheduling(bus, settings) as first:
        await eventually(lambda: any(forwarder_waits(first)))
    await eventually(lambda: now() > due + timedelta(seconds=1))
    async with scheduling(bus, settings) as second:
        await eventually(lambda: any(forwarder_waits(second)))
        assert (await reconcile(bus)).set == 0  # somebody has it in hand
        async with worker(bus, app, settings):
            _, scheduled = await has_run(bus, 2)
    assert scheduled.run.tick.due == due
    assert await skips(bus) == []


async def test_a_tick_that_waits_gives_way_to_another_trigger(
    bus: Bus, app: App, settings: Settings, scheduler: Scheduler
) -> None:
    await make_task(bus, trigger={"every": 1, "overlap": "wait"})
    await publish_command(bus, "in-the-way")
    await eventually(lambda: any(forwarder_waits(scheduler)))
    await edit(bus, trigger={"every": 3600})
    await eventually(lambda: not any(forwarder_waits(scheduler)))
    async with worker(bus, app, settings):
        await has_run(bus)
        await due_alarms_are_dealt_with(bus)
    assert len(await runs(bus)) == 1


# --- catching up -----------------------------------------------------------------------------------------------


async def task_that_missed_ticks(bus: Bus, settings: Settings, ticks_missed: int = 3, **trigger: object) -> Document:
    """A task that is due every second, and has been several times while no worker was there."""
    created = await make_task(bus, trigger={"every": 1, **trigger})
    async with scheduling(bus, settings):
        await has_alarm(bus)
    begin = created.task.state.created_date
    await eventually(lambda: now() > begin + timedelta(seconds=ticks_missed + 1))
    return created


async def test_one_run_makes_up_for_all_that_was_missed(bus: Bus, app: App, settings: Settings) -> None:
    await task_that_missed_ticks(bus, settings)
    async with scheduling(bus, settings), worker(bus, app, settings):
        first, *_ = await has_run(bus)
        record, *_ = await skipped(bus)
    assert record.skipped.error.code == ErrorCode.MISSED
    assert record.skipped.result["ticks"] >= 2
    assert datetime.fromisoformat(record.skipped.result["last"]) == first.run.tick.due - timedelta(seconds=1)
    assert len(await skips(bus)) == 1


async def test_every_missed_tick_may_be_made_up_for(bus: Bus, app: App, settings: Settings) -> None:
    created = await task_that_missed_ticks(bus, settings, catch_up="all")
    async with scheduling(bus, settings), worker(bus, app, settings):
        ended = await has_run(bus, 5)
    due = [document.run.tick.due for document in ended]
    assert due == sorted(set(due))
    first = due[0] - created.task.state.created_date
    assert first <= timedelta(seconds=2)
    assert due[:3] == [due[0] + timedelta(seconds=number) for number in range(3)]
    assert await skips(bus) == []


async def test_missed_ticks_may_be_let_go(bus: Bus, app: App, settings: Settings, monkeypatch) -> None:
    monkeypatch.setattr(ticks, "LATE", timedelta(seconds=0.4))
    await task_that_missed_ticks(bus, settings, catch_up="none")
    began = now()
    async with scheduling(bus, settings), worker(bus, app, settings):
        first, *_ = await has_run(bus)
    assert first.run.tick.due > began - timedelta(seconds=1.4)
    (record, *_) = await skips(bus)
    assert record.skipped.error.code == ErrorCode.MISSED


async def test_a_broker_that_was_killed_over_a_due_time_rings_afterwards(
    bus: Bus, app: App, settings: Settings, broker: Broker, scheduler: Scheduler
) -> None:
    due = now() + timedelta(seconds=1)
    await make_task(bus, trigger={"once": due.isoformat()})
    await has_alarm(bus)
    broker.kill()
    await eventually(lambda: now() > due + timedelta(seconds=0.5))
    broker.start()
    async with worker(bus, app, settings):
        (ended,) = await has_run(bus)
    assert ended.run.tick.due == due


async def test_what_is_due_waits_until_there_is_room_for_events(
    bus: Bus, app: App, settings: Settings, scheduler: Scheduler, monkeypatch, caplog
) -> None:
    share = 0.9

    async def fullness(_bus: Bus) -> float:
        return share

    monkeypatch.setattr(forwarding.events, "fullness", fullness)
    monkeypatch.setattr(forwarding, "ROOM_INTERVAL", 0.1)
    monkeypatch.setattr(forwarder, "LATER", 0.2)
    due = now() + timedelta(seconds=0.3)
    await make_task(bus, trigger={"once": due.isoformat()})
    async with worker(bus, app, settings):
        await eventually(lambda: caplog.text.count("nothing that is due is started") > 1)
        assert await runs(bus) == []
        share = 0.5
        (ended,) = await has_run(bus)
    assert ended.run.tick.due == due


# --- several forwarders; for those that die see tests/crash ---------------------------------------------


async def test_two_forwarders_at_once_run_every_tick_once(bus: Bus, app: App, settings: Settings) -> None:
    other_bus = await connected(settings)
    for task in range(1, 21):
        await make_task(bus, task=task, trigger={"every": 1, "end": soon(3)})
    async with scheduling(bus, settings), scheduling(other_bus, settings), worker(bus, app, settings):
        for task in range(1, 21):
            created = (await history(bus, task=task))[0].task
            begin = created.state.created_date
            schedule = schedule_of(created.trigger, created=begin)
            expected = list(schedule.ticks(begin, begin + timedelta(days=1)))
            ended = await has_run(bus, len(expected), task=task)
            assert [document.run.tick.due for document in ended] == expected
    await other_bus.nc.close()


async def test_an_alarm_that_rings_twice_is_one_run(bus: Bus, app: App, settings: Settings) -> None:
    due = now()
    await make_task(bus, trigger={"once": due.isoformat()})
    again = Alarm(version=1, due=due)
    async with scheduling(bus, settings), worker(bus, app, settings):
        await has_run(bus)
        await alarms.put(bus, CHAIN, 1, again, at=now(), expected=0)
        await has_no_alarm(bus)
        await due_alarms_are_dealt_with(bus)
    assert len(await runs(bus)) == 1


async def test_the_run_id_of_a_tick_is_always_the_same_and_needs_the_key(bus: Bus) -> None:
    key = await site.server_key(bus)
    tick = ticks.Tick(version=1, due=datetime(2027, 1, 1, tzinfo=UTC))
    assert ticks.run_id(key, CHAIN, 1, tick) == ticks.run_id(key, CHAIN, 1, tick)
    others = {
        ticks.run_id(b"another key", CHAIN, 1, tick),
        ticks.run_id(key, CHAIN + 1, 1, tick),
        ticks.run_id(key, CHAIN, 2, tick),
        ticks.run_id(key, CHAIN, 1, tick.model_copy(update={"version": 2})),
    }
    assert len(others | {ticks.run_id(key, CHAIN, 1, tick)}) == 5


async def test_a_client_of_the_bus_can_neither_set_nor_ring_alarms(
    bus: Bus, settings: Settings, broker: Broker
) -> None:
    await make_task(bus)
    complaints: list[str] = []

    async def complain(error: Exception) -> None:
        complaints.append(str(error))

    token_id, secret = await grant(bus)
    async with answering_logins(bus, settings):
        client = await on_the_bus(broker, token_id, secret, error_cb=complain)
    schedule = {"Nats-Schedule": "@at 2020-01-01T00:00:00Z", "Nats-Schedule-Target": subjects.command(CHAIN + 1, 1)}
    for subject in (subjects.alarm(CHAIN, 1), subjects.due(CHAIN, 1)):
        await client.publish(subject, b"{}", headers=schedule)
        await eventually(lambda subject=subject: any(subject in text for text in complaints))
    answer = await client.request(subjects.command(CHAIN, 1), b"{}", headers=schedule, timeout=5)
    assert b"schedul" in answer.data  # COMMANDS refuses it
    assert b"error" in answer.data
    assert (await bus.js.stream_info(subjects.SCHEDULES)).state.messages == 0
    assert (await bus.js.stream_info(subjects.COMMANDS)).state.messages == 0
    await client.close()


# --- repair --------------------------------------------------------------------------------------------------


async def test_a_missing_alarm_is_set_again(bus: Bus, settings: Settings) -> None:
    await make_task(bus, trigger={"every": 3600})
    await make_task(bus, task=2)
    report = await reconcile(bus)
    assert report == Report(schedules=1, alarms=0, set=1, moved=0, removed=0)
    assert (await alarm(bus)).version == 1
    assert await reconcile(bus) == Report(schedules=1, alarms=1, set=0, moved=0, removed=0)


async def test_a_stale_alarm_is_moved(bus: Bus, settings: Settings) -> None:
    await make_task(bus, trigger={"every": 3600})
    late = Alarm(version=1, due=now() + timedelta(days=365))
    await alarms.put(bus, CHAIN, 1, late, at=late.due, expected=0)
    assert (await reconcile(bus)).moved == 1
    assert (await alarm(bus)).due < now() + timedelta(hours=1)


async def test_an_alarm_of_another_trigger_is_moved(bus: Bus, settings: Settings) -> None:
    await make_task(bus, trigger={"every": 3600})
    edited = await edit(bus, trigger={"every": 60})
    old = Alarm(version=1, due=now() + timedelta(minutes=50))
    await alarms.put(bus, CHAIN, 1, old, at=old.due, expected=0)
    assert (await reconcile(bus)).moved == 1
    assert (await alarm(bus)).version == edited.task.version


async def test_an_alarm_that_nobody_wants_is_removed(bus: Bus, settings: Settings) -> None:
    await make_task(bus)
    stray = Alarm(version=1, due=now() + timedelta(days=1))
    for task in (1, 99):
        await alarms.put(bus, CHAIN, task, stray, at=stray.due, expected=0)
    report = await reconcile(bus)
    assert report.removed == 2
    assert report.alarms == 2
    assert await alarm(bus) is None
    assert await alarm(bus, task=99) is None


async def test_a_garbled_alarm_is_replaced(bus: Bus, settings: Settings) -> None:
    await make_task(bus, trigger={"every": 3600})
    headers = {"Nats-Schedule": "@at 2199-01-01T00:00:00Z", "Nats-Schedule-Target": subjects.due(CHAIN, 1)}
    await bus.js.publish(subjects.alarm(CHAIN, 1), b"not JSON", headers=headers)
    assert (await reconcile(bus)).moved == 1
    assert (await alarm(bus)).version == 1


async def test_a_worker_repairs_when_it_starts_and_says_so(bus: Bus, settings: Settings, caplog) -> None:
    await make_task(bus, trigger={"every": 3600})
    async with scheduling(bus, settings):
        await has_alarm(bus)
    await bus.js.purge_stream(subjects.SCHEDULES)
    with caplog.at_level("INFO", logger="runwire.scheduler"):
        async with scheduling(bus, settings):
            await has_alarm(bus)
            await eventually(lambda: "1 set, 0 moved, 0 removed" in caplog.text)


async def test_more_alarms_than_a_page_are_looked_at(bus: Bus, settings: Settings, monkeypatch) -> None:
    monkeypatch.setattr(alarms, "PAGE", 7)
    for task in range(1, 31):
        await make_task(bus, task=task, trigger={"every": 3600})
    assert (await reconcile(bus)).set == 30
    assert await reconcile(bus) == Report(schedules=30, alarms=30, set=0, moved=0, removed=0)


async def test_a_task_that_is_over_needs_no_alarm(bus: Bus, app: App, settings: Settings, scheduler: Scheduler) -> None:
    await make_task(bus, trigger={"once": soon(0)})
    async with worker(bus, app, settings):
        await has_run(bus)
    assert (await reconcile(bus)).set == 0


async def test_a_tick_that_has_its_command_is_not_taken_for_missed(bus: Bus) -> None:
    """The forwarder that published it was gone before it could set the next alarm."""
    created = await make_task(bus, trigger={"every": 1})
    key, due = await site.server_key(bus), created.task.state.created_date + timedelta(seconds=1)
    tick = Tick(version=1, due=due)
    run = ticks.run_id(key, CHAIN, 1, tick)
    await commands.publish(bus, CHAIN, 1, run, source=Source.SCHEDULE, patience=5, tick=tick)
    taking_over = forwarding.Forwarding(bus, clock=lambda: due + timedelta(seconds=2.5))
    taking_over.key = key
    await taking_over.forward(CHAIN, 1, Alarm(version=1, due=due), rang=due, again=True, on_wait=lambda: None)
    assert await skips(bus) == []
    following = await has_alarm(bus)
    assert (following.due, following.handed_over) == (due + timedelta(seconds=1), due)
