"""Ids in paths, and the task behind one: how every endpoint of a task begins."""

from __future__ import annotations

from runwire.domain.access import AccessLevel, Principal
from runwire.domain.errors import MalformedId, TaskNotFound
from runwire.domain.lifecycle import Change, Document
from runwire.domain.run import RUN_ID
from runwire.domain.task import MAX_ID
from runwire.http.services import Services
from runwire.messaging import events


def task_id(text: str) -> int:
    """The task id in a path. Raises MalformedId."""
    number = id_number(text)
    if not number:
        raise MalformedId("A task id is a positive integer.")
    return number


def id_number(text: str) -> int | None:
    """The number from 0 to MAX_ID that the text is; None: it is not one. No more digits than MAX_ID has."""
    if not (text.isascii() and text.isdecimal()) or len(text) > len(str(MAX_ID)) or int(text) > MAX_ID:
        return None
    return int(text)


def run_id(text: str) -> str:
    """The run id in a path. Raises MalformedId."""
    if not RUN_ID.fullmatch(text):
        raise MalformedId("A run id has 1 to 64 letters, digits, - and _.")
    return text


async def find_task(parts: Services, principal: Principal, task: int, level: AccessLevel) -> Document:
    """The task, if the principal may do this with it.

    Raises TaskNotFound, Forbidden, RateLimited or one of UNAVAILABLE.

    A task that the read model does not hold may have been created through another adapter a moment ago.
    """
    document = await parts.reader.document(task)
    if document is None:
        head = await events.find(parts.bus, task)
        document = head.document if head else None
    if document is None or document.change is Change.DELETED:
        raise TaskNotFound(f"There is no task {task}.")
    principal.require_task(level, document.task.chain, task)
    if parts.rates is not None:
        await parts.rates.count_task(principal, document.task.chain)
    return document


def readable_chains(principal: Principal, chain: int | None) -> tuple[int, ...]:
    """The chains a list or a stream covers: those the principal may read, or the one it asked for. Raises Forbidden."""
    if chain is not None:
        principal.require(AccessLevel.VIEWER, chain)
        return (chain,)
    return tuple(principal.levels)
