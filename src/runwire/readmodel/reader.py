"""The only module others read tasks through."""

from __future__ import annotations

import heapq
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

from pydantic import JsonValue
from pydantic_core import from_json

from runwire.domain.lifecycle import Document
from runwire.domain.run import PUBLIC_FIELDS, Run, RunCode
from runwire.domain.task import StateCode
from runwire.messaging import subjects
from runwire.messaging.logs import Line
from runwire.readmodel.database import Database
from runwire.readmodel.heads import Heads
from runwire.readmodel.projection import position

LOGS_IN_LISTS = 10
"""Log entries each task brings along in a list: as many as a single task does by default."""

HISTORY = frozenset({RunCode.DONE, RunCode.ERROR, RunCode.SKIPPED})
"""The codes of the runs that are over."""

Stored = dict[str, Any]
"""A task or a run in JSON, as its document has it: in lists it is passed on as it is, without being made a model of."""
LogLine = dict[str, JsonValue]
"""A log entry as the API shows it: ``{date, level, message, run}``."""


@dataclass(frozen=True)
class TaskWithLogs:
    """A task's document and some of its log entries, newest last."""

    document: Document
    logs: list[LogLine]
    progress: Stored | None
    """What its latest run has reported last, in JSON; None: nothing."""


@dataclass(frozen=True)
class ListedTask:
    """A task of a list, and some of its log entries, newest last."""

    task: Stored
    logs: list[LogLine]
    schedule: Stored | None
    """How far its schedule has come, in JSON; None: it never had one."""


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
            document = Document.model_validate_json(row[1])
            logs = _logs(connection, task, limit=log_limit, offset=log_offset)
            report = _report(connection, task)
            run = document.run
            if run is None or report is None or not is_of({"id": run.id, "attempt": run.attempt}, report):
                report = None
            return TaskWithLogs(document, logs, report)

        return await self._database.read(query)

    async def tasks(self, which: TaskFilter, *, limit: int, offset: int) -> tuple[list[ListedTask], int]:
        """A page of tasks, sorted by id, and how many there are in all."""

        def query(connection: sqlite3.Connection) -> tuple[list[ListedTask], int]:
            total = _count(connection, which)
            if offset >= total:
                return [], total
            page = []
            for task in _ids(connection, which, limit=limit, offset=offset):
                row = _document_row(connection, task)
                if row is not None:
                    logs = _logs(connection, task, limit=LOGS_IN_LISTS, offset=0)
                    document = from_json(row[1])
                    page.append(ListedTask(document["task"], logs, document.get("schedule")))
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

    async def report(self, task: int) -> Stored | None:
        """The last report of progress that there is of the task's runs, in JSON; :func:`is_of` says of which."""
        return await self._database.read(lambda connection: _report(connection, task))

    async def stretch(self, task: int, after: int, until: int, limit: int) -> list[Line]:
        """The task's lines later than ``after``, up to ``until``, and its last report if it is among them, in order."""
        rows = await self._database.read(lambda connection: _stretch(connection, task, after, until, limit))
        return [Line(sequence, task, run, entry, bool(report)) for sequence, run, entry, report in rows]

    async def first_line(self, task: int, run: str) -> int | None:
        """LOGS sequence of the first line of a run, or of its last report; None: there is none."""
        row = await self._database.read(
            lambda connection: connection.execute(
                "SELECT min(sequence) FROM (SELECT min(sequence) AS sequence FROM log WHERE task = ?1 AND run = ?2 "
                "UNION ALL SELECT sequence FROM progress WHERE task = ?1 AND run = ?2)",
                (task, run),
            ).fetchone()
        )
        first: int | None = row[0]
        return first

    async def runs(self, task: int, *, code: RunCode | None, limit: int, offset: int) -> tuple[list[Stored], int]:
        """A page of the task's runs that are over as the API shows them, newest first, and how many are kept in all."""
        codes = tuple(HISTORY if code is None else HISTORY & {code})

        def query(connection: sqlite3.Connection) -> tuple[list[Stored], int]:
            total = 0
            for found in codes:
                total += connection.execute(
                    "SELECT coalesce(max(ordinal) - min(ordinal) + 1, 0) FROM run WHERE task = ? AND code = ?",
                    (task, found),
                ).fetchone()[0]
            stretches = [
                _firsts(
                    connection.execute(
                        "SELECT sequence FROM run WHERE task = ? AND code = ? ORDER BY ordinal DESC", (task, found)
                    )
                )
                for found in codes
            ]
            sequences = list(islice(heapq.merge(*stretches, reverse=True), offset, offset + limit))
            documents = [
                connection.execute("SELECT document FROM run WHERE sequence = ?", (sequence,)).fetchone()[0]
                for sequence in sequences
            ]
            runs = [from_json(document) for document in documents]
            return [{name: run.get(name) for name in PUBLIC_FIELDS} for run in runs], total

        return await self._database.read(query)

    async def lines(self, task: int, run: str, *, after: int, limit: int) -> tuple[list[tuple[int, LogLine]], int]:
        """Log entries of a run with their lines (LOGS sequences), oldest first, from the one after ``after`` on.

        And the line up to which everything there is has been read.
        """

        def query(connection: sqlite3.Connection) -> tuple[list[tuple[int, bytes]], int]:
            rows = connection.execute(
                "SELECT sequence, entry FROM log WHERE task = ? AND run = ? AND sequence > ? ORDER BY sequence LIMIT ?",
                (task, run, after, limit),
            ).fetchall()
            return rows, position(subjects.LOGS, connection)[1]

        rows, read_up_to = await self._database.read(query)
        return [(sequence, from_json(entry)) for sequence, entry in rows], read_up_to


