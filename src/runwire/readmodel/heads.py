"""The latest documents of the tasks that are in use, in memory, so that an execute call needs no SQL."""

from __future__ import annotations

from collections import OrderedDict

from runwire.domain.lifecycle import Change, Document

CAPACITY = 20_000
"""Documents kept; the ones not used for longest make room."""


class Heads:
    """What the last committed transaction left behind, for the tasks it touched or somebody asked for."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        """Begin empty."""
        self._capacity = capacity
        self.commits = 0
        """Counts the committed batches: what was read before the last of them may be out of date."""
        self._by_task: OrderedDict[int, tuple[int, Document]] = OrderedDict()

    def get(self, task: int) -> Document | None:
        """The task's document; None: not known here, the file may have it."""
        known = self._by_task.get(task)
        if known is None:
            return None
        self._by_task.move_to_end(task)
        return known[1]

    def put(self, sequence: int, document: Document) -> None:
        """Keep a committed document, unless a newer one is known. A deleted task is forgotten."""
        task = document.task.id
        known = self._by_task.get(task)
        if known is not None and known[0] > sequence:
            return
        if document.change is Change.DELETED:
            self._by_task.pop(task, None)
            return
        self._by_task[task] = (sequence, document)
        self._by_task.move_to_end(task)
        if len(self._by_task) > self._capacity:
            self._by_task.popitem(last=False)

    def clear(self) -> None:
        """Forget everything."""
        self._by_task.clear()
