"""One event to one web hook: what is sent, what the answer means, and when it is worth another try.

Signed as Standard Webhooks says; the body is the event as a CloudEvent in structured mode. The same event has the same
``webhook-id`` whenever it comes again.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import GONE, responses
from typing import Any
from urllib.parse import unquote

import httpcore
from pydantic_core import from_json

from runwire import __version__
from runwire.domain import trace
from runwire.domain.subscription import Subscription, signatures
from runwire.messaging import subjects
from runwire.outgoing.exchange import Exchange, Request
from runwire.outgoing.guard import Forbidden
from runwire.outgoing.url import checked_url

CONTENT_TYPE = "application/cloudevents+json"
SUCCESS = range(200, 300)


@dataclass(frozen=True)
class Delivered:
    """The receiver has it."""


@dataclass(frozen=True)
class Gone:
    """The receiver wants no events any more, for good."""


@dataclass(frozen=True)
class Failed:
    """The receiver has it not, as far as is known."""

    detail: str
    """Why, for people; nothing of the URL."""


Verdict = Delivered | Gone | Failed


@dataclass(frozen=True)
class Patience:
    """How long is tried."""

    first: float = 2.0
    """Seconds before the second try; doubles with each further one."""
    longest: float = 3600.0
    """Seconds between two tries, at most: a receiver that is back is noticed within an hour."""
    attempts: int = 35
    """Tries, after which the event is a dead letter: a little more than a day with the above."""
    seconds: float = 15.0
    """How long one try may take."""

    def pause(self, attempt: int) -> float:
        """Seconds to wait after this try has failed; up to a fifth less than it says, as others wait for the same."""
        return float(min(self.first * 2 ** (attempt - 1), self.longest)) * random.uniform(0.8, 1)  # noqa: S311 - jitter


def is_wanted(subscription: Subscription, payload: bytes) -> bool:
    """Whether the web hook is for events of tasks with this action."""
    if not subscription.actions:
        return True
    return from_json(payload)["task"]["target"]["action"] in subscription.actions


def structured(headers: Mapping[str, str], payload: bytes, sequence: int) -> bytes:
    """The event in a message of EVENTS as one JSON object; its data is, to the byte, what the bus has.

    ``sequence`` is its place in EVENTS (an extension of CloudEvents, which wants it as text).
    """
    attributes: dict[str, Any] = {name[3:]: unquote(headers[name]) for name in headers if name.startswith("ce-")}
    attributes["sequence"] = str(sequence)
    return json.dumps(attributes).encode()[:-1] + b', "data": ' + payload + b"}"


async def deliver(
    exchange: Exchange,
    subscription: Subscription,
    event_id: str,
    body: bytes,
    *,
    seconds: float,
    trace_headers: Mapping[str, str] | None = None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Verdict:
    """Send it once. Redirects are not followed: a receiver that has moved says so to its owner."""
    try:
        async with asyncio.timeout(seconds):
            request = _request(subscription, event_id, body, clock(), trace_headers or {})
            response = await exchange.fetch(request, redirects=0, most=0, is_expected=lambda _status: False)
    except TimeoutError:
        return Failed(f"no answer within {seconds:g} s")
    except Forbidden:
        return Failed("its address may not be called")
    except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError) as error:
        return Failed(f"no connection, or it broke ({type(error).__name__})")
    if response.status in SUCCESS:
        return Delivered()
    if response.status == GONE:
        return Gone()
    return Failed(f"{response.status} {responses.get(response.status, '')}".strip())


def _request(
    subscription: Subscription, event_id: str, body: bytes, at: datetime, trace_headers: Mapping[str, str]
) -> Request:
    return Request(
        method="POST",
        url=checked_url(subscription.url or ""),
        headers=(
            ("User-Agent", f"runwire/{__version__}"),
            ("Content-Type", CONTENT_TYPE),
            ("webhook-id", event_id),
            ("webhook-timestamp", str(int(at.timestamp()))),
            ("webhook-signature", signatures(subscription, event_id, at, body)),
            *trace_headers.items(),
        ),
        content=body,
    )


def trace_headers_of(headers: Mapping[str, str], subscription: str, attempt: int) -> dict[str, str]:
    """Headers of a try to send the event in a message of EVENTS: a span of its own below the run's, if that has one."""
    of_run = trace.parse(headers.get(subjects.TRACE_PARENT), headers.get(subjects.TRACE_STATE))
    return {} if of_run is None else trace.child(of_run, f"{subscription} {event_id_of(headers)} {attempt}").headers()


def event_id_of(headers: Mapping[str, str]) -> str:
    """What tells the event apart."""
    return headers.get(subjects.EVENT_ID, "")
