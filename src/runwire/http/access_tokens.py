"""``/access_tokens``: who may call, and what they may do.

A manager grants what it holds itself, sees the tokens that reach a chain it manages (and of each only the chains it
manages), and changes those whose every chain it manages. Everybody may look at their own. A secret is in the answer
that makes it, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from runwire.domain import access
from runwire.domain.access import (
    LIFETIME,
    TOKEN_ID,
    AccessLevel,
    AccessToken,
    Principal,
    TokenKind,
    new_credential,
)
from runwire.domain.errors import (
    Draining,
    FieldError,
    Forbidden,
    InvalidFields,
    MalformedId,
    NotAccepted,
    OwnToken,
    TokenNotFound,
)
from runwire.domain.task import MAX_ID, whole_seconds
from runwire.http.body import read_body
from runwire.http.endpoint import Answer, Endpoint, path_parameter
from runwire.http.json_body import parse_json
from runwire.http.paging import PAGING, page_headers
from runwire.http.query import Page, parse_query
from runwire.http.schemas import json_bytes
from runwire.http.services import Services, services
from runwire.http.token_schemas import (
    EXAMPLE_TOKEN,
    AccessTokenBody,
    AccessTokenPatch,
    AccessTokenView,
    RotationBody,
    SecretView,
    parse_new,
    token_view,
)
from runwire.messaging import tokens

PATH = "/access_tokens"
TOKEN_PARAMETER = path_parameter(
    "token", "Id of the access token.", {"type": "string", "pattern": f"^{TOKEN_ID.pattern}$"}, EXAMPLE_TOKEN["id"]
)


class AccessTokensQuery(Page):
    """Query parameters of the list."""

    chain: Annotated[int | None, Field(ge=1, le=MAX_ID, description="Only tokens that reach this chain.")] = None
    deleted: Annotated[bool, Field(description="Deleted ones instead of those that are there.")] = False


async def create_access_token(request: Request) -> Response:
    """Create an access token; its secret is shown this once. Needs manager in every chain that it grants."""
    parts = services(request)
    principal = await parts.authenticate(request)
    body = parse_new(await read_body(request))
    levels = body.granted()
    for chain in levels:
        principal.require(AccessLevel.MANAGER, chain)
    now = datetime.now(UTC)
    expires = _expiry(body.expires, now)
    if parts.draining:
        raise Draining("This adapter is stopping; try again.")
    token_id, secret = new_credential()
    token = access.create_token(
        token_id,
        secret,
        kind=TokenKind(body.kind),
        levels=levels,
        by=principal.token,
        now=now,
        expires=expires,
        desc=body.desc,
    )
    await tokens.create_surely(parts.bus, token)
    return _secret_answer(201, token_view(token, levels), secret, {"Location": f"{PATH}/{token.id}"})


async def list_access_tokens(request: Request) -> Response:
    """The access tokens of the chains that one manages, oldest first. Needs manager."""
    parts = services(request)
    query = parse_query(request, AccessTokensQuery)
    principal = await parts.authenticate(request)
    chains = managed_chains(principal, query.chain)
    found = [
        token
        for token in await tokens.list_all(parts.bus)
        if (token.deleted is not None) == query.deleted and not token.levels.keys().isdisjoint(chains)
    ]
    uses = await tokens.last_uses(parts.bus)
    page = [
        token_view(token, principal.managed, _latest(parts, token, uses.get(token.id)))
        for token in found[query.offset : query.offset + query.limit]
    ]
    return Response(
        json_bytes(page),
        200,
        page_headers(request, limit=query.limit, offset=query.offset, total=len(found)),
        "application/json",
    )


async def get_own_access_token(request: Request) -> Response:
    """The access token that the call is made with. Needs any valid token."""
    parts = services(request)
    principal = await parts.authenticate(request)
    return await _shown(parts, principal, principal.token)


async def get_access_token(request: Request) -> Response:
    """An access token, also a deleted one. Needs manager of a chain that it reaches, but for one's own."""
    parts = services(request)
    token_id = token_id_in(request)
    return await _shown(parts, await parts.authenticate(request), token_id)


