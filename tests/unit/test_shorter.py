"""A stream that seems to be shorter than it was is believed only when it is known."""

from __future__ import annotations

import pytest
from nats.js.api import ClusterInfo, PeerInfo, StreamConfig, StreamInfo, StreamState
from nats.js.errors import ServiceUnavailableError

from runwire.readmodel.shorter import SURELY, Shorter

SECOND = 1_000_000_000


def told(*seconds_ago: float, leader: str | None = "broker-1") -> StreamInfo:
    """What is told of a stream whose copies were heard of so long ago; none: it has one copy."""
    copies = [PeerInfo(name=f"broker-{n}", active=int(ago * SECOND)) for n, ago in enumerate(seconds_ago, 2)]
    cluster = ClusterInfo(leader=leader, replicas=copies) if copies else None
    state = StreamState(messages=1, bytes=1, first_seq=1, last_seq=1, consumer_count=0)
    return StreamInfo(config=StreamConfig(name="EVENTS"), state=state, cluster=cluster)


def is_known(shorter: Shorter, info: StreamInfo, now: float) -> bool:
    try:
        shorter.check(info, now=now)
    except ServiceUnavailableError:
        return False
    return True


def test_a_stream_without_copies_is_believed_at_once() -> None:
    assert is_known(Shorter(), told(), 0)


def test_a_majority_is_believed_when_it_stays_with_it() -> None:
    shorter = Shorter()
    assert not is_known(shorter, told(0.1, 30), 0)
    assert not is_known(shorter, told(1, 30), SURELY / 2)
    assert is_known(shorter, told(1, 30), SURELY + 1)


@pytest.mark.parametrize("info", [told(6, 6), told(6, 30), told(0.1, 0.1, leader=None)])
def test_a_server_without_the_others_is_never_believed(info: StreamInfo) -> None:
    shorter = Shorter()
    assert not any(is_known(shorter, info, now) for now in range(100))


def test_another_occasion_begins_anew() -> None:
    shorter = Shorter()
    assert not is_known(shorter, told(0.1, 0.1), 0)
    assert not is_known(shorter, told(0.1, 0.1), 1000)
    assert not is_known(shorter, told(0.1, 0.1), 1001)
