"""Task ids from the broker's counter: unique over all chains and adapters."""

from __future__ import annotations

from runwire.messaging import subjects
from runwire.messaging.broker import Bus


async def next_id(bus: Bus, *, step: int = 1) -> int:
    """The next task id that nobody else got. ``step`` > 1 leaps over a stretch of ids that users chose themselves."""
    ack = await bus.js.publish(subjects.ID_COUNTER, headers={subjects.INCREMENT: str(step)})
    return int(ack.val or 0)
