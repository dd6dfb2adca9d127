"""What the projector is measured against: fetch, decode, one statement after the other, commit; a row at a time.

``python -m benchmarks.plain_loop``, with the number of events on stdin; prints events per second.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import uvloop
from nats.js.api import AckPolicy, ConsumerConfig

from runwire.domain.lifecycle import Change
from runwire.messaging import codec, subjects
from runwire.messaging.broker import Bus
from runwire.settings import load

BATCH = 500
"""Events fetched, and committed, at once."""


async def project(count: int) -> float:
    """Read so many events into a file of their own; returns events per second."""
    bus = Bus(load(), "runwire benchmark")
    await bus.connect()
    consumer = await bus.js.pull_subscribe(
        subjects.ALL_EVENTS, stream=subjects.EVENTS, config=ConsumerConfig(ack_policy=AckPolicy.NONE)
    )
    with tempfile.TemporaryDirectory() as folder, sqlite3.connect(Path(folder) / "plain.db") as connection:
        connection.executescript(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;"
            "CREATE TABLE task (id INTEGER PRIMARY KEY, chain, code, action, document);"
            "CREATE INDEX task_by_code ON task (chain, code, id);"
            "CREATE INDEX task_by_action ON task (chain, action, id);"
            "CREATE TABLE run (task, id, code, document, PRIMARY KEY (task, id));"
            "CREATE TABLE position (stream PRIMARY KEY, sequence);"
        )
        began, done = perf_counter(), 0
        while done < count:
            for message in await consumer.fetch(min(BATCH, count - done), timeout=10):
                document = codec.decode(message.data)
                task, run = document.task, document.run
                connection.execute(
                    "INSERT INTO task VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET code = excluded.code, "
                    "action = excluded.action, document = excluded.document",
                    (task.id, task.chain, task.state.code.value, task.target.action, message.data),
                )
                if run is not None and document.change is Change.CONCLUDED:
                    connection.execute(
                        "INSERT OR REPLACE INTO run VALUES (?, ?, ?, ?)",
                        (task.id, run.id, run.code.value, run.model_dump_json()),
                    )
                connection.execute(
                    "INSERT OR REPLACE INTO position VALUES ('EVENTS', ?)", (message.metadata.sequence.stream,)
                )
                done += 1
            connection.commit()
        seconds = perf_counter() - began
    connection.close()
    await bus.nc.close()
    return done / seconds


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(runner.run(project(int(sys.stdin.read()))))
