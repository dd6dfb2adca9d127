"""One request and its answer, redirects included, over connections that the guard opens.

Every request has a connection of its own, so that nothing of one run (cookies, open connections, what a server makes of
them) is there for the next. The environment has no say: no proxies, no ``.netrc``. Nothing is decompressed.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import certifi
import httpcore
import httpx

from runwire.outgoing.guard import Forbidden, Guard
from runwire.outgoing.url import checked_url

logging.getLogger("httpcore").setLevel(logging.INFO)  # below that it writes down every header

CONNECT_SECONDS = 10.0
"""How long a connection may take, from the look-up of the name on."""
REDIRECTS = {301, 302, 303, 307, 308}
SEE_OTHER = 303
AS_GET = {301, 302}
"""After these a POST becomes a GET, as everybody has it (RFC 9110 sections 15.4.2 and 15.4.3)."""
PORTS = {"http": 80, "https": 443}
HARMLESS = {"accept", "accept-language", "content-type", "idempotency-key", "user-agent"}
"""What another origin may be sent of the headers."""
ABOUT_THE_BODY = {"content-type", "content-language", "content-encoding", "content-disposition", "content-location"}
A_TURN = 256
"""Pieces of a body after which others have their turn: a server may send it byte by byte."""


EXCERPT = 2000
"""Bytes of an unexpected answer that are read."""
FRAMING = (("Accept-Encoding", "identity"), ("Connection", "close"))


class TooLarge(Exception):
    """The body is larger than it may be."""


class BadRedirect(Exception):
    """A redirect that is not followed; says why."""


class ForbiddenRedirect(Forbidden):
    """A redirect led to an address that may not be connected to."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is sent."""

    method: str
    url: httpx.URL
    headers: tuple[tuple[str, str], ...]
    content: bytes | None

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port."""
        return self.url.scheme, self.url.raw_host.decode(), self.url.port or PORTS[self.url.scheme]


@dataclass(frozen=True, kw_only=True)
class Response:
    """What comes back."""

    status: int
    headers: httpx.Headers
    body: bytes
    redirects: int
    """How many were followed on the way."""


class Exchange:
    """Sends requests through a guard. The certificates are read when the first one goes by https."""

    def __init__(self, guard: Guard) -> None:
        """``guard`` opens every connection."""
        self._guard = guard
        self._tls: ssl.SSLContext | None = None

    async def fetch(
        self, request: Request, *, redirects: int, most: int, is_expected: Callable[[int], bool]
    ) -> Response:
        """The answer, when ``redirects`` have been followed at most. Of an unexpected one the body's beginning will do.

        Raises Forbidden, TooLarge when an expected one has more than ``most`` bytes, BadRedirect, or one of httpcore's
        errors.
        """
        followed = 0
        while True:
            try:
                async with self._answer(request) as (status, headers, body):
                    location = headers.get("location")
                    if followed == redirects or location is None or status not in REDIRECTS:
                        read = _whole(body, most) if is_expected(status) else _beginning(body)
                        return Response(status=status, headers=headers, body=await read, redirects=followed)
            except Forbidden:
                raise (ForbiddenRedirect if followed else Forbidden) from None
            request = redirected(request, status, location)
            followed += 1

    @asynccontextmanager
    async def _answer(self, request: Request) -> AsyncIterator[tuple[int, httpx.Headers, AsyncIterator[bytes]]]:
        """Status, headers and body of the answer, over a connection that is closed afterwards."""
        scheme, host, port = request.origin
        tls = self._certificates() if scheme == "https" else None
        raw = scheme.encode(), host.encode(), port
        connection = httpcore.AsyncHTTPConnection(httpcore.Origin(*raw), ssl_context=tls, network_backend=self._guard)
        async with (
            connection,
            connection.stream(
                request.method,
                httpcore.URL(scheme=raw[0], host=raw[1], port=port, target=request.url.raw_path),
                headers=[("Host", request.url.netloc.decode()), *request.headers, *FRAMING],
                content=request.content,
                extensions={"timeout": {"connect": CONNECT_SECONDS}, "sni_hostname": host.removesuffix(".")},
            ) as response,
        ):
            yield response.status, httpx.Headers(response.headers), response.aiter_stream()

    def _certificates(self) -> ssl.SSLContext:
        """Those the system trusts; where it has none, those that come with certifi."""
        if self._tls is None:
            paths = ssl.get_default_verify_paths()
            has_some = paths.cafile or (paths.capath and any(Path(paths.capath).iterdir()))
            self._tls = ssl.create_default_context(cafile=None if has_some else certifi.where())
        return self._tls


def redirected(request: Request, status: int, location: str) -> Request:
    """What is asked for next (RFC 9110 section 15.4). Another origin gets no more of it than it needs.

    Raises BadRedirect.
    """
    try:
        url = checked_url(str(request.url.join(location).copy_with(fragment=None)))
    except (ValueError, httpx.InvalidURL):
        raise BadRedirect("The server redirected to something that may not be asked for.") from None
    if request.url.scheme == "https" and url.scheme != "https":
        raise BadRedirect("The server redirected from https to http.")
    following = replace(request, url=url)
    if (status == SEE_OTHER and request.method != "HEAD") or (status in AS_GET and request.method == "POST"):
        headers = tuple((name, value) for name, value in request.headers if name.lower() not in ABOUT_THE_BODY)
        following = replace(following, method="GET", content=None, headers=headers)
    if following.origin == request.origin:
        return following
    if following.content is not None:
        raise BadRedirect("The server redirected the request's body to another origin.")
    return replace(following, headers=tuple(h for h in following.headers if h[0].lower() in HARMLESS))


async def _whole(body: AsyncIterator[bytes], most: int) -> bytes:
    """All of the body. Raises TooLarge."""
    found, pieces = bytearray(), 0
    async for piece in body:
        found += piece
        if len(found) > most:
            raise TooLarge
        pieces += 1
        if pieces % A_TURN == 0:
            await asyncio.sleep(0)
    return bytes(found)


async def _beginning(body: AsyncIterator[bytes]) -> bytes:
    found = b""
    async for piece in body:
        found += piece
        if len(found) >= EXCERPT:
            break
    return found[:EXCERPT]
