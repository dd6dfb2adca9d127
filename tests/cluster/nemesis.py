"""What is done to the servers of a cluster, one after the other, each time until it is whole again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from runwire.messaging import subjects
from tests.chaos import nemesis
from tests.chaos.history import Fault
from tests.chaos.nemesis import Blow
from tests.cluster.minority import Minority
from tests.cluster.stack import ClusterStack

LEADERS = (subjects.COMMANDS, subjects.EVENTS)
"""Of which streams the leaders are struck, in turn."""
SECONDS = {
    "kill leader": (0.0, 3.0),
    "depose leader": (0.0, 0.0),
    "freeze broker": (3.0, 12.0),
    "restart broker": (0.0, 0.0),
    "roll broker": (0.0, 0.0),
    "isolate broker": (6.0, 14.0),
    "part broker": (6.0, 14.0),
    "kill adapter": (0.0, 1.0),
    "kill worker": (0.0, 1.5),
    "freeze worker": (1.3, 3.0),
}
"""Every kind of fault, and how long it lasts, from and to. *kill* is SIGKILL, to the server that leads COMMANDS or
EVENTS, which *depose* only asks to give way; *freeze* SIGSTOP; *restart* SIGTERM; *roll* lame duck mode, each server in
turn; *isolate*: the server is cut off from everybody; *part*: from the other servers, while clients still reach it."""
KINDS = tuple(SECONDS)
CABLES = frozenset({"isolate broker", "part broker"})
"""Those that need a network of our own."""
QUICK = ("kill leader", "depose leader", "part broker", "restart broker")


async def strike(
    stack: ClusterStack, blows: Sequence[Blow], minority: Minority, tell: Callable[[Fault], None], *, until: float
) -> None:
    """Do what is planned; each kind once, and for the rest until the time is over (monotonic)."""
    done: set[str] = set()
    for number, blow in enumerate(blows):
        if blow.what in done and time.monotonic() > until:
            continue
        done.add(blow.what)
        await asyncio.sleep(blow.pause)
        await _strike(stack, blow, LEADERS[number % len(LEADERS)], minority, tell)
        await stack.until_whole()


async def _strike(
    stack: ClusterStack, blow: Blow, stream: str, minority: Minority, tell: Callable[[Fault], None]
) -> None:
    names = stack.named("broker")
    name = names[blow.whom % len(names)]

    def begin(whom: str) -> None:
        tell(Fault(what=blow.what, whom=whom, at=time.time(), seconds=round(blow.seconds, 3)))

    match blow.what:
        case "kill leader":
            name = await stack.leader(stream)
            begin(f"{name} of {stream}")
            with stack.down(name):
                await asyncio.sleep(blow.seconds)
        case "depose leader":
            begin(f"{await stack.leader(stream)} of {stream}")
            await stack.step_down(stream)
        case "restart broker":
            begin(name)
            await stack.stop(name)
        case "roll broker":
            for one in names:
                begin(one)
                await stack.retire(one)
                await stack.until_whole()
        case "isolate broker":
            begin(name)
            with stack.alone(name, also_from_clients=True):
                await asyncio.sleep(blow.seconds)
        case "part broker":
            name = await stack.leader(stream)
            begin(f"{name} of {stream}")
            with stack.alone(name, also_from_clients=False):
                await minority.ask(stack.url_of(name), blow.seconds)
        case _:
            await nemesis.strike(stack, [replace(blow, pause=0)], tell)
