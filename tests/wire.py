"""A wire between a client and an adapter that breaks when a test wants it to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from tests.support import free_port


class Wire:
    """Passes bytes on, both ways; whoever connects while the adapter is away is cut off at once."""

    def __init__(self, to: int) -> None:
        self.port = free_port()
        self.to = to
        self.connections = 0
        """Made so far."""
        self.swallows = False
        """Whether answers get lost: the connection breaks where one would come back."""
        self.breaks_after: int | None = None
        """Bytes of answers after which a connection breaks."""
        self._writers: set[asyncio.StreamWriter] = set()

    def cut(self) -> None:
        """Break every connection."""
        for writer in self._writers:
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.to)
        except OSError:
            writer.transport.abort()
            return
        ends = {writer, back}
        self._writers |= ends
        self.connections += 1
        try:
            await asyncio.wait(
                [
                    asyncio.create_task(self._pass_on(reader, back)),
                    asyncio.create_task(self._pass_on(there, writer, answers=True)),
                ],
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            for end in ends:
                end.transport.abort()
            self._writers -= ends

    async def _pass_on(self, source: asyncio.StreamReader, to: asyncio.StreamWriter, *, answers: bool = False) -> None:
        passed = 0
        with suppress(OSError):
            while piece := await source.read(16_384):
                if answers and self.swallows:
                    return
                is_last = answers and self.breaks_after is not None and passed + len(piece) >= self.breaks_after
                if is_last:
                    piece = piece[: max(0, self.breaks_after - passed)]
                to.write(piece)
                await to.drain()
                passed += len(piece)
                if is_last:
                    to.close()  # what was written still arrives
                    await to.wait_closed()
                    return


@asynccontextmanager
async def wire(to: int) -> AsyncIterator[Wire]:
    """A wire to this port."""
    there = Wire(to)
    server = await asyncio.start_server(there.serve, "127.0.0.1", there.port)
    try:
        yield there
    finally:
        server.close()
        there.cut()
