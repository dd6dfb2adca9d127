"""The trace a call is part of (W3C Trace Context): the run that it asks for goes on in it."""

from __future__ import annotations

from starlette.requests import Request

from runwire.domain import trace
from runwire.domain.trace import Trace
from runwire.http.endpoint import header_parameter

TRACE = (
    header_parameter(
        "traceparent",
        "The trace that the call is part of (W3C Trace Context); one that is not valid counts as absent.",
        {"type": "string"},
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    ),
    header_parameter("tracestate", "What belongs to it; 512 characters are passed on.", {"type": "string"}, "rojo=1"),
)


def trace_of(request: Request) -> Trace | None:
    """Where in a trace the caller is; None: in none."""
    parents = request.headers.getlist("traceparent")
    if len(parents) != 1:
        return None
    return trace.parse(parents[0], ",".join(request.headers.getlist("tracestate")))
