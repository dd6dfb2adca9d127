"""What a run leaves behind in a worker: nothing that waits for the garbage collector, which seldom comes."""

from __future__ import annotations

import gc
import logging

from runwire.worker.runlog import Printed, RunLog
from tests.simulation.world import World


def test_a_run_that_has_ended_leaves_no_cycle_behind() -> None:
    logging.disable(logging.CRITICAL)
    world = World(workers=1)
    gc.collect()
    gc.disable()
    try:
        for number in range(10):
            world.execute(0, "bus", 1, f"run-{number}")
            world.pass_all()
            world.deliver(0, *world.broker.commands.messages)
            world.pass_all()
            world.finish(*world.acting, "done")
            world.pass_all()
        left = [thing for thing in gc.get_objects() if isinstance(thing, RunLog | Printed)]
    finally:
        gc.enable()
        logging.disable(logging.NOTSET)
        world.close()
    assert left == []
    assert sum(event.subject.endswith(".done") for event in world.broker.events.messages.values()) == 10
