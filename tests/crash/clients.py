"""Many clients of the bus in one process: ``python -m tests.crash.clients URL ID SECRET NUMBER``.

Says ``connected``, ``gone`` and ``back`` when that is true of all of them. In a process of its own, as nats-py leaks
what it tried while the broker was away.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

import nats


async def main(url: str, user: str, secret: str, number: int) -> None:
    clients = await asyncio.gather(
        *(
            nats.connect(
                url, user=user, password=secret, inbox_prefix=f"_INBOX_{user}",
                max_reconnect_attempts=-1, reconnect_time_wait=0.2, connect_timeout=10, error_cb=say_nothing,
            )
            for _ in range(number)
        )
    )  # fmt: skip
    print("connected", flush=True)
    await until(lambda: not any(client.is_connected for client in clients))
    print("gone", flush=True)
    await until(lambda: all(client.is_connected for client in clients))
    print("back", flush=True)


async def say_nothing(_error: Exception) -> None:
    """It is refused while the broker is away."""


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4], int(sys.argv[4])))
