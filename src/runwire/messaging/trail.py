"""What the messages of three streams tell of who did what: the rows of the audit trail.

::

    EVENTS             task.created task.edited task.deleted task.cancelled
    KV_runwire-tokens  token.created token.edited token.deactivated token.activated token.rotated token.deleted
    AUDIT              call.refused dead_letter.replayed dead_letter.deleted
                       subscription.created subscription.deleted
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from runwire.domain.access import OPERATOR, AccessToken
from runwire.domain.errors import Undecodable
from runwire.domain.lifecycle import Change, Document
from runwire.domain.run import ErrorCode
from runwire.messaging import audit, events, stretch, subjects, tokens
from runwire.messaging.audit import Deed, Refusal
from runwire.messaging.broker import Bus
from runwire.messaging.streams import AUDIT_DAYS

DONE_TO_TASKS = {
    Change.CREATED: "task.created",
    Change.EDITED: "task.edited",
    Change.DELETED: "task.deleted",
}
"""Changes that somebody asked for; a run's course is no matter of the trail, unless it was cancelled."""


@dataclass(frozen=True, kw_only=True)
class AuditRow:
    """One thing that happened in a chain."""

    stream: str
    sequence: int
    """Of the message that tells of it."""
    chain: int
    date: datetime
    by: str
    """Id of an access token, or ``operator``."""
    action: str
    subject: str
    """What it was done to: a path of the API."""
    detail: Mapping[str, Any]
    """JSON-ready."""


def rows_of_document(document: Document, sequence: int, headers: Mapping[str, str]) -> list[AuditRow]:
    """What an event tells: most tell nothing. ``headers``: its CloudEvents attributes."""
    action = DONE_TO_TASKS.get(document.change) or _cancelled(document)
    if action is None:
        return []
    task = document.task
    detail: dict[str, Any] = {"version": task.version, "target": task.target.action}
    if action == "task.cancelled" and document.run is not None:
        detail["run"] = document.run.id
    return [
        AuditRow(
            stream=subjects.EVENTS,
            sequence=sequence,
            chain=task.chain,
            date=_time(headers.get("ce-time")) or task.state.last_modified,
            by=document.by or OPERATOR,
            action=action,
            subject=f"/tasks/{task.id}",
            detail=detail,
        )
    ]


def rows_of_token(token: AccessToken, sequence: int) -> list[AuditRow]:
    """What a version of a token tells, each chain for itself."""
    detail: dict[str, Any] = {"kind": token.kind.value, "expires": _written(token.expires)}
    if token.previous is not None:
        detail["old_secret_until"] = _written(token.previous.until)
    return [
        AuditRow(
            stream=subjects.TOKENS_STREAM,
            sequence=sequence,
            chain=chain,
            date=token.changed or token.created,
            by=token.by,
            action=f"token.{token.change.value}",
            subject=f"/access_tokens/{token.id}",
            detail={"level": level.name.lower(), **detail},
        )
        for chain, level in sorted(token.levels.items())
    ]


def rows_of_audit(told: Refusal | Deed, sequence: int) -> list[AuditRow]:
    """What a message of AUDIT tells."""
    return [_row_of_deed(told, sequence) if isinstance(told, Deed) else _row_of_refusal(told, sequence)]


def _row_of_deed(deed: Deed, sequence: int) -> AuditRow:
    return AuditRow(
        stream=subjects.AUDIT,
        sequence=sequence,
        chain=deed.chain,
        date=deed.date,
        by=deed.by,
        action=deed.action,
        subject=deed.subject,
        detail=deed.detail,
    )


def _row_of_refusal(refusal: Refusal, sequence: int) -> AuditRow:
    return AuditRow(
        stream=subjects.AUDIT,
        sequence=sequence,
        chain=refusal.chain,
        date=refusal.last,
        by=refusal.token,
        action="call.refused",
        subject=refusal.route,
        detail={
            "method": refusal.method,
            "code": refusal.code,
            "count": refusal.count,
            "first": _written(refusal.first),
            "last": _written(refusal.last),
        },
    )


def _cancelled(document: Document) -> str | None:
    run = document.run
    if document.change is not Change.CONCLUDED or document.by is None or run is None or run.error is None:
        return None
    return "task.cancelled" if run.error.code == ErrorCode.CANCELLED else None


def _time(text: str | None) -> datetime | None:
    try:
        return datetime.fromisoformat(text or "")
    except ValueError:
        return None


def _written(time: datetime | None) -> str | None:
    return None if time is None else f"{time.astimezone(UTC).isoformat()[:19]}Z"


# --- streams -> rows -----------------------------------------------------------------------------------


async def read(bus: Bus, chain: int, *, now: datetime) -> AsyncGenerator[AuditRow, None]:
    """The trail of the chain as the streams hold it, oldest first, a few pages in memory.

    A broker that is away is waited for.
    """
    oldest = now - timedelta(days=AUDIT_DAYS)
    async with aclosing(_merged(_done(bus, chain), _changed(bus, chain), _refused(bus, chain))) as rows:
        async for row in rows:
            if row.date >= oldest:
                yield row


async def _done(bus: Bus, chain: int) -> AsyncGenerator[AuditRow, None]:
    filters = [subjects.events_of_chain(chain, code) for code in ("ready", "edited", "deleted", "error")]
    async with aclosing(events.history(bus, filters, until=await events.last_sequence(bus))) as found:
        async for event in found:
            for row in rows_of_document(event.document, event.sequence, event.headers):
                yield row


async def _changed(bus: Bus, chain: int) -> AsyncGenerator[AuditRow, None]:
    async with aclosing(stretch.read_surely(bus, subjects.TOKENS_STREAM, [subjects.ALL_TOKENS])) as messages:
        async for message in messages:
            with suppress(Undecodable):  # the projector says so in the log
                if message.data:  # else an operator has purged the key with a tool of the broker's
                    for row in rows_of_token(tokens.decode(message.data), message.metadata.sequence.stream):
                        if row.chain == chain:
                            yield row


async def _refused(bus: Bus, chain: int) -> AsyncGenerator[AuditRow, None]:
    async with aclosing(stretch.read_surely(bus, subjects.AUDIT, [subjects.audit(chain)])) as messages:
        async for message in messages:
            with suppress(Undecodable):
                for row in rows_of_audit(audit.decode(message.data), message.metadata.sequence.stream):
                    yield row


async def _merged(*sources: AsyncGenerator[AuditRow, None]) -> AsyncGenerator[AuditRow, None]:
    """The rows of all by date; each source is in order."""
    async with AsyncExitStack() as stack:
        heads = []
        for source in sources:
            await stack.enter_async_context(aclosing(source))
            if (row := await anext(source, None)) is not None:
                heads.append((row, source))
        while heads:
            index = min(range(len(heads)), key=lambda index: heads[index][0].date)
            row, source = heads.pop(index)
            yield row
            if (following := await anext(source, None)) is not None:
                heads.append((following, source))
