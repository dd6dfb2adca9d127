"""What the two drivers share: how httpx is set up, and what a call becomes there."""

from __future__ import annotations

from typing import Any

import httpx

from runwire.client.place import Place
from runwire.client.steps import SILENCE, Call

TIMEOUT = 60.0
"""Seconds an adapter that does not answer is borne, unless the caller says otherwise."""
CONNECT_WITHIN = 10.0
KEPT_OPEN = 20
"""Connections that are kept for the next calls; there may be any number at once, as many as calls wait."""


def arguments(place: Place) -> dict[str, Any]:
    """Of httpx.Client and httpx.AsyncClient. Raises ValueError for an address that is none."""
    return {
        "base_url": _address(place.url),
        "headers": {"User-Agent": "runwire-client"},
        "limits": httpx.Limits(max_connections=None, max_keepalive_connections=KEPT_OPEN),
        # A proxy may be on the way to an adapter elsewhere, not to the one on this machine.
        "trust_env": not place.is_here,
    }


def _address(url: str) -> httpx.URL:
    """Raises ValueError when it is none."""
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL as invalid:
        msg = f"{url!r} is no address: {invalid}"
        raise ValueError(msg) from None
    if address.scheme not in {"http", "https"} or not address.host:
        msg = f"{url!r} is no address: http://HOST:PORT or https://HOST"
        raise ValueError(msg)
    return address


def request_of(call: Call, http: httpx.Client | httpx.AsyncClient, token: str) -> httpx.Request:
    """The request whose answer is read whole."""
    return _request(call, http, token, silence=call.answer_within)


def stream_request_of(call: Call, http: httpx.Client | httpx.AsyncClient, token: str) -> httpx.Request:
    """The request whose answer is read piece by piece."""
    return _request(call, http, token, silence=SILENCE)


def _request(call: Call, http: httpx.Client | httpx.AsyncClient, token: str, *, silence: float) -> httpx.Request:
    headers = call.all_headers
    if call.path.startswith("/"):  # else it is the address of a file, which needs no token, and is maybe elsewhere
        headers["Authorization"] = f"Bearer {token}"
    return http.build_request(
        call.method,
        call.path,
        params=call.query or None,
        headers=headers,
        json=call.json,
        timeout=httpx.Timeout(silence, connect=CONNECT_WITHIN, pool=None),
    )
