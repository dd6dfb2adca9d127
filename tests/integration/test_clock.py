"""The broker's clock, by which workers go."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Self

import pytest

from runwire.messaging import clock
from runwire.messaging.broker import Bus
from runwire.messaging.clock import BrokerClock
from tests.support import Broker, eventually


class Jumped(datetime):
    """The clock of a machine that has jumped two days ahead."""

    @classmethod
    def now(cls, tz: object = None) -> Self:
        return super().now(tz) + timedelta(days=2)


@pytest.fixture
async def broker_clock(bus: Bus, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(clock, "INTERVAL", 0.05)
    monkeypatch.setattr(clock, "datetime", Jumped)
    ours = BrokerClock(bus)
    await ours.start()
    yield ours
    await ours.stop()


def is_right(ours: BrokerClock) -> bool:
    return abs(ours() - datetime.now(UTC)) < timedelta(seconds=1)


async def test_it_tells_the_brokers_time_whatever_the_machines_clock_says(bus: Bus, broker_clock: BrokerClock) -> None:
    assert is_right(broker_clock)
    assert not is_right(BrokerClock(bus))  # one that has not been started knows the machine's only


async def test_it_is_not_ahead_of_the_broker(broker_clock: BrokerClock) -> None:
    for _ in range(100):
        earlier = broker_clock()
        assert earlier <= datetime.now(UTC)  # the broker is on this machine


async def test_it_goes_on_while_the_broker_is_away_and_looks_again(broker: Broker, broker_clock: BrokerClock) -> None:
    broker.kill()
    known = broker_clock._known
    assert await eventually(lambda: is_right(broker_clock))
    broker.start()
    await eventually(lambda: broker_clock._known != known, what="it has looked again")
    assert is_right(broker_clock)
