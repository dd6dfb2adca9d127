"""AUDIT: calls that were refused, for the managers of the chain; and what was done that leaves no other trace.

What was done to tasks and tokens stands in EVENTS and in the versions of the tokens already. An adapter notes refusals
in memory and writes them in the background: what repeats within a second is one message with a count, so a flood costs
what one call costs. Never a secret: no header, no query string, no body, no task's id.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import uuid4

from nats.js.errors import Error as JetStreamError
from pydantic import AwareDatetime, JsonValue, TypeAdapter, ValidationError

from runwire.domain.errors import Undecodable
from runwire.domain.task import Model, whole_seconds
from runwire.messaging import subjects
from runwire.messaging.broker import UNAVAILABLE, Bus

log = logging.getLogger("runwire.adapter")

INTERVAL = 1.0
"""Seconds within which the same refusal is counted, not repeated."""
MOST_PENDING = 10_000
"""Different refusals in memory, at most; the rest is counted in a log line."""
AT_ONCE = 64
"""Messages on their way to the broker at the same time."""
LOG_INTERVAL = 60.0
"""Seconds between two log lines about refusals that are not kept, at least."""


class Refusal(Model):
    """A message of AUDIT: calls that a token was refused in a chain, all alike."""

    chain: int
    token: str
    """Id of the token that the calls named."""
    method: str
    route: str
    """The path as the documentation has it: ``/tasks/{id}/execute``."""
    code: str
    """The problem's code."""
    count: int
    first: AwareDatetime
    last: AwareDatetime


class Deed(Model):
    """A message of AUDIT: something that was done."""

    chain: int
    by: str
    """Id of the token that did it."""
    action: str
    """Such as ``dead_letter.deleted``."""
    subject: str
    """What it was done to: a path of the API."""
    detail: dict[str, JsonValue]
    date: AwareDatetime


def deed(chain: int, *, by: str, action: str, subject: str, **detail: JsonValue) -> Deed:
    """Something that is being done now."""
    now = whole_seconds(datetime.now(UTC))
    return Deed(chain=chain, by=by, action=action, subject=subject, detail=detail, date=now)


async def record(bus: Bus, told: Deed | Refusal, *, message_id: str | None = None) -> None:
    """Store it; once, however often it is tried with the same ``message_id``. Raises one of UNAVAILABLE."""
    headers = {subjects.MSG_ID: message_id or uuid4().hex}
    await bus.js.publish(subjects.audit(told.chain), told.model_dump_json().encode(), headers=headers)


@dataclass(frozen=True)
class _Kind:
    """What makes refusals alike."""

    chain: int
    token: str
    method: str
    route: str
    code: str


@dataclass
class _Tally:
    first: datetime
    last: datetime
    count: int = 0


class Refusals:
    """The refused calls of one adapter on their way into the stream."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._tallies: dict[_Kind, _Tally] = {}
        self._unsent: deque[tuple[str, Refusal | Deed]] = deque()
        """With their message ids: one that is sent twice is stored once."""
        self._unknown = 0
        self._dropped = 0
        self._logged = 0.0

    def note(self, chains: Iterable[int], *, token: str, method: str, route: str, code: str, now: datetime) -> None:
        """A call was refused; ``chains`` are to hear of it. Only memory is touched."""
        for chain in chains:
            kind = _Kind(chain, token, method, route, code)
            tally = self._tallies.get(kind)
            if tally is None:
                if len(self._tallies) + len(self._unsent) >= MOST_PENDING:
                    self._dropped += 1
                    continue
                tally = self._tallies[kind] = _Tally(first=now, last=now)
            tally.count += 1
            tally.last = now

    async def record(self, done: Deed) -> None:
        """Write something that was done; what the broker does not take now is written with the next refusals."""
        message_id = uuid4().hex
        try:
            await record(self._bus, done, message_id=message_id)
        except UNAVAILABLE:
            self._unsent.append((message_id, done))

    def note_unknown(self) -> None:
        """A call named no token that there is. It belongs to no chain, and ids are easily made up: it is counted."""
        self._unknown += 1

    async def keep_written(self) -> None:
        """Write what was noted, for as long as the adapter runs."""
        while True:
            await asyncio.sleep(INTERVAL)
            try:
                await self.write()
            except (*UNAVAILABLE, JetStreamError) as error:
                log.debug("refusals wait: %r", error, extra={"action": "refusals_wait"})
            self._log_what_is_not_kept()

    async def write(self) -> None:
        """Write what was noted. Raises one of UNAVAILABLE; what was not stored is tried again the next time."""
        tallies, self._tallies = self._tallies, {}
        self._unsent.extend(
            (
                uuid4().hex,
                Refusal(
                    chain=kind.chain,
                    token=kind.token,
                    method=kind.method,
                    route=kind.route,
                    code=kind.code,
                    count=tally.count,
                    first=whole_seconds(tally.first),
                    last=whole_seconds(tally.last),
                ),
            )
            for kind, tally in tallies.items()
        )
        while self._unsent:
            batch = [self._unsent[index] for index in range(min(AT_ONCE, len(self._unsent)))]
            await asyncio.gather(*(record(self._bus, told, message_id=message_id) for message_id, told in batch))
            for _ in batch:
                self._unsent.popleft()

    def _log_what_is_not_kept(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._logged < LOG_INTERVAL or not (self._unknown or self._dropped):
            return
        if self._unknown:
            log.warning("%d calls without a known token", self._unknown, extra={"action": "unknown_tokens"})
        if self._dropped:
            log.warning("%d refused calls not in the audit trail", self._dropped, extra={"action": "refusals_dropped"})
        self._logged, self._unknown, self._dropped = now, 0, 0


def decode(payload: bytes) -> Refusal | Deed:
    """What a message of AUDIT tells. Raises Undecodable."""
    try:
        return _TOLD.validate_json(payload)
    except ValidationError as invalid:
        raise Undecodable(str(invalid.errors(include_url=False, include_input=False)[0]["msg"])) from None


_TOLD: TypeAdapter[Refusal | Deed] = TypeAdapter(Refusal | Deed)
