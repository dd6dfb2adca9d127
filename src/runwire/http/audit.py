"""``/audit``: who changed what in a chain, and which calls were refused; and how a refusal gets there."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from runwire.domain.access import AccessToken
from runwire.domain.errors import (
    DeadLetterNotFound,
    Forbidden,
    RequestError,
    SubscriptionNotFound,
    TaskNotFound,
    Unauthenticated,
)
from runwire.domain.task import MAX_ID
from runwire.http.access_tokens import managed_chains
from runwire.http.auth import NAMED_TOKEN
from runwire.http.endpoint import Answer, Endpoint
from runwire.http.paging import PAGING, page_headers
from runwire.http.problems import TABLE
from runwire.http.query import Page, parse_query
from runwire.http.schemas import Instant, instant, json_bytes
from runwire.http.services import services
from runwire.messaging.trail import AuditRow
from runwire.readmodel.audit import AuditFilter

TOO_MANY = 429
EXAMPLE_ROW: dict[str, Any] = {
    "date": "2026-05-26T14:35:00Z",
    "chain": 1764,
    "by": "0b7e6f0e-3f0c-4c4e-9a53-5d3b8f6f2a11",
    "action": "call.refused",
    "subject": "/tasks/{id}/execute",
    "detail": {
        "method": "POST",
        "code": "forbidden",
        "count": 17,
        "first": "2026-05-26T14:34:59Z",
        "last": "2026-05-26T14:35:00Z",
    },
}


class AuditQuery(Page):
    """Query parameters of the audit trail."""

    chain: Annotated[int | None, Field(ge=1, le=MAX_ID, description="Only this one of the chains one manages.")] = None
    action: Annotated[str | None, Field(max_length=64, description="Only this, such as `token.created`.")] = None
    since: Annotated[Instant | None, Field(description="Only from this time on.")] = None


class AuditView(BaseModel):
    """Something that was done, or refused."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_ROW]})

    date: datetime
    chain: int
    by: Annotated[str, Field(description="Id of the access token that did it, or `operator`.")]
    action: Annotated[
        str,
        Field(
            description="`task.created`, `.edited`, `.deleted`, `.cancelled`; `token.created`, `.edited`, "
            "`.deactivated`, `.activated`, `.rotated`, `.deleted`; `dead_letter.replayed`, `.deleted`; "
            "`subscription.created`, `.rotated`, `.resumed`, `.deleted`; "
            "`call.refused`."
        ),
    ]
    subject: Annotated[str, Field(description="What it was done to: a path of this API, or `bus`.")]
    detail: Annotated[dict[str, Any], Field(description="More about it; depends on the action.")]


async def list_audit(request: Request) -> Response:
    """Who changed what, and which calls were refused, newest first. Needs manager."""
    parts = services(request)
    query = parse_query(request, AuditQuery)
    principal = await parts.authenticate(request)
    which = AuditFilter(chains=managed_chains(principal, query.chain), action=query.action, since=query.since)
    rows, total = await parts.trail.page(which, limit=query.limit, offset=query.offset, now=datetime.now(UTC))
    headers = page_headers(request, limit=query.limit, offset=query.offset, total=total)
    return Response(json_bytes([audit_view(row) for row in rows]), 200, headers, "application/json")


def audit_view(row: AuditRow) -> dict[str, Any]:
    """The row as the API shows it."""
    return {
        "date": instant(row.date),
        "chain": row.chain,
        "by": row.by,
        "action": row.action,
        "subject": row.subject,
        "detail": row.detail,
    }


def note_refusal(request: Request, route: str, error: RequestError) -> None:
    """Have the audit trail tell of a refused call, if it is of the kind that it tells of; ``route``: path template."""
    token: AccessToken | None = request.scope.get(NAMED_TOKEN)
    if not _is_told(error):
        return
    parts = services(request)
    if token is None:
        parts.refusals.note_unknown()
        return
    parts.refusals.note(
        token.levels if error.chain is None else (error.chain,),
        token=token.id,
        method=request.method,
        route=route,
        code=error.code,
        now=datetime.now(UTC),
    )


def _is_told(error: RequestError) -> bool:
    match error:
        case Unauthenticated(attempted=attempted):
            return attempted
        case TaskNotFound(chain=chain) | DeadLetterNotFound(chain=chain) | SubscriptionNotFound(chain=chain):
            return chain is not None
    return isinstance(error, Forbidden) or TABLE[type(error)][0] == TOO_MANY


ENDPOINTS = (
    Endpoint(
        method="GET", path="/audit", handle=list_audit, tag="access tokens", query=AuditQuery,
        answers={200: Answer(text="A page of the audit trail.", model=list[AuditView], headers=PAGING)},
        problems=(Forbidden,),
    ),
)  # fmt: skip
