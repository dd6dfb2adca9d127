"""Has a stream lost its end, or is it told of by a server that is behind?

A stream that ends before what was read of it was restored from a backup, or lost what was not flushed to disk: the read
model has to be built anew. In a cluster there is another reason. A leader that is cut off from the other servers tells
for ten seconds, to whoever still reaches it, how everything was when it last heard of them.
"""

from __future__ import annotations

from nats.js.api import StreamInfo
from nats.js.errors import ServiceUnavailableError

from runwire.messaging.majority import has_majority, is_replicated

SURELY = 15.0
"""Seconds for which a majority has to say so: longer than a leader takes to notice that it is alone."""


class Shorter:
    """What is known of one stream that seems to be shorter than it was."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._last = 0.0

    def check(self, info: StreamInfo, *, now: float) -> None:
        """Returns when the stream is known to be shorter; ``now`` in seconds, by any clock that only goes on.

        Raises ServiceUnavailableError: it is not known yet, ask again.
        """
        if not is_replicated(info):
            return
        if not has_majority(info):
            self._since = None
        elif self._since is None or now - self._last > SURELY:
            self._since = now  # for the first time, or for the first time in a long while
        elif now - self._since > SURELY:
            return
        self._last = now
        raise ServiceUnavailableError(code=503, description="the server that tells of the stream is behind")
