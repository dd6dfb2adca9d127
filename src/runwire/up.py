"""``runwire up``: broker, adapter and worker on one machine, with nothing to set up."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress

import runwire
from runwire import embedded
from runwire.domain.sample import SAMPLE_ID
from runwire.embedded import Embedded
from runwire.process import EXIT_SETUP
from runwire.settings import Settings
from runwire.supervisor import Child, Supervisor

log = logging.getLogger("runwire.up")

PATIENCE = 60
"""Seconds after which a start that does not come to an end is spoken of."""
BROKER_PATIENCE = 10
"""Seconds the broker may take to stop."""
HEALTH_INTERVAL = 2
"""Seconds between two looks at whether the broker can write."""
ROOM = 32 << 20
"""Bytes that have to be free before a broker whose disk was full is started anew."""
RESTART_PAUSE = 20
"""Seconds more until it is started anew once again."""


def run_up(settings: Settings) -> None:
    """Run everything in the foreground until Ctrl-C or SIGTERM. Raises SetupError."""
    began = time.monotonic()
    lock = embedded.lock_data_dir(settings)
    try:
        broker = None if settings.nats_url else embedded.prepare(settings)
        asyncio.run(_run(settings, broker, began))
    finally:
        embedded.running_url_path(settings).unlink(missing_ok=True)
        lock.close()


async def _run(settings: Settings, broker: Embedded | None, began: float) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    supervisor = Supervisor()
    try:
        children = _children(settings, broker)
        if broker is not None:
            embedded.write_private(embedded.running_url_path(settings), broker.url + "\n")
        for child in children:
            supervisor.start(child)
        tasks = [asyncio.create_task(_announce(settings, broker, children, began))]
        if broker is not None:
            tasks.append(asyncio.create_task(_keep_writing(settings, broker, supervisor)))
        ending = [asyncio.create_task(wait()) for wait in (stop.wait, supervisor.failed.wait)]
        await asyncio.wait(ending, return_when=asyncio.FIRST_COMPLETED)
        for task in (*tasks, *ending):
            task.cancel()
        if supervisor.failed.is_set():
            sys.exit(EXIT_SETUP)  # the child has said why; the others are not worth a goodbye
        print("\nstopping ...", file=sys.stderr, flush=True)
        await supervisor.stop(["adapter", "worker"], patience=settings.grace_seconds + 8)
        await supervisor.stop(["nats-server"], patience=BROKER_PATIENCE)
    finally:
        await supervisor.close()


async def _keep_writing(settings: Settings, broker: Embedded, supervisor: Supervisor) -> None:
    """Start the broker anew when its disk has refused a write and there is room again: it would not recover."""
    import nats  # noqa: PLC0415 - takes a while; the children are started first

    from runwire.messaging import health  # noqa: PLC0415 - as above

    client = await nats.connect(broker.url, max_reconnect_attempts=-1, reconnect_time_wait=1, error_cb=_ignore)
    try:
        while True:
            await asyncio.sleep(HEALTH_INTERVAL)
            wrong = await health.write_error(client)
            if wrong is None:
                continue
            if shutil.disk_usage(settings.data_dir / "nats").free < ROOM:
                log.error("the broker cannot write to its disk: %s", wrong, extra={"action": "disk_full"})
                continue
            log.warning("the broker could not write to its disk (%s), starting it anew", wrong,
                        extra={"action": "broker_restarted"})  # fmt: skip
            supervisor.restart("nats-server")
            await asyncio.sleep(RESTART_PAUSE)
    finally:
        await client.close()


async def _ignore(_error: Exception) -> None:
    """A broker that is away comes back: the supervisor sees to it."""


def _children(settings: Settings, broker: Embedded | None) -> list[Child]:
    """The processes to run; adapter and worker are the same commands a user would start."""
    env = {
        **os.environ,
        **_as_environment(settings),
        "RUNWIRE_NATS_URL": broker.url if broker else str(settings.nats_url),
    }
    python = [sys.executable, "-m", "runwire"]
    own = [Child(name, [*python, name], env) for name in ("adapter", "worker")]
    if broker is not None:
        own[0].env = {**env, "RUNWIRE_BUS_KEY": broker.bus_key}
    if broker is None:
        return own
    return [Child("nats-server", broker.argv, broker.env, notifies=False), *own]


def _as_environment(settings: Settings) -> dict[str, str]:
    """The settings that this process was given, as its children read them."""
    plain = settings.model_dump(
        mode="json", exclude={"bootstrap_token", "token", "nats_url", "bus_key"}, exclude_none=True
    )
    return {f"RUNWIRE_{name.upper()}": str(value) for name, value in plain.items()}


async def _announce(settings: Settings, broker: Embedded | None, children: list[Child], began: float) -> None:
    """Say that everything runs and how to try it; while it does not, say what is waited for."""
    while True:
        try:
            async with asyncio.timeout(PATIENCE):
                await asyncio.gather(*(child.ready.wait() for child in children))
            break
        except TimeoutError:
            waiting = ", ".join(child.name for child in children if not child.ready.is_set())
            print(f"still waiting for: {waiting}", file=sys.stderr, flush=True)
    token = await asyncio.to_thread(_working_token, settings)
    print(_banner(settings, broker, token, time.monotonic() - began), flush=True)


def _working_token(settings: Settings) -> str | None:
    """The first token, if its secret is still here and it still works."""
    candidates = [settings.bootstrap_token.get_secret_value()] if settings.bootstrap_token else []
    with suppress(OSError):
        candidates.append(settings.token_path.read_text().strip())
    return next((token for token in candidates if _get(settings, "/tasks?limit=1", token) is not None), None)


def _get(settings: Settings, path: str, token: str) -> object | None:
    """What the adapter answers; None: an error."""
    request = urllib.request.Request(  # noqa: S310 - http to ourselves
        f"{settings.local_url}{path}", headers={"Authorization": f"Bearer {token}"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=5) as answer:
            return json.load(answer)  # type: ignore[no-any-return]
    except (urllib.error.URLError, ValueError, OSError):
        return None


def _banner(settings: Settings, broker: Embedded | None, token: str | None, seconds: float) -> str:
    url = settings.http_url
    lines = [
        "",
        f"runwire {runwire.__version__} is ready ({seconds:.1f} s)",
        "",
        f"  URL    {url}        API: {url}/docs",
        f"  token  {token or 'ID:SECRET (the first one is not kept here; use one of yours)'}",
    ]
    if broker is not None:
        lines.append(f"  bus    {broker.bus_url}   user and password: the token's ID and SECRET")
    lines += [
        f"  data   {settings.data_dir.resolve()}",
        "",
        "Run the sample task:",
        "",
        f"  curl -X POST '{url}/tasks/{SAMPLE_ID}/execute' -H 'Authorization: Bearer {token or 'ID:SECRET'}'",
        "",
        "Ctrl-C stops everything.",
        "",
    ]
    return "\n".join(lines)
