"""The only module others read tasks through."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from runwire.domain.lifecycle import Document
from runwire.domain.run import Run
from runwire.domain.task import LogEntry, StateCode
from runwire.readmodel.database import Database
from runwire.readmodel.heads import Heads

LOGS_IN_LISTS = 10
"""Log entries each task brings along in a list: as many as a single task does by default."""


@dataclass(frozen=True)
class TaskWithLogs:
    """A task's document and some of its log entries, newest last."""

    document: Document
    logs: list[LogEntry]


@dataclass(frozen=True, kw_only=True)
class TaskFilter:
    """Which tasks a list holds. None: whatever it is."""

    chains: tuple[int, ...]
    code: StateCode | None = None
    action: str | None = None
    campaign: int | None = None


class Reader:
    """Queries over the read model. Everything returned has been committed."""

    def __init__(self, database: Database, heads: Heads) -> None:
        """Over an open read model and the documents that are kept in memory."""
        self._database = database
        self._heads = heads

    async def document(self, task: int) -> Document | None:
        """The task's document; None: there is no such task here."""
        known = self._heads.get(task)
        if known is not None:
            return known
        commits = self._heads.commits
        row = await self._database.read(lambda connection: _document_row(connection, task))
        if row is None:
            return None
        document = Document.model_validate_json(row[1])
        if self._heads.commits == commits:  # else the task may have been deleted in between
            self._heads.put(row[0], document)
        return document

    async def task(self, task: int, *, log_limit: int, log_offset: int) -> TaskWithLogs | None:
        """A task with ``log_limit`` entries of its logs, leaving out the ``log_offset`` newest."""

        def query(connection: sqlite3.Connection) -> TaskWithLogs | None:
            row = _document_row(connection, task)
            if row is None:
                return None
            return TaskWithLogs(
                Document.model_validate_json(row[1]), _logs(connection, task, limit=log_limit, offset=log_offset)
            )

        return await self._database.read(query)

    async def tasks(self, which: TaskFilter, *, limit: int, offset: int) -> tuple[list[TaskWithLogs], int]:
        """A page of tasks, sorted by id, and how many there are in all."""

        def query(connection: sqlite3.Connection) -> tuple[list[TaskWithLogs], int]:
            where, values = _conditions(which)
            (total,) = connection.execute(f"SELECT count(*) FROM task WHERE {where}", values).fetchone()  # noqa: S608 - conditions of ours, values bound
            rows = connection.execute(
                f"SELECT id, document FROM task WHERE {where} ORDER BY id LIMIT ? OFFSET ?",  # noqa: S608 - as above
                (*values, limit, offset),
            ).fetchall()
            page = [
                TaskWithLogs(
                    Document.model_validate_json(document), _logs(connection, task, limit=LOGS_IN_LISTS, offset=0)
                )
                for task, document in rows
            ]
            return page, total

        return await self._database.read(query)

    async def run(self, task: int, run: str) -> Run | None:
        """A run that has ended, or that the task is busy with; None: the read model knows of none."""
        document = await self.document(task)
        if document is not None and document.run is not None and document.run.id == run:
            return document.run
        row = await self._database.read(
            lambda connection: connection.execute(
                "SELECT document FROM run WHERE task = ? AND id = ?", (task, run)
            ).fetchone()
        )
        return Run.model_validate_json(row[0]) if row else None


def _document_row(connection: sqlite3.Connection, task: int) -> tuple[int, bytes] | None:
    row: tuple[int, bytes] | None = connection.execute(
        "SELECT sequence, document FROM task WHERE id = ?", (task,)
    ).fetchone()
    return row


def _logs(connection: sqlite3.Connection, task: int, *, limit: int, offset: int) -> list[LogEntry]:
    rows = connection.execute(
        "SELECT entry FROM log WHERE task = ? ORDER BY sequence DESC LIMIT ? OFFSET ?", (task, limit, offset)
    ).fetchall()
    return [LogEntry.model_validate_json(entry) for (entry,) in reversed(rows)]


def _conditions(which: TaskFilter) -> tuple[str, tuple[object, ...]]:
    """The WHERE clause of a filter and the values for its parameters."""
    clauses = [f"chain IN ({', '.join('?' * len(which.chains))})"]
    values: list[object] = list(which.chains)
    for column, value in (("code", which.code), ("action", which.action), ("campaign", which.campaign)):
        if value is not None:
            clauses.append(f"{column} = ?")
            values.append(value)
    return " AND ".join(clauses), tuple(values)
