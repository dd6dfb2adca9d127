"""Places for the attempts of actions that have a limit: how many of them one worker carries out at once.

A run that finds no place is not claimed: its command goes back to the broker and comes again, here or at another
worker. Those that wait come the more seldom the more of them there are, so that together they ask often enough for a
free place to be found soon, and not so often that asking is all that is done.
"""

from __future__ import annotations

import random
import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

LOOKS = 25.0
"""How often a second those that wait for one action ask together, about, as far as the delays allow. Far from 100: each
NAK has nats-server (2.15) wait another 10 ms with all that it is to deliver again to the consumer."""
SHORTEST, LONGEST = 0.1, 60.0
"""Seconds until a run that found no place comes again."""
OVERDUE = 2.0
"""Seconds after that, when one that has not come is thought to be elsewhere, or cancelled."""


class Places:
    """The places of one worker."""

    def __init__(self, limits: Mapping[str, int], *, clock: Callable[[], float] = time.monotonic) -> None:
        """``limits``: action -> attempts at once. ``clock`` tells seconds."""
        self._limits = limits
        self._clock = clock
        self._taken: Counter[str] = Counter()
        self._waiting: defaultdict[str, OrderedDict[int, float]] = defaultdict(OrderedDict)
        """Action -> command -> when it has to come again; the one that was here last comes last."""

    @contextmanager
    def place(self, action: str, command: int) -> Iterator[float | None]:
        """A place for an attempt, for as long as the block takes: None. Or the seconds to come again after."""
        limit = self._limits.get(action)
        if limit is None:
            yield None
            return
        if self._taken[action] >= limit:
            yield self._delay(action, command)
            return
        self._taken[action] += 1
        self._waiting[action].pop(command, None)
        try:
            yield None
        finally:
            self._taken[action] -= 1

    def _delay(self, action: str, command: int) -> float:
        waiting, now = self._waiting[action], self._clock()
        while waiting and next(iter(waiting.values())) + OVERDUE < now:
            waiting.popitem(last=False)
        waiting.pop(command, None)
        jitter = random.uniform(0.75, 1.25)  # noqa: S311 - so that they do not come all at once
        delay = min(max(SHORTEST, jitter * (len(waiting) + 1) / LOOKS), LONGEST)
        waiting[command] = now + delay
        return delay
