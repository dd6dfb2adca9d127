"""The other end of the floor: answers every request at once with a finished execute answer."""

from __future__ import annotations

import asyncio
import os

import nats
import uvloop
from nats.aio.msg import Msg

SUBJECT = "floor"
"""Requests come in on ``floor.<task>``: no stream keeps them."""
ANSWER = (
    b'{"code":"DONE","last_run_date":"2026-05-26T14:35:00Z","last_modified":"2026-05-26T14:35:45Z",'
    b'"created_date":"2026-05-26T11:59:00Z"}'
)
"""The four documented fields, as long as the real ones."""


async def respond(url: str) -> None:
    """Answer until the process is killed."""
    nc = await nats.connect(url)

    async def answer(request: Msg) -> None:
        await request.respond(ANSWER)

    await nc.subscribe(f"{SUBJECT}.*", cb=answer)
    await asyncio.Event().wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(respond(os.environ["RUNWIRE_NATS_URL"]))
