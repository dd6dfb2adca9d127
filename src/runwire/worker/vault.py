"""The operator's secrets: files that actions ask for by name, and which nothing that a run writes ever shows.

``<RUNWIRE_SECRETS>/<chain>/<name>`` is a chain's own, ``<RUNWIRE_SECRETS>/<name>`` everybody's. A file is read each
time it is asked for, so a secret is replaced by replacing its file. What was handed out is remembered for as long as
the worker lives: a client that an earlier run made, and which was kept, may still show it.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
import threading
from collections import OrderedDict
from pathlib import Path

from pydantic import JsonValue

from runwire.domain.errors import Fail, Retry, SetupError
from runwire.domain.run import ErrorCode
from runwire.worker.redaction import Forms, forms_of, redacted, redacted_json

LARGEST = 64 * 1024
"""Bytes of a secret."""
REMEMBERED = 1000
"""Values a worker looks for, of all chains, beside those that its running attempts asked for."""
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}")
"""What a secret's name looks like: never a path, never a hidden file."""
EVERYBODY = 0
"""In the place of a chain: all of them."""


class Vault:
    """The secrets of one worker. Its methods may be called from any thread."""

    def __init__(self, directory: Path | None) -> None:
        """None: there are none. Raises SetupError when it is no directory."""
        if directory is not None and not directory.is_dir():
            raise SetupError(f"RUNWIRE_SECRETS: {directory}: is no directory")
        self._directory = directory
        self._lock = threading.Lock()
        self._handed_out: OrderedDict[tuple[int, str], None] = OrderedDict()
        self._known: dict[int, dict[str, Forms]] = {}
        """By chain, then by value. Never changed, but replaced."""

    def open_for(self, chain: int) -> RunSecrets:
        """The secrets as an attempt of this chain sees them."""
        return RunSecrets(self, chain)

    def read(self, chain: int, name: str, *, own: bool) -> tuple[int, str]:
        """(whose it is, its value). Raises Fail when there is none, Retry when it cannot be read now."""
        shown = name[:128]
        if self._directory is None or NAME.fullmatch(name) is None:
            raise Fail(ErrorCode.UNKNOWN_SECRET, f"There is no secret {shown!r}.")
        places = [(chain, self._directory / str(chain) / name)]
        if not own:
            places.append((EVERYBODY, self._directory / name))
        for owner, path in places:
            try:
                content = _read_file(path)
            except OSError as error:
                raise Retry(
                    f"The secret {shown!r} cannot be read: {error.strerror}.", code=ErrorCode.UNKNOWN_SECRET
                ) from None
            if content is not None:
                return owner, _text(shown, content)
        whose = f" of chain {chain}" if own else ""
        raise Fail(ErrorCode.UNKNOWN_SECRET, f"There is no secret {shown!r}{whose}.")

    def remember(self, owner: int, value: str) -> Forms | None:
        """Look for this value from now on, in what the owner's runs write; None: it is too short for that."""
        known = self._known.get(owner, {}).get(value)
        forms = known or forms_of(value)
        if forms is None:
            return None
        with self._lock:
            self._handed_out[owner, value] = None
            self._handed_out.move_to_end((owner, value))
            if known is None:
                self._known[owner] = {**self._known.get(owner, {}), value: forms}
            if len(self._handed_out) > REMEMBERED:
                (former, oldest), _ = self._handed_out.popitem(last=False)
                self._known[former] = {v: f for v, f in self._known[former].items() if v != oldest}
        return forms

    def conceal(self, text: str) -> str:
        """The text without any secret that anybody was given: for what is no run's."""
        if not self._handed_out:
            return text
        return redacted(text, [forms for known in list(self._known.values()) for forms in known.values()])

    def known_to(self, chain: int) -> dict[str, Forms]:
        """What was handed out to this chain's runs, and of what is everybody's to anybody's."""
        if not self._handed_out:
            return {}
        return {**self._known.get(EVERYBODY, {}), **self._known.get(chain, {})}


class RunSecrets:
    """What one attempt may ask for, and must not show."""

    def __init__(self, vault: Vault, chain: int) -> None:
        self._vault = vault
        self._chain = chain
        self._own: dict[str, Forms] = {}

    def get(self, name: str, own: bool) -> str:
        """The value; ``own``: only if it is the chain's own. Raises Fail or Retry."""
        owner, value = self._vault.read(self._chain, name, own=own)
        forms = self._vault.remember(owner, value)
        if forms is not None:
            self._own = {**self._own, value: forms}
        return value

    def redact(self, text: str, *, cut: bool = False) -> str:
        """The text without any of the secrets that the chain's runs have been given.

        ``cut``: it has lost its end, which may have been in the midst of one.
        """
        known = self._to_hide()
        return redacted(text, known.values(), cut=cut) if known else text

    async def redact_json(self, value: JsonValue) -> JsonValue:
        """The value without them."""
        if not self._to_hide():
            return value
        return await asyncio.to_thread(redacted_json, value, self.redact)  # it may be large

    def _to_hide(self) -> dict[str, Forms]:
        known = self._vault.known_to(self._chain)
        return {**known, **self._own} if self._own else known


def _read_file(path: Path) -> bytes | None:
    """The first bytes of a file, one more than LARGEST at most; None: there is no such file. Raises OSError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO would make us wait
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return os.read(descriptor, LARGEST + 1) if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
    finally:
        os.close(descriptor)


def _text(name: str, content: bytes) -> str:
    if len(content) > LARGEST:
        raise Fail(ErrorCode.UNKNOWN_SECRET, f"The secret {name!r} has more than {LARGEST:,} bytes.")
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise Fail(ErrorCode.UNKNOWN_SECRET, f"The secret {name!r} is no text in UTF-8.") from None
    return text.removesuffix("\n").removesuffix("\r")