async def change_access_token(request: Request) -> Response:
    """Deactivate or activate an access token, or describe it anew. Needs manager in every chain that it reaches."""
    parts = services(request)
    token_id = token_id_in(request)
    principal = await parts.authenticate(request)
    patch = parse_json(await read_body(request), AccessTokenPatch)
    now = datetime.now(UTC)

    def patched(token: AccessToken) -> AccessToken:
        if patch.active is False:
            _refuse_own(principal, token, "deactivate")
        if patch.desc is not None:
            token = access.describe(token, patch.desc, by=principal.token, now=now)
        return token if patch.active is None else access.set_active(token, patch.active, by=principal.token, now=now)

    token = await _change(parts, principal, token_id, patched)
    return _answer(200, token_view(token, token.levels, await _last_used(parts, token)))


async def rotate_access_token(request: Request) -> Response:
    """Give an access token a new secret; the old one stays valid for the overlap. Needs manager in all its chains."""
    parts = services(request)
    token_id = token_id_in(request)
    principal = await parts.authenticate(request)
    body = parse_json(await read_body(request) or b"{}", RotationBody)
    now = datetime.now(UTC)
    expires = _expiry(body.expires, now)
    _, secret = new_credential()

    def rotated(token: AccessToken) -> AccessToken:
        overlap = timedelta(seconds=body.overlap)
        return access.rotate(token, secret, overlap=overlap, expires=expires, by=principal.token, now=now)

    token = await _change(parts, principal, token_id, rotated)
    return _secret_answer(200, token_view(token, token.levels, await _last_used(parts, token)), secret)


async def delete_access_token(request: Request) -> Response:
    """Delete an access token; it is kept for the audit trail. Needs manager in every chain that it reaches."""
    parts = services(request)
    token_id = token_id_in(request)
    principal = await parts.authenticate(request)
    now = datetime.now(UTC)

    def deleted(token: AccessToken) -> AccessToken:
        _refuse_own(principal, token, "delete")
        return access.delete(token, by=principal.token, now=now)

    await _change(parts, principal, token_id, deleted)
    return Response(None, 204, {"Cache-Control": "no-store"})


def token_id_in(request: Request) -> str:
    """The token id in the path. Raises MalformedId."""
    token_id: str = request.path_params["token"]
    if TOKEN_ID.fullmatch(token_id) is None:
        raise MalformedId("An access token id has 1 to 64 letters, digits, - and _.")
    return token_id


def managed_chains(principal: Principal, chain: int | None) -> tuple[int, ...]:
    """The chains that a manager's list covers: all that one manages, or the one asked for. Raises Forbidden."""
    if chain is not None:
        principal.require(AccessLevel.MANAGER, chain)
        return (chain,)
    if not principal.managed:
        raise Forbidden("This needs the access level manager in some chain.", needs="manager")
    return principal.managed


async def _shown(parts: Services, principal: Principal, token_id: str) -> Response:
    token, chains = _visible(principal, await tokens.get(parts.bus, token_id), token_id)
    return _answer(200, token_view(token, chains, await _last_used(parts, token)))


async def _change(
    parts: Services, principal: Principal, token_id: str, next_version: Callable[[AccessToken], AccessToken]
) -> AccessToken:
    """Change the token if the principal may; in force on this adapter at once. Raises TokenNotFound, Forbidden ..."""
    if parts.draining:
        raise Draining("This adapter is stopping; try again.")

    def checked(found: AccessToken | None) -> AccessToken:
        token, chains = _visible(principal, found, token_id)
        if token.deleted is not None:
            raise TokenNotFound(f"There is no access token {token_id}.")
        if not token.levels.keys() <= set(principal.managed):
            raise Forbidden(
                "This needs the access level manager in every chain that the token reaches.",
                needs="manager",
                chain=chains[0],
            )
        return next_version(token)

    token = await tokens.change(parts.bus, token_id, checked)
    parts.authenticate.renew(token)
    return token


