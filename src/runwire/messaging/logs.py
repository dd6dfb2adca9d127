"""LOGS: what runs have to say, one message a line, and how far they have come."""

from __future__ import annotations

from dataclasses import dataclass

from runwire.domain.task import LogEntry, ProgressReport
from runwire.messaging import codec, subjects
from runwire.messaging.broker import Bus


@dataclass(frozen=True)
class Line:
    """A log line, or a report of progress, as it stands in LOGS."""

    sequence: int
    task: int
    run: str
    payload: bytes
    is_progress: bool = False
    chain: int = 0
    """0: not known, as in the rows of the read model."""


async def publish(bus: Bus, chain: int, task: int, entry: LogEntry, *, line_id: str) -> int:
    """Store one line and return its sequence. ``line_id`` lets a repeated call store it once."""
    ack = await bus.js.publish(subjects.log(chain, task), codec.encode_log(entry), headers={subjects.MSG_ID: line_id})
    return ack.seq


async def last_sequence(bus: Bus) -> int:
    """Sequence of the last line of all; 0: there was none yet. Raises one of UNAVAILABLE."""
    return (await bus.js.stream_info(subjects.LOGS)).state.last_seq


async def publish_progress(bus: Bus, chain: int, task: int, report: ProgressReport, *, report_id: str) -> int:
    """Store a report of progress in the place of the task's last one, and return its sequence.

    ``report_id`` lets a repeated call store it once.
    """
    headers = {subjects.MSG_ID: report_id, subjects.ROLLUP: "sub"}
    ack = await bus.js.publish(subjects.progress(chain, task), codec.encode_progress(report), headers=headers)
    return ack.seq
