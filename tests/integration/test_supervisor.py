"""Children of `runwire up`, without what they are there for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runwire.supervisor import Child, Supervisor
from tests.support import eventually, is_alive

WILLING = ["sleep", "1000"]
DEAF = ["env", "--ignore-signal=TERM", *WILLING]


@pytest.mark.parametrize("program", [WILLING, DEAF])
async def test_a_child_that_is_to_be_started_anew_is_so_whether_it_ends_by_itself_or_not(program: list[str]) -> None:
    supervisor = Supervisor()
    child = Child("child", program, dict(os.environ), notifies=False)
    supervisor.start(child)
    try:
        first = (await eventually(lambda: child.process)).pid
        await eventually(lambda: Path(f"/proc/{first}/comm").read_text() == "sleep\n")
        await supervisor.restart("child", patience=1.0)
        await eventually(lambda: child.process and child.process.pid != first)
        assert not is_alive(first)
    finally:
        await supervisor.stop(["child"], patience=0.1)
        await supervisor.close()
