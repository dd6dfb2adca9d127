"""`runwire up` that dies while it starts its children."""

from __future__ import annotations

from pathlib import Path

from runwire.failpoints import VARIABLE, Point
from tests.crash.processes import stands_still
from tests.support import Runwire, child_pids, eventually, free_port, is_alive


async def test_a_service_killed_while_it_starts_leaves_no_child_behind(tmp_path: Path) -> None:
    for nth in (1, 3):  # the second one is not kept out by anything the first one has left
        variables = {VARIABLE: f"{Point.CHILD_STARTED}:stop:{nth}", "RUNWIRE_HTTP_PORT": str(free_port())}
        up = Runwire("up", cwd=tmp_path, **variables)
        try:
            await stands_still(up)
            children = child_pids(up.process.pid)
            assert len(children) >= nth
        finally:
            up.kill()
        await eventually(lambda children=children: not any(map(is_alive, children)), what="the children are gone")
