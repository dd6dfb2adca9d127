"""Subscriptions as the broker keeps them: each is a durable consumer on EVENTS.

What a subscription is stands in the consumer's metadata, so there is no second truth: whoever deletes the consumer
ends the subscription, and one that the broker drops as nobody asks it for events is gone here, too.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from nats.js.api import ConsumerConfig, ConsumerInfo
from nats.js.errors import APIError, NotFoundError
from pydantic import ValidationError

from runwire.domain import subscription as names
from runwire.domain.errors import NotAccepted, TooManySubscriptions
from runwire.domain.subscription import SLOTS, Subscription, SubscriptionKind, pull_name
from runwire.domain.task import whole_seconds
from runwire.messaging import streams, subjects
from runwire.messaging.broker import REQUEST_TIMEOUT, UNAVAILABLE, Bus

MOST_PER_CHAIN = 100
"""Subscriptions of one chain, about: two that are made at the same time may both be the last."""
MOST_HOOKS_PER_CHAIN = 10
"""Of them web hooks: these cost workers connections."""
TRIES = 5
"""How often the making of one is tried while the broker does not answer."""
NAME_TAKEN = 10148
"""The broker's error code for: there is a consumer of this name, and it is another one."""
AT_ONCE = 32
"""Consumers that are looked at, at the same time."""


@dataclass(frozen=True)
class Standing:
    """How far a subscription has come. Sequences are those of EVENTS."""

    subscription: Subscription
    pending: int
    """Events it has not been given yet."""
    unacknowledged: int
    """Events that it has been given and has not acknowledged."""
    redelivered: int
    """Of these, how many more than once."""
    acknowledged: int
    """Everything up to this sequence is acknowledged; 0: nothing yet."""
    last_active: datetime | None
    """When it was last given an event; None: never."""
    waiting: int
    """Requests for events that are open: somebody is there."""


async def make(bus: Bus, wanted: Subscription) -> Subscription:
    """Store a new subscription, under an id that is free; whatever ``wanted.id`` is.

    Raises TooManySubscriptions, or NotAccepted: it may or may not have been made.
    """
    for _ in range(TRIES):
        taken = await _names(bus, {wanted.chain})
        subscription = wanted.model_copy(update={"id": _free_name(wanted, taken)})
        try:
            if await _create(bus, subscription):
                return subscription
        except UNAVAILABLE:
            raise
        except APIError as error:
            raise NotAccepted(f"The broker refused the subscription: {error.description}.") from None
    raise NotAccepted("Others were quicker every time; nothing was made.")


async def find(bus: Bus, subscription_id: str) -> Standing | None:
    """The subscription with this id; None: there is none. Raises one of UNAVAILABLE."""
    try:
        return _standing(await bus.js.consumer_info(subjects.EVENTS, subscription_id))
    except NotFoundError:
        return None


async def listed(bus: Bus, chains: Iterable[int], is_wanted: Callable[[str], bool]) -> list[Standing]:
    """The chains' subscriptions whose ids are wanted, oldest first. Raises one of UNAVAILABLE."""
    found = [name for name in await _names(bus, set(chains)) if is_wanted(name)]
    standings: list[Standing | None] = []
    for batch in _batches(found):
        standings += await asyncio.gather(*(find(bus, name) for name in batch))
    there = [standing for standing in standings if standing is not None]
    return sorted(there, key=lambda standing: (standing.subscription.created, standing.subscription.id))


async def hooks(bus: Bus) -> set[str]:
    """The ids of all web hooks of all chains. Raises one of UNAVAILABLE."""
    return {name for name in await _names(bus, None) if names.HOOK_NAME.fullmatch(name)}


async def delete(bus: Bus, subscription_id: str) -> bool:
    """End it; False: it is gone already. May be repeated. Raises one of UNAVAILABLE."""
    try:
        return await bus.js.delete_consumer(subjects.EVENTS, subscription_id)
    except NotFoundError:
        return False


async def change(
    bus: Bus, subscription_id: str, next_version: Callable[[Subscription], Subscription]
) -> Standing | None:
    """Change a web hook, and tell the workers; None: it is gone. ``next_version`` may be called several times.

    The broker has no condition for this, so it is looked at whether the change has stayed. Raises NotAccepted: it may
    or may not have been made; or what ``next_version`` raises, or one of UNAVAILABLE while it looks.
    """
    for _ in range(TRIES):
        try:
            info = await bus.js.consumer_info(subjects.EVENTS, subscription_id)
        except NotFoundError:
            return None
        standing = _standing(info)
        if standing is None:
            return None
        wanted = next_version(standing.subscription)
        if wanted == standing.subscription:
            return standing
        metadata = {subjects.SUBSCRIPTION: wanted.model_dump_json(exclude_none=True)}
        try:
            await _request(bus, info.config.evolve(metadata=metadata), action="update")
            changed = await find(bus, subscription_id)
        except UNAVAILABLE:
            continue
        except APIError as error:
            raise NotAccepted(f"The broker refused the change: {error.description}.") from None
        if changed is not None and changed.subscription == wanted:
            await bus.nc.publish(subjects.HOOK_CHANGES, subscription_id.encode())
            return changed
    raise NotAccepted("The broker did not confirm the change in time; it may or may not have been made.")


