"""``runwire doctor``: is everything there, and is it well? One line a thing; changes nothing."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.api import StreamConfig, StreamInfo
from nats.js.errors import Error as JetStreamError
from nats.js.errors import NotFoundError

from runwire.domain.errors import SetupError
from runwire.embedded import with_running_broker
from runwire.messaging import accounts, callout, chains, deadletters, site, streams, subjects
from runwire.messaging.broker import UNAVAILABLE, Bus
from runwire.settings import Settings

FULL = 0.8
"""Share of a stream's size from which on it is time to act."""
BROKER_PATIENCE = 1.5
"""Seconds after which a refused login was refused because nobody answered (nats-server waits for 2)."""
ROLL_CALL_SECONDS = 0.5
"""How long workers may take to answer."""
DECISIVE = (
    "retention", "discard", "discard_new_per_subject", "max_msgs_per_subject", "allow_msg_schedules", "allow_direct",
)  # fmt: skip
"""What a stream must not differ in, or the guarantees do not hold."""


@dataclass(frozen=True)
class Finding:
    """What was looked at, and what was seen."""

    thing: str
    ok: bool
    detail: str


def run_doctor(settings: Settings) -> bool:
    """Print the findings; whether all is well."""
    return asyncio.run(_print_all(settings))


async def _print_all(settings: Settings) -> bool:
    well = True
    async for finding in _findings(settings):
        well = well and finding.ok
        print(f"{finding.thing:<20} {'OK' if finding.ok else 'FAIL':<4}  {finding.detail}", flush=True)
    return well


async def _findings(settings: Settings) -> AsyncIterator[Finding]:
    last_event: int | None = None
    try:
        bus = Bus(with_running_broker(settings), "runwire doctor")
        await bus.connect()
    except SetupError as error:
        yield Finding("broker", ok=False, detail=str(error))
    else:
        version = bus.nc.connected_server_version
        number = f"{version.major}.{version.minor}.{version.patch}"
        yield Finding("broker", ok=True, detail=f"nats-server {number} at {bus.address}")
        for config in streams.stream_configs(settings):
            info, finding = await _stream(bus, config)
            if info is not None and config.name == subjects.EVENTS:
                last_event = info.state.last_seq
            yield finding
        yield await _workers(bus)
        yield await _bus_logins(bus)
        yield await _dead_letters(bus)
        await bus.nc.close()
    yield _read_model(settings, last_event)
    yield await asyncio.to_thread(_adapter, settings)


async def _stream(bus: Bus, wanted: StreamConfig) -> tuple[StreamInfo | None, Finding]:
    thing = f"stream {wanted.name}"
    try:
        info = await bus.js.stream_info(str(wanted.name))
    except NotFoundError:
        return None, Finding(thing, ok=False, detail="is missing; an adapter or a worker creates it when it starts")
    except (*UNAVAILABLE, JetStreamError) as error:
        return None, Finding(thing, ok=False, detail=f"cannot be read: {error!r}")
    differing = [name for name in DECISIVE if _value(info.config, name) != _value(wanted, name)]
    limit = info.config.max_bytes or 0
    share = info.state.bytes / limit if limit > 0 else 0.0
    detail = f"{info.state.messages:,} messages, {info.state.bytes:,} bytes" + (
        f" ({share:.0%} full)" if limit > 0 else ""
    )
    missing = [copy.name for copy in (info.cluster and info.cluster.replicas) or [] if copy.offline or not copy.current]
    if missing:
        detail += f"; no current copy on {', '.join(map(str, missing))}"
    if differing:
        detail = f"is not configured as it has to be: {', '.join(differing)}"
    elif share >= FULL:
        detail += "; at 85 % nothing new is accepted"
    return info, Finding(thing, ok=not (differing or missing) and share < FULL, detail=detail)


def _value(config: StreamConfig, name: str) -> str:
    """A field of a configuration, comparable: not given is the broker's default."""
    value = getattr(config, name) or ""
    text = str(getattr(value, "value", value))
    return "" if text in {"limits", "old"} else text


async def _workers(bus: Bus) -> Finding:
    try:
        queue = await chains.census(bus)
    except (*UNAVAILABLE, JetStreamError):
        return Finding("workers", ok=False, detail="their stream is missing")
    answers = await _roll_call(bus)
    if not answers:
        return Finding("workers", ok=False, detail=f"none is connected, {queue.commands:,} runs queued")
    slots, used = sum(answer["slots"] for answer in answers), sum(answer["used"] for answer in answers)
    detail = f"{len(answers)} connected, {used} of {slots} slots in use, {queue.commands:,} runs queued or running"
    return Finding("workers", ok=True, detail=detail)


