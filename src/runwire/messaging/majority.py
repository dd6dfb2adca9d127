"""Is the server that tells of a stream in touch with most of the others?

A leader that is cut off goes on answering for ten seconds, and for a moment when it is back, from what it last knew.
Its copies show it: they are heard of every second, as long as they can be.
"""

from __future__ import annotations

from nats.js.api import PeerInfo, StreamInfo

PRESENT = 4e9
"""Nanoseconds since a copy was heard of, as long as it is there."""


def has_majority(info: StreamInfo) -> bool:
    """Whether what it says was so a few seconds ago at most; always, of a stream with one copy."""
    cluster = info.cluster
    copies = (cluster and cluster.replicas) or []
    if cluster is None or not copies:
        return True
    there = 1 + sum(1 for copy in copies if _is_there(copy))
    return bool(cluster.leader) and 2 * there > 1 + len(copies)


def is_replicated(info: StreamInfo) -> bool:
    """Whether the stream has more than one copy."""
    return bool(info.cluster and info.cluster.replicas)


def _is_there(copy: PeerInfo) -> bool:
    return not copy.offline and (copy.active or 0) < PRESENT
