"""Fixtures: every test that needs a broker gets a real nats-server with an empty store."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from runwire.app import App, Context
from runwire.messaging import streams
from runwire.messaging.broker import Bus
from runwire.settings import Settings
from tests.support import TOKEN, Broker, connected, free_port

for name in [name for name in os.environ if name.startswith("RUNWIRE_")]:
    del os.environ[name]  # the tests' settings are in the tests


@pytest.fixture(scope="session")
def nats_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The nats.conf with a sixteenth of its accounts: a server with all of them takes four times as long to start."""
    whole = (Path(__file__).parents[1] / "nats.conf").read_text()
    path = tmp_path_factory.mktemp("config") / "nats.conf"
    path.write_text(re.sub(r"B(?!00|01[0-6])\d{3}: \$CHAIN[,;]?", "", whole))
    return path


@pytest.fixture
def base_settings(tmp_path: Path, nats_config: Path) -> Settings:
    """Small and quick: a worker counts as dead after a second."""
    return Settings(
        nats_config=nats_config,
        data_dir=tmp_path / "data",
        http_port=free_port(),
        ack_wait=1.0,
        action_wait=1.0,
        grace_seconds=1.0,
        worker_slots=8,
        wait_seconds=20,
        store_bytes=128 << 20,
        nats_sync="2m",
        bootstrap_token=TOKEN,
        log_level="debug",
    )


@pytest.fixture
def broker(base_settings: Settings) -> Iterator[Broker]:
    server = Broker(base_settings)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def settings(base_settings: Settings, broker: Broker) -> Settings:
    return base_settings.model_copy(update={"nats_url": broker.url, "bus_key": SecretStr(broker.bus_key)})


@pytest.fixture
async def bus(settings: Settings) -> AsyncIterator[Bus]:
    """A connection, and every stream in place."""
    bus = await connected(settings)
    await streams.provision(bus, settings)
    yield bus
    await bus.nc.close()


@pytest.fixture
def collected() -> Iterator[None]:
    """What a test leaves behind is collected at its end, not in the middle of another one."""
    yield
    gc.collect()


@pytest.fixture
def app() -> App:
    """An App with `noop`; tests add what they need."""
    app = App()

    @app.action("noop")
    async def noop(params: dict[str, object], ctx: Context) -> None:
        """Nothing."""

    return app