async def _bus_logins(bus: Bus) -> Finding:
    """Whether clients of the bus are let in: by trying it, as one that may do nothing."""
    thing = "bus logins"
    try:
        there, (given, _) = await accounts.pool(bus), await accounts.taken(bus)
        key = await site.server_key_seen(bus)
    except (*UNAVAILABLE, JetStreamError) as error:
        return Finding(thing, ok=False, detail=f"cannot be looked at: {error!r}")
    if not there:
        return Finding(
            thing, ok=True, detail="off: the broker's configuration has no accounts for chains (docs/bus.md)"
        )
    lost = sorted(set(given.values()) - there)
    if lost:
        return Finding(thing, ok=False, detail=f"accounts of chains are not in nats.conf any more: {', '.join(lost)}")
    began = time.monotonic()
    refusal = await _refusal(bus, callout.probe_secret(key or b""))
    took = time.monotonic() - began
    if refusal is not None:
        why = (
            "no adapter answers: they need RUNWIRE_BUS_KEY (docs/bus.md)"
            if took >= BROKER_PATIENCE
            else "RUNWIRE_BUS_KEY and the broker's RUNWIRE_BUS_ISSUER are no pair (docs/bus.md)"
        )
        return Finding(thing, ok=False, detail=f"{refusal}; {why}")
    free = len(there) - len(given)
    detail = f"answered in {took * 1000:.0f} ms, {len(given)} of {len(there)} accounts have a chain"
    return Finding(thing, ok=free > 0, detail=detail if free else f"{detail}; add some to nats.conf")


async def _refusal(bus: Bus, secret: str) -> str | None:
    """What the broker says to a client of the bus; None: it lets it in."""
    client = Client()
    try:
        await client.connect(
            bus.address.split(","),
            user=callout.PROBE,
            password=secret,
            allow_reconnect=False,
            connect_timeout=5,
            error_cb=_say_nothing,
        )
    except (NatsError, OSError, TimeoutError) as error:
        return str(error).removeprefix("nats: ").strip("'") or "no answer"
    finally:
        await client.close()
    return None


async def _say_nothing(_error: Exception) -> None:
    """The caller hears of it."""


async def _dead_letters(bus: Bus) -> Finding:
    thing = "dead letters"
    try:
        count = await deadletters.count_since(bus, datetime.now(UTC) - timedelta(hours=24))
    except (*UNAVAILABLE, JetStreamError):
        return Finding(thing, ok=False, detail="their stream is missing")
    return Finding(thing, ok=True, detail=f"{count:,} in the last 24 hours")


async def _roll_call(bus: Bus) -> list[dict[str, int]]:
    """What every worker that is connected and awake says of itself."""
    answers: list[dict[str, int]] = []

    async def hear(answer: Msg) -> None:
        if answer.data:  # empty: the broker's word that nobody listens
            answers.append(json.loads(answer.data))

    inbox = bus.nc.new_inbox()
    await bus.nc.subscribe(inbox, cb=hear)
    await bus.nc.publish(subjects.ROLL_CALL, reply=inbox)
    await asyncio.sleep(ROLL_CALL_SECONDS)
    return answers


def _read_model(settings: Settings, last_event: int | None) -> Finding:
    path = settings.read_model_path
    if not path.exists():
        return Finding("read model", ok=False, detail=f"{path} is not there yet; the adapter builds it when it starts")
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            (tasks,) = connection.execute("SELECT count(*) FROM task").fetchone()
            row = connection.execute("SELECT sequence FROM position WHERE stream = ?", (subjects.EVENTS,)).fetchone()
    except sqlite3.Error as error:
        return Finding("read model", ok=False, detail=f"{path}: {error}; it can be deleted, it is rebuilt")
    position = row[0] if row else 0
    behind = "" if last_event is None else f", {max(0, last_event - position):,} behind"
    return Finding("read model", ok=True, detail=f"{tasks:,} tasks, at event {position:,}{behind}")


def _adapter(settings: Settings) -> Finding:
    url = f"{settings.local_url}/readyz?verbose"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5) as answer:
            json.load(answer)
    except urllib.error.HTTPError as error:
        return Finding("adapter", ok=False, detail=f"not ready: {error.read(2000).decode(errors='replace')}")
    except (urllib.error.URLError, OSError, ValueError) as error:
        return Finding("adapter", ok=False, detail=f"does not answer at {url}: {getattr(error, 'reason', error)}")
    return Finding("adapter", ok=True, detail=f"ready at {settings.http_url}")
