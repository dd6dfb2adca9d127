"""The actions that workers have published, kept at hand: a request never asks the broker about them.

A target that names one of them is checked against what its worker is sure to refuse. One that names another action is
let through: its run waits for a worker that knows it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

from jsonschema_rs import Draft202012Validator, RegexOptions, ValidationError, ValidationErrorKind
from nats.js.errors import Error as JetStreamError

from runwire.domain.errors import FieldError, InvalidFields
from runwire.domain.task import Target
from runwire.http.json_body import MOST_COMPLAINTS, pointer
from runwire.messaging import actions
from runwire.messaging.actions import ActionEntry
from runwire.messaging.broker import UNAVAILABLE, Bus

log = logging.getLogger("runwire.http")

INTERVAL = 2.0
"""Seconds between two looks at whether anything has changed."""

Place = tuple[int | str, ...]


@dataclass(frozen=True)
class Known:
    """An action, and the check of its parameters."""

    entry: ActionEntry
    check: Draft202012Validator | None
    """None: anything goes."""


class Catalogue:
    """One adapter's copy of the published actions, a few seconds old at most while the broker answers."""

    def __init__(self, bus: Bus) -> None:
        """Empty until the first :meth:`refresh`."""
        self._bus = bus
        self._known: dict[str, Known] = {}
        self._position: tuple[int, int] | None = None

    async def keep_current(self) -> None:
        """Look now and then, for as long as the adapter runs."""
        while True:
            await asyncio.sleep(INTERVAL)
            with suppress(*UNAVAILABLE, JetStreamError):
                await self.refresh()

    async def refresh(self) -> None:
        """Read what has changed. Raises JetStreamError or one of UNAVAILABLE; then all stays as it was."""
        position = await actions.position(self._bus)
        if position != self._position:
            entries = await actions.listed(self._bus)
            self._known = {entry.name: self._prepared(entry) for entry in entries}
            self._position = position

    def entries(self) -> list[ActionEntry]:
        """Every action, sorted by name."""
        return [known.entry for known in self._known.values()]

    def check(self, target: Target) -> None:
        """Raise InvalidFields when the worker would refuse the target's parameters."""
        known = self._known.get(target.action)
        if known is None or known.check is None:
            return
        errors = list(islice(_complaints(known, target.parameters), MOST_COMPLAINTS))
        if errors:
            raise InvalidFields(errors)

    def _prepared(self, entry: ActionEntry) -> Known:
        before = self._known.get(entry.name)
        if before is not None and before.entry.accepts == entry.accepts:
            return Known(entry, before.check)
        if not entry.accepts:
            return Known(entry, None)
        try:
            return Known(entry, Draft202012Validator(entry.accepts, pattern_options=RegexOptions(), offline=True))
        except (ValidationError, ValueError) as error:
            text = "parameters of action %r are not checked: %s"
            log.warning(text, entry.name, str(error).partition("\n")[0], extra={"action": "no_check"})
            return Known(entry, None)


def _complaints(known: Known, parameters: dict[str, Any]) -> Iterator[FieldError]:
    if known.check is not None:
        for error in known.check.iter_errors(parameters):
            yield from _in_words(error, known.entry.accepts)


def _in_words(error: ValidationError, schema: Any) -> Iterator[FieldError]:
    """What is wrong, with a pointer into the body. Never the value itself."""
    place: Place = ("target", *error.instance_path)
    kinds = ValidationErrorKind
    match error.kind:
        case kinds.Required(property=name):
            yield _error((*place, str(name)), "is required")
        case kinds.AdditionalProperties(unexpected=names):
            for name in names:
                yield _error((*place, name), "is not expected here")
        case kinds.Minimum(limit=limit):
            yield _error(place, f"must be at least {limit}")
        case kinds.Maximum(limit=limit):
            yield _error(place, f"must be at most {limit}")
        case kinds.ExclusiveMinimum(limit=limit):
            yield _error(place, f"must be greater than {limit}")
        case kinds.ExclusiveMaximum(limit=limit):
            yield _error(place, f"must be less than {limit}")
        case kinds.MinItems(limit=limit):
            yield _error(place, f"must have at least {_counted(limit, 'item')}")
        case kinds.MaxItems(limit=limit):
            yield _error(place, f"must have at most {_counted(limit, 'item')}")
        case kinds.MinProperties(limit=limit):
            yield _error(place, f"must have at least {_counted(limit, 'member')}")
        case _:
            asked = _asked(error, schema)
            missing = _missing(error, asked)
            yield from (_error((*place, name), "is required") for name in missing)
            if not missing:
                yield _error(place, _by_schema(error, asked))


def _asked(error: ValidationError, schema: Any) -> dict[str, Any]:
    """The part of the schema that was not met; ``{}`` where the way to it leads through references."""
    for part in list(error.schema_path)[:-1]:
        try:
            schema = schema[part]
        except (LookupError, TypeError):
            return {}
    return schema if isinstance(schema, dict) else {}


def _missing(error: ValidationError, asked: dict[str, Any]) -> list[str]:
    """The members that are required at once (:mod:`runwire.parameters`) and are not there."""
    condition, instance = asked.get("if"), error.instance
    is_choice = isinstance(error.kind, ValidationErrorKind.FalseSchema)
    if not is_choice or not isinstance(condition, dict) or not isinstance(instance, dict):
        return []
    return [name for name in condition.get("required", ()) if name not in instance]


def _by_schema(error: ValidationError, asked: dict[str, Any]) -> str:
    """What the schema says that the value has to be."""
    kinds = ValidationErrorKind
    words = asked.get("description", "")
    is_text = words in {"", "text", "text or null"}
    match error.kind:
        case kinds.MinLength(limit=limit) if is_text:
            return f"must have at least {_counted(limit, 'character')}"
        case kinds.MaxLength(limit=limit) if is_text:
            return f"must have at most {_counted(limit, 'character')}"
        case kinds.Pattern(pattern=pattern) if is_text:
            return f"must match {pattern}"
        case kinds.Enum(options=options) if not words:
            return f"must be {' or '.join(map(repr, options))}"
    return f"must be {words}" if words else "does not fit"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _error(place: Place, detail: str) -> FieldError:
    return FieldError(pointer=pointer(place), detail=detail)
