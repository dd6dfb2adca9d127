"""When the broker stored what: alarms that rang, commands, ends of runs, each by the broker's own clock.

Streams republish the headers of what they have stored, its time among them. Nothing has to be read back, and a command
is seen although its worker removes it at once. It costs the broker one more small message for each.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Collection
from datetime import datetime
from enum import StrEnum

from nats.aio.msg import Msg

from runwire.messaging import subjects
from runwire.messaging.broker import Bus


class Sight(StrEnum):
    """What is seen of a task."""

    RUNG = "rung"
    """Its alarm rang: the broker's work ends here, ours begins."""
    COMMAND = "command"
    ENDED = "ended"
    BARE = "bare"
    """An alarm of the bare broker rang."""


STREAMS = {
    Sight.RUNG: (subjects.SCHEDULES, "tasks.due.*.*"),
    Sight.COMMAND: (subjects.COMMANDS, "tasks.cmd.*.*.execute"),
    Sight.ENDED: (subjects.EVENTS, "tasks.evt.*.*.done"),
}
"""Where each is stored; the second wildcard is the task."""


class Sightings:
    """Every time each thing was seen, by task; the headers are read when somebody asks."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._stored: dict[Sight, dict[int, list[str]]] = {sight: defaultdict(list) for sight in Sight}

    async def start(self) -> None:
        """Watch the streams, which are there."""
        await self._bus.nc.subscribe("seen.>", cb=self._see)
        for sight, (stream, subject) in STREAMS.items():
            await self.republish(stream, subject, sight, wildcard=2)

    async def republish(self, stream: str, source: str, sight: Sight, *, wildcard: int = 1) -> None:
        """Have a stream tell what it stores on ``source``; ``wildcard``: which part of the subject is the task."""
        # By hand, so that nothing else changes about the stream, also what nats-py does not know of.
        info = json.loads((await self._bus.nc.request(f"$JS.API.STREAM.INFO.{stream}", timeout=5)).data)
        destination = f"seen.{sight}.{{{{wildcard({wildcard})}}}}"
        config = info["config"] | {"republish": {"src": source, "dest": destination, "headers_only": True}}
        answer = await self._bus.nc.request(f"$JS.API.STREAM.UPDATE.{stream}", json.dumps(config).encode(), timeout=5)
        if error := json.loads(answer.data).get("error"):
            raise ValueError(f"{stream}: {error}")

    def times(self, sight: Sight, task: int) -> list[datetime]:
        """When it was stored, oldest first; once, as a rule."""
        return [datetime.fromisoformat(stored) for stored in self._stored[sight].get(task, ())]

    def count(self, sight: Sight, tasks: Collection[int]) -> int:
        """How many of these tasks it was seen of."""
        return sum(task in self._stored[sight] for task in tasks)

    async def wait(self, sight: Sight, tasks: Collection[int], *, seconds: float) -> bool:
        """Wait until it was seen of all these tasks; False: it was not within so many seconds."""
        deadline = time.monotonic() + seconds
        while self.count(sight, tasks) < len(tasks):
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.2)
        return True

    async def _see(self, message: Msg) -> None:
        _, sight, task = message.subject.split(".")
        self._stored[Sight(sight)][int(task)].append((message.headers or {})["Nats-Time-Stamp"])
