"""Event -> rows. Plain functions over a connection, to be called within a transaction; each may be repeated."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from runwire.domain.lifecycle import Change, Document
from runwire.domain.run import Run
from runwire.domain.task import FINAL


@dataclass(frozen=True)
class EventRecord:
    """An event as it was read from EVENTS."""

    sequence: int
    document: Document
    payload: bytes


@dataclass(frozen=True)
class LogRecord:
    """A log line as it was read from LOGS."""

    sequence: int
    task: int
    run: str
    payload: bytes


def apply_events(connection: sqlite3.Connection, records: Iterable[EventRecord], *, history: int) -> None:
    """Bring the rows up to date with these events, in stream order. ``history``: ended runs kept per task and code."""
    batch = list(records)
    last = {record.document.task.id: record.sequence for record in batch}
    for record in batch:
        task = record.document.task.id
        if record.document.change is Change.DELETED:
            _delete_task(connection, task)
            continue
        if record.sequence == last[task]:
            _upsert_task(connection, record)
        run = record.document.run
        if run is not None and run.code in FINAL and record.document.change is Change.CONCLUDED:
            _add_run(connection, run, record.sequence, history)


def apply_logs(connection: sqlite3.Connection, records: Iterable[LogRecord], *, lines: int) -> None:
    """Add these log lines. ``lines``: how many are kept per task."""
    tasks = set()
    for record in records:
        connection.execute(
            "INSERT OR REPLACE INTO log (task, sequence, run, entry) VALUES (?, ?, ?, ?)",
            (record.task, record.sequence, record.run, record.payload),
        )
        tasks.add(record.task)
    for task in tasks:
        connection.execute(
            "DELETE FROM log WHERE task = ? AND sequence <= "
            "(SELECT sequence FROM log WHERE task = ? ORDER BY sequence DESC LIMIT 1 OFFSET ?)",
            (task, task, lines),
        )


def set_position(connection: sqlite3.Connection, stream: str, identity: str, sequence: int) -> None:
    """Remember how far a stream has been read."""
    connection.execute(
        "INSERT OR REPLACE INTO position (stream, identity, sequence) VALUES (?, ?, ?)", (stream, identity, sequence)
    )


def position(stream: str, connection: sqlite3.Connection) -> tuple[str, int]:
    """(identity of the stream, last sequence that was read); ("", 0) when it never was."""
    row = connection.execute("SELECT identity, sequence FROM position WHERE stream = ?", (stream,)).fetchone()
    return (row[0], row[1]) if row else ("", 0)


def clear(stream: str, connection: sqlite3.Connection, *, events: bool) -> None:
    """Forget everything that came of a stream: of EVENTS (``events``) or of LOGS."""
    for table in ("task", "run") if events else ("log",):
        connection.execute(f"DELETE FROM {table}")  # noqa: S608 - one of three names above
    connection.execute("DELETE FROM position WHERE stream = ?", (stream,))


def _upsert_task(connection: sqlite3.Connection, record: EventRecord) -> None:
    task = record.document.task
    campaign = task.target.parameters.get("campaign")
    campaign = campaign if isinstance(campaign, int) else None
    updated = connection.execute(  # most events leave alone what the other indexes hold, and so do we
        "UPDATE task SET sequence = ?, code = ?, document = ? "
        "WHERE id = ? AND chain = ? AND action = ? AND campaign IS ?",
        (record.sequence, task.state.code.value, record.payload, task.id, task.chain, task.target.action, campaign),
    )
    if updated.rowcount:
        return
    connection.execute(
        "INSERT INTO task (id, chain, sequence, code, action, campaign, document) VALUES (?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (id) DO UPDATE SET chain = excluded.chain, sequence = excluded.sequence, code = excluded.code, "
        "action = excluded.action, campaign = excluded.campaign, document = excluded.document",
        (
            task.id,
            task.chain,
            record.sequence,
            task.state.code.value,
            task.target.action,
            campaign,
            record.payload,
        ),
    )


def _add_run(connection: sqlite3.Connection, run: Run, sequence: int, history: int) -> None:
    code = run.code.value
    added = connection.execute(
        "INSERT INTO run (task, id, code, sequence, ordinal, document) VALUES (?1, ?2, ?3, ?4, "
        "(SELECT coalesce(max(ordinal), 0) + 1 FROM run WHERE task = ?1 AND code = ?3), ?5) "
        "ON CONFLICT (task, id) DO NOTHING RETURNING ordinal",
        (run.task, run.id, code, sequence, run.model_dump_json().encode()),
    ).fetchone()
    if added is not None and added[0] > history:
        connection.execute(
            "DELETE FROM run WHERE task = ? AND code = ? AND ordinal <= ?", (run.task, code, added[0] - history)
        )


def _delete_task(connection: sqlite3.Connection, task: int) -> None:
    connection.execute("DELETE FROM task WHERE id = ?", (task,))
    connection.execute("DELETE FROM run WHERE task = ?", (task,))
    connection.execute("DELETE FROM log WHERE task = ?", (task,))
