"""The actions that workers serve: one entry per action in a key-value bucket, as the worker that started last has it.

Workers publish what they know when they start, and again every few minutes; the broker drops what nobody has published
for a quarter of an hour. A key is derived from the name, which may be any text and is no part of a subject.

Entries are only ever put: nats-py's buckets cannot create a key again after it has expired.
"""

from __future__ import annotations

import logging
from typing import Any

from pydantic import AwareDatetime, ConfigDict, Field, ValidationError

from runwire.domain.task import Model
from runwire.messaging import subjects
from runwire.messaging.broker import Bus

log = logging.getLogger("runwire.bus")


class ActionEntry(Model):
    """An action, and who says so."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)

    name: str
    description: str
    parameters: dict[str, Any] = Field(alias="schema")
    """JSON Schema of its parameters, to be shown."""
    accepts: dict[str, Any] = Field(default_factory=dict)
    """JSON Schema that is enforced when a task is created (:mod:`runwire.parameters`); ``{}``: nothing is."""
    worker: str
    """Which process published it."""
    version: str
    """Of runwire, there."""
    when: AwareDatetime

    def says_the_same(self, other: ActionEntry) -> bool:
        """Whether the action is the same to whoever reads about it."""
        about = {"name", "description", "parameters", "accepts"}
        return self.model_dump_json(include=about) == other.model_dump_json(include=about)


async def put(bus: Bus, name: str, entry: bytes) -> None:
    """Store the entry of the action with this name. Raises APIError (it is too large) or one of UNAVAILABLE."""
    await (await bus.bucket(subjects.ACTIONS_BUCKET)).put(subjects.action_key(name), entry)


async def listed(bus: Bus) -> list[ActionEntry]:
    """Every action that a worker has published lately, sorted by name. Raises one of UNAVAILABLE.

    What is no entry is left out, as it is when its key belongs to another name.
    """
    found = []
    for key, value in (await bus.entries(subjects.ACTIONS_BUCKET)).items():
        try:
            entry = ActionEntry.model_validate_json(value)
        except ValidationError as invalid:
            log.debug("%s is no entry of an action: %s", key, invalid, extra={"action": "no_entry"})
            continue
        if subjects.action_key(entry.name) == key:
            found.append(entry)
    return sorted(found, key=lambda entry: entry.name)


async def position(bus: Bus) -> tuple[int, int]:
    """Changes whenever an entry is put or dropped. Raises NotFoundError (no bucket) or one of UNAVAILABLE."""
    state = (await bus.js.stream_info(subjects.ACTIONS_STREAM)).state
    return state.last_seq, state.messages
