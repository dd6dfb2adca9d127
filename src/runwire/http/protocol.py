"""HTTP/1.1 as far as strangers may go: uvicorn's protocol with limits that it has not.

::

    connected --(10 s without a request)--> closed
        |
      first byte of a head --(10 s until its end; 32 KB; 100 headers; a target of 8 KB)--> 408, 431, 414
        |
      body --(1 MB on the wire, whatever is in it; http/body.py limits what an endpoint reads)--> 413
        |
      answer --(30 s in which the caller takes nothing of it)--> cut off

What is not HTTP at all is a 400. Refusals are problem details, written here because no request exists yet that an
endpoint could answer. An earlier request on the same connection gets its own answer, and then the end.

All of this costs a request a few comparisons and no timer: one runs from the connection to the first head, others
only while a head arrives in pieces or an answer does not drain.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from runwire.domain.errors import (
    BadRequest,
    BodyTooLarge,
    HeadersTooLarge,
    RequestError,
    RequestTimeout,
    TargetTooLong,
    TooManyConnections,
)
from runwire.http.problems import RETRY_AFTER, TABLE, type_of

HEAD_SECONDS = 10.0
"""How long a request's line and headers may take from their first byte, and a new connection until they are there."""
LARGEST_HEAD = 32 * 1024
"""Bytes of a request line and its headers."""
MOST_HEADERS = 100
LONGEST_TARGET = 8 * 1024
"""Bytes of a request target (path and query)."""
LARGEST_MESSAGE = 1 << 20
"""Bytes on the wire after the headers: a body of 256 KB in small chunks, and no flood of what surrounds them."""
MOST_PIPELINED = 16
"""Requests on one connection that may wait for the answer to an earlier one."""
STALL_SECONDS = 30.0
"""How long a caller may take nothing of an answer that waits for it."""
LINGER_SECONDS = 2.0
"""How long what still comes is thrown away after a refusal: closing at once would reset the connection, and the
caller would lose the answer before it has read it (RFC 9112 section 9.6)."""
MOST_LINGERED = 16 << 20
"""Bytes that are thrown away meanwhile; with more the connection is cut at once."""
RESERVE, RESERVE_SHARE = 500, 8
"""Connections beyond the limit that are told so, at most one for so many that are served; beyond these they are cut
without a word."""


