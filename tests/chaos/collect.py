"""What is there when all is over: the streams, the read models and the traces of the action, as records."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, suppress
from hashlib import sha256
from pathlib import Path

from benchmarks.children import ChildFailed
from runwire.messaging import stretch, subjects
from runwire.messaging.broker import UNAVAILABLE, Bus
from tests.chaos.history import DeadLetter, Event, Execution, Rest, Rows
from tests.chaos.stack import Stack

LONGEST_DRAIN = 90.0
"""Seconds until nothing may be left."""
LONGEST_LAG = 30.0
"""Seconds until every read model has to have read everything."""


async def rest(bus: Bus, *, since: float) -> Rest:
    """Wait until nothing is left to be done, or has been for long enough; what there is then. ``since``: monotonic."""
    while True:
        with suppress(*UNAVAILABLE):
            found = await _rest(bus, since)
            if not found.commands + found.alarms + found.unacknowledged or found.after > LONGEST_DRAIN:
                return found
        await asyncio.sleep(0.2)


async def _rest(bus: Bus, since: float) -> Rest:
    commands = await bus.js.stream_info(subjects.COMMANDS)
    alarms = await bus.js.stream_info(subjects.SCHEDULES)
    consumers = await bus.js.consumers_info(subjects.COMMANDS)
    events = await bus.js.stream_info(subjects.EVENTS)
    return Rest(
        after=round(time.monotonic() - since, 3),
        commands=commands.state.messages,
        alarms=alarms.state.messages,
        unacknowledged=sum(consumer.num_ack_pending or 0 for consumer in consumers),
        last_sequence=events.state.last_seq,
    )


async def events(bus: Bus, *, after: int = 0) -> AsyncIterator[Event]:
    """Every message of EVENTS that comes after a sequence, in order."""
    async for message in stretch.read_surely(bus, subjects.EVENTS, [subjects.ALL_EVENTS], start=after + 1):
        yield Event(
            sequence=message.metadata.sequence.stream,
            subject=message.subject,
            stored=message.metadata.timestamp.timestamp(),
            headers=dict(message.headers or {}),
            document=json.loads(message.data),
        )


async def dead_letters(bus: Bus) -> AsyncIterator[DeadLetter]:
    """Every message of DEADLETTERS."""
    async for message in stretch.read_surely(bus, subjects.DEADLETTERS, [subjects.ALL_DEADLETTERS]):
        headers = message.headers or {}
        task = subjects.id_of_token(message.subject.split(".")[3]) or 0
        yield DeadLetter(task=task, run=headers[subjects.RUN_ID], reason=headers[subjects.DEAD_REASON])


def executions(path: Path) -> Iterator[Execution]:
    """What the action wrote."""
    with path.open("rb") as file:
        for line in file:
            yield Execution.model_validate_json(line)


async def read_models(bus: Bus, stack: Stack) -> AsyncIterator[Rows]:
    """The read model of every adapter, and then the rebuilt one; adapters are stopped for it. Raises ChildFailed."""
    await stack.until_ready()
    last = {stream: (await bus.js.stream_info(stream)).state.last_seq for stream in (subjects.EVENTS, subjects.LOGS)}
    for name in stack.adapters:
        await _until_read(stack.read_model(name), last)
    await stack.stop_adapters()
    await stack.rebuild()
    for name in (*stack.adapters, "rebuilt"):
        yield Rows(model=name, tables=_tables(stack.read_model(name)))


async def _until_read(path: Path, last: dict[str, int]) -> None:
    deadline = time.monotonic() + LONGEST_LAG
    while time.monotonic() < deadline:  # one that never gets there shows in its rows
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            reached = dict(connection.execute("SELECT stream, sequence FROM position"))
        if all(reached.get(stream, 0) >= sequence for stream, sequence in last.items()):
            return
        await asyncio.sleep(0.1)


def _tables(path: Path) -> dict[str, dict[str, str]]:
    """A digest of every row by table and primary key; how far each stream was read is no row that counts."""
    if not path.exists():
        raise ChildFailed(f"there is no read model {path}")
    with closing(sqlite3.connect(path)) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        return {name: dict(_rows(connection, name)) for name in names if name != "position"}


def _rows(connection: sqlite3.Connection, table: str) -> Iterator[tuple[str, str]]:
    columns = connection.execute(f"PRAGMA table_info({table})").fetchall()
    keys = [number for number, column in enumerate(columns) if column[5]]
    kept = " WHERE tasks <> 0" if table == "tally" else ""  # a count of nothing is as good as none
    for row in connection.execute(f"SELECT * FROM {table}{kept}"):
        yield "/".join(str(row[number]) for number in keys), sha256(repr(row).encode()).hexdigest()[:16]
