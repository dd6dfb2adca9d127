"""``/tasks/{id}/download_url`` and ``/downloads/{link}``: the file of an export, for whoever holds its link.

The link is the credential: it needs no token, stays good for its hour whatever becomes of the token that asked
for it, and names one file of one run. The file streams from the object store at the caller's pace.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from runwire import artifacts
from runwire.artifacts import LINK_SECONDS, Artifact, File
from runwire.domain.access import AccessLevel
from runwire.domain.errors import (
    BrokerAway,
    FileGone,
    Forbidden,
    LinkExpired,
    LinkInvalid,
    MalformedHost,
    NoDownload,
    RangeUnsatisfiable,
    TaskNotFound,
    TooManyDownloads,
)
from runwire.domain.lifecycle import Document
from runwire.domain.task import StateCode
from runwire.http.endpoint import TASK_ID, Answer, Endpoint, header_parameter, path_parameter
from runwire.http.lookup import find_task, task_id
from runwire.http.schemas import json_bytes
from runwire.http.services import Services, services
from runwire.messaging import events
from runwire.messaging.broker import UNAVAILABLE
from runwire.settings import Settings

log = logging.getLogger("runwire.http")

MOST_DOWNLOADS = 256
"""Downloads one adapter serves at once: each holds a chunk of a file, and as much again on its way out."""
EXPORT = "export"
"""The action whose files can be downloaded."""
MEDIA_TYPES = {"csv": "text/csv; charset=utf-8", "json": "application/json"}
"""By the end of the file's name."""
HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::[0-9]{1,5})?")
"""What a Host header may hold to become a part of a link (RFC 9110 section 7.2, without the exotic)."""
RANGE = re.compile(r"bytes[ \t]*=[ \t]*(?P<first>[0-9]*)-(?P<last>[0-9]*)[ \t]*", re.IGNORECASE)
"""A Range header that names one range (RFC 9110 section 14.1.2)."""
POSITION_DIGITS = 18
"""Digits of a position that are looked at; whatever has more lies beyond every file."""


class DownloadUrl(BaseModel):
    """Where the file is, for the next hour."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"url": "https://tasks.example.com/downloads/WzE3NjQsMTIzNDVd.aRx8.Zm9v"}]}
    )

    url: str = Field(description="Absolute; needs no token.")


async def get_download_url(request: Request) -> Response:
    """A link to the file of the last export, good for an hour, needs no token. For viewers; of `audit` for managers."""
    parts = services(request)
    task = task_id(request.path_params["id"])
    principal = await parts.authenticate(request)
    document = await find_task(parts, principal, task, AccessLevel.VIEWER)
    if document.task.state.code is not StateCode.DONE:  # here; the event may be on its way to this read model
        head = await events.load(parts.bus, document.task.chain, task, leader=True)
        document = head.document if head else document
    file = exported_file(document)
    principal.require(level_needed(document), file.chain)
    base = base_url(request, parts.settings)
    if await artifacts.find(parts.bus, file.object_name) is None:
        raise NoDownload(f"The file of task {task} is no longer kept; execute the task to export it again.")
    url = f"{base}/downloads/{await parts.links.sign(file)}"
    return Response(json_bytes({"url": url}), 200, {"Cache-Control": "no-store"}, "application/json")


async def download(request: Request) -> Response:
    """The file behind a link. No token needed; a single range may be asked for."""
    parts = services(request)
    file = await parts.links.open(request.path_params["link"])
    artifact = await artifacts.find(parts.bus, file.object_name)
    if artifact is None:
        raise FileGone
    etag = f'"{artifact.digest}"'
    headers = {
        "Content-Disposition": content_disposition(file.name),
        "Content-Type": MEDIA_TYPES.get(file.name.rpartition(".")[2], "application/octet-stream"),
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-store",
        "X-Content-Type-Options": "nosniff",
    }
    start, stop, status = 0, artifact.size, 200
    if request.method == "GET" and request.headers.get("if-range", etag) == etag:
        wanted = parse_range(", ".join(request.headers.getlist("range")), artifact.size)
        if wanted is not None:
            start, stop = wanted
            status = 206
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{artifact.size}"
    headers["Content-Length"] = str(stop - start)
    if request.method == "HEAD":
        return Response(None, status, headers)
    return _Download(parts, artifact, start, stop, status=status, headers=headers)


class _Download(Response):
    """An answer that streams at the pace of the caller: one chunk in hand, the next is fetched when it was taken."""

    def __init__(
        self, parts: Services, artifact: Artifact, start: int, stop: int, *, status: int, headers: Mapping[str, str]
    ) -> None:
        super().__init__(None, status, dict(headers))
        self._parts = parts
        self._artifact = artifact
        self._stretch = (start, stop)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything, or stop short: the server then cuts the connection, so that nobody takes a part for all.

        The first bytes are in hand before anything is sent: what is wrong until then can still be told. Raises
        TooManyDownloads, FileGone or one of UNAVAILABLE.
        """
        request = Request(scope, receive)
        with _place(self._parts):
            async with aclosing(artifacts.read(self._parts.bus, self._artifact, *self._stretch)) as pieces:
                try:
                    piece = await anext(pieces, b"")
                except artifacts.Incomplete as damaged:
                    log.error("a file cannot be read: %s", damaged, extra={"action": "download_failed"})
                    raise FileGone from None
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                try:
                    while piece:
                        if await request.is_disconnected():
                            return
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
                        piece = await anext(pieces, b"")
                except (*UNAVAILABLE, artifacts.Incomplete) as error:
                    log.warning("a download was cut off: %r", error, extra={"action": "download_failed"})
                    return
                await send({"type": "http.response.body", "body": b""})


