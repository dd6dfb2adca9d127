"""Streams -> batches -> rows -> whoever waits.

Each stream is read by a pull consumer of this adapter's own that begins right after the stored position.
Whatever has arrived is applied in one transaction together with the new position; after the commit the
waiting calls wake. A gap, a reconnection or a stream that is not the one we knew: the consumer is made anew.
(Nothing is acknowledged, so a cut connection loses what was on its way; only the consumer's own sequence
shows that. nats-py's ordered consumer would notice, too, but takes 19 s to come back after a broker restart.)
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import uuid4

from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import Error as JetStreamError

from runwire import failpoints
from runwire.domain.errors import Undecodable
from runwire.domain.run import Run
from runwire.failpoints import Point
from runwire.messaging import audit as refusals
from runwire.messaging import codec, streams, subjects, tokens, trail
from runwire.messaging.broker import UNAVAILABLE, Bus
from runwire.messaging.logs import Line
from runwire.messaging.place import place_of
from runwire.messaging.pull import Puller
from runwire.messaging.trail import AuditRow
from runwire.readmodel import audit, projection
from runwire.readmodel.audit import Told
from runwire.readmodel.database import Database
from runwire.readmodel.heads import Heads
from runwire.readmodel.projection import EventRecord
from runwire.readmodel.shorter import Shorter
from runwire.readmodel.waiters import Milestones, Waiters

log = logging.getLogger("runwire.readmodel")

WINDOW = 4000
"""Messages of one stream in memory or on their way, at most."""
RETRY_PAUSE = 0.5
"""Seconds before a batch that the disk did not take is tried again."""
PATIENCE_WITH_LOGS = 2.0
"""Seconds an ended run waits for its log lines to arrive before its callers are told anyway."""


@dataclass
class Source:
    """One stream: how it is read, what becomes of it, and how far it has been read."""

    stream: str
    filter: str
    decode: Callable[[Msg, int], Any]
    """(message, its sequence) -> record; None: it is garbled, and left out."""
    apply: Callable[[sqlite3.Connection, list[Any]], None]
    """Brings the rows up to date with some records, within a transaction."""
    tables: tuple[str, ...] = ()
    """What comes of this stream alone; rows of the audit trail beside."""
    identity: str = ""
    """When the stream was created."""
    committed: int = 0
    """Last sequence whose rows are committed."""
    target: int = 0
    """Last sequence there was to read when the stream was opened: caught up from there on.

    Not always the stream's last one: what stood there may have expired or been deleted.
    """
    consumer: str = ""
    delivered: int = 0
    """The consumer's own sequence of the last message: the next one is +1, or something was lost."""
    arrived: list[tuple[int, Any]] = field(default_factory=list)
    """(sequence, record) of what is not yet applied."""
    stale: bool = True
    """The consumer has to be made anew."""
    shorter: Shorter = field(default_factory=Shorter)
    """What is to be made of a stream that ends before what is committed."""
    puller: Puller = field(init=False)