class GuardedProtocol(HttpToolsProtocol):
    """One connection. uvicorn's ``limit_concurrency`` is the number of connections that are served."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._most_connections, self.limit_concurrency = self.limit_concurrency, None  # we say it better
        self.headers = []
        self._in_head = False
        self._head_bytes = 0
        """Of a head that did not come in one piece."""
        self._message_bytes = 0
        """Of what came since the head."""
        self._in_body = False
        """Between the end of a head and the end of its request."""
        self._lingering = False
        """Whether everything is said, and what still comes is thrown away."""
        self._refusal: RequestError | None = None
        """Why the parser was stopped; what still comes is thrown away."""
        self._told = False
        """Whether the caller was told of the refusal."""
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    # --- the connection ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Begin; above the limit, to say no to the first bytes."""
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_overdue)
        if self._most_connections is not None and len(self.connections) > self._most_connections:
            told = min(RESERVE, self._most_connections // RESERVE_SHARE)
            if len(self.connections) > self._most_connections + told:
                transport.abort()
            else:
                self._refusal = TooManyConnections("This adapter has as many connections as it takes.")

    def connection_lost(self, exc: Exception | None) -> None:
        """End; no timer is left."""
        self._cancel_head_timer()
        self._cancel_stall_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, as far as it goes."""
        if self._lingering:
            self._message_bytes += len(data)
            if self._message_bytes > MOST_LINGERED:
                self.transport.abort()
            return
        if self._refusal is not None:
            if isinstance(self._refusal, TooManyConnections) and not self._told:
                self._refuse(self._refusal)
            return
        was_in_head = self._in_head
        super().data_received(data)
        if self._refusal is not None:
            return
        if self._in_head:
            if was_in_head:
                self._head_bytes += len(data)
            if self._head_bytes > LARGEST_HEAD:
                self._refuse(self._head_refusal())
            elif self._head_timer is None:
                self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_overdue)
            return
        if self._in_body and not self._is_idle():
            self.cycle.transport = _PatientTransport(self)  # type: ignore[assignment]  # all that a cycle needs of one
        self._message_bytes += len(data)
        if self._message_bytes > LARGEST_MESSAGE:
            self._refuse(BodyTooLarge(f"A message may have {LARGEST_MESSAGE:,} bytes; this one has more."))
        elif len(self.headers) > MOST_HEADERS:  # of a trailer
            self._refuse(self._head_refusal())
        elif self._head_timer is None and self._is_idle():  # bytes that begin no request, or the rest of a body
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_overdue)

    def _is_idle(self) -> bool:
        """Whether no request waits for its answer."""
        return self.cycle is None or self.cycle.response_complete  # type: ignore[redundant-expr]  # None at first

    # --- the parser's callbacks --------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A head begins."""
        self._in_head, self._in_body = True, False
        self._head_bytes = self._message_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head is there, and within the limits; else the parser is stopped."""
        if (
            len(self.url) > LONGEST_TARGET
            or len(self.headers) > MOST_HEADERS
            or sum(len(name) + len(value) for name, value in self.headers) > LARGEST_HEAD
        ):
            self._refusal = self._head_refusal()
            raise self._refusal
        if len(self.pipeline) >= MOST_PIPELINED:
            self._refusal = BadRequest(f"At most {MOST_PIPELINED} requests may wait on one connection.")
            raise self._refusal
        self._in_head = False
        if self._head_timer is not None:
            self._cancel_head_timer()
        super().on_headers_complete()
        self._in_body = True
        self.headers = []  # what follows in a trailer is no part of the request's headers

    def on_message_complete(self) -> None:
        """A request ends."""
        self._in_body = False
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's words, for people who know it
        """What uvicorn does when the parser gives up, or was stopped."""
        self._refuse(self._refusal or BadRequest("This is not HTTP/1.1."))

    # --- deadlines ---------------------------------------------------------------------------------------

    def _head_overdue(self) -> None:
        self._head_timer = None
        if self._in_head:
            self._refuse(RequestTimeout(f"The headers did not come within {HEAD_SECONDS:g} s."))
        elif self._is_idle():
            self.transport.close()

    def _cancel_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def pause_writing(self) -> None:
        """The caller is slower than the answer: watch that it takes something."""
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        """The caller has caught up."""
        self._cancel_stall_timer()
        super().resume_writing()

    def on_response_complete(self) -> None:
        """Go on, or close: an answer of which a rest is still here is watched until it was taken."""
        if self._lingering:
            return
        super().on_response_complete()
        if self.transport.is_closing() and self.transport.get_write_buffer_size():
            self._watch_writing()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection; if its last answer was not taken yet, as soon as it was."""
        super().timeout_keep_alive_handler()
        if self.transport.get_write_buffer_size():
            self._watch_writing()

    def _watch_writing(self) -> None:
        self._cancel_stall_timer()
        left = self.transport.get_write_buffer_size()
        self._stall_timer = self.loop.call_later(STALL_SECONDS, self._look_at_writing, left)

    def _look_at_writing(self, before: int) -> None:
        if self.transport.get_write_buffer_size() >= before:
            self.transport.abort()
        else:
            self._watch_writing()

    def _cancel_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    # --- refusing ----------------------------------------------------------------------------------------

    def _head_refusal(self) -> RequestError:
        if len(self.url) > LONGEST_TARGET:
            return TargetTooLong(f"A request target may have {LONGEST_TARGET:,} bytes.")
        return HeadersTooLarge(f"The headers may be {MOST_HEADERS} and have {LARGEST_HEAD:,} bytes.")

    def _refuse(self, error: RequestError) -> None:
        """Parse nothing more, say why if it is this request's turn, and close."""
        self._refusal = error
        self._cancel_head_timer()
        if self.transport.is_closing():
            return
        cycle = self.cycle
        if self._is_idle() and self._in_body:  # of a request that has its answer: a second one would be the next one's
            self._linger()
        elif self._is_idle():
            self._answer_and_close(error)
        elif cycle.more_body and not self._in_head:  # it is the request in hand whose body is refused
            if cycle.response_started or self.pipeline:
                self.transport.close()
            else:
                self._answer_and_close(error)
            cycle.disconnected = True
            cycle.message_event.set()
        else:  # an earlier request gets its answer first
            cycle.keep_alive = False
            self.flow.pause_reading()

    def _answer_and_close(self, error: RequestError) -> None:
        status, title = TABLE[type(error)]
        problem = {
            "type": type_of(error.code), "title": title, "status": status, "detail": str(error), "instance": "",
            "code": error.code,
        }  # fmt: skip
        body = json.dumps(problem).encode()
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/problem+json"),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
            (b"connection", b"close"),
        ]
        if isinstance(error, TooManyConnections):
            headers.append((b"retry-after", RETRY_AFTER.encode()))
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        self.transport.write(STATUS_LINE[status] + lines + b"\r\n" + body)
        self._told = True
        self._linger()

    # --- the end -----------------------------------------------------------------------------------------

    def close_after_answer(self) -> None:
        """At once, unless the rest of the request is still on its way."""
        if self._in_body:
            self._linger()
        else:
            self.transport.close()

    def _linger(self) -> None:
        """Say no more, and close when the other side does or LINGER_SECONDS are over."""
        self._lingering = True
        self._message_bytes = 0
        self._unset_keepalive_if_required()
        self._cancel_head_timer()
        self.flow.resume_reading()
        self.transport.write_eof()
        self._head_timer = self.loop.call_later(LINGER_SECONDS, self._linger_over)

    def _linger_over(self) -> None:
        self.transport.close()
        if self.transport.get_write_buffer_size():
            self._watch_writing()


class _PatientTransport:
    """The transport, for the answer to a request whose body is still on its way."""

    def __init__(self, connection: GuardedProtocol) -> None:
        self.write = connection.transport.write
        self.is_closing = connection.transport.is_closing
        self.close = connection.close_after_answer
