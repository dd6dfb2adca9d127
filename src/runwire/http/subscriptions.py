"""``/subscriptions``: who wants to get which events, each at least once.

A pull subscription is its token's own; managers of the chain see it, and may end it. Web hooks are the managers'.
What somebody else's is looks like what does not exist.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated
from uuid import uuid4

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from runwire.domain.access import AccessLevel, Principal
from runwire.domain.errors import (
    Draining,
    FieldError,
    Forbidden,
    InvalidFields,
    MalformedId,
    NotAccepted,
    NotAWebHook,
    SubscriptionNotFound,
    TooManySubscriptions,
)
from runwire.domain.subscription import (
    SUBSCRIPTION_ID,
    Subscription,
    SubscriptionKind,
    chain_of,
    new_secret,
    owner_of,
    rotate,
)
from runwire.domain.task import MAX_ID, whole_seconds
from runwire.http.body import read_body
from runwire.http.endpoint import Answer, Endpoint, path_parameter
from runwire.http.json_body import parse_json
from runwire.http.lookup import readable_chains
from runwire.http.paging import PAGING, page_headers
from runwire.http.query import Page, parse_query
from runwire.http.schemas import json_bytes
from runwire.http.services import Services, services
from runwire.http.subscription_schemas import (
    EXAMPLE_PULL,
    HookRotationBody,
    NewSubscriptionView,
    SubscriptionBody,
    SubscriptionView,
    new_subscription,
    parse_wanted,
    subscription_view,
)
from runwire.messaging import audit, subscriptions
from runwire.messaging.subscriptions import Standing

PATH = "/subscriptions"
SUBSCRIPTION_PARAMETER = path_parameter(
    "subscription",
    "Id of the subscription.",
    {"type": "string", "pattern": f"^{SUBSCRIPTION_ID.pattern}$"},
    EXAMPLE_PULL["id"],
)
EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)


class SubscriptionsQuery(Page):
    """Query parameters of the list."""

    chain: Annotated[int | None, Field(ge=1, le=MAX_ID, description="Only subscriptions to this chain's events.")] = (
        None
    )


async def create_subscription(request: Request) -> Response:
    """Create a subscription to events of a chain. Needs viewer, for a web hook manager."""
    parts = services(request)
    principal = await parts.authenticate(request)
    body = parse_wanted(await read_body(request))
    principal.require(AccessLevel.VIEWER if body.kind == "pull" else AccessLevel.MANAGER, body.chain)
    now = datetime.now(UTC)
    _check_start(body.from_time, now)
    if parts.draining:
        raise Draining("This adapter is stopping; try again.")
    wanted = new_subscription(body, id="", token=principal.token, created=whole_seconds(now), mark=uuid4().hex)
    made = await subscriptions.make(parts.bus, wanted)
    await parts.refusals.record(_deed(made, principal, "created"))
    standing = await subscriptions.find(parts.bus, made.id)
    if standing is None:
        raise NotAccepted("The subscription was made, and is gone again.")
    headers = {"Location": f"{PATH}/{made.id}", "Cache-Control": "no-store"}
    view = subscription_view(standing) | {"secret": made.secret}
    return Response(json_bytes(view), 201, headers, "application/json")


async def list_subscriptions(request: Request) -> Response:
    """One's own subscriptions, and all of the chains that one manages, oldest first. Needs viewer."""
    parts = services(request)
    query = parse_query(request, SubscriptionsQuery)
    principal = await parts.authenticate(request)
    chains = readable_chains(principal, query.chain)
    found = await subscriptions.listed(parts.bus, chains, lambda name: _may_see(principal, name))
    page = found[query.offset : query.offset + query.limit]
    return Response(
        json_bytes([subscription_view(standing) for standing in page]),
        200,
        page_headers(request, limit=query.limit, offset=query.offset, total=len(found)),
        "application/json",
    )


async def get_subscription(request: Request) -> Response:
    """A subscription, and how far it has come. Needs viewer; manager for another token's and for web hooks."""
    parts = services(request)
    name = _name_in(request)
    standing = await _visible(parts, await parts.authenticate(request), name)
    return Response(json_bytes(subscription_view(standing)), 200, {"Cache-Control": "no-store"}, "application/json")


async def delete_subscription(request: Request) -> Response:
    """End a subscription, and forget how far it has come. Needs viewer; manager for another's and for web hooks."""
    parts = services(request)
    name = _name_in(request)
    principal = await parts.authenticate(request)
    subscription = (await _visible(parts, principal, name)).subscription
    if parts.draining:
        raise Draining("This adapter is stopping; try again.")
    done = _deed(subscription, principal, "deleted")
    await audit.record(parts.bus, done, message_id=f"subscription-deleted-{subscription.mark}")  # nothing goes untold
    await subscriptions.delete(parts.bus, name)
    return Response(None, 204, {"Cache-Control": "no-store"})


async def rotate_secret(request: Request) -> Response:
    """Give a web hook a new secret; events are signed with both for the overlap. Needs manager."""
    parts = services(request)
    name = _name_in(request)
    principal = await parts.authenticate(request)
    body = parse_json(await read_body(request) or b"{}", HookRotationBody)
    secret, now, overlap = new_secret(), datetime.now(UTC), timedelta(seconds=body.overlap)
    changed = await _change(
        parts, principal, name, "rotated", lambda hook: rotate(hook, secret, overlap=overlap, now=now)
    )
    view = subscription_view(changed) | {"secret": secret}
    return Response(json_bytes(view), 200, {"Cache-Control": "no-store"}, "application/json")


