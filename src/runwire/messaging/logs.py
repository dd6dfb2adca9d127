"""LOGS: what runs have to say, one message a line, and how far they have come."""

from __future__ import annotations

from runwire.domain.task import LogEntry, ProgressReport
from runwire.messaging import codec, subjects
from runwire.messaging.broker import Bus


async def publish(bus: Bus, chain: int, task: int, entry: LogEntry, *, line_id: str) -> int:
    """Store one line and return its sequence. ``line_id`` lets a repeated call store it once."""
    ack = await bus.js.publish(subjects.log(chain, task), codec.encode_log(entry), headers={subjects.MSG_ID: line_id})
    return ack.seq


async def publish_progress(bus: Bus, chain: int, task: int, report: ProgressReport, *, report_id: str) -> int:
    """Store a report of progress in the place of the task's last one, and return its sequence.

    ``report_id`` lets a repeated call store it once.
    """
    headers = {subjects.MSG_ID: report_id, subjects.ROLLUP: "sub"}
    ack = await bus.js.publish(subjects.progress(chain, task), codec.encode_progress(report), headers=headers)
    return ack.seq