class Projector:
    """Keeps one read model up to date for as long as it runs."""

    def __init__(self, bus: Bus, database: Database, heads: Heads, waiters: Waiters, *, history: int) -> None:
        """``history``: ended runs kept per task and code, the same number the stream keeps."""
        self._bus = bus
        self._database = database
        self._heads = heads
        self._waiters = waiters
        self._events = Source(
            subjects.EVENTS,
            subjects.ALL_EVENTS,
            decode=_event,
            apply=partial(_apply_events, history=history),
            tables=("task", "tally", "run", "deleted"),
        )
        self._logs = Source(
            subjects.LOGS,
            subjects.ALL_LOGS,
            decode=_log_line,
            apply=lambda connection, lines: projection.apply_logs(connection, lines, lines=streams.LOG_LINES_PER_TASK),
            tables=("log", "progress"),
        )
        self._sources = (
            self._events,
            self._logs,
            Source(
                subjects.TOKENS_STREAM,
                subjects.ALL_TOKENS,
                decode=_token_version,
                apply=partial(_apply_audit, kept=streams.TOKEN_HISTORY),
            ),
            Source(
                subjects.AUDIT,
                subjects.ALL_AUDIT,
                decode=_refusal,
                apply=partial(_apply_audit, kept=streams.REFUSALS_PER_CHAIN),
            ),
        )
        """In the order in which a transaction applies them."""
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._late: list[tuple[float, Run]] = []
        self.milestones = Milestones()
        """Wait here for a sequence of EVENTS to be readable."""
        self.caught_up = asyncio.Event()
        """Set once everything that was in the streams at the start has been read."""
        self.trouble: str | None = None
        """Why nothing can be written at the moment; None: all is well."""
        self.listeners: list[Callable[[list[EventRecord]], None]] = []
        """Called with the events of every batch once it is committed."""
        self.line_listeners: list[Callable[[list[Line], int], None]] = []
        """Called before them with its log lines, and up to where LOGS is committed."""

    async def start(self) -> None:
        """Begin to read. Returns when the consumers stand; :attr:`caught_up` says when the rows do."""
        await self._database.write(lambda connection: connection.executescript(projection.STAGES))
        for source in self._sources:
            source.identity, source.committed = await self._database.read(partial(projection.position, source.stream))
            source.puller = Puller(self._bus, on_message=self._receiver(source), on_reset=self._resetter(source))
            await source.puller.start()
            await self._bus.until_available(partial(self._open, source))
        self._check_caught_up()
        self._task = asyncio.create_task(self._run())
        self._wake.set()

    async def stop(self) -> None:
        """Stop reading. What is committed stays; the rest is read at the next start."""
        for source in self._sources:
            await source.puller.stop()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def is_running(self) -> bool:
        """Whether the projector is at work."""
        return self._task is not None and not self._task.done()

    @property
    def progress(self) -> tuple[int, int]:
        """(last sequence of EVENTS that was read, last one there was at the start)."""
        return self._events.committed, self._events.target

    @property
    def lines_committed(self) -> int:
        """Last sequence of LOGS that was read."""
        return self._logs.committed

    # --- reading ---------------------------------------------------------------------------------------

    def _receiver(self, source: Source) -> Callable[[Msg], None]:
        def receive(message: Msg) -> None:
            place = place_of(message)
            if place.consumer != source.consumer or source.stale:
                return  # from a consumer that has been given up
            if place.delivered != source.delivered + 1:
                log.info("gap in %s, reading on from %d", source.stream, source.committed, extra={"action": "gap"})
                source.stale = True
            else:
                source.delivered += 1
                # Decoded here, so that it happens while the batch before is being written.
                source.arrived.append((place.sequence, source.decode(message, place.sequence)))
                if not place.pending:
                    source.target = min(source.target, place.sequence)
            self._wake.set()

        return receive

    def _resetter(self, source: Source) -> Callable[[], Awaitable[None]]:
        async def reset() -> None:
            source.stale = True
            self._wake.set()

        return reset

    async def _open(self, source: Source) -> None:
        """Make a consumer that begins after the committed position; begin at 1 when the stream is another one."""
        info = await self._bus.js.stream_info(source.stream)
        identity, last = str(info.created), info.state.last_seq
        if identity == source.identity and last < source.committed:
            source.shorter.check(info, now=asyncio.get_running_loop().time())
        if identity != source.identity or last < source.committed:
            if source.committed:
                log.warning("%s is a new stream, rebuilding", source.stream, extra={"action": "rebuild"})
            await self._database.transact(partial(projection.clear, stream=source.stream, tables=source.tables))
            self._heads.clear()
            source.identity, source.committed = identity, 0
        source.consumer = f"projector-{uuid4().hex[:12]}"
        source.delivered, source.target = 0, last
        source.arrived.clear()
        consumer = await self._bus.js.add_consumer(
            source.stream,
            ConsumerConfig(
                name=source.consumer,
                deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
                opt_start_seq=source.committed + 1,
                ack_policy=AckPolicy.NONE,
                filter_subject=source.filter,
                inactive_threshold=60.0,
                mem_storage=True,
                num_replicas=1,
            ),
        )
        if not consumer.num_pending:
            source.target = source.committed
        source.puller.consume(source.stream, source.consumer)
        source.stale = False
        await source.puller.request(WINDOW)

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                for source in self._sources:
                    if source.stale:
                        await self._open(source)
                await self._apply_arrived()
                self._check_caught_up()
            except (*UNAVAILABLE, NatsError, JetStreamError) as error:
                log.debug("waiting for the broker: %r", error, extra={"action": "projector_waits"})
                await asyncio.sleep(0.2)
                self._wake.set()
            except sqlite3.Error as error:
                self.trouble = f"the read model cannot be written: {error}"
                log.error("%s", self.trouble, extra={"action": "projector_waits"})
                await asyncio.sleep(RETRY_PAUSE)
                self._wake.set()

    # --- applying --------------------------------------------------------------------------------------

    async def _apply_arrived(self) -> None:
        """One transaction for everything that has arrived; then the waiting calls."""
        batches = [(source, list(source.arrived)) for source in self._sources if source.arrived]
        if not batches:
            self._settle_late()
            return
        records = {source.stream: [record for _, record in batch if record is not None] for source, batch in batches}

        def apply(connection: sqlite3.Connection) -> None:
            for source, batch in batches:
                source.apply(connection, records[source.stream])
                failpoints.reach(Point.ROWS_WRITTEN)
                projection.set_position(connection, source.stream, source.identity, batch[-1][0])
            failpoints.reach(Point.BEFORE_COMMIT)

        await self._database.transact(apply)
        failpoints.reach(Point.COMMITTED)
        self.trouble = None
        for source, batch in batches:
            await self._committed(source, batch)
        for tell in self.line_listeners:
            tell(records.get(subjects.LOGS, []), self._logs.committed)
        self._tell(records.get(subjects.EVENTS, []))

    async def _committed(self, source: Source, batch: list[tuple[int, Any]]) -> None:
        source.committed = batch[-1][0]
        del source.arrived[: len(batch)]
        room = WINDOW - len(source.arrived) - source.puller.outstanding
        if room > WINDOW // 2 and not source.stale:
            await source.puller.request(room)

    def _tell(self, records: list[EventRecord]) -> None:
        """The rows are committed: say so to whoever waits for them."""
        self._heads.commits += 1
        for record in records:
            self._heads.put(record.sequence, record.document)
            run = record.document.run
            if run is not None and run.is_final:
                if run.log_seq > self._logs.committed:
                    self._late.append((asyncio.get_running_loop().time() + PATIENCE_WITH_LOGS, run))
                else:
                    self._waiters.ended(run)
        self.milestones.advance(self._events.committed)
        for listener in self.listeners:
            listener(records)
        self._settle_late()

    def _settle_late(self) -> None:
        """Ended runs whose log lines have arrived by now."""
        if not self._late:
            return
        now = asyncio.get_running_loop().time()
        still_late = []
        for until, run in self._late:
            if run.log_seq <= self._logs.committed or now >= until:
                self._waiters.ended(run)
            else:
                still_late.append((until, run))
        self._late = still_late
        if still_late:
            asyncio.get_running_loop().call_later(0.05, self._wake.set)

    def _check_caught_up(self) -> None:
        if all(source.committed >= source.target for source in self._sources):
            self.caught_up.set()


