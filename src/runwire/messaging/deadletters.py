"""DEADLETTERS: commands that could not be run, and events that no web hook took, as they came, with the reason.

A dead letter has the body of its command, and of the headers those that mean something in a command: the rest is
nobody's business here (a client may have put a secret there), and the broker's own would be obeyed a second time. Its
id is its place in the stream. Lists come straight from the stream, newest first: the broker counts what lies above a
place, so that the place where a page begins is found by halving.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, RawStreamMsg
from nats.js.errors import APIError, NotFoundError

from runwire.messaging import codec, stretch, subjects
from runwire.messaging.broker import Bus

WEB_HOOK = "web_hook"
"""The reason why an event is here."""
LONGEST_DETAIL = 500
"""Characters of the reason's detail: a header is no place for more."""
LONGEST_HEADER, MOST_HEADERS = 1000, 50
"""What is kept of a command's headers: characters of each, and how many."""
KEPT = {"content-type", subjects.TRACE_PARENT, subjects.TRACE_STATE}
"""And every attribute of a CloudEvent."""
RENAMED = {subjects.RUN_ID.lower(): subjects.DEAD_RUN_ID, subjects.MSG_ID.lower(): subjects.DEAD_MSG_ID}
"""What the dead letter has headers of its own for, and where the command's are kept."""
ATTRIBUTE = re.compile("ce-[a-z0-9_-]{1,64}")


@dataclass(frozen=True, kw_only=True)
class DeadLetter:
    """A command that was not run, or an event that a web hook did not take, and why."""

    id: int
    chain: int
    """0: its subject named none."""
    task: int
    """0: its subject named none."""
    run: str
    reason: str
    """Stable and snake_case: undecodable, no_such_task, task_deleted; web_hook."""
    detail: str
    subject: str
    """Where the command, or the event, was published."""
    date: datetime
    """When it was put aside."""
    subscription: str = ""
    """The web hook that did not take an event; "": it is a command."""
    headers: Mapping[str, str]
    """What is kept of the command's headers, by lower-case names."""
    body: bytes


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


async def bury_event(bus: Bus, event: Msg, *, subscription: str, detail: str) -> None:
    """Keep an event that a web hook could not be given. May be repeated: it is stored once. Raises UNAVAILABLE."""
    sequence = event.metadata.sequence.stream
    chain, task = subjects.parse(event.subject)
    headers = _kept(event.headers or {}) | {
        subjects.MSG_ID: f"dead-{subscription}-{sequence}",
        subjects.DEAD_REASON: WEB_HOOK,
        subjects.DEAD_DETAIL: _line(detail)[:LONGEST_DETAIL],
        subjects.DEAD_SUBJECT: event.subject,
        subjects.DEAD_SEQUENCE: str(sequence),
        subjects.DEAD_SUBSCRIPTION: subscription,
    }
    await bus.js.publish(subjects.dead_event(chain, task), event.data, headers=headers)


async def _keep(
    bus: Bus, subject: str, body: bytes, known: Mapping[str, str] | None, sequence: int, *, reason: str, detail: str
) -> None:
    headers = _kept(known or {}) | {
        subjects.MSG_ID: f"dead-{sequence}",
        subjects.RUN_ID: codec.run_of_command(known, body, sequence),
        subjects.DEAD_REASON: reason,
        subjects.DEAD_DETAIL: _line(detail)[:LONGEST_DETAIL],
        subjects.DEAD_SUBJECT: _line(subject),
        subjects.DEAD_SEQUENCE: str(sequence),
    }
    await bus.js.publish(subjects.dead_letter(*_place(subject)), body, headers=headers)


def _kept(headers: Mapping[str, str]) -> dict[str, str]:
    kept: dict[str, str] = {}
    for name, value in headers.items():
        lower = name.lower()
        if len(kept) < MOST_HEADERS and (lower in KEPT or lower in RENAMED or ATTRIBUTE.fullmatch(lower)):
            kept[RENAMED.get(lower, lower)] = _line(value)[:LONGEST_HEADER]
    return kept


def _line(text: str) -> str:
    """The text as one line that fits a header."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _place(subject: str) -> tuple[int, int]:
    """The (chain, task) a command's subject names; 0 for what it does not, and for the task when there is no chain."""
    tokens = [subjects.id_of_token(token) or 0 for token in subject.split(".")[2:4]]
    chain, task = (*tokens, 0, 0)[:2]
    return chain, task if chain else 0


# --- one of them -----------------------------------------------------------------------------------------


async def get(bus: Bus, number: int) -> DeadLetter | None:
    """The dead letter with this id, in whatever chain; None: there is none. Raises one of UNAVAILABLE."""
    try:
        return letter_in(await bus.js.get_msg(subjects.DEADLETTERS, number))
    except NotFoundError:
        return None


async def last(bus: Bus, chain: int, task: int) -> DeadLetter | None:
    """The task's newest dead letter; None: it has none."""
    try:
        found = await bus.js.get_msg(subjects.DEADLETTERS, subject=subjects.dead_letter(chain, task), direct=True)
    except NotFoundError:
        return None
    return letter_in(found)


