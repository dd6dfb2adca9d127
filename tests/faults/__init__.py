"""What needs root: the promises, tried while the power is cut, disks fill up, memory, descriptors and packets are lost.

Each fault is made on real processes in namespaces of our own (:mod:`tests.faults.ground`), and judged by the checker of
:mod:`tests.chaos` or by conditions that it states. ``python -m tests.faults`` makes them all.
"""
