"""A TCP proxy that stands between a process and the broker, and can be told to misbehave."""

from __future__ import annotations

import asyncio
from contextlib import suppress

PIECE = 64 * 1024
"""Bytes passed on at once."""
DRIP, DRIPS_PER_SECOND = 256, 50
"""Bytes passed on at once, and how often, in each direction of a connection that is throttled."""


class Proxy:
    """Passes on what comes, until it is told to cut or to stall."""

    def __init__(self, target: int) -> None:
        """``target``: the port on this machine that connections are passed on to."""
        self.port = 0
        self._target = target
        self._server: asyncio.Server | None = None
        self._open = asyncio.Event()
        self._open.set()
        self._audible = asyncio.Event()
        self._audible.set()
        self._is_slow = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None] | None] = set()

    async def start(self) -> None:
        """Listen on :attr:`port`, a free one."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Listen no longer, and end every connection."""
        if self._server is not None:
            self._server.close()
        self.heal()
        self.cut()
        while self._serving:
            await asyncio.sleep(0.01)

    def cut(self) -> None:
        """End every connection, without a word; new ones are passed on."""
        for writer in list(self._writers):
            writer.transport.abort()

    def stall(self) -> None:
        """From now on nothing passes, in either direction, and nobody is told."""
        self._open.clear()

    def mute(self) -> None:
        """From now on nothing comes back from the target; what is said to it passes."""
        self._audible.clear()

    def throttle(self) -> None:
        """From now on little passes."""
        self._is_slow = True

    def heal(self) -> None:
        """Pass on as ever, what has piled up first."""
        self._is_slow = False
        self._open.set()
        self._audible.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving = asyncio.current_task()
        self._serving.add(serving)
        try:
            await self._pass_on(reader, writer)
        finally:
            self._serving.discard(serving)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            self._writers.discard(writer)
            writer.transport.abort()
            return
        self._writers.add(back)
        pumps = [
            asyncio.create_task(self._pump(reader, back)),
            asyncio.create_task(self._pump(there, writer, self._audible)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            for one in (writer, back):
                self._writers.discard(one)
                one.transport.abort()

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, audible: asyncio.Event | None = None
    ) -> None:
        with suppress(OSError):
            while piece := await source.read(DRIP if self._is_slow else PIECE):
                await self._open.wait()
                if audible is not None:
                    await audible.wait()
                if self._is_slow:
                    await asyncio.sleep(1 / DRIPS_PER_SECOND)
                sink.write(piece)
                await sink.drain()
