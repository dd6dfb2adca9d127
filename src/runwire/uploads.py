"""A result file on its way into the object store, chunk by chunk, as its content comes.

Nothing of it can be seen before all of it is there: the description that makes it visible is written last. Its chunks
have a place that run and attempt name, and each is written on top of the one before, so that

* a chunk whose storing was not confirmed is sent again and stored once: a broker that is away is waited for;
* what an attempt has left behind, that was killed, is removed by the next one;
* an attempt that has been taken for dead never replaces the file of a later one.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import secrets
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from nats.js.api import ObjectInfo, ObjectMetaOptions
from nats.js.errors import APIError, NotFoundError
from nats.js.errors import Error as JetStreamError

from runwire import failpoints
from runwire.artifacts import STREAM, File
from runwire.domain.errors import RunwireError
from runwire.failpoints import Point
from runwire.messaging import subjects
from runwire.messaging.broker import UNAVAILABLE, Bus
from runwire.messaging.events import STREAM_FULL, WRONG_LAST_SEQUENCE

CHUNKS, DESCRIPTION = f"$O.{subjects.ARTIFACTS_BUCKET}.C.", f"$O.{subjects.ARTIFACTS_BUCKET}.M."
"""What the subjects of chunks and descriptions begin with (ADR-20)."""
CHUNK = 128 * 1024
"""Bytes of every chunk but the last, as other clients of object stores have it."""
NEVER = datetime.min.replace(tzinfo=UTC)
PAUSE = 0.2
"""Seconds until a broker that is away is asked again."""
GIVE_UP = 0.4
"""Seconds each step may take of taking back what was stored: somebody waits for the end of the run."""


class StoreFull(RunwireError):
    """There is no room for the file."""

    code = "store_full"


class Superseded(RunwireError):
    """A later attempt of the run has stored its file."""

    code = "superseded"


@dataclass(frozen=True)
class _Description:
    """What a file's description says of where its chunks are, and since when; by default there is none."""

    sequence: int = 0
    place: str = ""
    attempt: int = 0
    """0: it is of none, it was stored another way."""
    when: datetime = NEVER

    @classmethod
    def of(cls, sequence: int, told: dict[str, str]) -> Self:
        """Made of the message with this sequence."""
        place, when = told.get("nuid", ""), told.get("mtime", "")
        attempt = place.split(".")[-2] if "." in place else "0"
        return cls(sequence, place, int(attempt), datetime.fromisoformat(when))


