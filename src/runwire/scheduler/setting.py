"""The alarm of a task is what its last event says: set, moved and taken away after the event, never beside it."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from runwire.domain import ticks
from runwire.domain.errors import Conflict, NotAccepted
from runwire.domain.ticks import Alarm, Plan
from runwire.messaging import alarms, events
from runwire.messaging.alarms import Pending
from runwire.messaging.broker import Bus

ROUNDS = 50
"""How often a lost race is followed by another look before the caller is told to come again."""


class Aligned(StrEnum):
    """What was done about an alarm."""

    SET = "set"
    MOVED = "moved"
    REMOVED = "removed"


async def align(bus: Bus, chain: int, task: int, *, now: datetime) -> Aligned | None:
    """Make the alarm of the task what it has to be; None: it is. May be repeated, by several processes at once.

    Raises NotAccepted (later) or one of UNAVAILABLE.
    """
    for _ in range(ROUNDS):
        # In this order: an alarm that is set after this look is not overwritten.
        found = await alarms.pending(bus, chain, task)
        head = await events.load(bus, chain, task, leader=True)
        plan = ticks.plan_of(head.document if head else None)
        wanted = ticks.first_alarm(plan) if plan else None
        if plan is None or wanted is None:
            if found is None:
                return None
            await alarms.remove(bus, found)
            return Aligned.REMOVED
        if found is not None and fits(plan, found, now=now):
            return None
        try:
            await alarms.put(
                bus, chain, task, wanted, at=plan.rings_at(wanted), expected=found.sequence if found else 0
            )
        except Conflict:
            continue
        return Aligned.MOVED if found else Aligned.SET
    raise NotAccepted("The alarm of the task kept changing.")


def fits(plan: Plan, found: Pending, *, now: datetime) -> bool:
    """Whether the alarm is one that the task can have now.

    It may be further on than the document, which learns of a tick only when its run begins; but not further than to
    the first tick after now.
    """
    alarm: Alarm | None = found.alarm
    if alarm is None or found.rings_at is None or alarm.version != plan.version:
        return False
    if found.rings_at != plan.rings_at(alarm) and not (alarm.waiting and found.rings_at > plan.rings_at(alarm)):
        return False
    latest = plan.schedule.next_after(max(plan.cursor, now - plan.delay))
    return latest is None or alarm.due <= latest
