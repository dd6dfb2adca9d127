"""Event -> rows. Plain functions over a connection, to be called within a transaction; each may be repeated.

A batch is staged in temporary tables and applied by a handful of statements, whatever its size: each of them
runs without Python's lock, so that the event loop reads the next batch meanwhile. (A statement per row would
have the two threads fight for the lock a few times a row.)
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain as chained
from typing import Any

from runwire.domain.lifecycle import Change, Document
from runwire.domain.run import Run
from runwire.domain.task import MAX_ID, Task
from runwire.messaging.logs import Line
from runwire.readmodel import audit

LARGEST_STATEMENT = 512
"""Rows staged by one statement, at most; always a power of two, so that few statements are ever prepared."""
STAGES = """
CREATE TEMP TABLE IF NOT EXISTS staged_task (
    id INTEGER PRIMARY KEY, chain INTEGER, sequence INTEGER, code TEXT, action TEXT, campaign INTEGER, document BLOB,
    changes TEXT -- what of the row's keys: nothing, only the code, others too; NULL: there is no row yet
);
CREATE TEMP TABLE IF NOT EXISTS staged_run (
    sequence INTEGER PRIMARY KEY, task INTEGER, id TEXT, code TEXT, document BLOB
);
CREATE TEMP TABLE IF NOT EXISTS staged_log (task INTEGER, sequence INTEGER, run TEXT, entry BLOB);
"""
"""Run once on the connection that writes."""


@dataclass(frozen=True)
class EventRecord:
    """An event as it was read from EVENTS."""

    sequence: int
    document: Document
    payload: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    """As they came: the CloudEvents attributes, among others."""


def apply_events(connection: sqlite3.Connection, records: Iterable[EventRecord], *, history: int) -> None:
    """Bring the rows up to date with these events, in stream order. ``history``: ended runs kept per task and code."""
    last: dict[int, EventRecord] = {}
    ended: dict[int, list[EventRecord]] = {}
    for record in records:
        document = record.document
        task = document.task.id
        if document.change is Change.DELETED:
            last.pop(task, None)
            ended.pop(task, None)
            _delete_task(connection, task, record.sequence)
            continue
        last[task] = record
        if _run_in_history(document) is not None:
            ended.setdefault(task, []).append(record)
    if last:
        _upsert_tasks(connection, list(last.values()))
    if ended:
        _add_runs(connection, list(chained.from_iterable(ended.values())), history)


def apply_logs(connection: sqlite3.Connection, records: Iterable[Line], *, lines: int) -> None:
    """Add these log lines, but for those of deleted tasks. ``lines``: how many are kept per task.

    Of the reports of progress among them the latest of each task is kept.
    """
    rows, reports = [], {}
    for record in records:
        row = (record.task, record.sequence, record.run, record.payload)
        if record.is_progress:
            reports[record.task] = row
        else:
            rows.append(row)
    if reports:
        connection.executemany(
            "INSERT OR REPLACE INTO progress (task, sequence, run, entry) "
            "SELECT ?1, ?2, ?3, ?4 WHERE ?1 NOT IN (SELECT task FROM deleted)",
            list(reports.values()),
        )
    if not rows:
        return
    _stage(connection, "staged_log", rows)
    connection.execute(
        "INSERT OR REPLACE INTO log (task, sequence, run, entry) SELECT task, sequence, run, entry FROM staged_log "
        "WHERE task NOT IN (SELECT task FROM deleted)"
    )
    connection.execute(
        "DELETE FROM log WHERE (task, sequence) IN (SELECT log.task, log.sequence "
        "FROM (SELECT DISTINCT task FROM staged_log) AS touched JOIN log ON log.task = touched.task "
        "WHERE log.sequence <= (SELECT sequence FROM log AS kept WHERE kept.task = touched.task "
        "ORDER BY sequence DESC LIMIT 1 OFFSET ?))",
        (lines,),
    )
    connection.execute("DELETE FROM staged_log")


def set_position(connection: sqlite3.Connection, stream: str, identity: str, sequence: int) -> None:
    """Remember how far a stream has been read."""
    connection.execute(
        "INSERT OR REPLACE INTO position (stream, identity, sequence) VALUES (?, ?, ?)", (stream, identity, sequence)
    )


def position(stream: str, connection: sqlite3.Connection) -> tuple[str, int]:
    """(identity of the stream, last sequence that was read); ("", 0) when it never was."""
    row = connection.execute("SELECT identity, sequence FROM position WHERE stream = ?", (stream,)).fetchone()
    return (row[0], row[1]) if row else ("", 0)


def clear(connection: sqlite3.Connection, *, stream: str, tables: Iterable[str]) -> None:
    """Forget everything that came of a stream: these tables hold nothing else."""
    for table in tables:
        connection.execute(f"DELETE FROM {table}")  # noqa: S608 - names of ours
    audit.clear(connection, stream=stream)
    connection.execute("DELETE FROM position WHERE stream = ?", (stream,))


def _upsert_tasks(connection: sqlite3.Connection, records: Sequence[EventRecord]) -> None:
    """The tasks as these events have them, each task once; and the tally with them."""
    rows = []
    for record in records:
        task = record.document.task
        rows.append(
            (
                task.id,
                task.chain,
                record.sequence,
                task.state.code.value,
                task.target.action,
                _campaign(task),
                record.payload,
            )
        )
    _stage(connection, "staged_task (id, chain, sequence, code, action, campaign, document)", rows)
    _count(
        connection,
        "SELECT task.chain, task.action, task.campaign, task.code, -1 AS tasks "
        "FROM staged_task CROSS JOIN task USING (id) "
        "UNION ALL SELECT chain, action, campaign, code, 1 FROM staged_task",
    )
    # SQLite renews the index entries of every column that is set: most events leave them all alone, and so do we. Every
    # statement begins at the staged rows: left to itself, the planner reads the whole table for each batch.
    connection.execute(
        "UPDATE staged_task SET changes = (SELECT CASE "
        "WHEN task.chain <> staged_task.chain OR task.action <> staged_task.action "
        "OR task.campaign IS NOT staged_task.campaign THEN 'others' "
        "WHEN task.code <> staged_task.code THEN 'code' ELSE 'nothing' END "
        "FROM task WHERE task.id = staged_task.id)"
    )
    connection.execute(
        "UPDATE task SET (sequence, document) = (SELECT sequence, document FROM staged_task AS staged "
        "WHERE staged.id = task.id) WHERE id IN (SELECT id FROM staged_task WHERE changes = 'nothing')"
    )
    connection.execute(
        "UPDATE task SET (sequence, document, code) = (SELECT sequence, document, code FROM staged_task AS staged "
        "WHERE staged.id = task.id) WHERE id IN (SELECT id FROM staged_task WHERE changes = 'code')"
    )
    connection.execute(
        "INSERT INTO task (id, chain, sequence, code, action, campaign, document) "
        "SELECT id, chain, sequence, code, action, campaign, document FROM staged_task "
        "WHERE changes IS NULL OR changes = 'others' "
        "ON CONFLICT (id) DO UPDATE SET chain = excluded.chain, sequence = excluded.sequence, code = excluded.code, "
        "action = excluded.action, campaign = excluded.campaign, document = excluded.document"
    )
    connection.execute("DELETE FROM deleted WHERE task IN (SELECT id FROM staged_task)")
    connection.execute("DELETE FROM staged_task")


def _count(connection: sqlite3.Connection, changes: str, values: tuple[object, ...] = ()) -> None:
    """Change the tally by the rows (chain, action, campaign, code, tasks) that the query ``changes`` yields."""
    connection.execute(
        "INSERT INTO tally (chain, action, campaign, code, tasks) "  # noqa: S608 - queries of ours
        "SELECT chain, iif(by_action, action, ''), iif(by_campaign, campaign, ''), code, sum(tasks) "
        f"FROM ({changes}) "
        "JOIN (SELECT 0 AS by_action UNION ALL SELECT 1) JOIN (SELECT 0 AS by_campaign UNION ALL SELECT 1) "
        "WHERE NOT (by_campaign AND campaign IS NULL) GROUP BY 1, 2, 3, 4 HAVING sum(tasks) <> 0 "
        "ON CONFLICT (chain, action, campaign, code) DO UPDATE SET tasks = tally.tasks + excluded.tasks",
        values,
    )


def _add_runs(connection: sqlite3.Connection, records: Sequence[EventRecord], history: int) -> None:
    rows = []
    for record in records:
        run = _run_in_history(record.document)
        if run is not None:
            rows.append((record.sequence, run.task, run.id, run.code.value, run.model_dump_json().encode()))
    _stage(connection, "staged_run", rows)
    connection.execute(
        "INSERT OR IGNORE INTO run (sequence, task, id, code, ordinal, document) "
        "SELECT sequence, task, id, code, row_number() OVER (PARTITION BY task, code ORDER BY sequence) + coalesce("
        "(SELECT max(ordinal) FROM run WHERE run.task = staged.task AND run.code = staged.code), 0), document "
        "FROM staged_run AS staged"
    )
    connection.execute(
        "DELETE FROM run WHERE sequence IN (SELECT run.sequence "
        "FROM (SELECT DISTINCT task, code FROM staged_run) AS touched "
        "JOIN run ON run.task = touched.task AND run.code = touched.code "
        "WHERE run.ordinal <= (SELECT max(ordinal) FROM run AS newest "
        "WHERE newest.task = touched.task AND newest.code = touched.code) - ?)",
        (history,),
    )
    connection.execute("DELETE FROM staged_run")


def _run_in_history(document: Document) -> Run | None:
    """The run that this event adds to the task's history: one that has just ended, or ticks that were skipped."""
    match document.change:
        case Change.CONCLUDED:
            return document.run
        case Change.SKIPPED:
            return document.skipped
        case _:
            return None


