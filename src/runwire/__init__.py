"""runwire runs tasks on demand over NATS JetStream and answers with what became of them.

Data goes round once, one way::

     POST /tasks/{id}/execute             tasks.cmd.<chain>.<task>.execute
       (http: the adapter)                  (any client of the bus)
                \\                                  |
                 `------------->  COMMANDS (work queue)
                                         |
                              worker: claim -> act -> conclude
                                         |
              tasks.evt.<chain>.<task>.{ready,inprogress,done,error,edited,deleted}
                                         v
                              EVENTS (the truth)  ------->  other services (CloudEvents)
                                         |
                           readmodel: projector (in each adapter)
                                         |
                     SQLite  --->  the waiting execute call wakes, GET /tasks

The adapter never hears from the worker: it publishes a command and then waits on its own read model,
so what ``execute`` answers is what the next ``GET`` shows. The worker never opens SQLite: it reads a
task's last event and writes the next one. Delete the SQLite file and it is rebuilt from EVENTS.

Start reading at :mod:`runwire.domain.lifecycle` (what may happen to a task), then
:mod:`runwire.worker.executor` (one run, step by step), then :mod:`runwire.http.execute`.
"""

from typing import TYPE_CHECKING, Any

from runwire.app import App, Context
from runwire.domain.errors import Fail, Retry

if TYPE_CHECKING:
    from runwire.client import AsyncClient, Client
    from runwire.client.bus import BusClient

__all__ = ["App", "AsyncClient", "BusClient", "Client", "Context", "Fail", "Retry", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The clients, loaded when they are asked for: a worker has no use for them."""
    if name not in {"AsyncClient", "BusClient", "Client"}:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415

    return getattr(import_module("runwire.client.bus" if name == "BusClient" else "runwire.client"), name)
