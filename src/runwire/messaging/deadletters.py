"""DEADLETTERS: commands that could not be run, as they came, with the reason."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from nats.aio.msg import Msg
from nats.js.errors import NotFoundError

from runwire.messaging import codec, subjects
from runwire.messaging.broker import Bus

LONGEST_DETAIL = 500
"""Characters of the reason's detail: a header is no place for more."""


@dataclass(frozen=True)
class DeadLetter:
    """Why a command was not run."""

    run: str
    reason: str
    """Stable and snake_case: undecodable, no_such_task, task_deleted."""
    detail: str


async def publish(bus: Bus, command: Msg, *, reason: str, detail: str) -> None:
    """Keep a command that cannot be run. May be repeated: it is stored once. Raises one of UNAVAILABLE."""
    sequence = command.metadata.sequence.stream
    await _keep(bus, command.subject, command.data, command.headers, sequence, reason=reason, detail=detail)


async def bury(bus: Bus, subject: str, *, reason: str, detail: str) -> None:
    """Move a command that no worker can take, as its subject names no chain, out of COMMANDS. May be repeated."""
    with suppress(NotFoundError):  # another worker was quicker
        command = await bus.js.get_msg(subjects.COMMANDS, subject=subject)
        sequence = command.seq or 0
        await _keep(bus, subject, command.data or b"", command.headers, sequence, reason=reason, detail=detail)
        await bus.js.delete_msg(subjects.COMMANDS, sequence)


async def _keep(
    bus: Bus, subject: str, body: bytes, known: dict[str, str] | None, sequence: int, *, reason: str, detail: str
) -> None:
    chain, task = _place(subject)
    headers = {
        subjects.MSG_ID: f"dead-{sequence}",
        subjects.RUN_ID: codec.run_of_command(known, body, sequence),
        subjects.DEAD_REASON: reason,
        subjects.DEAD_DETAIL: " ".join(detail.split())[:LONGEST_DETAIL],
        subjects.DEAD_SUBJECT: subject,
        subjects.DEAD_SEQUENCE: str(sequence),
    }
    await bus.js.publish(subjects.dead_letter(chain, task), body, headers=headers)


def _place(subject: str) -> tuple[int, int]:
    """The (chain, task) a command's subject names; 0 for what it does not, and for the task when there is no chain."""
    tokens = [subjects.id_of_token(token) or 0 for token in subject.split(".")[2:4]]
    chain, task = (*tokens, 0, 0)[:2]
    return chain, task if chain else 0


async def last(bus: Bus, chain: int, task: int) -> DeadLetter | None:
    """The task's newest dead letter; None: it has none."""
    try:
        message = await bus.js.get_msg(subjects.DEADLETTERS, subject=subjects.dead_letter(chain, task), direct=True)
    except NotFoundError:
        return None
    return from_headers(message.headers)


def from_headers(headers: dict[str, str] | None) -> DeadLetter:
    """What a dead letter's headers say."""
    known = headers or {}
    return DeadLetter(
        run=known.get(subjects.RUN_ID, ""),
        reason=known.get(subjects.DEAD_REASON, ""),
        detail=known.get(subjects.DEAD_DETAIL, ""),
    )