def _delete_task(connection: sqlite3.Connection, task: int, sequence: int) -> None:
    _count(connection, "SELECT chain, action, campaign, code, -1 AS tasks FROM task WHERE id = ?", (task,))
    connection.execute("DELETE FROM task WHERE id = ?", (task,))
    connection.execute("DELETE FROM run WHERE task = ?", (task,))
    connection.execute("DELETE FROM log WHERE task = ?", (task,))
    connection.execute("DELETE FROM progress WHERE task = ?", (task,))
    connection.execute("INSERT OR REPLACE INTO deleted (task, sequence) VALUES (?, ?)", (task, sequence))


def _campaign(task: Task) -> int | None:
    """The campaign by which lists find the task; whatever else an action may take by that name is none."""
    campaign = task.target.parameters.get("campaign")
    if isinstance(campaign, int) and not isinstance(campaign, bool) and abs(campaign) <= MAX_ID:
        return campaign
    return None


def _stage(connection: sqlite3.Connection, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Put rows into one of the temporary tables, many at a time."""
    begin = 0
    while begin < len(rows):
        size = min(LARGEST_STATEMENT, 1 << (len(rows) - begin).bit_length() - 1)
        part = rows[begin : begin + size]
        row = f"({', '.join('?' * len(part[0]))})"
        connection.execute(
            f"INSERT INTO {table} VALUES {', '.join([row] * size)}",  # noqa: S608 - name of ours, values bound
            list(chained.from_iterable(part)),
        )
        begin += size
