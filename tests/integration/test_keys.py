"""KEYS on a real broker: the first one wins, a record has its time, a full stream refuses."""

from __future__ import annotations

import asyncio

import pytest
from nats.js.api import StreamConfig

from runwire.domain.errors import Conflict, NotAccepted
from runwire.domain.run import Run
from runwire.messaging import keys, streams, subjects
from runwire.messaging.broker import Bus
from runwire.messaging.keys import Kept, RunRecord, TaskRecord
from runwire.settings import Settings
from tests.support import Broker, connected, eventually, lifecycle_now

RECORD = RunRecord(request="1", run="r-1")


async def remember(bus: Bus, name: str = "name", record: RunRecord = RECORD, ttl: float = 60) -> Kept[RunRecord]:
    return await keys.remember(bus, name, record, ttl=ttl, patience=5)


async def fill(bus: Bus, **config: object) -> None:
    """No more room in KEYS."""
    await remember(bus, "filler", RECORD.model_copy(update={"run": "x" * 2000}))
    current = (await bus.js.stream_info(subjects.KEYS)).config
    await bus.js.update_stream(StreamConfig(**vars(current)).evolve(max_bytes=2300, **config))


async def test_the_first_record_of_a_key_stays(bus: Bus) -> None:
    first = await remember(bus)
    second = await remember(bus, record=RunRecord(request="2", run="r-2"))
    assert (first.record, first.fresh) == (RECORD, True)
    assert (second.record, second.fresh, second.sequence) == (RECORD, False, first.sequence)
    assert (await keys.lookup(bus, "name", RunRecord)).record == RECORD
    assert await keys.lookup(bus, "other", RunRecord) is None


async def test_of_many_at_once_one_is_first(bus: Bus, settings: Settings) -> None:
    second = await connected(settings)
    records = [RunRecord(request="1", run=f"r-{number}") for number in range(30)]
    kept = await asyncio.gather(
        *(remember(bus if number % 2 else second, record=record) for number, record in enumerate(records))
    )
    assert len({each.record.run for each in kept}) == 1
    assert [each.fresh for each in kept].count(True) == 1
    await second.nc.close()


async def test_a_record_can_be_replaced_by_whoever_has_read_it(bus: Bus) -> None:
    first = await remember(bus)
    other = RunRecord(request="1", run="joined")
    second = await keys.overwrite(bus, "name", other, expected=first.sequence, ttl=60)
    with pytest.raises(Conflict):
        await keys.overwrite(bus, "name", RECORD, expected=first.sequence, ttl=60)
    found = await keys.lookup(bus, "name", RunRecord)
    assert (found.record, found.sequence) == (other, second.sequence)
    assert (await bus.js.stream_info(subjects.KEYS)).state.messages == 1


async def test_a_record_whose_time_is_over_makes_room_for_another(bus: Bus) -> None:
    await remember(bus, ttl=1)
    assert not (await remember(bus)).fresh
    await eventually(lambda: _is_gone(bus), what="the record expired")
    after = await remember(bus, record=RunRecord(request="2", run="r-2"))
    assert (after.fresh, after.record.request) == (True, "2")


async def _is_gone(bus: Bus) -> bool:
    return await keys.lookup(bus, "name", RunRecord) is None


async def test_replacing_a_record_begins_its_time_anew(bus: Bus) -> None:
    await remember(bus, "short", ttl=1)
    first = await remember(bus, ttl=1)
    await keys.overwrite(bus, "name", RECORD, expected=first.sequence, ttl=60)
    await eventually(lambda: _short_is_gone(bus), what="the other one expired")
    await asyncio.sleep(0.5)
    assert await keys.lookup(bus, "name", RunRecord) is not None


async def _short_is_gone(bus: Bus) -> bool:
    return await keys.lookup(bus, "short", RunRecord) is None


async def test_records_and_their_time_survive_a_kill_of_the_broker(bus: Bus, broker: Broker) -> None:
    await remember(bus)
    await remember(bus, "short", ttl=3)
    broker.restart()
    assert not (await keys.remember(bus, "name", RECORD, ttl=60, patience=15)).fresh
    await eventually(lambda: _short_is_gone(bus), what="it expired after the restart")
    assert not await _is_gone(bus)


async def test_a_full_stream_refuses_and_forgets_nothing(bus: Bus) -> None:
    kept = await remember(bus)
    await fill(bus)
    with pytest.raises(NotAccepted):
        await remember(bus, "new", RECORD.model_copy(update={"run": "x" * 500}))
    with pytest.raises(NotAccepted):
        record = RECORD.model_copy(update={"run": "x" * 500})
        await keys.overwrite(bus, "name", record, expected=kept.sequence, ttl=60)
    assert await keys.lookup(bus, "new", RunRecord) is None
    assert (await remember(bus)).record == RECORD, "who has a key already is still answered"
    assert (await keys.lookup(bus, "filler", RunRecord)) is not None


async def test_a_broker_that_is_away_is_waited_for_and_then_given_up(bus: Bus, broker: Broker) -> None:
    broker.kill()
    await eventually(lambda: not bus.is_connected)
    with pytest.raises(NotAccepted):
        await keys.remember(bus, "name", RECORD, ttl=60, patience=0.3)
    waiting = asyncio.create_task(keys.remember(bus, "name", RECORD, ttl=60, patience=20))
    await asyncio.sleep(0.1)
    broker.start()
    assert (await waiting).record == RECORD


async def test_a_record_that_was_stored_without_an_answer_is_found_again(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The acknowledgement of the first try is lost."""
    publish, lost = bus.js.publish, []

    async def lose_the_first(*args: object, **kwargs: object) -> object:
        ack = await publish(*args, **kwargs)
        if not lost:
            lost.append(ack)
            raise TimeoutError
        return ack

    monkeypatch.setattr(bus.js, "publish", lose_the_first)
    assert (await remember(bus)).record == RECORD
    assert (await bus.js.stream_info(subjects.KEYS)).state.messages == 1


async def test_nothing_but_a_name_becomes_a_subject(bus: Bus) -> None:
    for name in ("", "a.b", "a*", ">", "a b", "ä", "x" * 65):
        with pytest.raises(ValueError, match="no name of a key"):
            await remember(bus, name)
    assert subjects.ALL_KEYS == "tasks.key.*"


async def test_both_kinds_of_records_are_read_back_as_they_were(bus: Bus) -> None:
    now = lifecycle_now().replace(microsecond=0)
    ended = Run(
        id="r-1", task=1, chain=2, code="DONE", attempt=1, source="http", accepted=now, started=now, finished=now,
        claim={"id": "c", "command": 1, "delivery": 1},
    )  # fmt: skip
    run = RunRecord(request="1", run="r-1", ended=ended)
    task = TaskRecord(request="hash", task=2**53 - 1, created=now, sequence=9)
    await remember(bus, "run", run)
    await keys.remember(bus, "task", task, ttl=60, patience=5)
    assert (await keys.lookup(bus, "run", RunRecord)).record == run
    assert (await keys.lookup(bus, "task", TaskRecord)).record == task


def test_the_stream_is_configured_to_refuse_when_it_is_full(settings: Settings) -> None:
    config = next(config for config in streams.stream_configs(settings) if config.name == subjects.KEYS)
    assert (config.discard.value, config.max_msgs_per_subject, config.allow_msg_ttl) == ("new", 1, True)
