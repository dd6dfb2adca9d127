"""The Idempotency-Key header: the same key and the same request are the same run, or the same task.

A key belongs to the token that used it and to the route it was used on. From the three a *name* is derived
with the installation's secret, and from the name all the rest: where the record of the key is kept, the id of
the run, the id of the task's first event. So nothing here can be guessed, every adapter comes to the same
result, and an end that is seen anywhere leads back to the record of its key.

::

    token, route, key  ->  name           ->  tasks.key.<name>            (the record)
                           name, task     ->  key-<name><seal>            (the run)
                           name           ->  ce-id of the first event    (the task)
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from pydantic import BaseModel
from starlette.requests import Request

from runwire.domain.errors import Conflict, KeyReused, MalformedKey, NotAccepted
from runwire.domain.run import Run
from runwire.domain.task import Task
from runwire.http.endpoint import header_parameter
from runwire.http.services import Services
from runwire.messaging import events, keys
from runwire.messaging.broker import UNAVAILABLE
from runwire.messaging.keys import Kept, RunRecord

KEY = re.compile(r'"((?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\]){1,255})"|([\x21\x23-\x7e][\x21-\x7e]{0,254})')
"""An Idempotency-Key: a structured-field string (RFC 8941 section 3.3.3), or the bare characters of one."""
ESCAPED = re.compile(r'\\(["\\])')
RUN = re.compile(r"key-([A-Za-z0-9_-]{24})([A-Za-z0-9_-]{8})")
"""The id of a run that was asked for with a key: the key's name, and the seal over name and task."""
KEPT = timedelta(hours=24)
"""How long a key is remembered after its run has ended, or its task was created."""
KEPT_UNTIL_ENDED = timedelta(hours=25)
"""How long it is remembered when the end is not seen: a day, for a run of an hour."""
LONGEST_LAG = 10.0
"""Seconds this adapter's read model may take to reach what another adapter has answered from."""


def parse_key(request: Request) -> str | None:
    """The caller's key; None: it sent none. Raises MalformedKey."""
    values = request.headers.getlist("idempotency-key")
    if not values:
        return None
    match = KEY.fullmatch(values[0].strip(" \t"))
    if match is None or len(values) > 1:
        raise MalformedKey("An Idempotency-Key has 1 to 255 visible ASCII characters, and is given once.")
    return ESCAPED.sub(r"\1", match[1]) if match[1] else match[2]


# --- names -----------------------------------------------------------------------------------------------


def name_of(server_key: bytes, route: str, token: str, key: str) -> str:
    """The name of the caller's key: 24 characters that fit a subject and tell nothing."""
    return _digest(server_key, 18, "key", "POST", route, token, key)


def run_of(server_key: bytes, name: str, task: int) -> str:
    """The id of the run of this task that the key stands for."""
    return f"key-{name}{_seal(server_key, name, task)}"


def name_behind(server_key: bytes, task: int, run: str) -> str | None:
    """The name of the key that stands for a run; None: the run id is not one that :func:`run_of` made for the task.

    Clients of the bus choose run ids as they like; without the seal one of them could write records.
    """
    match = RUN.fullmatch(run)
    if match is None or not hmac.compare_digest(match[2], _seal(server_key, match[1], task)):
        return None
    return match[1]


def event_id_of(server_key: bytes, name: str) -> str:
    """The id of the first event of the task that the key stands for: by it a repeated append is recognised."""
    return _digest(server_key, 24, "event", name)


