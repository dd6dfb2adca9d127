"""Where a download goes: into a file beside the wanted one, which takes its place when everything is there."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import BinaryIO, Self
from uuid import uuid4

from runwire.client.follow import Piece


class Destination:
    """A file that is written; without :meth:`keep` nothing is left of it."""

    def __init__(self, to: str | PathLike[str]) -> None:
        """``to``: the file, or a directory, in which it gets the name that the server gives it."""
        self._to = Path(to)
        self._is_directory = self._to.is_dir()
        self._part = (self._to if self._is_directory else self._to.parent) / f".download-{uuid4().hex}.part"
        self._name = "download"
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        self._file = self._part.open("xb")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        self._part.unlink(missing_ok=True)

    def write(self, piece: Piece) -> None:
        """Put the bytes where they belong."""
        if self._file is None:
            msg = "not open"
            raise ValueError(msg)
        self._name = piece.name
        if self._file.tell() != piece.offset:
            self._file.seek(piece.offset)
            self._file.truncate()
        self._file.write(piece.content)

    def keep(self) -> Path:
        """Give the file its name, in the place of what had it; the path of it."""
        if self._file is not None:
            self._file.close()
        return self._part.replace(self._to / self._name if self._is_directory else self._to)
