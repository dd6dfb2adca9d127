"""Result files in JetStream's object store, and the signed links to them.

A file becomes visible only when it is complete. Its name holds the run, so a run never overwrites another's;
a second attempt of the same run replaces what the first one left.

A file is read chunk by chunk with direct gets: the adapter asks for the next chunk when the caller has taken
the last one, and whichever copy of the stream is near answers. Nothing is kept at the broker for a reader, so
there is nothing to clean up when one goes away.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import astuple, dataclass
from datetime import UTC, datetime, timedelta
from io import BufferedIOBase

from itsdangerous import BadData, URLSafeTimedSerializer
from itsdangerous.encoding import base64_decode, base64_encode
from nats.js.errors import BadObjectMetaError, ObjectNotFoundError
from nats.js.object_store import ObjectStore

from runwire.domain.errors import LinkExpired, LinkInvalid, RunwireError
from runwire.messaging import site, subjects
from runwire.messaging.broker import UNAVAILABLE, Bus

STREAM = f"OBJ_{subjects.ARTIFACTS_BUCKET}"
"""The stream behind the bucket (ADR-20)."""
CHUNK_PATIENCE = 10.0
"""Seconds a chunk may take; then the broker counts as away."""
GET_TIMEOUT = 2.0
"""Seconds one request for a chunk may take before it is repeated."""
MISSING_PATIENCE = 1.0
"""Seconds a chunk may be missing: the copy that was asked may be a little behind."""
LINK_SECONDS = 3600
"""How long a link is good."""
CLOCK_SKEW = 60
"""Seconds the clocks of two adapters may differ: a link is not refused for being signed in the future."""
KEYS_FRESH = 3600.0
"""Seconds after which an adapter looks whether the signing keys are due for a change."""
KEYS_AGAIN = 1.0
"""Seconds between two looks for newer keys because a signature did not fit any."""
SALT = "runwire.download"


class Incomplete(RunwireError):
    """The file is not, or no longer, what its description says; the message says why."""

    code = "incomplete_file"


@dataclass(frozen=True)
class File:
    """Which file: the chain and the task it belongs to, the run that made it, its name."""

    chain: int
    task: int
    run: str
    name: str

    @property
    def object_name(self) -> str:
        """Where it is kept."""
        return object_name(self.chain, self.task, self.run, self.name)


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A file that is there, all of it."""

    subject: str
    """Where its chunks are."""
    size: int
    chunks: int
    chunk_size: int
    """Bytes of every chunk but the last."""
    digest: str
    """SHA-256, base64url."""


def object_name(chain: int, task: int, run: str, file: str) -> str:
    """Where the file of a run is kept."""
    return f"{chain}/{task}/{run}/{file}"


async def put(bus: Bus, name: str, content: BufferedIOBase) -> int:
    """Store a file, streamed from ``content`` in chunks of 128 KiB; returns its size in bytes."""
    store = await bus.js.object_store(subjects.ARTIFACTS_BUCKET)
    info = await store.put(name, content)
    return info.size or 0