@contextmanager
def _place(parts: Services) -> Iterator[None]:
    """One of the MOST_DOWNLOADS. Raises TooManyDownloads."""
    if parts.downloads >= MOST_DOWNLOADS:
        raise TooManyDownloads(f"This adapter serves {parts.downloads} downloads and takes no more.")
    parts.downloads += 1
    try:
        yield
    finally:
        parts.downloads -= 1


def exported_file(document: Document) -> File:
    """The file of the task's last export. Raises NoDownload, which says why there is none."""
    task, run = document.task, document.run
    if task.target.action != EXPORT:
        raise NoDownload(f"Task {task.id} is no export: its action is {task.target.action!r}.")
    if task.state.code is not StateCode.DONE or run is None:
        raise NoDownload(f"Task {task.id} is {task.state.code.value}, not DONE.")
    name = (run.result or {}).get("file")
    if not isinstance(name, str) or not re.search(rf"_Export-{task.id}\.\w+\Z", name):
        raise NoDownload(f"The last run of task {task.id} exported no file.")
    return File(task.chain, task.id, run.id, name)


def level_needed(document: Document) -> AccessLevel:
    """What the run says a token has to be to be given its file; what is no level counts as the highest."""
    named = ((document.run and document.run.result) or {}).get("needs", AccessLevel.VIEWER.name.lower())
    return next((level for level in AccessLevel if level.name.lower() == named), AccessLevel.MANAGER)


def base_url(request: Request, settings: Settings) -> str:
    """What links begin with: the public address, else the one the caller used. Raises MalformedHost."""
    if settings.public_url:
        return settings.public_url.rstrip("/")
    host = request.headers.getlist("host")
    if len(host) != 1 or not HOST.fullmatch(host[0]):
        raise MalformedHost("The Host header is missing or cannot be part of a link.")
    return f"{request.url.scheme}://{host[0]}"


def content_disposition(name: str) -> str:
    """The header that names the file (RFC 6266), with an ASCII stand-in where the name needs one."""
    plain = re.sub(r"[^A-Za-z0-9 ._()+,=@-]", "_", name)
    extended = f"; filename*=UTF-8''{quote(name, safe='', errors='replace')}" if plain != name else ""
    return f'attachment; filename="{plain}"{extended}'


def parse_range(header: str, size: int) -> tuple[int, int] | None:
    """The one range that is asked for, as (start, stop); None: the whole, as when there is none, several, or nonsense.

    Raises RangeUnsatisfiable when it holds no byte of the file.
    """
    found = RANGE.fullmatch(header)
    if found is None or not (found["first"] or found["last"]):
        return None
    if not found["first"]:
        length = _position(found["last"])
        start, stop = max(0, size - length), size
    else:
        start = _position(found["first"])
        last = _position(found["last"]) if found["last"] else size - 1
        if found["last"] and last < start:
            return None
        stop = min(last + 1, size)
    if start >= stop:
        raise RangeUnsatisfiable(size)
    return start, stop


def _position(digits: str) -> int:
    significant = digits.lstrip("0") or "0"
    return int(significant) if len(significant) <= POSITION_DIGITS else 10**POSITION_DIGITS


LINK = path_parameter("link", "What follows `/downloads/` in a link.", {"type": "string"}, "WzE3NjQsMTIzNDVd.aRx8.Zm9v")
RANGE_HEADER = header_parameter(
    "Range", "`bytes=FIRST-LAST`, `bytes=FIRST-` or `bytes=-LENGTH` (RFC 9110).", {"type": "string"}, "bytes=0-99"
)
IF_RANGE = header_parameter(
    "If-Range",
    "An ETag: the range is only meant if the file still has it.",
    {"type": "string"},
    '"NWghenLu1UUNcEkH3pbhTHXMGxhmHzjgyfRY5GKzje8="',
)
FILE_HEADERS = {
    "Content-Disposition": {"schema": {"type": "string"}, "description": "`attachment`, with the name of the file."},
    "ETag": {"schema": {"type": "string"}, "description": "SHA-256 of the file."},
    "Accept-Ranges": {"schema": {"type": "string"}, "description": "`bytes`."},
}
RANGE_HEADERS = {
    **FILE_HEADERS,
    "Content-Range": {"schema": {"type": "string"}, "description": "Which bytes, of how many."},
}
CONTENT: Mapping[str, Mapping[str, Any]] = {
    "text/csv": {"schema": {"type": "string"}},
    "application/json": {
        "schema": {"type": "array", "items": {"type": "object"}},
        "example": [{"id": "0197f2a0-7c1e-7abc-9def-0123456789ab", "task": 12345, "code": "DONE"}],
    },
}

ENDPOINTS = (
    Endpoint(
        method="GET", path="/tasks/{id}/download_url", handle=get_download_url, parameters=(TASK_ID,),
        answers={200: Answer(text=f"The link, good for {LINK_SECONDS // 60} minutes.", model=DownloadUrl)},
        problems=(Forbidden, TaskNotFound, NoDownload, MalformedHost),
    ),
    Endpoint(
        method="GET", path="/downloads/{link}", handle=download, parameters=(LINK, RANGE_HEADER, IF_RANGE),
        needs_token=False,
        answers={
            200: Answer(text="The file.", headers=FILE_HEADERS, content=CONTENT),
            206: Answer(text="The range of it that was asked for.", headers=RANGE_HEADERS, content=CONTENT),
        },
        problems=(LinkInvalid, LinkExpired, FileGone, RangeUnsatisfiable, TooManyDownloads, BrokerAway),
    ),
)  # fmt: skip
