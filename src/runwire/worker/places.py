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

LOOKS = 50.0
"""How often a second those that wait for one action ask together, about, as far as the delays allow."""
SHORTEST, LONGEST = 0.1, 5.0
"""Seconds until a run that found no place comes again."""
FORGOTTEN = 2 * LONGEST
"""Seconds after which one that has not come again is thought to be elsewhere, or cancelled."""


class Places:
    """The places of one worker."""

    def __init__(self, limits: Mapping[str, int], *, clock: Callable[[], float] = time.monotonic) -> None:
        """``limits``: action -> attempts at once. ``clock`` tells seconds."""
        self._limits = limits
        self._clock = clock
        self._taken: Counter[str] = Counter()
        self._waiting: defaultdict[str, OrderedDict[int, float]] = defaultdict(OrderedDict)
        """Action -> command -> when it was here last, in this order."""

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
        waiting[command] = now
        waiting.move_to_end(command)
        while now - next(iter(waiting.values())) > FORGOTTEN:
            waiting.popitem(last=False)
        jitter = random.uniform(0.75, 1.25)  # noqa: S311 - so that they do not come all at once
        return min(max(SHORTEST, jitter * len(waiting) / LOOKS), LONGEST)
