"""Adapters and workers as processes of their own, told where to die or to stand still."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from runwire.failpoints import VARIABLE
from runwire.settings import Settings
from tests.chaos.proxy import Proxy
from tests.support import HEADERS, TOKEN, Runwire, eventually, free_port

ROOT = Path(__file__).parents[2]
APP = "tests.crash.app:app"


class Processes:
    """Starts processes in one folder, and kills what is left of them."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.trace = folder / "trace"
        """What the action `probe` leaves."""
        self._settings = settings
        self._folder = folder
        self._started: list[Runwire] = []

    def start(self, *arguments: str, failpoint: str | None = None, proxy: Proxy | None = None, **env: str) -> Runwire:
        """``failpoint``: where it dies or stops. ``proxy``: what stands between it and the broker."""
        url = urlsplit(self._settings.nats_url)
        if proxy is not None:
            url = url._replace(netloc=f"{url.username}:{url.password}@127.0.0.1:{proxy.port}")
        process = Runwire(
            *arguments,
            cwd=self._folder,
            **{
                "RUNWIRE_NATS_URL": url.geturl(),
                "RUNWIRE_BUS_KEY": self._settings.bus_key.get_secret_value(),
                "RUNWIRE_BOOTSTRAP_TOKEN": TOKEN,
                "RUNWIRE_STORE_BYTES": str(self._settings.store_bytes),
                "RUNWIRE_ACK_WAIT": str(self._settings.ack_wait),
                "RUNWIRE_GRACE_SECONDS": "1",
                "PYTHONPATH": str(ROOT),
                **({VARIABLE: failpoint} if failpoint else {}),
                **env,
            },
        )
        self._started.append(process)
        return process

    def worker(self, failpoint: str | None = None, **options: object) -> Runwire:
        return self.start("worker", "--app", APP, failpoint=failpoint, **options)

    @asynccontextmanager
    async def adapter(
        self, failpoint: str | None = None, **options: object
    ) -> AsyncIterator[tuple[Runwire, httpx.AsyncClient]]:
        """An adapter that answers, and a client of it."""
        port = free_port()
        process = self.start("adapter", failpoint=failpoint, RUNWIRE_HTTP_PORT=str(port), **options)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=HEADERS, timeout=40) as client:
            await ready(client)
            yield process, client
        process.kill()

    def executions(self, run: str = "") -> list[list[str]]:
        """Every time the action `probe` began: run, attempt, process."""
        lines = self.trace.read_text().splitlines() if self.trace.exists() else []
        return [line.split() for line in lines if line.startswith(run)]

    async def execution_begins(self, times: int = 1) -> None:
        await eventually(lambda: len(self.executions()) >= times, what=f"the action was begun {times} times")

    def kill(self) -> None:
        for process in self._started:
            process.kill()


async def ready(client: httpx.AsyncClient) -> None:
    """Return when the adapter answers."""

    async def answers() -> bool:
        try:
            return (await client.get("/readyz")).is_success
        except httpx.TransportError:
            return False

    await eventually(answers, within=30, what="the adapter is ready")


async def died(process: Runwire) -> None:
    """It has come to its failpoint, and killed itself there."""
    await eventually(lambda: process.process.poll() is not None, what="the process reached its failpoint")
    assert process.process.returncode == -signal.SIGKILL, process.output


async def stands_still(process: Runwire) -> None:
    """It has come to its failpoint, and stopped there."""
    stat = Path(f"/proc/{process.process.pid}/stat")
    await eventually(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", what="it reached its failpoint")


def freeze(process: Runwire) -> None:
    os.kill(process.process.pid, signal.SIGSTOP)


def go_on(process: Runwire) -> None:
    os.kill(process.process.pid, signal.SIGCONT)


@asynccontextmanager
async def proxied(settings: Settings) -> AsyncIterator[Proxy]:
    """A proxy in front of the broker."""
    proxy = Proxy(urlsplit(settings.nats_url).port or 0)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
