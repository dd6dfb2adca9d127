"""Who gets the next free slot: a worker's slots, shared among chains by dynamic thresholds.

A chain may take another slot only while what it has is less than ALPHA times what is free (Choudhury and Hahne,
"Dynamic queue length thresholds for shared-memory packet switches", 1998). One busy chain gets seven slots in eight,
two get seven in fifteen each, and something always stays free for a newcomer: the last free slot goes to a chain that
has none.

A request that stands open at the broker may bring a command at any moment, and so counts as a slot its chain has.
The one request of a chain that is quiet counts for nothing: a thousand quiet chains can be listened to with eight
slots. If more of them wake up at once than slots are free, those that find none are turned away: their
commands go back to the broker, for another worker or for the next free slot here, which they are the first to get.

How many requests a chain keeps open follows what it needs: more when commands come faster than requests, fewer
when requests come back unused. All of this is bookkeeping; the consumer asks and tells.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

Line = OrderedDict[int, None]
"""Chains, the one that has waited longest first."""
ALPHA = 7
"""How many times what is free a single chain may have."""


@dataclass(slots=True)
class Share:
    """What one chain has."""

    used: int = 0
    """Slots in which its runs are."""
    open: int = 0
    """Commands that were asked for and have not come."""
    window: int = 1
    """Commands to have asked for, as far as slots allow."""
    hungry: bool = False
    """It is known to have a command at the broker: a request will be answered at once."""
    promised: bool = False
    """It had nothing, was hungry, and has one request open now."""
    place: Line | None = None
    """The line in which it stands for more requests."""

    @property
    def weight(self) -> int:
        """Slots that count as this chain's."""
        quiet = not self.used and self.open <= 1 and not self.promised
        return 0 if quiet else self.used + self.open


class FairSlots:
    """The slots of one worker. Chains are known by their numbers."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.used = 0
        """Slots in which there are runs."""
        self._unclaimed = slots
        """Slots that count as nobody's; below 0 when quiet chains have taken some that others had asked for."""
        self._promised = 0
        """Slots for commands that hungry chains have asked for."""
        self._shares: dict[int, Share] = {}
        self._unheard: Line = OrderedDict()
        """Quiet chains without an open request."""
        self._starving: Line = OrderedDict()
        """Hungry chains that have nothing, neither run nor request, the one that has waited longest first."""
        self._wanting: Line = OrderedDict()
        """Chains that have something and want more, the one that has waited longest first."""

    @property
    def chains(self) -> list[int]:
        """The chains that are known."""
        return list(self._shares)

    def __len__(self) -> int:
        """How many chains are known."""
        return len(self._shares)

    def share(self, chain: int) -> Share:
        """What the chain has; one that was not known is from now on."""
        share = self._shares.get(chain)
        if share is None:
            share = self._shares[chain] = Share()
            self._line_up(chain, share)
        return share

    def arrived(self, chain: int, *, more: int = 0) -> bool:
        """A command of the chain has come, with ``more`` behind it. True: it has a slot. False: hand it back."""
        share = self.share(chain)
        taken = self.used < self.slots
        share.hungry = not taken or more > 0
        if share.hungry or share.open <= 1:
            share.window = min(max(2 * share.window, more), self.slots)
        self._change(share, used=int(taken), asked=-1)
        self._line_up(chain, share)
        return taken

    def repeated(self, chain: int) -> None:
        """A command has come that is being worked on already: a request less, and nothing else."""
        share = self.share(chain)
        self._change(share, asked=-1)
        self._line_up(chain, share)

    def returned(self, chain: int, count: int) -> None:
        """So many requests came back unused: there is nothing to run, and so many less are needed."""
        share = self.share(chain)
        self._change(share, asked=-count)
        share.window = max(1, share.open)
        share.hungry = False
        self._line_up(chain, share)

    def lost(self, chain: int) -> None:
        """All open requests of the chain are gone."""
        share = self.share(chain)
        self._change(share, asked=-share.open)
        self._line_up(chain, share)

    def ended(self, chain: int) -> None:
        """A run of the chain has left its slot."""
        share = self.share(chain)
        self._change(share, used=-1)
        self._line_up(chain, share)

    def due(self) -> list[tuple[int, int]]:
        """The requests to send now, as (chain, count); they count as open from here on."""
        asks: list[tuple[int, int]] = []
        while self._starving and self.used + self._promised < self.slots:
            self._ask(self._first(self._starving), 1, asks, promised=True)
        while self._unheard:
            self._ask(self._first(self._unheard), 1, asks)
        for _ in range(len(self._wanting)):
            if self._unclaimed <= 0:
                break
            chain = self._first(self._wanting)
            share = self._shares[chain]
            self._ask(chain, min(share.window - share.open, self._allowance(share)), asks)
        return asks

    def _first(self, line: Line) -> int:
        chain, _ = line.popitem(last=False)
        self._shares[chain].place = None
        return chain

    def _ask(self, chain: int, count: int, asks: list[tuple[int, int]], *, promised: bool = False) -> None:
        share = self._shares[chain]
        if count > 0:
            self._change(share, asked=count, promised=promised)
            asks.append((chain, count))
        self._line_up(chain, share)

    def _allowance(self, share: Share) -> int:
        """How many more slots the chain may have: a k-th while has + k - 1 < ALPHA * (free - k + 1)."""
        has = share.used + share.open
        free = self._unclaimed - (has - share.weight)  # with a second request the first begins to count
        allowed = -((has - ALPHA * free) // (ALPHA + 1))
        return min(allowed, free - 1 if has else max(free - 1, 1))

    def _change(self, share: Share, *, used: int = 0, asked: int = 0, promised: bool = False) -> None:
        """Count; a promise is kept, or over, as soon as anything is heard of the requests."""
        before = share.weight
        share.used += used
        share.open = max(0, share.open + asked)
        if promised or asked < 0:
            self._promised += promised - share.promised
            share.promised = promised
        self.used += used
        self._unclaimed += before - share.weight

    def _line_up(self, chain: int, share: Share) -> None:
        """See to it that the chain is asked for its commands: let it stand where it belongs now."""
        if share.open >= share.window:
            place = None
        elif share.used or share.open:
            place = self._wanting
        else:
            place = self._starving if share.hungry else self._unheard
        if place is share.place:
            return
        if share.place is not None:
            del share.place[chain]
        if place is not None:
            place[chain] = None
        share.place = place
