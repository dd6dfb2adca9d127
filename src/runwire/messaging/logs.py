"""LOGS: what runs have to say, one message a line."""

from __future__ import annotations

from runwire.domain.task import LogEntry
from runwire.messaging import codec, subjects
from runwire.messaging.broker import Bus


async def publish(bus: Bus, chain: int, task: int, entry: LogEntry, *, line_id: str) -> int:
    """Store one line and return its sequence. ``line_id`` lets a repeated call store it once."""
    ack = await bus.js.publish(subjects.log(chain, task), codec.encode_log(entry), headers={subjects.MSG_ID: line_id})
    return ack.seq
