"""The SQLite file: open it, bring its schema up to date, one connection to write and a few to read.

aiosqlite runs each connection in a thread of its own, and every call into it is a hop between threads. A batch
of events is therefore one call (:meth:`Database.transact`), not one per statement.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import sqlite3
from collections.abc import Callable
from contextlib import closing
from importlib import resources
from pathlib import Path
from typing import IO, TypeVar

import aiosqlite

from runwire.domain.errors import SetupError

T = TypeVar("T")

log = logging.getLogger("runwire.readmodel")

LAYOUT = 2
"""``application_id`` of the files this version can go on with; others are as good as none, and are built anew."""
READERS = 3
"""Connections that read: a page that takes long does not hold up the others."""
PRAGMAS = (
    "PRAGMA journal_mode = WAL",  # readers never wait for the projector
    "PRAGMA synchronous = NORMAL",  # a power cut may undo the last commits, never tear them; they are read again
    "PRAGMA busy_timeout = 5000",
    "PRAGMA wal_autocheckpoint = 4000",  # pages: 16 MB between two of them
    "PRAGMA temp_store = MEMORY",
    "PRAGMA cache_size = -32768",  # 32 MiB
    "PRAGMA trusted_schema = OFF",
)


class Connection(aiosqlite.Connection):
    """A connection that can run a whole function in its thread."""

    async def call(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """``function(connection)`` in the connection's thread; one hop whatever it does."""
        result: T = await self._execute(function, self._conn)  # type: ignore[no-untyped-call]
        return result


class Database:
    """An open read model. Locked: a second process on the same file is refused."""

    def __init__(self, path: Path, lock: IO[str], writer: Connection, readers: list[Connection]) -> None:
        """Use :func:`open_database`."""
        self.path = path
        self._lock = lock
        self._writer = writer
        self._readers = readers
        self._idle: asyncio.LifoQueue[Connection] = asyncio.LifoQueue()  # the one that was used last has a warm cache
        for reader in readers:
            self._idle.put_nowait(reader)

    async def transact(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run a function in one write transaction; all of it is stored, or nothing."""

        def transaction(connection: sqlite3.Connection) -> T:
            connection.execute("BEGIN IMMEDIATE")
            try:
                result = function(connection)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:  # a full disk has rolled back already
                    connection.execute("ROLLBACK")
                raise
            return result

        return await self._writer.call(transaction)

    async def write(self, function: Callable[[sqlite3.Connection], object]) -> None:
        """Run a function over the writing connection, outside of a transaction."""
        await self._writer.call(function)

    async def read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run a function over a read-only connection; all it reads is of the same moment."""

        def snapshot(connection: sqlite3.Connection) -> T:
            connection.execute("BEGIN")
            try:
                return function(connection)
            finally:
                connection.execute("ROLLBACK")

        reader = await self._idle.get()
        try:
            return await reader.call(snapshot)
        finally:
            self._idle.put_nowait(reader)

    async def close(self) -> None:
        """Close all connections and give up the lock. May be called twice."""
        for connection in (*self._readers, self._writer):
            await connection.close()
        self._lock.close()


async def open_database(path: Path) -> Database:
    """Open the file, create it if need be, and bring its schema up to date. Raises SetupError."""
    lock = _lock(path)
    connections = [_new_connection(path) for _ in range(1 + READERS)]
    writer, *readers = connections
    try:
        _drop_if_outdated(path)
        await _prepare(writer)
        await writer.execute("PRAGMA cache_size = -131072")  # 128 MiB: it has every index to keep
        await writer.call(_migrate)
        for reader in readers:
            await _prepare(reader)
            await reader.execute("PRAGMA query_only = ON")
    except sqlite3.Error as error:
        for connection in connections:
            await _close(connection)
        lock.close()
        raise SetupError(f"cannot open the read model {path}: {error}; it can be deleted, it is rebuilt") from None
    return Database(path, lock, writer, readers)


def _drop_if_outdated(path: Path) -> None:
    """A file of another layout is deleted: everything in it is in the streams."""
    with closing(sqlite3.connect(path)) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (layout,) = connection.execute("PRAGMA application_id").fetchone()
    if version and layout != LAYOUT:
        log.warning("%s is of another version, rebuilding", path, extra={"action": "rebuild"})
        remove_database(path)


def _lock(path: Path) -> IO[str]:
    """Keep other processes off the file for as long as the lock is open. Raises SetupError."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = path.with_suffix(".lock").open("w")
        path.touch(mode=0o600)  # holds what tenants wrote; SQLite gives its other files the same mode
    except OSError as error:
        raise SetupError(f"cannot write the data directory {path.parent}: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise SetupError(f"the read model {path} is in use by another runwire process") from None
    return lock


def remove_database(path: Path) -> None:
    """Delete the file and what SQLite keeps beside it; nothing happens when there is none."""
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def _new_connection(path: Path) -> Connection:
    """A connection that is not open yet. Its thread keeps no process alive: what is committed is on disk."""
    connection = Connection(
        lambda: sqlite3.connect(path, isolation_level=None, cached_statements=256), iter_chunk_size=64
    )
    connection._thread.daemon = True  # noqa: SLF001 - aiosqlite has no parameter for it
    return connection


async def _prepare(connection: Connection) -> None:
    await connection
    for pragma in PRAGMAS:
        await connection.execute(pragma)


async def _close(connection: Connection) -> None:
    """Close it if it was ever opened."""
    if connection._connection is not None:  # noqa: SLF001 - aiosqlite has no other way to ask
        await connection.close()


def _migrate(connection: sqlite3.Connection) -> None:
    """Apply the migrations that the file has not seen, in order; ``user_version`` counts them."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    folder = resources.files("runwire.readmodel") / "migrations"
    scripts = sorted((file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name)
    for number, script in enumerate(scripts, start=1):
        if number > version:
            done = f"PRAGMA application_id = {LAYOUT};\nPRAGMA user_version = {number};"
            connection.executescript(f"BEGIN;\n{script.read_text()}\n{done}\nCOMMIT;")
