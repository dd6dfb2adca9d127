"""Result files in JetStream's object store: written by workers, read through any adapter.

A file becomes visible only when it is complete. Its name holds the run, so a run never overwrites another's;
a second attempt of the same run replaces what the first one left.
"""

from __future__ import annotations

from io import BufferedIOBase

from nats.js.errors import ObjectNotFoundError

from runwire.messaging import subjects
from runwire.messaging.broker import Bus


def object_name(chain: int, task: int, run: str, file: str) -> str:
    """Where the file of a run is kept."""
    return f"{chain}/{task}/{run}/{file}"


async def put(bus: Bus, name: str, content: BufferedIOBase) -> int:
    """Store a file, streamed from ``content`` in chunks of 128 KiB; returns its size in bytes."""
    store = await bus.js.object_store(subjects.ARTIFACTS_BUCKET)
    info = await store.put(name, content)
    return info.size or 0


async def get(bus: Bus, name: str) -> bytes | None:
    """The whole content of a file; None: there is none (or no more)."""
    store = await bus.js.object_store(subjects.ARTIFACTS_BUCKET)
    try:
        result = await store.get(name)
    except ObjectNotFoundError:
        return None
    return result.data
