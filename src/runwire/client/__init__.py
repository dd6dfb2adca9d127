"""The Python client: tasks run by a call and a wait, over HTTP, whatever happens to the adapter meanwhile.

::

    Client, AsyncClient      threads.py, coroutines.py: two drivers, and their methods
         |  ask for
    calls.py, follow.py      what each method does, as generators of steps: they wait for nothing themselves
         |  yield
    steps.py                 Call, Open, Read, Pause, Emit; and `ask`, which repeats a call as long as that is sensible
         |  answer with
    models.py, errors.py     what comes of it

    BusClient                bus.py: the other door, over the bus; imported from there

A method is written once, as a generator. It yields what has to happen next, and is sent what came of it; the two
drivers only differ in how they wait. The client imports the domain and the settings, and nothing that serves or works.
"""

from runwire.client.coroutines import AsyncClient
from runwire.client.errors import (
    ClientError,
    CommandRefused,
    DownloadDamaged,
    NoAnswer,
    NotFinished,
    NotLetIn,
    NoToken,
    OutcomeUnknown,
    Problem,
    RunFailed,
)
from runwire.client.models import (
    Accepted,
    Ended,
    Event,
    Line,
    LogEntry,
    Progress,
    PulledEvent,
    Result,
    Run,
    RunError,
    State,
    Subscription,
    Task,
)
from runwire.client.threads import Client

__all__ = [
    "Accepted",
    "AsyncClient",
    "Client",
    "ClientError",
    "CommandRefused",
    "DownloadDamaged",
    "Ended",
    "Event",
    "Line",
    "LogEntry",
    "NoAnswer",
    "NoToken",
    "NotFinished",
    "NotLetIn",
    "OutcomeUnknown",
    "Problem",
    "Progress",
    "PulledEvent",
    "Result",
    "Run",
    "RunError",
    "RunFailed",
    "State",
    "Subscription",
    "Task",
]
