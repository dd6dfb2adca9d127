"""Storing a new task: once, or with an Idempotency-Key once and for all calls with that key.

With a key the record comes first, then the event, then the record again with the event's sequence. Whoever
finds a record without one goes on from there: the first event has an id that derives from the key, so that it
is recognised, whoever stored it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from runwire import failpoints
from runwire.domain import lifecycle
from runwire.domain.errors import Conflict, IdTaken, NotAccepted
from runwire.domain.lifecycle import Document
from runwire.domain.task import whole_seconds
from runwire.failpoints import Point
from runwire.http import idempotency
from runwire.http.idempotency import KEPT, KEPT_UNTIL_ENDED
from runwire.http.schemas import TaskBody
from runwire.http.services import Services
from runwire.http.trigger_schemas import check_new
from runwire.messaging import events, ids, keys
from runwire.messaging.broker import UNAVAILABLE
from runwire.messaging.keys import Kept, TaskRecord

ROUTE = "/tasks"
LONGEST_LEAP = 4096
"""Ids skipped at once where users have chosen a stretch of ids themselves."""
PATIENCE = 10.0
"""Seconds a broker that does not answer is asked again to remember a key."""


@dataclass(frozen=True)
class Created:
    """A task that is stored."""

    document: Document
    """As it was created, whatever has become of it since."""
    sequence: int
    """EVENTS sequence of its first event."""
    replayed: bool = False
    """An earlier call with the same key created it."""


async def create(parts: Services, body: TaskBody, *, by: str) -> Created:
    """Append the first event of the task under the wanted id, or under the counter's next one that is free.

    ``by`` is the id of the access token. Raises InvalidFields (its trigger or target), IdTaken or NotAccepted.
    """
    _check(parts, body)
    leap = 1
    while True:
        number = body.id or await ids.next_id(parts.bus, step=leap)
        document = lifecycle.create(body.definition(), number, datetime.now(UTC), by=by)
        try:
            return Created(document, await _append_first(parts, document))
        except Conflict:
            if body.id:
                raise _taken(body.id) from None
            leap = min(leap * 2, LONGEST_LEAP)


async def create_once(parts: Services, body: TaskBody, key: str, *, by: str) -> Created:
    """As :func:`create`; all calls with the same key and the same body get the one task. Raises KeyReused, too.

    What was accepted once stays so: its trigger and target are not checked again when time has passed.
    """
    name = idempotency.name_of(parts.server_key, ROUTE, by, key)
    event_id = idempotency.event_id_of(parts.server_key, name)
    request = idempotency.fingerprint(body)
    kept = await keys.lookup(parts.bus, name, TaskRecord) or await _plan(parts, body, name, request)
    leap = 1
    while True:
        idempotency.require_same(kept.record.request, request)
        created = await _carry_out(parts, body, kept, event_id, by=by)
        if created is not None:
            await _remember_done(parts, name, kept, created)
            return created
        if body.id:
            raise _taken(body.id)
        kept = await _take_next(parts, name, kept, leap)
        leap = min(leap * 2, LONGEST_LEAP)


def _check(parts: Services, body: TaskBody) -> None:
    """Raise InvalidFields when the trigger makes no schedule, or the action would refuse the target."""
    check_new(body.trigger.stored(), now=datetime.now(UTC))
    parts.catalogue.check(body.definition().target)


async def _plan(parts: Services, body: TaskBody, name: str, request: str) -> Kept[TaskRecord]:
    """Write down which id the task gets, before it gets it; unless somebody with the same key has just done so."""
    _check(parts, body)
    number = body.id or await ids.next_id(parts.bus)
    record = TaskRecord(request=request, task=number, created=whole_seconds(datetime.now(UTC)))
    ttl = KEPT_UNTIL_ENDED.total_seconds()
    return await keys.remember(parts.bus, name, record, ttl=ttl, patience=PATIENCE)


async def _carry_out(
    parts: Services, body: TaskBody, kept: Kept[TaskRecord], event_id: str, *, by: str
) -> Created | None:
    """The task as the record has it, stored now or before; None: its id is somebody else's."""
    record = kept.record
    document = lifecycle.create(body.definition(), record.task, record.created, by=by)
    if record.sequence is not None:
        return Created(document, record.sequence, replayed=True)
    if kept.fresh:
        with suppress(Conflict):
            return Created(document, await _append_first(parts, document, event_id))
    first = await events.first(parts.bus, record.task)
    if first is None:
        with suppress(Conflict):  # the same call on another adapter was faster, or somebody else was
            return Created(document, await _append_first(parts, document, event_id))
        first = await events.first(parts.bus, record.task)
    if first is not None and first.event_id == event_id:
        return Created(first.document, first.sequence, replayed=True)
    return None


async def _remember_done(parts: Services, name: str, kept: Kept[TaskRecord], created: Created) -> None:
    """From now on the record alone answers, for a day. Without it a later call finds the event instead."""
    if kept.record.sequence is None:
        task = created.document.task
        done = kept.record.model_copy(update={"created": task.state.created_date, "sequence": created.sequence})
        with suppress(Conflict, NotAccepted, *UNAVAILABLE):
            await keys.overwrite(parts.bus, name, done, expected=kept.sequence, ttl=KEPT.total_seconds())


async def _take_next(parts: Services, name: str, kept: Kept[TaskRecord], leap: int) -> Kept[TaskRecord]:
    """The record with another id, as the one in it went to somebody else. All callers with the key agree on it."""
    number = await ids.next_id(parts.bus, step=leap)
    record = kept.record.model_copy(update={"task": number})
    try:
        return await keys.overwrite(
            parts.bus, name, record, expected=kept.sequence, ttl=KEPT_UNTIL_ENDED.total_seconds()
        )
    except Conflict:
        return await keys.lookup(parts.bus, name, TaskRecord) or replace(kept, fresh=False)


async def _append_first(parts: Services, document: Document, event_id: str | None = None) -> int:
    """The task's first event; the fence over all chains keeps its id unique. Raises Conflict or NotAccepted."""
    sequence = await events.append_confirmed(parts.bus, document, expected=0, event_id=event_id, unique_id=True)
    failpoints.reach(Point.TASK_STORED)
    return sequence


def _taken(task: int) -> IdTaken:
    return IdTaken(f"A task with the id {task} exists.")
