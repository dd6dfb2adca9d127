"""Places for attempts of an action: who gets one, and when those that get none come again."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from runwire.worker.places import LONGEST, OVERDUE, SHORTEST, Places


def test_there_are_as_many_places_as_the_limit_says_and_each_is_given_back() -> None:
    places = Places({"heavy": 2})
    for _ in range(3):
        with ExitStack() as held:
            assert [held.enter_context(places.place("heavy", number)) for number in (1, 2)] == [None, None]
            assert held.enter_context(places.place("heavy", 3)) is not None
            assert held.enter_context(places.place("heavy", 4)) is not None


def test_a_place_is_given_back_whatever_happens() -> None:
    places = Places({"heavy": 1})
    with pytest.raises(ZeroDivisionError), places.place("heavy", 1):
        raise ZeroDivisionError
    with places.place("heavy", 2) as delay:
        assert delay is None


def test_actions_do_not_take_each_others_places() -> None:
    places = Places({"heavy": 1, "other": 1})
    with places.place("heavy", 1), places.place("other", 2) as other, places.place("free", 3) as free:
        assert (other, free) == (None, None)


def test_those_that_wait_come_the_more_seldom_the_more_there_are() -> None:
    places = Places({"heavy": 1})
    with places.place("heavy", 0):
        delays = [delay_of(places, command) for command in range(1, 3001)]
        again = [delay_of(places, 1) for _ in range(10)]
    assert delays[0] == SHORTEST
    assert 3 <= delays[99] <= 5
    assert delays[-1] == LONGEST
    assert set(again) == {LONGEST}, "one that comes again counts once"


def test_those_that_do_not_come_again_are_forgotten() -> None:
    now = 0.0
    places = Places({"heavy": 1}, clock=lambda: now)
    with places.place("heavy", 0):
        for command in range(1, 1001):
            delay_of(places, command)
        now = LONGEST + OVERDUE + 1
        assert delay_of(places, 1001) == SHORTEST


def test_one_that_got_a_place_waits_no_longer() -> None:
    places = Places({"heavy": 1})
    with places.place("heavy", 0):
        for command in range(1, 101):
            delay_of(places, command)
    for command in range(1, 101):
        with places.place("heavy", command):
            pass
    with places.place("heavy", 0):
        assert delay_of(places, 101) == SHORTEST


def delay_of(places: Places, command: int) -> float:
    with places.place("heavy", command) as delay:
        assert delay is not None
        return delay
