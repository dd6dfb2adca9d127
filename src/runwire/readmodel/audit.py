"""The audit trail: who changed what, and which calls were refused. Rows of three streams, nothing written twice.

What a message tells is in :mod:`runwire.messaging.trail`. It is told to the managers of the chain it happened in; what
a token reaches elsewhere is not told. The trail goes back AUDIT_DAYS, as far as the streams hold it: a stream keeps the
newest so many messages of a subject, and a row goes when its message does, so that a rebuilt trail is the same.
Messages that tell nothing are therefore counted, too, under the subjects that have rows; for all others that is one
look into an index for a whole batch.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from runwire.messaging.streams import AUDIT_DAYS
from runwire.messaging.trail import AuditRow
from runwire.readmodel.database import Database


@dataclass(frozen=True, kw_only=True)
class Told:
    """A message, and the rows that come of it; mostly none."""

    source: str
    """Its subject on the broker."""
    rows: Sequence[AuditRow]


@dataclass(frozen=True, kw_only=True)
class AuditFilter:
    """Which rows a list holds. None: whatever it is."""

    chains: tuple[int, ...]
    action: str | None = None
    since: datetime | None = None


class Trail:
    """Queries over the audit trail."""

    def __init__(self, database: Database) -> None:
        """Over an open read model."""
        self._database = database

    async def page(self, which: AuditFilter, *, limit: int, offset: int, now: datetime) -> tuple[list[AuditRow], int]:
        """A page of rows, newest first, and how many there are in all."""
        return await self._database.read(lambda connection: page(connection, which, limit, offset, now))


# --- rows and SQL: plain functions over a connection ---------------------------------------------------


def apply(connection: sqlite3.Connection, told: Sequence[Told], *, kept: int, now: datetime) -> None:
    """Add what these messages of a stream tell, and forget what is over its time.

    ``kept``: how many messages of a subject the stream keeps.
    """
    oldest = _milliseconds(now - timedelta(days=AUDIT_DAYS))
    counts = _counts(connection, {message.source for message in told})
    touched: set[str] = set()
    rows = []
    for message in told:
        fresh = [row for row in message.rows if _milliseconds(row.date) >= oldest]
        if fresh or message.source in counts:
            touched.add(message.source)
            ordinal = counts[message.source] = counts.get(message.source, 0) + 1
            rows += [_values(row, message.source, ordinal) for row in fresh]
    if not touched:
        return
    connection.executemany("INSERT OR REPLACE INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
    connection.executemany(
        "INSERT OR REPLACE INTO audited (source, messages) VALUES (?, ?)",
        [(source, counts[source]) for source in touched],
    )
    full = [(source, counts[source] - kept) for source in touched if counts[source] > kept]
    connection.executemany("DELETE FROM audit WHERE source = ? AND ordinal <= ?", full)
    expired = connection.execute("DELETE FROM audit WHERE date < ? RETURNING source", (oldest,)).fetchall()
    connection.executemany(
        "DELETE FROM audited WHERE source = ?1 AND NOT EXISTS (SELECT 1 FROM audit WHERE source = ?1)",
        [(source,) for source in {source for source, *_ in (*full, *expired)}],
    )


def clear(connection: sqlite3.Connection, *, stream: str) -> None:
    """Forget what came of a stream."""
    connection.execute("DELETE FROM audited WHERE source IN (SELECT source FROM audit WHERE stream = ?)", (stream,))
    connection.execute("DELETE FROM audit WHERE stream = ?", (stream,))


def page(
    connection: sqlite3.Connection, which: AuditFilter, limit: int, offset: int, now: datetime
) -> tuple[list[AuditRow], int]:
    """A page of rows, newest first, and how many there are in all."""
    oldest = now - timedelta(days=AUDIT_DAYS)
    since = _milliseconds(max(oldest, which.since) if which.since else oldest)
    where, values = "chain = ? AND date >= ?", [since]
    if which.action is not None:
        where, values = f"{where} AND action = ?", [since, which.action]  # type: ignore[list-item]
    total = 0
    for chain in which.chains:
        total += connection.execute(f"SELECT count(*) FROM audit WHERE {where}", (chain, *values)).fetchone()[0]  # noqa: S608 - conditions of ours, values bound
    order = "ORDER BY date DESC, stream DESC, sequence DESC LIMIT ?"
    # Each chain's newest by its index, then the newest of those: one condition on all chains would sort every row.
    newest = " UNION ALL ".join(f"SELECT * FROM (SELECT * FROM audit WHERE {where} {order})" for _ in which.chains)  # noqa: S608 - as above
    bound = [value for chain in which.chains for value in (chain, *values, offset + limit)]
    rows = connection.execute(
        f"SELECT stream, sequence, chain, date, actor, action, subject, detail FROM ({newest}) {order} OFFSET ?",  # noqa: S608 - as above
        (*bound, limit, offset),
    ).fetchall()
    return [_row(*row) for row in rows], total


def _counts(connection: sqlite3.Connection, sources: set[str]) -> dict[str, int]:
    """How many messages these subjects have had since the first that is told of; those that have rows only."""
    return dict(
        connection.execute(
            "SELECT source, messages FROM audited WHERE source IN (SELECT value FROM json_each(?))",
            (json.dumps(list(sources)),),
        ).fetchall()
    )


def _values(row: AuditRow, source: str, ordinal: int) -> tuple[object, ...]:
    date, detail = _milliseconds(row.date), json.dumps(row.detail)
    return (row.stream, row.sequence, row.chain, date, row.by, row.action, row.subject, detail, source, ordinal)


def _row(
    stream: str, sequence: int, chain: int, date: int, actor: str, action: str, subject: str, detail: str
) -> AuditRow:
    return AuditRow(
        stream=stream,
        sequence=sequence,
        chain=chain,
        date=datetime.fromtimestamp(date / 1000, UTC),
        by=actor,
        action=action,
        subject=subject,
        detail=json.loads(detail),
    )


def _milliseconds(time: datetime) -> int:
    return round(time.timestamp() * 1000)
