"""The Prefer header (RFC 7240): ``wait=N`` and ``respond-async``. Whatever else it says is ignored."""

from __future__ import annotations

from dataclasses import dataclass

LONGEST_WAIT = 3600
"""Seconds a caller can make us wait."""


@dataclass(frozen=True)
class Preference:
    """What the caller prefers."""

    wait: int | None = None
    """Seconds; None: not said."""
    respond_async: bool = False

    @property
    def applied(self) -> dict[str, str]:
        """The headers that say which preferences were followed."""
        parts = ["respond-async"] if self.respond_async else []
        parts += [f"wait={self.wait}"] if self.wait is not None else []
        return {"Preference-Applied": ", ".join(parts)} if parts else {}

    def seconds(self, default: float) -> float:
        """How long to wait: as long as asked for, not at all for a bare ``respond-async``, else ``default``."""
        if self.wait is not None:
            return self.wait
        return 0 if self.respond_async else default


def parse(values: list[str]) -> Preference:
    """The preferences in all Prefer headers of a request; of two that contradict the first counts."""
    wait, respond_async = None, False
    for preference in ",".join(values).split(","):
        name, _, value = (part.strip().strip('"') for part in preference.split(";")[0].partition("="))
        if name.lower() == "respond-async":
            respond_async = True
        elif name.lower() == "wait" and wait is None and value.isascii() and value.isdecimal():
            wait = min(int(value[:9]), LONGEST_WAIT)
    return Preference(wait, respond_async)
