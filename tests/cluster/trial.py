"""A run of :mod:`tests.chaos.trial` on a cluster."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.children import Children
from tests.chaos import nemesis as single
from tests.chaos.stack import Stack
from tests.chaos.trial import CHAIN, Note, Trial
from tests.cluster import nemesis
from tests.cluster.minority import Minority
from tests.cluster.network import Network
from tests.cluster.stack import SIZE, ClusterStack

LATE_AFTER = 14.0
"""Seconds: as in :mod:`tests.chaos.trial`, where nobody has to be elected."""


@dataclass(frozen=True, kw_only=True)
class ClusterTrial(Trial):
    """How much of everything."""

    network: Network | None = field(default=None, repr=False)

    def stack(self, children: Children, folder: Path) -> Stack:
        """What is tried."""
        return ClusterStack(children, folder, self.network, adapters=self.adapters, workers=self.workers)

    async def make_faults(self, stack: Stack, note: Note) -> None:
        """Do what is to be done to it, and undo it; ``note`` is given every fault as it begins."""
        assert isinstance(stack, ClusterStack)
        # A fault takes as long as the cluster needs to be whole again: how many there will be shows when they are over.
        blows = single.plan(self.seed, self.seconds + 3600, self.kinds, lasting=nemesis.SECONDS)
        minority = Minority(CHAIN, list(range(1, self.tasks + 1)), note)
        await nemesis.strike(stack, blows, minority, note, until=time.monotonic() + self.seconds)


def network() -> Network:
    """The cables; inside the namespaces only."""
    return Network(SIZE)
