"""Measures runwire: ``python -m benchmarks.execute`` from the root of the checkout, or ``make bench``.

::

    execute          the command: options, rounds, exit status
      |- stack       starts what is measured: nats-server, adapter, worker (noop), and the floor
      |    |- children        child processes, none of which outlives the benchmark
      |    |- noop            the action of the tasks: nothing
      |    |- floor_adapter   the least an HTTP -> NATS -> HTTP round trip can cost here: server
      |    `- floor_responder the same: who answers
      |- load        the callers, in a process of their own
      `- report      rounds -> medians -> table and JSON
"""