def _stretch(
    connection: sqlite3.Connection, task: int, after: int, until: int, limit: int
) -> list[tuple[int, str, bytes, int]]:
    return connection.execute(
        "SELECT sequence, run, entry, 0 FROM log WHERE task = ?1 AND sequence > ?2 AND sequence <= ?3 "
        "UNION ALL SELECT sequence, run, entry, 1 FROM progress WHERE task = ?1 AND sequence > ?2 AND sequence <= ?3 "
        "ORDER BY sequence LIMIT ?4",
        (task, after, until, limit),
    ).fetchall()


def is_of(run: Stored, report: Stored) -> bool:
    """Whether a report of progress is this run's, and of its latest attempt."""
    return (run["id"], run["attempt"]) == (report["run"], report["attempt"])


def _report(connection: sqlite3.Connection, task: int) -> Stored | None:
    row = connection.execute("SELECT entry FROM progress WHERE task = ?", (task,)).fetchone()
    return from_json(row[0]) if row else None


def _document_row(connection: sqlite3.Connection, task: int) -> tuple[int, bytes] | None:
    row: tuple[int, bytes] | None = connection.execute(
        "SELECT sequence, document FROM task WHERE id = ?", (task,)
    ).fetchone()
    return row


def _logs(connection: sqlite3.Connection, task: int, *, limit: int, offset: int) -> list[LogLine]:
    rows = connection.execute(
        "SELECT entry FROM log WHERE task = ? ORDER BY sequence DESC LIMIT ? OFFSET ?", (task, limit, offset)
    ).fetchall()
    return [from_json(entry) for (entry,) in reversed(rows)]


def _count(connection: sqlite3.Connection, which: TaskFilter) -> int:
    """How many tasks the filter lets through, by the tally: a few rows for each chain."""
    action = which.action or ""
    campaign = "" if which.campaign is None else str(which.campaign)
    total = 0
    for chain, code in product(which.chains, _codes(which.code)):
        row = connection.execute(
            "SELECT tasks FROM tally WHERE chain = ? AND action = ? AND campaign = ? AND code = ?",
            (chain, action, campaign, code),
        ).fetchone()
        total += row[0] if row else 0
    return total


def _ids(connection: sqlite3.Connection, which: TaskFilter, *, limit: int, offset: int) -> list[int]:
    """The ids of a page: one stretch of an index, or a few of them merged as far as the page reaches."""
    stretches = list(stretches_of(which))
    if len(stretches) == 1:
        sql, values = stretches[0]
        rows = connection.execute(f"{sql} LIMIT ? OFFSET ?", (*values, limit, offset))
        return list(_firsts(rows))
    merged = heapq.merge(*(_firsts(connection.execute(sql, values)) for sql, values in stretches))
    return list(islice(merged, offset, offset + limit))


def stretches_of(which: TaskFilter) -> Iterator[tuple[str, tuple[object, ...]]]:
    """The queries whose results, merged, are the ids that a filter lets through; each reads its index and no more."""
    equal: list[tuple[str, object]] = []
    if which.campaign is not None:
        equal.append(("campaign", which.campaign))
    if which.action is not None:
        equal.append(("action", which.action))
    index = "task_by_" + ("_and_".join(column for column, _ in equal) or ("code" if which.code else "chain"))
    codes = _codes(which.code) if equal else (which.code,)
    for chain, code in product(which.chains, codes):
        columns = [("chain", chain), *equal, *([("code", code)] if code else [])]
        where = " AND ".join(f"{column} = ?" for column, _ in columns)
        sql = f"SELECT id FROM task INDEXED BY {index} WHERE {where} ORDER BY id"  # noqa: S608 - names of ours, values bound
        yield sql, tuple(value for _, value in columns)


def _codes(code: StateCode | None) -> tuple[StateCode, ...]:
    return tuple(StateCode) if code is None else (code,)


def _firsts(rows: Iterable[tuple[Any, ...]]) -> Iterator[int]:
    return (row[0] for row in rows)