async def find(bus: Bus, name: str) -> Artifact | None:
    """The file; None: there is none (or no more, or only a part of it is left). Raises one of UNAVAILABLE."""
    try:
        info = await ObjectStore(subjects.ARTIFACTS_BUCKET, STREAM, bus.js).get_info(name)
    except (ObjectNotFoundError, BadObjectMetaError):
        return None
    if not info.nuid or info.options is None or not info.options.max_chunk_size or not info.digest:
        return None
    artifact = Artifact(
        subject=f"$O.{subjects.ARTIFACTS_BUCKET}.C.{info.nuid}",
        size=info.size or 0,
        chunks=info.chunks or 0,
        chunk_size=info.options.max_chunk_size,
        digest=info.digest.partition("=")[2],
    )
    if artifact.chunks != -(-artifact.size // artifact.chunk_size):
        return None
    state = (await bus.js.stream_info(STREAM, subjects_filter=artifact.subject)).state
    return artifact if (state.subjects or {}).get(artifact.subject, 0) == artifact.chunks else None


async def get(bus: Bus, name: str) -> bytes | None:
    """The whole content of a small file; None: there is none (or no more)."""
    artifact = await find(bus, name)
    if artifact is None:
        return None
    return b"".join([piece async for piece in read(bus, artifact)])


async def read(bus: Bus, artifact: Artifact, start: int = 0, stop: int | None = None) -> AsyncGenerator[bytes, None]:
    """The bytes ``start`` to ``stop`` (exclusive; None: the end), a chunk at a time, one in memory.

    Raises Incomplete when the file turns out to be damaged (a whole read also checks the digest), or TimeoutError
    when a chunk does not come within CHUNK_PATIENCE.
    """
    stop = artifact.size if stop is None else min(stop, artifact.size)
    if start >= stop:
        return
    whole = hashlib.sha256() if (start, stop) == (0, artifact.size) else None
    chunk = await _seek(bus, artifact, start // artifact.chunk_size)
    while True:
        if whole is not None:
            whole.update(chunk.data)
        offset = chunk.index * artifact.chunk_size
        last = offset + len(chunk.data) >= stop
        if last and whole is not None and whole.digest() != base64.urlsafe_b64decode(artifact.digest):
            raise Incomplete("the content does not have the digest it was stored with")
        yield chunk.data[max(0, start - offset) : stop - offset]
        if last:
            return
        following = await _chunk(bus, artifact, chunk.sequence + 1)
        if following.index != chunk.index + 1:
            raise Incomplete(f"chunk {chunk.index + 1} of {artifact.chunks} is missing")
        chunk = following


@dataclass(frozen=True)
class _Chunk:
    index: int
    sequence: int
    """Its place in the stream, where files that are written at the same time mix."""
    data: bytes


async def _seek(bus: Bus, artifact: Artifact, index: int) -> _Chunk:
    """The chunk with this index.

    As a rule the chunks of a file follow each other and it is found at the second try. When files were written
    at the same time their chunks are mixed; then it is looked for between the first and the last, by proportion
    and by halves in turn. Each try brings one chunk along, of which there are at most a few more than twice the
    logarithm of the stretch; none of them is passed on.
    """
    low = await _first(bus, artifact)
    if index == 0:
        return low
    found = await _chunk(bus, artifact, low.sequence + index)
    if found.index == index:
        return found
    low = found  # never beyond: there are at most as many chunks as places
    end = await _chunk(bus, artifact, None)
    above, above_index = end.sequence, end.index
    if index == above_index:
        return end
    by_proportion = True
    while above - low.sequence > 1:
        share = (index - low.index) / (above_index - low.index) if by_proportion else 0.5
        by_proportion = not by_proportion
        guess = min(max(low.sequence + 1, low.sequence + int((above - low.sequence) * share)), above - 1)
        found = await _chunk(bus, artifact, guess)
        if found.index == index:
            return found
        if found.index < index:
            low = found
        else:
            above, above_index = guess, found.index
    raise Incomplete(f"chunk {index} of {artifact.chunks} is missing")


async def _first(bus: Bus, artifact: Artifact) -> _Chunk:
    """The first chunk. A copy that lags behind the stream's leader knows of fewer: it is given time to catch up."""
    deadline = time.monotonic() + MISSING_PATIENCE
    while (first := await _chunk(bus, artifact, 1)).index != 0:
        if time.monotonic() > deadline:
            raise Incomplete("its first chunk is missing")
        await asyncio.sleep(0.05)
    return first


async def _chunk(bus: Bus, artifact: Artifact, sequence: int | None) -> _Chunk:
    """The file's first chunk at or after this place of the stream; None: its last one.

    Waits for a broker that is away. Raises TimeoutError after CHUNK_PATIENCE, Incomplete when there is none.
    """
    wanted: dict[str, object] = {"last_by_subj": artifact.subject}
    if sequence is not None:
        # Only for a batch the answer says how many follow, which tells the index (ADR-31).
        wanted = {"next_by_subj": artifact.subject, "seq": sequence, "batch": 1}
    body = json.dumps(wanted).encode()
    began = time.monotonic()
    async with asyncio.timeout(CHUNK_PATIENCE):
        while True:
            try:
                message = await bus.nc.request(f"$JS.API.DIRECT.GET.{STREAM}", body, timeout=GET_TIMEOUT)
            except UNAVAILABLE:
                await asyncio.sleep(0.1)
                continue
            headers = message.headers or {}
            if "Status" not in headers:
                break
            if time.monotonic() - began > MISSING_PATIENCE:
                raise Incomplete("a chunk is missing")
            await asyncio.sleep(0.05)
    following = int(headers.get("Nats-Num-Pending", "0"))
    index = artifact.chunks - 1 - following
    expected = artifact.chunk_size if following else artifact.size - index * artifact.chunk_size
    if index < 0 or len(message.data) != expected:
        raise Incomplete(f"a chunk has {len(message.data)} bytes instead of {expected}")
    return _Chunk(index, int(headers["Nats-Sequence"]), message.data)


class Links:
    """Signed links: what they name is what was signed, and nothing a caller could type."""

    def __init__(self, bus: Bus, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """Signs with the keys that all adapters share; ``clock`` tells when a link has expired."""
        self._bus = bus
        self._clock = clock
        self._keys: list[site.SigningKey] = []
        self._looked = 0.0
        """When the keys were last read, on the monotonic clock."""
        self._doubted = 0.0
        """When they were last read because a signature did not fit any."""
        self._looking = asyncio.Lock()

    async def sign(self, file: File) -> str:
        """The text that stands for the file, good for LINK_SECONDS on every adapter. Raises one of UNAVAILABLE."""
        if not self._keys or time.monotonic() - self._looked > KEYS_FRESH:
            await self._look()
        return str(self._serializer().dumps(list(astuple(file))))

    async def open(self, text: str) -> File:
        """The file that was signed. Raises LinkInvalid, LinkExpired, or one of UNAVAILABLE."""
        if not self._keys:
            await self._look()
        found = self._verify(text)
        if found is None:
            await self._look_again()
            found = self._verify(text)
        if found is None:
            raise LinkInvalid
        file, signed = found
        age = self._clock() - signed
        if not timedelta(seconds=-CLOCK_SKEW) <= age <= timedelta(seconds=LINK_SECONDS):
            raise LinkExpired
        return file

    async def _look_again(self) -> None:
        """Another adapter may have signed with a newer key. Who comes while it is looked for waits for the answer."""
        async with self._looking:
            if time.monotonic() - self._doubted > KEYS_AGAIN:
                try:
                    await self._look()
                finally:
                    self._doubted = time.monotonic()

    async def _look(self) -> None:
        self._keys = await site.signing_keys(self._bus, self._clock())
        self._looked = time.monotonic()

    def _verify(self, text: str) -> tuple[File, datetime] | None:
        if not _is_canonical(text):
            return None
        try:
            (chain, task, run, name), signed = self._serializer().loads(text, return_timestamp=True)
        except BadData:
            return None
        return File(chain, task, run, name), signed

    def _serializer(self) -> URLSafeTimedSerializer:
        return URLSafeTimedSerializer(
            [key.secret for key in reversed(self._keys)],  # the last one signs
            salt=SALT,
            signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256},
        )


def _is_canonical(text: str) -> bool:
    """Whether the signature is written in the one way it is made: base64 decoders overlook stray characters."""
    signature = text.rpartition(".")[2]
    try:
        return text.isascii() and base64_encode(base64_decode(signature)).decode() == signature
    except BadData:
        return False
