"""``python -m tests.cluster``: three servers, struck one after the other, and see whether a promise was broken.

Exit status and last line as of ``python -m tests.chaos``, and before it what each kind of fault cost.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console

from benchmarks.children import ChildFailed
from tests.chaos import trial as chaos
from tests.chaos.__main__ import report, telling
from tests.chaos.checker import Verdict, check
from tests.chaos.history import Call, History
from tests.cluster import nemesis, network
from tests.cluster.stalls import stalls
from tests.cluster.trial import LATE_AFTER, ClusterTrial
from tests.cluster.trial import network as made_network

QUICK_SECONDS = 30.0
FEWEST_PER_SECOND = 2.0
MINORITY = "minority: "
"""How the status of what a server was asked begins that was cut off from the others."""


def main(
    seed: Annotated[int | None, typer.Option(help="Of the dice; another one each time when not given.")] = None,
    seconds: Annotated[float, typer.Option(min=1, help="How long faults go on.")] = 240,
    http: Annotated[int, typer.Option(min=0, help="Callers over HTTP.")] = 8,
    bus: Annotated[int, typer.Option(min=0, help="Callers on the bus.")] = 4,
    only: Annotated[list[str] | None, typer.Option(help=f"Kinds of faults, of: {', '.join(nemesis.KINDS)}.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Four kinds of faults, a minute in all.")] = False,
    history: Annotated[Path | None, typer.Option(help="Where the history goes; else beside the logs.")] = None,
    check_file: Annotated[Path | None, typer.Option("--check", help="Judge this history; nothing is run.")] = None,
) -> None:
    """Strike the servers of a cluster one after the other, and see whether a promise was broken."""
    console = Console(highlight=False, soft_wrap=True)
    if check_file is not None:
        try:
            found = History.load(check_file)
        except (OSError, ValueError) as error:
            console.print(f"{check_file} is no history: {error}")
            sys.exit(2)
        sys.exit(tell_all(console, found))
    kinds = only or (nemesis.QUICK if quick else nemesis.KINDS)
    has_network = network.enter("tests.cluster", sys.argv[1:])
    if not has_network:
        kinds = [kind for kind in kinds if kind not in nemesis.CABLES]
        console.print(
            "no namespaces can be made here: servers are not cut off (root, or user namespaces, and iproute2)"
        )
    logging.getLogger("runwire").setLevel(logging.ERROR)  # our own connection comes and goes with the servers
    folder = Path(tempfile.mkdtemp(prefix="cluster-"))
    seed = secrets.randbelow(1_000_000) if seed is None else seed
    console.print(f"seed {seed}, logs and streams in {folder}")
    with telling(console) as tell:
        attempt = ClusterTrial(
            seed=seed, seconds=QUICK_SECONDS if quick else seconds, http=http, bus=bus, kinds=tuple(kinds), tell=tell,
            late_after=LATE_AFTER, fewest_per_second=FEWEST_PER_SECOND,
            network=made_network() if has_network else None,
        )  # fmt: skip
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                made = runner.run(chaos.run(attempt, folder))
        except (ChildFailed, *chaos.FAILURES) as error:
            console.print(f"seed {seed}: not carried out: {error!r}")
            sys.exit(2)
    path = history or folder / "history.jsonl"
    made.save(path)
    console.print(f"history: {path}")
    sys.exit(tell_all(console, made))


def tell_all(console: Console, history: History) -> int:
    """Print what the faults cost and what was found; returns the exit status."""
    for stall in stalls(history):
        console.print(
            f"stall       {stall.what:<15} {stall.times:3} times: accepted again after {stall.next[0]:.1f} s, at worst "
            f"{stall.next[1]:.1f} s; nothing accepted for {stall.silence:.1f} s, no run ended for {stall.idle:.1f} s"
        )
    asked = [call for call in history.all(Call) if call.status.startswith(MINORITY)]
    broken = [call for call in asked if call.outcome == "accepted"]
    if asked:
        console.print(f"minority    {len(asked)} commands to a server without the others, {len(broken)} accepted")
    verdict: Verdict = check(history)
    for call in broken:
        console.print(f"VIOLATION   run {call.run} was accepted by a server without the others")
    return max(report(console, verdict, history.plan.seed), int(bool(broken)))


if __name__ == "__main__":
    typer.run(main)
