"""Lists by pages: the headers that say how many there are and where the other pages are."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request

PAGING = {
    "X-Total-Count": {"schema": {"type": "integer"}, "description": "How many there are in all."},
    "Link": {"schema": {"type": "string"}, "description": "first, prev, next and last page (RFC 8288)."},
}
"""The headers of a page, for the documentation."""


def page_headers(request: Request, *, limit: int, offset: int, total: int) -> dict[str, str]:
    """The headers of a page."""
    return {
        "X-Total-Count": str(total),
        "Link": _links(request, limit=limit, offset=offset, total=total),
        "Cache-Control": "no-store",
    }


def _links(request: Request, *, limit: int, offset: int, total: int) -> str:
    """The Link header (RFC 8288) of a page: first, prev, next, last, as far as there are such pages."""
    last = max(0, (total - 1) // limit * limit)
    pages = {"first": 0, "prev": max(0, offset - limit), "next": offset + limit, "last": last}
    if offset == 0:
        del pages["prev"]
    if offset + limit >= total:
        del pages["next"]

    def url(start: int) -> str:
        query: dict[str, Any] = {**request.query_params, "limit": limit, "offset": start}
        return f"{request.url.path}?{urlencode(query)}"

    return ", ".join(f'<{url(start)}>; rel="{name}"' for name, start in pages.items())
