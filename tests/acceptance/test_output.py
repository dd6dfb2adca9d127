"""A run that prints without end is a nuisance to nobody: not to the worker, not to other runs, not to the disk."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from tests.acceptance.test_up import APP, running

MEGABYTES = 200


def resident(pid: int, which: str = "VmRSS") -> int:
    """Megabytes of memory a process has (VmHWM: the most it ever had)."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(which)]
    return int(line.split()[1]) // 1024


async def test_a_flood_of_output_harms_nobody(tmp_path: Path) -> None:
    async with running(tmp_path, "--app", APP, RUNWIRE_ACK_WAIT="2") as service:
        http, worker = service.http, service.up.children()["worker"]
        probe = await service.probe_task()
        assert (await http.post(f"/tasks/{probe}/execute")).json()["code"] == "DONE"
        before = resident(worker)
        target = {"action": "flood", "megabytes": MEGABYTES}
        flood = await http.post("/tasks", json={"chain": 1764, "desc": "", "target": target, "trigger": {}})
        flooding = asyncio.create_task(http.post(flood.headers["location"] + "/execute"))
        slowest = 0.0
        while not flooding.done():
            began = time.monotonic()
            assert (await http.post(f"/tasks/{probe}/execute")).json()["code"] == "DONE"
            slowest = max(slowest, time.monotonic() - began)
        assert (await flooding).json()["code"] == "DONE"
        (run,) = (await http.get(flood.headers["location"] + "/runs")).json()
        assert (run["attempt"], run["result"]) == (1, {"printed": MEGABYTES})
        log = await http.get(flood.headers["location"] + f"/runs/{run['id']}/logs", params={"limit": 1000})
        rest = await http.get(
            flood.headers["location"] + f"/runs/{run['id']}/logs", params={"limit": 1000, "after": log.json()["next"]}
        )
        messages = [line["message"] for line in log.json()["lines"] + rest.json()["lines"]]
        assert len(messages) == 1001
        assert messages[-1].startswith(f"{MEGABYTES * 1000 - 1000:,} further lines were dropped")
        assert resident(worker, "VmHWM") - before < 30
        assert slowest < 5
        print(f"flood: {run['started']} to {run['finished']}, slowest other run {slowest:.3f} s, "
              f"memory {before} MB before, {resident(worker, 'VmHWM')} MB at most")  # fmt: skip
