"""``runwire up`` as the thing that is tried, and what callers of an adapter do with one task."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal, Self

import httpx

from benchmarks.children import Children
from runwire import embedded
from runwire.settings import Settings, load
from tests.chaos.history import Call
from tests.chaos.stack import CREDENTIAL, Stack
from tests.chaos.trial import Note
from tests.faults import actions

UP = "up"
STORE_BYTES = 64 << 20


class Up(Stack):
    """Broker, adapter and worker as ``runwire up`` runs them; the broker's streams are in ``folder/broker/nats``."""

    def __init__(self, children: Children, folder: Path) -> None:
        super().__init__(children, folder, adapters=1, workers=0, store_bytes=STORE_BYTES)
        self._proxies.clear()

    @property
    def settings(self) -> Settings:
        """As of this start: its password is a new one each time."""
        url = embedded.running_url_path(load(data_dir=self._folder / "broker")).read_text().strip()
        return super().settings.model_copy(update={"nats_url": url})

    def read_model(self, name: str) -> Path:
        """The one adapter has it beside the broker's streams."""
        return super().read_model("broker" if name in self._names["adapter"] else name)

    async def start(self) -> None:
        """Start it; returns when it answers. Raises ChildFailed."""
        self.traces.touch()
        self._children.start(UP, self._argv(UP), self._env(UP), log=self.log(UP))
        await self.until_ready()

    async def stop_adapters(self) -> None:
        """They go on: what they have read is in the file."""

    def _argv(self, name: str) -> list[str]:
        return [sys.executable, "-m", "runwire", name, "--app", actions.REFERENCE]

    def _env(self, name: str) -> dict[str, str]:
        env = super()._env(name)
        if name == UP:
            del env["RUNWIRE_NATS_URL"], env["RUNWIRE_BUS_KEY"]
            env["RUNWIRE_DATA_DIR"] = str(self._folder / "broker")
            env["RUNWIRE_HTTP_PORT"] = str(self._ports["adapter-1"])
            env["RUNWIRE_NATS_PORT"] = str(self._broker_port)
        return env


class Caller:
    """Calls one adapter, and never minds what it says."""

    def __init__(self, url: str, note: Note) -> None:
        """``note`` is told of every execute."""
        self._note = note
        self._http = httpx.AsyncClient(
            base_url=url, trust_env=False, timeout=20, headers={"Authorization": f"Bearer {':'.join(CREDENTIAL)}"}
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def call(self, method: str, path: str, **request: Any) -> httpx.Response:
        """The answer; one that never came is a 599."""
        try:
            return await self._http.request(method, path, **request)
        except httpx.HTTPError as error:
            return httpx.Response(599, text=repr(error))

    async def execute(self, task: int, *, wait: int) -> httpx.Response:
        """Run a task, in turn; the answer."""
        sent = time.time()
        query = "?if_running=queue" if wait else ""
        answer = await self.call("POST", f"/tasks/{task}/execute{query}", headers={"Prefer": f"wait={wait}"})
        outcome: Literal["accepted", "refused", "unknown"] = "accepted" if answer.is_success else "refused"
        self._note(
            Call(
                door="http", what="execute", task=task, run=answer.headers.get("run-id"), wait=wait, sent=sent,
                answered=time.time(), outcome="unknown" if answer.is_server_error else outcome,
                status=str(answer.status_code),
            )
        )  # fmt: skip
        return answer

    async def create(self, task: int, chain: int, **target: Any) -> None:
        """Create a task without a trigger. Raises HTTPError."""
        body = {"id": task, "chain": chain, "desc": "a fault's own", "trigger": {}, "target": target}
        (await self._http.post("/tasks", json=body)).raise_for_status()

    async def is_ready(self) -> bool:
        """Whether the adapter says that it can be called."""
        return (await self.call("GET", "/readyz")).status_code == 200


async def until(condition: Callable[[], Awaitable[bool]], *, within: float) -> bool:
    """Whether it came true within so many seconds."""
    deadline = time.monotonic() + within
    while not await condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.1)
    return True
