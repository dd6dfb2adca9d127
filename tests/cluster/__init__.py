"""A broker of three servers under the same callers and the same checker as :mod:`tests.chaos`.

::

    callers, adapters, workers        10.77.0.254
            |
    ========+=========== clients ===========+==========
            |                  |                  |
        broker-1           broker-2           broker-3      each in a network namespace of its own
            |                  |                  |
    ========+=========== routes ============+==========

A server is killed, frozen, restarted, or loses either of its two links, which are cables: what is sent into one that
is down is lost, and nobody is told. ``python -m tests.cluster`` makes all of that in namespaces that end with it; where
it may not, it leaves out the faults that need them and says so.
"""
