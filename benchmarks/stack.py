"""Starts what is measured: nats-server, adapter and worker as a user would start them, and the floor beside them."""

from __future__ import annotations

import json
import os
import secrets
import sys
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.children import ChildFailed, Children, can_connect, free_port
from benchmarks.load import Measured, Spec
from runwire import embedded
from runwire.settings import load

CHAIN = 1764
TASK = {"chain": CHAIN, "desc": "Does nothing, for the benchmark", "target": {"action": "noop"}, "trigger": {}}
STORE_BYTES = 1 << 30
SYSTEM = ("adapter", "worker", "nats-server")
"""The processes a run takes its CPU time from."""
FLOOR = ("floor adapter", "floor responder", "nats-server")


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Everything runs; the tasks are there."""

    children: Children
    url: str
    """The broker's, for our processes."""
    port: int
    floor_port: int
    token: str
    tasks: list[int]

    def measure_system(self, callers: int, *, warm_up: float, seconds: float) -> Measured:
        """Let so many callers execute tasks, each its own: a task never has two runs at once."""
        return self._measure(self.port, SYSTEM, callers, warm_up=warm_up, seconds=seconds)

    def measure_floor(self, callers: int, *, warm_up: float, seconds: float) -> Measured:
        """The same calls, to the floor."""
        return self._measure(self.floor_port, FLOOR, callers, warm_up=warm_up, seconds=seconds)

    def _measure(
        self, port: int, processes: tuple[str, ...], callers: int, *, warm_up: float, seconds: float
    ) -> Measured:
        spec = Spec(
            port=port,
            token=self.token,
            tasks=[[task] for task in self.tasks[:callers]],
            warm_up=warm_up,
            seconds=seconds,
            pids={name: self.children.pids[name] for name in processes},
        )
        answer = self.children.run("benchmarks.load", json.dumps(asdict(spec)), timeout=warm_up + seconds + 90)
        return Measured(**json.loads(answer))


def start(
    children: Children, folder: Path, *, sync: str, tasks: int, settings: Mapping[str, str] | None = None
) -> Stack:
    """Start everything on ``folder``, the broker flushing as ``sync`` says. Raises ChildFailed.

    ``settings``: further ``RUNWIRE_*`` variables.
    """
    token = f"benchmark:{secrets.token_urlsafe(24)}"
    url = _start_broker(children, folder, sync)
    port, floor_port = free_port(), free_port()
    env = os.environ | {
        "RUNWIRE_NATS_URL": url,
        "RUNWIRE_HTTP_PORT": str(port),
        "RUNWIRE_DATA_DIR": str(folder),
        "RUNWIRE_BOOTSTRAP_TOKEN": token,
        "RUNWIRE_LOG_LEVEL": "warning",
        "RUNWIRE_STORE_BYTES": str(STORE_BYTES),
        **(settings or {}),
    }
    python = [sys.executable, "-m"]
    children.start("adapter", [*python, "runwire", "adapter"], env)
    children.start("worker", [*python, "runwire", "worker", "--app", "benchmarks.noop:app"], env)
    children.start("floor responder", [*python, "benchmarks.floor_responder"], env)
    children.start("floor adapter", [*python, "benchmarks.floor_adapter", str(floor_port)], env)
    for name, number in (("adapter", port), ("floor adapter", floor_port)):
        children.wait_for(name, lambda number=number: can_connect(number))  # type: ignore[misc]
    stack = Stack(children=children, url=url, port=port, floor_port=floor_port, token=token, tasks=[])
    return replace(stack, tasks=[_post(stack, "/tasks", TASK)["id"] for _ in range(tasks)])


def _start_broker(children: Children, folder: Path, sync: str) -> str:
    """The nats-server of `runwire up` with its configuration; returns the URL for our processes."""
    broker = embedded.prepare(load(data_dir=folder, nats_sync=sync))
    children.start("nats-server", broker.argv, broker.env)
    port = int(broker.url.rpartition(":")[2])
    children.wait_for("nats-server", lambda: can_connect(port))
    return broker.url


def _post(stack: Stack, path: str, body: object) -> dict[str, int]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{stack.port}{path}",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {stack.token}", "Content-Type": "application/json"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10) as answer:
            created: dict[str, int] = json.load(answer)
            return created
    except OSError as error:
        raise ChildFailed(f"POST {path}: {error}") from None
