"""Who does what to whom, and when: planned with dice that a seed makes repeatable, then done."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from tests.chaos.history import Fault
from tests.chaos.stack import Stack

SECONDS = {
    "kill worker": (0.0, 1.5),
    "freeze worker": (1.3, 3.0),
    "stall worker": (1.3, 3.0),
    "cut worker": (0.0, 0.0),
    "throttle worker": (0.5, 2.0),
    "stop worker": (0.0, 0.5),
    "kill adapter": (0.0, 1.0),
    "freeze adapter": (0.5, 2.0),
    "stall adapter": (0.5, 2.0),
    "cut adapter": (0.0, 0.0),
    "throttle adapter": (0.5, 2.0),
    "stop adapter": (0.0, 0.5),
    "kill broker": (0.0, 1.0),
    "freeze broker": (0.5, 2.0),
}
"""Every kind of fault, and how long it lasts, from and to: a worker that is frozen or cut off for longer than
``RUNWIRE_ACK_WAIT`` (1 s) counts as dead. *kill* is SIGKILL, *freeze* SIGSTOP, *stop* SIGTERM; *stall*: nothing passes
to and from the broker and nobody is told; *throttle*: 12 KiB a second pass; *cut*: its connection is reset."""
KINDS = tuple(SECONDS)
ENDING = frozenset({"kill", "stop"})
"""What a process does not outlive."""
PAUSE = (0.2, 1.3)
"""Seconds between two faults, from and to."""


@dataclass(frozen=True, kw_only=True)
class Blow:
    """A fault as it is planned; ``whom`` counts from 0 and is taken modulo the number there are."""

    pause: float
    """Seconds after the end of the one before."""
    what: str
    whom: int
    seconds: float


def plan(
    seed: int, seconds: float, kinds: Sequence[str] = KINDS, *, pause: tuple[float, float] = PAUSE,
    lasting: Mapping[str, tuple[float, float]] = SECONDS,
) -> list[Blow]:  # fmt: skip
    """The faults of so many seconds: each kind once, in some order, before any of them comes again; once at least."""
    dice = random.Random(seed)
    blows: list[Blow] = []
    left, bag = seconds, list[str]()
    while True:
        if not bag:
            bag = list(kinds)
            dice.shuffle(bag)
        what = bag.pop()
        blow = Blow(
            pause=dice.uniform(*pause), what=what, whom=dice.randrange(1000), seconds=dice.uniform(*lasting[what])
        )
        left -= blow.pause + blow.seconds
        if left < 0 and len(blows) >= len(kinds):
            return blows
        blows.append(blow)


async def strike(
    stack: Stack, blows: Sequence[Blow], tell: Callable[[Fault], None], *, spared: Collection[str] = ()
) -> None:
    """Do all that is planned, one after the other; ``tell`` is called with each as it begins.

    The processes that are ``spared`` are not ended.
    """
    for blow in blows:
        await asyncio.sleep(blow.pause)
        action, _, role = blow.what.partition(" ")
        names = [name for name in stack.named(role) if action not in ENDING or name not in spared]
        name = names[blow.whom % len(names)]
        tell(Fault(what=blow.what, whom=name, at=time.time(), seconds=round(blow.seconds, 3)))
        match action:
            case "kill":
                with stack.down(name):
                    await asyncio.sleep(blow.seconds)
            case "freeze":
                with stack.frozen(name):
                    await asyncio.sleep(blow.seconds)
            case "stall":
                with stack.stalled(name):
                    await asyncio.sleep(blow.seconds)
            case "throttle":
                with stack.throttled(name):
                    await asyncio.sleep(blow.seconds)
            case "cut":
                stack.cut(name)
            case _:
                await stack.stop(name)
                await asyncio.sleep(blow.seconds)