async def disable(bus: Bus, subscription_id: str, *, now: datetime) -> None:
    """Note that the web hook's receiver is gone for good. May be repeated. Raises NotAccepted or one of UNAVAILABLE."""
    gone = whole_seconds(now)
    await change(
        bus,
        subscription_id,
        lambda found: found if found.disabled else found.model_copy(update={"disabled": gone}),
    )


def _free_name(wanted: Subscription, taken: list[str]) -> str:
    """One of the free ids; any, so that a deleted subscription's does not come back at once.

    Raises TooManySubscriptions.
    """
    if len(taken) >= MOST_PER_CHAIN:
        raise TooManySubscriptions(f"Chain {wanted.chain} has {len(taken)} subscriptions, as many as it may.")
    if wanted.kind is SubscriptionKind.WEB_HOOK:
        count = sum(1 for name in taken if names.HOOK_NAME.fullmatch(name))
        if count >= MOST_HOOKS_PER_CHAIN:
            raise TooManySubscriptions(f"Chain {wanted.chain} has {count} web hooks, as many as it may.")
        return names.new_hook_name(wanted.chain)
    own = [pull_name(wanted.chain, slot, wanted.token) for slot in range(SLOTS)]
    free = [name for name in own if name not in taken]
    if not free:
        raise TooManySubscriptions(f"This token has {SLOTS} pull subscriptions in the chain, as many as it may.")
    return random.choice(free)  # noqa: S311 - no secret


async def _create(bus: Bus, subscription: Subscription) -> bool:
    """Whether it is stored; False: its id is another one's. Raises NotAccepted when the outcome stays unknown."""
    config = streams.subscription_config(subscription)
    for _ in range(TRIES):
        try:
            await _request(bus, config, action="create")  # again: it is the same one
        except UNAVAILABLE:
            continue
        except APIError as error:
            if error.err_code == NAME_TAKEN:
                return False
            raise
        return True
    raise NotAccepted("The broker did not confirm the subscription in time; it may or may not have been made.")


async def _request(bus: Bus, config: ConsumerConfig, *, action: str) -> None:
    """Create a consumer, or change it, and nothing else of the two: nats-py leaves that open."""
    question = {"stream_name": subjects.EVENTS, "config": config.as_dict(), "action": action}
    subject = f"$JS.API.CONSUMER.CREATE.{subjects.EVENTS}.{config.name}"
    answer = json.loads((await bus.nc.request(subject, json.dumps(question).encode(), timeout=REQUEST_TIMEOUT)).data)
    if "error" in answer:
        APIError.from_error(answer["error"])  # raises


async def _names(bus: Bus, chains: set[int] | None) -> list[str]:
    """The ids of the subscriptions of these chains, or of all."""
    found: list[str] = []
    offset, total = 0, 1
    while offset < total:
        answer: dict[str, Any] = json.loads(
            (
                await bus.nc.request(
                    f"$JS.API.CONSUMER.NAMES.{subjects.EVENTS}",
                    json.dumps({"offset": offset}).encode(),
                    timeout=REQUEST_TIMEOUT,
                )
            ).data
        )
        if "error" in answer:
            APIError.from_error(answer["error"])  # raises
        page: list[str] = answer.get("consumers") or []
        found += [name for name in page if _is_of(name, chains)]
        offset, total = offset + len(page), answer["total"] if page else 0
    return found


def _is_of(name: str, chains: set[int] | None) -> bool:
    chain = names.chain_of(name)
    return chain is not None and (chains is None or chain in chains)


def _standing(info: ConsumerInfo) -> Standing | None:
    """What a consumer says of itself; None: it is no subscription."""
    text = (info.config.metadata or {}).get(subjects.SUBSCRIPTION, "")
    try:
        subscription = Subscription.model_validate_json(text)
    except ValidationError:
        return None
    return Standing(
        subscription=subscription,
        pending=info.num_pending or 0,
        unacknowledged=info.num_ack_pending or 0,
        redelivered=info.num_redelivered or 0,
        acknowledged=info.ack_floor.stream_seq if info.ack_floor else 0,
        last_active=info.delivered.last_active if info.delivered else None,
        waiting=info.num_waiting or 0,
    )


def _batches(found: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(found), AT_ONCE):
        yield found[start : start + AT_ONCE]
