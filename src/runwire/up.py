"""``runwire up``: broker (one server or several), adapter and worker on one machine, with nothing to set up."""

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
from runwire.domain.errors import SetupError
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
RESTART_PATIENCE = 5.0
"""Seconds it is given to end by itself: with a store that it cannot write it may hang."""
RESTART_PAUSE = 20
"""Seconds more until it is started anew once again."""


def run_up(settings: Settings, *, cluster: int | None = None) -> None:
    """Run everything in the foreground until Ctrl-C or SIGTERM. Raises SetupError.

    ``cluster``: of how many servers the broker is to be; every stream then has a copy on each, if nothing else is set.
    """
    began = time.monotonic()
    lock = embedded.lock_data_dir(settings)
    try:
        brokers = _brokers(settings, cluster)
        if cluster and "nats_replicas" not in settings.model_fields_set:
            settings = settings.model_copy(update={"nats_replicas": cluster})
        asyncio.run(_run(settings, brokers, began))
    finally:
        embedded.running_url_path(settings).unlink(missing_ok=True)
        lock.close()


def _brokers(settings: Settings, cluster: int | None) -> list[Embedded]:
    """The servers to start; none when there is a broker already."""
    if settings.nats_url is None:
        return embedded.prepare_cluster(settings, cluster) if cluster else [embedded.prepare(settings)]
    if cluster:
        msg = "--cluster starts a broker, and RUNWIRE_NATS_URL names one that is there: it is one or the other"
        raise SetupError(msg)
    return []


async def _run(settings: Settings, brokers: list[Embedded], began: float) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    supervisor = Supervisor()
    try:
        children = _children(settings, brokers)
        if brokers:
            embedded.write_private(embedded.running_url_path(settings), _url(brokers) + "\n")
        for child in children:
            supervisor.start(child)
        tasks = [asyncio.create_task(_announce(settings, brokers, children, began))]
        if len(brokers) == 1:
            tasks.append(asyncio.create_task(_keep_writing(settings, brokers[0], supervisor)))
        ending = [asyncio.create_task(wait()) for wait in (stop.wait, supervisor.failed.wait)]
        await asyncio.wait(ending, return_when=asyncio.FIRST_COMPLETED)
        for task in (*tasks, *ending):
            task.cancel()
        if supervisor.failed.is_set():
            sys.exit(EXIT_SETUP)  # the child has said why; the others are not worth a goodbye
        print("\nstopping ...", file=sys.stderr, flush=True)
        await supervisor.stop(["adapter", "worker"], patience=settings.grace_seconds + 8)
        await supervisor.stop([broker.name for broker in brokers], patience=BROKER_PATIENCE)
    finally:
        await supervisor.close()


async def _keep_writing(settings: Settings, broker: Embedded, supervisor: Supervisor) -> None:
    """Start the broker anew when its disk has refused a write and there is room again: it would not recover.

    Of a cluster each server would have to be asked for itself; there an operator does it (docs/guarantees.md).
    """
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
            await supervisor.restart(broker.name, patience=RESTART_PATIENCE)
            await asyncio.sleep(RESTART_PAUSE)
    finally:
        await client.close()


async def _ignore(_error: Exception) -> None:
    """A broker that is away comes back: the supervisor sees to it."""


def _children(settings: Settings, brokers: list[Embedded]) -> list[Child]:
    """The processes to run; adapter and worker are the same commands a user would start."""
    env = {
        **os.environ,
        **_as_environment(settings),
        "RUNWIRE_NATS_URL": _url(brokers) if brokers else str(settings.nats_url),
    }
    python = [sys.executable, "-m", "runwire"]
    own = [Child(name, [*python, name], env) for name in ("adapter", "worker")]
    if brokers:
        own[0].env = {**env, "RUNWIRE_BUS_KEY": brokers[0].bus_key}
    return [*(Child(broker.name, broker.argv, broker.env, notifies=False) for broker in brokers), *own]


def _url(brokers: list[Embedded]) -> str:
    return ",".join(broker.url for broker in brokers)


def _as_environment(settings: Settings) -> dict[str, str]:
    """The settings that this process was given, as its children read them."""
    plain = settings.model_dump(
        mode="json", exclude={"bootstrap_token", "token", "nats_url", "bus_key"}, exclude_none=True
    )
    return {f"RUNWIRE_{name.upper()}": str(value) for name, value in plain.items()}


async def _announce(settings: Settings, brokers: list[Embedded], children: list[Child], began: float) -> None:
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
    print(_banner(settings, brokers, token, time.monotonic() - began), flush=True)


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


def _banner(settings: Settings, brokers: list[Embedded], token: str | None, seconds: float) -> str:
    url = settings.http_url
    lines = [
        "",
        f"runwire {runwire.__version__} is ready ({seconds:.1f} s)",
        "",
        f"  URL    {url}        API: {url}/docs",
        f"  token  {token or 'ID:SECRET (the first one is not kept here; use one of yours)'}",
    ]
    if brokers:
        urls = ",".join(broker.bus_url for broker in brokers)
        lines.append(f"  bus    {urls}   user and password: the token's ID and SECRET")
    lines.append(f"  data   {settings.data_dir.resolve()}")
    if len(brokers) > 1:
        lines.append(f"         {len(brokers)} brokers, {settings.nats_replicas} copies of every stream")
    lines += [
        "",
        "Run the sample task:",
        "",
        f"  curl -X POST '{url}/tasks/{SAMPLE_ID}/execute' -H 'Authorization: Bearer {token or 'ID:SECRET'}'",
        "",
        "Ctrl-C stops everything.",
        "",
    ]
    return "\n".join(lines)
