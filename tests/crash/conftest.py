"""One broker for each module; every test has a task of its own on it, and the processes that it starts.

What is to die is a process. What makes good afterwards is of the test's own process: that saves a second each time.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from runwire.settings import Settings
from tests.crash.processes import Processes
from tests.support import TOKEN, Broker, adapter, free_port

numbers = itertools.count(1_000_001)
"""Far from where the ids begin that are given out."""


@pytest.fixture(scope="module")
def base_settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Small and quick: a worker counts as dead after a second."""
    return Settings(
        data_dir=tmp_path_factory.mktemp("broker"),
        ack_wait=1.0,
        action_wait=1.0,
        grace_seconds=1.0,
        worker_slots=8,
        wait_seconds=20,
        store_bytes=128 << 20,
        nats_sync="2m",
        bootstrap_token=TOKEN,
    )


@pytest.fixture(scope="module")
def broker(base_settings: Settings) -> Iterator[Broker]:
    server = Broker(base_settings)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def settings(base_settings: Settings, broker: Broker, tmp_path: Path) -> Settings:
    return base_settings.model_copy(
        update={"nats_url": broker.url, "bus_key": SecretStr(broker.bus_key), "data_dir": tmp_path / "data"}
    )


@pytest.fixture
def task() -> int:
    """The id of a task that no other test has."""
    return next(numbers)


@pytest.fixture
def processes(settings: Settings, tmp_path: Path) -> Iterator[Processes]:
    started = Processes(settings, tmp_path)
    yield started
    started.kill()


@pytest.fixture
async def http(settings: Settings, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an adapter that nothing happens to."""
    own = settings.model_copy(update={"data_dir": tmp_path / "survivor", "http_port": free_port()})
    async with adapter(own) as client:
        yield client
