"""How a worker's slots are shared among chains."""

from __future__ import annotations

import random

import pytest

from runwire.worker.slots import FairSlots

NOISY, OTHER, NEW = 1, 2, 3


def flood(slots: FairSlots, *chains: int, rounds: int = 20) -> None:
    """Answer every open request of these chains at once: their queues never end, and neither do their runs."""
    for _ in range(rounds):
        slots.due()
        for chain in chains:
            for _ in range(slots.share(chain).open):
                slots.arrived(chain, more=10_000)


def used(slots: FairSlots, chain: int) -> int:
    return slots.share(chain).used


@pytest.mark.parametrize(("size", "share"), [(1, 1), (2, 1), (4, 3), (8, 7), (64, 56), (100, 88)])
def test_a_lone_chain_gets_seven_slots_in_eight_and_never_the_last_of_several(size: int, share: int) -> None:
    slots = FairSlots(size)
    slots.share(NOISY)
    flood(slots, NOISY)
    assert used(slots, NOISY) == share


def test_a_newcomer_starts_at_once_beside_a_chain_that_holds_its_share() -> None:
    slots = FairSlots(64)
    slots.share(NOISY)
    slots.share(NEW)
    flood(slots, NOISY)
    assert slots.share(NEW).open == 1, "its request stands open before it needs it"
    assert slots.arrived(NEW)


def test_two_busy_chains_come_to_have_the_same() -> None:
    slots = FairSlots(64)
    slots.share(NOISY)
    slots.share(OTHER)
    flood(slots, NOISY)
    flood(slots, OTHER)
    assert used(slots, NOISY) == 56
    dice = random.Random(1)
    for _ in range(1000):  # every run of either is as likely to be the next to end
        slots.ended(dice.choices([NOISY, OTHER], [used(slots, NOISY), used(slots, OTHER)])[0])
        flood(slots, NOISY, OTHER, rounds=2)
    assert abs(used(slots, NOISY) - used(slots, OTHER)) <= 10
    assert slots.used >= 56


def test_a_thousand_busy_chains_share_eight_slots_in_turn() -> None:
    slots = FairSlots(8)
    chains = range(1, 1001)
    for chain in chains:
        slots.share(chain)
    running: list[int] = []
    served: dict[int, int] = dict.fromkeys(chains, 0)
    for _ in range(5000):
        for chain, count in slots.due():
            for _ in range(count):
                if slots.arrived(chain, more=100):
                    served[chain] += 1
                    running.append(chain)
        assert len(running) == slots.used <= 8
        slots.ended(running.pop(0))
    assert max(served.values()) - min(served.values()) <= 2


def test_requests_of_quiet_chains_cost_no_slots() -> None:
    slots = FairSlots(8)
    for chain in range(100, 1100):
        slots.share(chain)
    assert sorted(slots.due()) == [(chain, 1) for chain in range(100, 1100)]
    slots.share(NOISY)
    flood(slots, NOISY)
    assert used(slots, NOISY) == 7


def test_a_chain_that_finds_no_slot_is_turned_away_and_gets_the_next_one() -> None:
    slots = FairSlots(2)
    for chain in (NOISY, OTHER, NEW):
        slots.share(chain)
    slots.due()
    assert slots.arrived(NOISY, more=5)
    assert slots.arrived(OTHER, more=5)
    assert not slots.arrived(NEW)
    assert slots.due() == [], "asking for it again before a slot is free would turn it away again"
    slots.ended(NOISY)
    assert slots.due() == [(NEW, 1)]
    assert slots.arrived(NEW)
    assert slots.used == 2


def test_a_chain_that_was_turned_away_does_not_wait_for_requests_that_nobody_answers() -> None:
    """A chain that was busy keeps requests open; others have taken the slots they stood for."""
    slots = FairSlots(16)
    slots.share(NOISY)
    for _ in range(6):
        for chain, count in slots.due():
            for _ in range(count):
                slots.arrived(chain)
    while used(slots, NOISY):
        slots.ended(NOISY)
    slots.due()
    assert slots.share(NOISY).open > 10
    quiet = range(100, 117)
    for chain in quiet:
        slots.share(chain)
    slots.due()
    assert [slots.arrived(chain) for chain in quiet] == [True] * 16 + [False]
    slots.ended(100)
    assert (116, 1) in slots.due()


def test_requests_that_come_back_unused_are_not_sent_again_but_one() -> None:
    slots = FairSlots(64)
    slots.share(NOISY)
    flood(slots, NOISY)
    while used(slots, NOISY):
        slots.ended(NOISY)
        slots.due()
    slots.returned(NOISY, slots.share(NOISY).open)
    slots.due()
    assert (slots.share(NOISY).open, slots.share(NOISY).weight) == (1, 0)


def test_commands_that_come_faster_than_requests_open_more_of_them() -> None:
    slots = FairSlots(64)
    slots.share(NEW)
    windows = []
    for _ in range(4):
        for chain, count in slots.due():
            for _ in range(count):
                slots.arrived(chain)
        windows.append(slots.share(NEW).window)
    assert windows == [2, 4, 8, 16]


def test_lost_requests_are_sent_again() -> None:
    slots = FairSlots(8)
    slots.share(NEW)
    assert slots.due() == [(NEW, 1)]
    slots.lost(NEW)
    assert slots.due() == [(NEW, 1)]
    assert slots.due() == []


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_slots_are_neither_lost_nor_exceeded_and_everybody_is_heard(seed: int) -> None:
    dice = random.Random(seed)
    slots = FairSlots(dice.choice([1, 2, 3, 8, 64]))
    chains = range(1, dice.choice([2, 5, 40]))
    queued = dict.fromkeys(chains, 0)
    open_requests = dict.fromkeys(chains, 0)
    running: list[int] = []
    for chain in chains:
        slots.share(chain)

    def ask() -> None:
        for chain, count in slots.due():
            open_requests[chain] += count

    def deliver(chain: int) -> None:
        while queued[chain] and open_requests[chain]:
            queued[chain] -= 1
            open_requests[chain] -= 1
            if slots.arrived(chain, more=queued[chain]):
                running.append(chain)
            else:
                queued[chain] += 1

    for _ in range(1000):
        chain = dice.choice(chains)
        match dice.randrange(6):
            case 0:
                queued[chain] += dice.choice([1, 1, 1, 200])
            case 1 | 2 if running:
                slots.ended(running.pop(dice.randrange(len(running))))
            case 3 if open_requests[chain] and not queued[chain]:
                count = dice.randint(1, open_requests[chain])
                open_requests[chain] -= count
                slots.returned(chain, count)
            case 4:
                open_requests[chain] = 0
                slots.lost(chain)
        ask()
        deliver(dice.choice(chains))
        assert len(running) == slots.used <= slots.slots
    while running or any(queued.values()):
        while running:
            slots.ended(running.pop())
        for chain in chains:
            ask()
            deliver(chain)
        assert running or not any(queued.values()), "there are commands and free slots, and nobody asks for them"
    for _ in range(3):
        for chain in chains:
            if open_requests[chain]:
                slots.returned(chain, open_requests[chain])
                open_requests[chain] = 0
            ask()
    assert all(open_requests[chain] == 1 for chain in chains)
    assert (slots.used, slots._unclaimed, slots._promised) == (0, slots.slots, 0)