class Upload:
    """A file that is being stored. To be used with ``async with``: what is not finished at its end is taken back."""

    def __init__(self, bus: Bus, file: File, attempt: int) -> None:
        """Nothing is stored yet."""
        self._bus = bus
        self._file = file
        self._attempt = attempt
        self._place = f"{_places(file, attempt)}.{secrets.token_hex(8)}"
        self._began = datetime.now(UTC)
        self._description = DESCRIPTION + base64.urlsafe_b64encode(file.object_name.encode()).decode()
        self._buffer = bytearray()
        self._digest = hashlib.sha256()
        self._size = 0
        self._count = 0
        self._last = 0
        """Sequence of the last chunk."""
        self._sending: asyncio.Task[int] | None = None
        self._is_described = False
        """Whether the file may be visible."""
        self._finished = False

    async def __aenter__(self) -> Self:
        """Remove what earlier attempts of the run have left, if the broker is there."""
        with suppress(*UNAVAILABLE):
            for attempt in range(1, self._attempt):
                await self._purge(f"{CHUNKS}{_places(self._file, attempt)}.*")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._finished:
            await self._discard()

    async def write(self, data: bytes) -> None:
        """Add to the file; at most a chunk is kept in memory. Raises StoreFull."""
        self._buffer += data
        while len(self._buffer) >= CHUNK:
            chunk = bytes(self._buffer[:CHUNK])
            del self._buffer[:CHUNK]
            await self._put(chunk)

    async def finish(self) -> int:
        """Make the file visible, as a whole; returns its size in bytes. Raises StoreFull or Superseded."""
        if self._buffer:
            await self._put(bytes(self._buffer))
        failpoints.reach(Point.BEFORE_FILE)
        while not self._finished:
            try:
                there = await self._described()
                if there.place != self._place:  # else it was an earlier try of ours, whose acknowledgement was lost
                    if there.attempt > self._attempt and there.when > self._began:
                        raise Superseded("a later attempt has stored its file")
                    self._is_described = True
                    await self._publish(self._description, self._told(), expected=there.sequence)
                    await self._forget(there.place)
                self._finished = True
            except (*UNAVAILABLE, APIError) as error:
                if not _is_overtaken(error):
                    await asyncio.sleep(PAUSE)
        return self._size

    async def _put(self, chunk: bytes) -> None:
        """Store the next chunk. One that is on its way when the upload is broken off is known to :meth:`_discard`."""
        self._sending = asyncio.create_task(self._put_surely(chunk))
        self._last = await asyncio.shield(self._sending)
        self._sending = None
        failpoints.reach(Point.CHUNK_STORED)
        self._digest.update(chunk)
        self._size += len(chunk)
        self._count += 1

    async def _put_surely(self, chunk: bytes) -> int:
        """The sequence it has got."""
        while True:
            try:
                return await self._publish(CHUNKS + self._place, chunk, expected=self._last)
            except (*UNAVAILABLE, APIError) as error:
                if _is_overtaken(error):
                    return await self._overtaken_by()
                await asyncio.sleep(PAUSE)

    async def _overtaken_by(self) -> int:
        """The sequence of the chunk that is there already: an earlier try of ours, as nobody else writes here."""
        while True:
            try:
                return (await self._bus.js.get_msg(STREAM, subject=CHUNKS + self._place)).seq or 0
            except NotFoundError:
                raise Superseded("a later attempt has removed what was stored") from None
            except UNAVAILABLE:
                await asyncio.sleep(PAUSE)

    async def _publish(self, subject: str, data: bytes, *, expected: int) -> int:
        headers = {subjects.EXPECTED_SEQUENCE: str(expected)}
        if subject == self._description:
            headers[subjects.ROLLUP] = subjects.ROLLUP_OF_SUBJECT
        return (await self._bus.js.publish(subject, data, headers=headers)).seq

    async def _described(self) -> _Description:
        """What makes a file of this name visible at present."""
        try:
            message = await self._bus.js.get_msg(STREAM, subject=self._description)
        except NotFoundError:
            return _Description()
        return _Description.of(message.seq or 0, json.loads(message.data or b"{}"))

    async def _forget(self, place: str) -> None:
        """Remove the chunks of what was there before, if the broker is there."""
        if place:
            with suppress(*UNAVAILABLE, JetStreamError):
                await self._purge(CHUNKS + place)

    def _told(self) -> bytes:
        info = ObjectInfo(
            name=self._file.object_name,
            bucket=subjects.ARTIFACTS_BUCKET,
            nuid=self._place,
            size=self._size,
            chunks=self._count,
            digest=f"SHA-256={base64.urlsafe_b64encode(self._digest.digest()).decode()}",
            mtime=datetime.now(UTC).isoformat(),
            options=ObjectMetaOptions(max_chunk_size=CHUNK),
        )
        return json.dumps(info.as_dict()).encode()

    async def _discard(self) -> None:
        """Take back what was stored, as far as the broker is there; the rest goes when its time is over."""
        if self._sending is not None:
            await asyncio.wait([self._sending], timeout=GIVE_UP)
            self._sending.cancel()
            await asyncio.gather(self._sending, return_exceptions=True)
        with suppress(*UNAVAILABLE, JetStreamError):
            async with asyncio.timeout(GIVE_UP):
                await self._purge(CHUNKS + self._place)
                if self._is_described and (await self._described()).place == self._place:
                    await self._purge(self._description)

    async def _purge(self, subject: str) -> None:
        await self._bus.js.purge_stream(STREAM, subject=subject)


def _places(file: File, attempt: int) -> str:
    """What the places begin with where an attempt keeps its chunks: run ids are unique within a task only."""
    return f"{file.chain}.{file.task}.{file.run}.{attempt}"


def _is_overtaken(error: Exception) -> bool:
    """Whether something has been stored there meanwhile; False: try again. Raises StoreFull, or what is hopeless."""
    if isinstance(error, APIError) and error.err_code in STREAM_FULL:  # which nats-py takes for a broker that is away
        raise StoreFull(str(error.description)) from None
    is_overtaken = isinstance(error, APIError) and error.err_code in WRONG_LAST_SEQUENCE
    if not is_overtaken and not isinstance(error, UNAVAILABLE):
        raise error
    return is_overtaken
