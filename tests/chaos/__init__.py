"""Nothing lost: the system's promises, tried on real processes while they are killed, frozen and cut off.

::

    callers (HTTP, bus) --+                          nemesis: kill -9, SIGSTOP, SIGTERM, cut, stall, throttle
    schedules             |                               |
                          v                               v
              adapters, workers  <--- proxies --->  nats-server (fsync before each acknowledgement)
                          |
                          v
    what was asked and answered, EVENTS, rows, executions  --->  history (a file)  --->  checker  --->  verdict

The checker is pure and believes two things only: the event stream, which the broker has put in order, and what the
callers wrote down themselves. ``python -m tests.chaos`` runs it all, ``python -m tests.chaos --check FILE`` judges a
history again, ``python -m tests.chaos.mutants`` breaks the system in ways that the checker has to notice.
"""