def fingerprint(body: BaseModel) -> str:
    """The same for two bodies that say the same, whatever the order of their fields and the space between them."""
    said = json.dumps(body.model_dump(mode="json", exclude_unset=True), sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()


def _seal(server_key: bytes, name: str, task: int) -> str:
    return _digest(server_key, 6, "run", name, str(task))


def _digest(server_key: bytes, size: int, *parts: str) -> str:
    mac = hmac.digest(server_key, "\n".join(parts).encode(), hashlib.sha256)
    return base64.urlsafe_b64encode(mac[:size]).decode()


# --- the run behind a key --------------------------------------------------------------------------------


class RunKey:
    """The key of one execute call, and what it stands for."""

    def __init__(self, parts: Services, name: str, task: Task, kept: Kept[RunRecord]) -> None:
        """Use :func:`claim_run`."""
        self._parts = parts
        self._name = name
        self._task = task
        self._kept = kept

    @property
    def run(self) -> str:
        """The run the key stands for."""
        return self._kept.record.run

    @property
    def is_joined(self) -> bool:
        """Whether that is a run somebody else asked for, which an earlier call joined."""
        return self.run != run_of(self._parts.server_key, self._name, self._task.id)

    async def ended_before(self) -> Run | None:
        """The end of the run when it is known: from the read model, else as the record remembers it."""
        known = await self._read()
        if known is None and self._kept.record.ended is not None:
            # Another adapter is ahead of this one, or the history has lost the run: which of the two?
            await self._catch_up()
            known = await self._read() or self._kept.record.ended
        return known

    async def stand_for(self, run: str) -> None:
        """From now on the key stands for this run of somebody else's; unless a call with the same key was faster."""
        record = RunRecord(request=self._kept.record.request, run=run)
        # Its end does not lead back to the key, so the time it may take is allowed for now.
        retry = self._task.retry
        longest = timedelta(seconds=self._task.deadline or self._task.timeout * (retry.attempts if retry else 1))
        await self._overwrite(record, KEPT_UNTIL_ENDED + longest)

    async def keep(self, ended: Run) -> None:
        """Remember the end, if that has not been done, for a day. A broker that does not take it changes nothing."""
        if self._kept.record.ended is None:
            record = self._kept.record.model_copy(update={"ended": without_result(ended)})
            with suppress(NotAccepted, *UNAVAILABLE):
                await self._overwrite(record, time_left(ended))

    async def release(self) -> None:
        """The key stands for a run of its own again: the one it was joined to could not be carried out."""
        record = self._kept.record
        own = run_of(self._parts.server_key, self._name, self._task.id)
        await self._overwrite(RunRecord(request=record.request, run=own), KEPT_UNTIL_ENDED)

    async def _overwrite(self, record: RunRecord, time: timedelta) -> None:
        try:
            self._kept = await keys.overwrite(
                self._parts.bus, self._name, record, expected=self._kept.sequence, ttl=time.total_seconds()
            )
        except Conflict:
            self._kept = await keys.lookup(self._parts.bus, self._name, RunRecord) or self._kept

    async def _read(self) -> Run | None:
        known = await self._parts.reader.run(self._task.id, self.run)
        return known if known is not None and known.is_final else None

    async def _catch_up(self) -> None:
        head = await events.load(self._parts.bus, self._task.chain, self._task.id, leader=True)
        if head is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(LONGEST_LAG):
                    await self._parts.milestones.wait(head.sequence)


async def claim_run(parts: Services, task: Task, *, route: str, token: str, key: str, patience: float) -> RunKey:
    """The run that the caller's key stands for; from now on, if it stood for nothing.

    Stored before the command: no run without its record. Raises KeyReused or NotAccepted.
    """
    name = name_of(parts.server_key, route, token, key)
    record = RunRecord(request=str(task.id), run=run_of(parts.server_key, name, task.id))
    ttl = KEPT_UNTIL_ENDED.total_seconds()
    kept = await keys.remember(parts.bus, name, record, ttl=ttl, patience=patience)
    require_same(kept.record.request, record.request)
    return RunKey(parts, name, task, kept)


def require_same(before: str, now: str) -> None:
    """Raises KeyReused unless the two requests are one."""
    if before != now:
        raise KeyReused("The Idempotency-Key was used with another request; take a new key for a new request.")


def time_left(ended: Run) -> timedelta:
    """How long the record of an ended run is kept; not positive when its time is over."""
    return KEPT - (datetime.now(UTC) - (ended.finished or ended.accepted))


def without_result(ended: Run) -> Run:
    """An end as a record keeps it: what execute answers, and no more."""
    return ended.model_copy(update={"result": None})


IDEMPOTENCY_KEY = header_parameter(
    "Idempotency-Key",
    "Calls with the same key and the same request are carried out once, and all get the same answer. Kept for 24 "
    "hours after the end. For the call that got no answer.",
    {"type": "string", "pattern": r'^("([ !#-\[\]-~]|\\["\\]){1,255}"|[!#-~][!-~]{0,254})$'},
    "order-17",
)
REPLAYED = {
    "Idempotency-Replayed": {
        "schema": {"type": "string", "enum": ["true"]},
        "description": "An earlier call with this Idempotency-Key did it; this is its answer again.",
    }
}
"""Header object of answers."""
