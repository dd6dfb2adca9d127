"""A server of a cluster that is of no use any more: whoever has to do with it notices, and goes elsewhere."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from urllib.parse import urlparse

import pytest
from nats.aio.client import Srv
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig
from nats.js.errors import ServiceUnavailableError

from runwire import embedded
from runwire.messaging import broker as broker_module
from runwire.messaging import pull, streams, subjects
from runwire.messaging.broker import Bus
from runwire.messaging.pull import Puller, Requests
from runwire.settings import Settings
from tests.support import Broker, connected, eventually, free_port


@pytest.fixture
def without_jetstream(base_settings: Settings) -> Iterator[str]:
    """A server that takes connections and can do nothing, as one that has lost the others; its URL."""
    port = free_port()
    program = embedded.prepare(base_settings).argv[0]
    server = subprocess.Popen([program, "--addr", "127.0.0.1", "--port", str(port), "--log", os.devnull])
    yield f"nats://runwire:secret@127.0.0.1:{port}"
    server.kill()
    server.wait()


async def bus_at(settings: Settings, url: str) -> Bus:
    bus = Bus(settings.model_copy(update={"nats_url": url}), "runwire test")

    async def is_there() -> bool:
        await bus.connect()
        return True

    await eventually(is_there)
    return bus


async def test_a_server_without_a_majority_is_left_for_another(
    base_settings: Settings, without_jetstream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_module, "LOOK", 0.05)
    monkeypatch.setattr(broker_module, "USELESS", 0.3)
    other = without_jetstream.replace("127.0.0.1", "localhost")
    bus = await bus_at(base_settings, f"{without_jetstream},{other}")
    await eventually(lambda: bus.nc.stats["reconnects"] >= 2, what="other servers were tried")
    assert not bus.is_connected
    monkeypatch.setattr(broker_module, "USELESS", 60)
    await eventually(lambda: bus.nc.is_connected)
    await bus.broker.stop()


async def test_a_single_server_is_not_left(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bus._lookout is None


async def test_what_jetstream_cannot_do_at_the_moment_is_no_mistake_of_the_settings(
    base_settings: Settings, without_jetstream: str
) -> None:
    bus = await bus_at(base_settings, without_jetstream)
    with pytest.raises(ServiceUnavailableError):
        await streams.provision(bus, bus.settings)
    await bus.broker.stop()


async def test_a_server_that_the_broker_tells_of_is_shown_the_credentials(settings: Settings) -> None:
    bus = await connected(settings)
    bare = urlparse(f"nats://{bus.url.rpartition('@')[2]}")
    bus.nc._server_pool[:] = [Srv(bare)]
    await bus.nc.force_reconnect()
    await eventually(lambda: bus.nc.is_connected and bus.nc.connected_url == bare)
    await bus.broker.stop()


async def test_requests_whose_server_falls_silent_are_made_anew(
    broker: Broker, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull, "HEARTBEAT", 0.1)
    monkeypatch.setattr(pull, "SILENCE", 0.6)
    resets: list[float] = []

    async def note() -> None:
        resets.append(time.monotonic())

    consumer = await bus.js.add_consumer(subjects.EVENTS, ConsumerConfig(ack_policy=AckPolicy.NONE))
    puller = Puller(bus, on_message=lambda _message: None, on_reset=note)
    await puller.start()
    puller.consume(subjects.EVENTS, consumer.name)
    await puller.request(10)
    beats: list[Msg] = []
    await bus.nc.subscribe(f"{puller._inbox}.*", cb=_collector(beats))
    await eventually(lambda: len(beats) >= 10, what="signs of life for longer than silence lasts")
    assert not resets
    assert broker.process is not None
    broker.process.send_signal(signal.SIGSTOP)
    await eventually(lambda: resets, what="the requests were given up")
    broker.process.send_signal(signal.SIGCONT)
    await puller.stop()


async def test_requests_die_with_the_leader_of_their_consumer(bus: Bus) -> None:
    lost: list[int] = []
    requests = Requests(
        bus, subjects.COMMANDS, on_message=lambda _message: None, on_returned=lambda *_: None, on_lost=lost.append
    )
    await requests.start()
    for name in ("workers-1", "workers-2"):
        await bus.js.add_consumer(
            subjects.COMMANDS,
            ConsumerConfig(
                durable_name=name, ack_policy=AckPolicy.EXPLICIT, filter_subject=f"tasks.cmd.{name[-1]}.*.execute"
            ),
        )
    await requests.ask(2, "workers-2", 1, seconds=30)
    for name in ("workers-1", "workers-2", "workers-3"):
        await bus.nc.publish(f"$JS.EVENT.ADVISORY.CONSUMER.LEADER_ELECTED.{subjects.COMMANDS}.{name}", b"{}")
    await eventually(lambda: lost)
    await bus.nc.flush()
    assert lost == [2]
    await requests.stop()


def _collector(found: list[Msg]):
    async def collect(message: Msg) -> None:
        found.append(message)

    return collect