async def resume_subscription(request: Request) -> Response:
    """Send to a web hook again whose receiver had said 410 Gone, from where it stopped. Needs manager."""
    parts = services(request)
    name = _name_in(request)
    principal = await parts.authenticate(request)
    changed = await _change(parts, principal, name, "resumed", lambda hook: hook.model_copy(update={"disabled": None}))
    return Response(json_bytes(subscription_view(changed)), 200, {"Cache-Control": "no-store"}, "application/json")


async def _change(
    parts: Services, principal: Principal, name: str, what: str, next_version: Callable[[Subscription], Subscription]
) -> Standing:
    """Change a web hook, and tell of it. Raises SubscriptionNotFound, NotAWebHook, Draining or NotAccepted."""
    hook = (await _visible(parts, principal, name)).subscription
    if hook.kind is not SubscriptionKind.WEB_HOOK:
        raise NotAWebHook("A subscription that is pulled has neither a secret nor a receiver.")
    if parts.draining:
        raise Draining("This adapter is stopping; try again.")
    changed = await subscriptions.change(parts.bus, name, next_version)
    if changed is None:
        raise SubscriptionNotFound(f"There is no subscription {name}.")
    if changed.subscription != hook:
        await parts.refusals.record(_deed(hook, principal, what))
    return changed


async def _visible(parts: Services, principal: Principal, name: str) -> Standing:
    """The subscription, if the principal may see it: then it may end it, too. Raises SubscriptionNotFound."""
    standing = None if chain_of(name) is None else await subscriptions.find(parts.bus, name)
    if standing is None or not _may_see(principal, name):
        chain = None if standing is None else standing.subscription.chain
        raise SubscriptionNotFound(f"There is no subscription {name}.", chain=chain)
    return standing


def _may_see(principal: Principal, name: str) -> bool:
    """Whether a subscription of this id is, or would be, the principal's business. The id says enough."""
    chain = chain_of(name)
    if chain is None or not principal.reaches(chain):
        return False
    return chain in principal.managed or owner_of(name) == principal.token


def _deed(subscription: Subscription, principal: Principal, what: str) -> audit.Deed:
    return audit.deed(
        subscription.chain,
        by=principal.token,
        action=f"subscription.{what}",
        subject=f"{PATH}/{subscription.id}",
        kind=subscription.kind.value,
    )


def _name_in(request: Request) -> str:
    """The id in the path. Raises MalformedId."""
    name: str = request.path_params["subscription"]
    if SUBSCRIPTION_ID.fullmatch(name) is None:
        raise MalformedId("A subscription id has 1 to 100 letters, digits, - and _.")
    return name


def _check_start(start: datetime | None, now: datetime) -> None:
    """Raise InvalidFields for a time that is still to come, or before there were any."""
    if start is not None and not EARLIEST <= start <= now:
        raise InvalidFields([FieldError(pointer="/from_time", detail="must be in the past, and after 1970")])


LOCATION = {"Location": {"schema": {"type": "string"}, "description": "The subscription, for GET."}}

ENDPOINTS = (
    Endpoint(
        method="POST", path=PATH, handle=create_subscription, tag="events", body=SubscriptionBody,
        answers={201: Answer(text="Created.", model=NewSubscriptionView, headers=LOCATION)},
        problems=(Forbidden, TooManySubscriptions, NotAccepted, Draining),
    ),
    Endpoint(
        method="GET", path=PATH, handle=list_subscriptions, tag="events", query=SubscriptionsQuery,
        answers={200: Answer(text="A page of subscriptions.", model=list[SubscriptionView], headers=PAGING)},
        problems=(Forbidden,),
    ),
    Endpoint(
        method="GET", path=f"{PATH}/{{subscription}}", handle=get_subscription, tag="events",
        parameters=(SUBSCRIPTION_PARAMETER,),
        answers={200: Answer(text="The subscription.", model=SubscriptionView)},
        problems=(SubscriptionNotFound,),
    ),
    Endpoint(
        method="DELETE", path=f"{PATH}/{{subscription}}", handle=delete_subscription, tag="events",
        parameters=(SUBSCRIPTION_PARAMETER,),
        answers={204: Answer(text="It is no more.")},
        problems=(SubscriptionNotFound, Draining),
    ),
    Endpoint(
        method="POST", path=f"{PATH}/{{subscription}}/rotate", handle=rotate_secret, tag="events",
        parameters=(SUBSCRIPTION_PARAMETER,), body=HookRotationBody, body_required=False,
        answers={200: Answer(text="The new secret, which is shown this once.", model=NewSubscriptionView)},
        problems=(SubscriptionNotFound, NotAWebHook, NotAccepted, Draining),
    ),
    Endpoint(
        method="POST", path=f"{PATH}/{{subscription}}/resume", handle=resume_subscription, tag="events",
        parameters=(SUBSCRIPTION_PARAMETER,),
        answers={200: Answer(text="The web hook, which is in use.", model=SubscriptionView)},
        problems=(SubscriptionNotFound, NotAWebHook, NotAccepted, Draining),
    ),
)  # fmt: skip