def _visible(principal: Principal, token: AccessToken | None, token_id: str) -> tuple[AccessToken, list[int]]:
    """The token, and which of its chains the principal may see. Raises TokenNotFound or Forbidden."""
    if token is not None and token.id == principal.token:
        return token, sorted(token.levels)
    common = sorted(chain for chain in token.levels if principal.reaches(chain)) if token is not None else []
    if token is None or not common:
        raise TokenNotFound(f"There is no access token {token_id}.")
    managed = [chain for chain in common if chain in principal.managed]
    if not managed:
        raise Forbidden(
            "This needs the access level manager in a chain that the token reaches.", needs="manager", chain=common[0]
        )
    return token, managed


def _refuse_own(principal: Principal, token: AccessToken, what: str) -> None:
    if token.id == principal.token:
        raise OwnToken(f"You cannot {what} the token that you call with; use another manager's.")


def _expiry(wanted: datetime | None, now: datetime) -> datetime:
    """When the token ends. Raises InvalidFields for a time that is over, or that UTC has no year for."""
    if wanted is None:
        return now + LIFETIME
    try:
        end = whole_seconds(wanted)
    except OverflowError:
        raise InvalidFields([FieldError(pointer="/expires", detail="is too far away")]) from None
    if end <= now:
        raise InvalidFields([FieldError(pointer="/expires", detail="must be in the future")])
    return end


async def _last_used(parts: Services, token: AccessToken) -> datetime | None:
    return _latest(parts, token, await tokens.last_use(parts.bus, token.id))


def _latest(parts: Services, token: AccessToken, written: datetime | None) -> datetime | None:
    """The last use that the bucket or this adapter knows of."""
    return max((use for use in (written, parts.uses.latest(token.id)) if use is not None), default=None)


def _answer(status: int, view: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    return Response(json_bytes(view), status, {"Cache-Control": "no-store", **(headers or {})}, "application/json")


def _secret_answer(status: int, view: dict[str, Any], secret: str, headers: dict[str, str] | None = None) -> Response:
    return _answer(status, view | {"secret": secret, "token": f"{view['id']}:{secret}"}, headers)


LOCATION = {"Location": {"schema": {"type": "string"}, "description": "The access token, for GET."}}

ENDPOINTS = (
    Endpoint(
        method="POST", path=PATH, handle=create_access_token, tag="access tokens", body=AccessTokenBody,
        answers={201: Answer(text="Created; the secret is shown this once.", model=SecretView, headers=LOCATION)},
        problems=(Forbidden, NotAccepted, Draining),
    ),
    Endpoint(
        method="GET", path=PATH, handle=list_access_tokens, tag="access tokens", query=AccessTokensQuery,
        answers={200: Answer(text="A page of access tokens.", model=list[AccessTokenView], headers=PAGING)},
        problems=(Forbidden,),
    ),
    Endpoint(
        method="GET", path=f"{PATH}/self", handle=get_own_access_token, tag="access tokens",
        answers={200: Answer(text="The access token.", model=AccessTokenView)},
    ),
    Endpoint(
        method="GET", path=f"{PATH}/{{token}}", handle=get_access_token, tag="access tokens",
        parameters=(TOKEN_PARAMETER,),
        answers={200: Answer(text="The access token.", model=AccessTokenView)},
        problems=(Forbidden, TokenNotFound),
    ),
    Endpoint(
        method="PATCH", path=f"{PATH}/{{token}}", handle=change_access_token, tag="access tokens",
        parameters=(TOKEN_PARAMETER,), body=AccessTokenPatch,
        answers={200: Answer(text="The access token as it is now.", model=AccessTokenView)},
        problems=(Forbidden, TokenNotFound, OwnToken, NotAccepted, Draining),
    ),
    Endpoint(
        method="DELETE", path=f"{PATH}/{{token}}", handle=delete_access_token, tag="access tokens",
        parameters=(TOKEN_PARAMETER,),
        answers={204: Answer(text="Deleted.")},
        problems=(Forbidden, TokenNotFound, OwnToken, NotAccepted, Draining),
    ),
    Endpoint(
        method="POST", path=f"{PATH}/{{token}}/rotate", handle=rotate_access_token, tag="access tokens",
        parameters=(TOKEN_PARAMETER,), body=RotationBody, body_required=False,
        answers={200: Answer(text="The new secret, which is shown this once.", model=SecretView)},
        problems=(Forbidden, TokenNotFound, NotAccepted, Draining),
    ),
)  # fmt: skip
