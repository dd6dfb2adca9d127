"""Ending a run from outside, whether a worker has it, none has it yet, or none will ever have it again.

First the event, behind the fence; then the command, exactly the one that was seen. A crash in between leaves a
command whose run has ended: the next worker, the next execute or the next cancel removes it. The other way round
a run could vanish without a word.
"""

from __future__ import annotations

from datetime import UTC, datetime

from nats.js.api import RawStreamMsg

from runwire import failpoints
from runwire.domain import lifecycle
from runwire.domain.errors import Conflict, NotAccepted, NotRunning, TaskNotFound
from runwire.domain.lifecycle import Change, Document
from runwire.domain.run import ErrorCode, Run
from runwire.failpoints import Point
from runwire.messaging import commands, events
from runwire.messaging.broker import Bus
from runwire.messaging.events import Head

ROUNDS = 50
"""How often a lost race is followed by another look before the caller is told to come again."""


async def cancel(bus: Bus, chain: int, task: int, *, by: str, run: str | None = None) -> Head:
    """End the task's outstanding run as ERROR ``cancelled``; returns the event that did. ``run``: only that one.

    May be repeated: what an earlier call left undone is done. ``by`` is the id of the token that asks for it.
    Raises TaskNotFound, NotRunning, NotAccepted or one of UNAVAILABLE.
    """
    raced = False
    for _ in range(ROUNDS):
        # In this order: a command that comes after the event was read belongs to a later one, and the fence holds.
        head = await events.load(bus, chain, task, leader=True)
        if head is None or head.document.change is Change.DELETED:
            raise TaskNotFound(f"There is no task {task}.")
        held = await commands.outstanding(bus, chain, task)
        holding = commands.run_of(held) if held else None
        if held is not None and run in {None, holding} and _was_cancelled(head.document, holding):
            await commands.remove(bus, held)  # an earlier call did not come to its end
            return head
        if raced and _was_cancelled(head.document, run):  # somebody else wanted the same
            return head
        target = _outstanding_run(head.document, held)
        if target is None:
            raise NotRunning(f"Run {run} is not outstanding." if run else "The task is neither queued nor running.")
        abandoned = holding is not None and holding != target.id  # INPROGRESS, but the command is another run's
        if not abandoned and run not in {None, target.id}:
            raise NotRunning(f"Run {run} is not outstanding; the task is busy with run {target.id}.")
        now = datetime.now(UTC)
        following = (
            lifecycle.lost(head.document, now=now)
            if abandoned
            else lifecycle.cancel(head.document, target, by=by, now=now)
        )
        try:
            sequence = await events.append_confirmed(bus, following, expected=head.sequence)
        except Conflict:
            run, raced = run or target.id, True  # the run that was seen first is meant, not one that begins after it
            continue
        if abandoned:
            continue
        failpoints.reach(Point.CANCEL_STORED)
        if held is not None:
            await commands.remove(bus, held)
        return Head(following, sequence, "")
    raise NotAccepted("The task kept changing; its run may still be outstanding.")


def _outstanding_run(document: Document, held: RawStreamMsg | None) -> Run | None:
    """The run that is INPROGRESS, else the one that is queued; None: neither."""
    current = document.run
    if current is not None and not current.is_final:
        return current
    if held is None or lifecycle.has_ended(document, commands.run_of(held)):
        return None
    return commands.queued_run(held)


def _was_cancelled(document: Document, run: str | None) -> bool:
    current = document.run
    if current is None or current.id != run or not current.is_final or current.error is None:
        return False
    return current.error.code == ErrorCode.CANCELLED
