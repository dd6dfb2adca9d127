"""How long nothing was accepted, and nothing came to its end, by kind of fault: from the calls and EVENTS alone."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass
from statistics import median

from tests.chaos.history import Call, Event, Fault, History


@dataclass(frozen=True)
class Stall:
    """What faults of one kind cost; all in seconds."""

    what: str
    times: int
    next: tuple[float, float]
    """From the fault to the next acceptance of a run that was asked for after it: in the middle, and at worst."""
    silence: float
    """The longest time without any acceptance, from the fault to the next one."""
    idle: float
    """The longest time in which no run ended."""


def stalls(history: History) -> list[Stall]:
    """Of every kind of fault, the worst first."""
    accepted = sorted(
        (
            call
            for call in history.all(Call)
            if call.what == "execute" and call.outcome == "accepted" and not call.joined
        ),
        key=lambda call: call.answered,
    )
    answers = [call.answered for call in accepted]
    ends = sorted(event.stored for event in history.all(Event) if event.document["change"] == "concluded")
    faults = sorted(history.all(Fault), key=lambda fault: fault.at)
    found: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for number, fault in enumerate(faults):
        over = faults[number + 1].at if number + 1 < len(faults) else (answers[-1] if answers else fault.at)
        soonest = min((call.answered for call in accepted if call.sent >= fault.at), default=None)
        if soonest is not None:
            silence, idle = _longest_gap(answers, fault.at, over), _longest_gap(ends, fault.at, over)
            found[fault.what].append((soonest - fault.at, silence, idle))
    made = []
    for what, each in found.items():
        waits, silences, idles = zip(*each, strict=True)
        made.append(Stall(what, len(each), (median(waits), max(waits)), max(silences), max(idles)))
    return sorted(made, key=lambda stall: (-stall.silence, -stall.idle))


def _longest_gap(moments: list[float], begin: float, end: float) -> float:
    """Between two neighbours of these moments, as far as they lie between the two others."""
    inside = [begin, *moments[bisect_left(moments, begin) : bisect_left(moments, end)], end]
    return max(later - earlier for earlier, later in itertools.pairwise(inside))