async def delete(bus: Bus, letter: DeadLetter) -> None:
    """Forget it; its bytes are overwritten. May be repeated. Raises one of UNAVAILABLE."""
    try:
        await bus.js.delete_msg(subjects.DEADLETTERS, letter.id)
    except APIError:
        if await get(bus, letter.id) is not None:
            raise


def heard(message: Msg) -> DeadLetter:
    """A dead letter as subscribers hear of it: without an id."""
    return _letter(0, message.subject, message.data, message.headers, datetime.now(UTC))


def letter_in(message: RawStreamMsg) -> DeadLetter:
    """The dead letter that a stored message is."""
    date = message.time or datetime.now(UTC)
    return _letter(message.seq or 0, message.subject or "", message.data or b"", message.headers, date)


def _letter(sequence: int, subject: str, body: bytes, headers: Mapping[str, str] | None, date: datetime) -> DeadLetter:
    known = headers or {}
    chain, task = _place(subject)
    theirs = {of: known[ours] for of, ours in RENAMED.items() if ours in known}
    theirs |= {name: value for name, value in known.items() if name in KEPT or ATTRIBUTE.fullmatch(name)}
    return DeadLetter(
        id=sequence,
        chain=chain,
        task=task,
        run=known.get(subjects.RUN_ID, ""),
        reason=known.get(subjects.DEAD_REASON, ""),
        detail=known.get(subjects.DEAD_DETAIL, ""),
        subject=known.get(subjects.DEAD_SUBJECT, ""),
        subscription=known.get(subjects.DEAD_SUBSCRIPTION, ""),
        date=date,
        headers=theirs,
        body=body,
    )


# --- many of them ----------------------------------------------------------------------------------------


async def page(
    bus: Bus, chains: Iterable[int], *, task: int | None, limit: int, offset: int
) -> tuple[list[DeadLetter], int]:
    """Some dead letters of the chains, newest first, and how many there are in all. Raises one of UNAVAILABLE."""
    filters = [subjects.dead_letters_of(chain) for chain in chains]
    if task is not None:
        filters = [subject for chain in chains for subject in subjects.dead_letters_of_task(chain, task)]
    state = (await bus.js.stream_info(subjects.DEADLETTERS)).state
    total = await _count(bus, filters, start=state.first_seq)
    wanted = min(limit, total - offset)
    if wanted <= 0:
        return [], total
    start, held = await _start(bus, filters, state.first_seq, state.last_seq, need=offset + wanted, most=limit)
    found: list[DeadLetter] = []
    if held > offset:
        stored = stretch.read(bus, subjects.DEADLETTERS, filters, start=start, until=state.last_seq, page=wanted)
        async with aclosing(stored) as messages:
            async for message in messages:
                place = message.metadata
                found.append(
                    _letter(place.sequence.stream, message.subject, message.data, message.headers, place.timestamp)
                )
                if len(found) == held - offset:
                    break
    return found[::-1][:wanted], total


async def count_since(bus: Bus, instant: datetime) -> int:
    """How many were put aside since then, of all chains. Raises one of UNAVAILABLE."""
    return await _pending(bus, [subjects.ALL_DEADLETTERS], since=instant)


async def _start(bus: Bus, filters: list[str], first: int, last: int, *, need: int, most: int) -> tuple[int, int]:
    """(where to begin to read, how many match from there on): at least ``need``, and ``most`` more than that.

    Fewer than ``need`` when some went meanwhile.
    """
    start, held, above, width = last + 1, 0, last + 1, need
    while held < need and start > first:
        above, start = start, max(first, last + 1 - width)
        held = await _count(bus, filters, start=start)
        width *= 4
    while held > need + most and start + 1 < above:
        middle = (start + above) // 2
        count = await _count(bus, filters, start=middle)
        if count < need:
            above = middle
        else:
            start, held = middle, count
    return start, held


async def _count(bus: Bus, filters: list[str], *, start: int) -> int:
    return await _pending(bus, filters, start=max(1, start))


async def _pending(bus: Bus, filters: list[str], *, start: int | None = None, since: datetime | None = None) -> int:
    """How many messages match from a sequence or an instant on: what the broker tells of a consumer made there."""
    policy = DeliverPolicy.BY_START_TIME if start is None else DeliverPolicy.BY_START_SEQUENCE
    consumer = await bus.js.add_consumer(
        subjects.DEADLETTERS,
        ConsumerConfig(
            deliver_policy=policy,
            opt_start_seq=start,
            opt_start_time=since,
            ack_policy=AckPolicy.NONE,
            filter_subjects=filters,
            inactive_threshold=5.0,
            mem_storage=True,
            num_replicas=1,
        ),
    )
    with suppress(APIError):
        await bus.js.delete_consumer(subjects.DEADLETTERS, consumer.name)
    return consumer.num_pending or 0