def _event(message: Msg, sequence: int) -> EventRecord | None:
    try:
        document = codec.decode(message.data)
        named = subjects.parse(message.subject)
    except Undecodable as undecodable:
        log.error("skipped an event on %s: %s", message.subject, undecodable, extra={"action": "undecodable"})
        return None
    if (document.task.chain, document.task.id) != named:  # its ids may be anything, those of a subject fit a row
        log.error("skipped an event on %s: it is about another task", message.subject, extra={"action": "undecodable"})
        return None
    return EventRecord(sequence, document, message.data, message.headers or {})


def _log_line(message: Msg, sequence: int) -> Line | None:
    try:
        chain, task = subjects.parse(message.subject)
        is_progress = subjects.is_progress(message.subject)
        run = (codec.decode_progress if is_progress else codec.decode_log)(message.data).run
    except Undecodable as undecodable:
        log.error("skipped a log line on %s: %s", message.subject, undecodable, extra={"action": "undecodable"})
        return None
    return Line(sequence, task, run, message.data, is_progress, chain)


def _token_version(message: Msg, sequence: int) -> Told:
    rows: list[AuditRow] = []
    try:
        if message.data:  # else an operator has purged the key with a tool of the broker's
            rows = trail.rows_of_token(tokens.decode(message.data), sequence)
    except Undecodable as undecodable:
        log.error("skipped a token on %s: %s", message.subject, undecodable, extra={"action": "undecodable"})
    return Told(source=message.subject, rows=rows)


def _refusal(message: Msg, sequence: int) -> Told:
    rows: list[AuditRow] = []
    try:
        rows = trail.rows_of_audit(refusals.decode(message.data), sequence)
    except Undecodable as undecodable:
        log.error("skipped a refusal on %s: %s", message.subject, undecodable, extra={"action": "undecodable"})
    return Told(source=message.subject, rows=rows)


def _apply_events(connection: sqlite3.Connection, records: list[EventRecord], *, history: int) -> None:
    projection.apply_events(connection, records, history=history)
    _apply_audit(connection, [_told(record) for record in records], kept=history)


def _told(record: EventRecord) -> Told:
    rows = trail.rows_of_document(record.document, record.sequence, record.headers)
    return Told(source=subjects.event(record.document), rows=rows)


def _apply_audit(connection: sqlite3.Connection, told: list[Told], *, kept: int) -> None:
    audit.apply(connection, told, kept=kept, now=datetime.now(UTC))
