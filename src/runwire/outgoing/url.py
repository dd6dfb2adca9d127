"""Which URLs may be asked for."""

from __future__ import annotations

import re

import httpx

URL_FORM = r"^https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?([/?][!-~]*)?$"
"""A host by name or address, perhaps a port, a path, a query. Whatever else URLs can have is refused: user information,
zones, escapes in a host, hosts that are not ASCII."""
LONGEST_URL = 4000
LONGEST_NAME = 253
"""Characters of a host (RFC 1035 section 2.3.4, without the dot at the end)."""
LABEL = re.compile(r"[A-Za-z0-9_-]{1,63}")
HIGHEST_PORT = 65535


def checked_url(text: str) -> httpx.URL:
    """The URL, if it is one that may be asked for. Raises ValueError."""
    if len(text) > LONGEST_URL:
        raise ValueError(f"must have at most {LONGEST_URL} characters")
    if not re.fullmatch(URL_FORM.rstrip("$"), text):
        raise ValueError("must be http:// or https:// and a host, in ASCII, without user and password")
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        raise ValueError("must have a host that is a name or an address") from None
    if url.port is not None and not 1 <= url.port <= HIGHEST_PORT:
        raise ValueError(f"must have a port of 1 to {HIGHEST_PORT}")
    host = url.raw_host.decode()
    if ":" not in host and not _is_name(host):
        raise ValueError("must have a host that is a name or an address")
    return url


def _is_name(host: str) -> bool:
    labels = host.removesuffix(".").split(".")
    return len(host) <= LONGEST_NAME + 1 and all(LABEL.fullmatch(label) for label in labels)
