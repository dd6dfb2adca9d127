"""Subscriptions: their ids, and how web hooks are signed and tried again."""

from __future__ import annotations

import base64
import hmac
import itertools
import json
import re
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from runwire.domain import subscription
from runwire.domain.subscription import (
    SUBSCRIPTION_ID,
    Subscription,
    SubscriptionKind,
    chain_of,
    new_hook_name,
    new_secret,
    owner_of,
    pull_name,
    pull_names,
    signature,
)
from runwire.domain.task import MAX_ID
from runwire.messaging import subjects
from runwire.webhooks.delivery import Patience, is_wanted, structured

OLD, NEW = new_secret(), new_secret()
AT = datetime.fromtimestamp(1614265330, tz=UTC)


def test_signatures_are_those_of_standard_webhooks() -> None:
    """The values are what the reference library of Standard Webhooks makes."""
    signed = signature(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLw==", "msg_p5jXN8AQM9LWM0D4loKWxJek", AT, b'{"test": 2432232314}'
    )
    assert signed == "v1,/Xy7FLfFISa1TZH7WLT+0x/orG5MlcutAFOpVan3/00="


def test_a_former_secret_signs_until_its_time_is_over() -> None:
    first = Subscription(id="h", kind=SubscriptionKind.WEB_HOOK, chain=1, token="t", created=AT, mark="m", secret=OLD)
    rotated = subscription.rotate(first, NEW, overlap=timedelta(hours=1), now=AT)
    both = f"{signature(NEW, 'e', AT, b'x')} {signature(OLD, 'e', AT, b'x')}"
    assert subscription.signatures(first, "e", AT, b"x") == signature(OLD, "e", AT, b"x")
    assert subscription.signatures(rotated, "e", AT, b"x") == both
    later = AT + timedelta(hours=1)
    assert subscription.signatures(rotated, "e", later, b"x") == signature(NEW, "e", later, b"x")
    at_once = subscription.rotate(rotated, OLD, overlap=timedelta(0), now=AT)
    assert (at_once.secret, at_once.previous_secret, at_once.previous_until) == (OLD, None, None)


def test_the_receiver_in_the_documentation_knows_what_is_genuine() -> None:
    text = (Path(__file__).parents[2] / "docs" / "subscriptions.md").read_text()
    (source,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "is_genuine" in block]
    names: dict[str, Any] = {"base64": base64, "hmac": hmac, "time": time}
    exec(source, names)
    secret, body, now = new_secret(), b"{}", datetime.now(UTC)

    def headers(at: datetime) -> dict[str, str]:
        return {
            "webhook-id": "e1",
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": signature(secret, "e1", at, body),
        }

    assert names["is_genuine"](headers(now), body, secret)
    two = f"{signature(new_secret(), 'e1', now, body)} {signature(secret, 'e1', now, body)}"
    assert names["is_genuine"](headers(now) | {"webhook-signature": two}, body, secret)
    assert not names["is_genuine"](headers(now), b"{ }", secret)
    assert not names["is_genuine"](headers(now), body, new_secret())
    assert not names["is_genuine"](headers(now) | {"webhook-id": "e2"}, body, secret)
    assert not names["is_genuine"](headers(now - timedelta(hours=1)), body, secret)


def test_a_secret_has_32_bytes_and_never_comes_twice() -> None:
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert {len(secret) for secret in secrets} == {len("whsec_") + 44}
    assert all(secret.startswith("whsec_") for secret in secrets)


@pytest.mark.parametrize("token", ["t", "0b7e6f0e-3f0c-4c4e-9a53-5d3b8f6f2a11", "1-2-3", "a" * 64])
def test_an_id_says_whose_the_subscription_is(token: str) -> None:
    for chain in (1, 1764, MAX_ID):
        for name in pull_names(chain, token):
            assert (chain_of(name), owner_of(name)) == (chain, token)
            assert SUBSCRIPTION_ID.fullmatch(name)


def test_no_two_tokens_or_chains_share_an_id() -> None:
    """Whatever digits and dashes a token's id has."""
    assert pull_name(1, 1, "1-x") != pull_name(1, 1, "x")
    owners = [("1-1-x", 1), ("1-x", 1), ("x", 1), ("x", 11), ("1-x", 11)]
    names = [name for token, chain in owners for name in pull_names(chain, token)]
    assert len(set(names)) == len(names)


def test_a_web_hook_belongs_to_a_chain_and_to_no_token() -> None:
    name = new_hook_name(1764)
    assert (chain_of(name), owner_of(name)) == (1764, None)


@pytest.mark.parametrize("name", ["", "workers-1", "sub-0-1-t", "sub-01-1-t", "sub-1-10-t", "sub-1-1-", "hook-1-xyz"])
def test_other_names_are_no_ids(name: str) -> None:
    assert chain_of(name) is None


def test_filters_name_every_pair_of_task_and_code() -> None:
    assert subjects.subscribed(7, [], []) == ["tasks.evt.7.*.*"]
    assert subjects.subscribed(7, [1, 2], []) == ["tasks.evt.7.1.*", "tasks.evt.7.2.*"]
    assert subjects.subscribed(7, [1], ["done", "error"]) == ["tasks.evt.7.1.done", "tasks.evt.7.1.error"]


def test_tries_are_ever_further_apart_and_end_after_a_day_or_so() -> None:
    patience = Patience()
    pauses = [patience.pause(attempt) for attempt in range(1, patience.attempts)]
    assert 1.6 <= pauses[0] <= 2
    assert all(later > earlier for earlier, later in itertools.pairwise(pauses[:11]))
    assert max(pauses) <= 3600
    longest = sum(min(2.0**attempt, 3600) for attempt in range(1, patience.attempts))
    assert 24 * 3600 <= longest <= 26 * 3600
    assert sum(pauses) >= 0.8 * longest


def test_an_event_becomes_one_json_object_with_its_data_to_the_byte() -> None:
    payload = b'{"task": {"desc": "\xc3\xa9"},  "run": null}'
    headers = {"ce-id": "e1", "ce-type": "t", "Nats-Expected-Last-Subject-Sequence": "4"}
    body = structured(headers, payload, 17)
    assert json.loads(body) == {"id": "e1", "type": "t", "sequence": "17", "data": json.loads(payload)}
    assert payload in body


def test_only_the_wanted_actions_are_sent() -> None:
    def hook(*actions: str) -> Subscription:
        return Subscription(
            id="h", kind=SubscriptionKind.WEB_HOOK, chain=1, token="t", created=AT, mark="m", actions=actions
        )

    payload = b'{"task": {"target": {"action": "export"}}}'
    assert is_wanted(hook(), payload)
    assert is_wanted(hook("sleep", "export"), payload)
    assert not is_wanted(hook("sleep"), payload)


def test_a_token_has_as_many_names_as_it_may_have_subscriptions() -> None:
    assert len(pull_names(1, "t")) == subscription.SLOTS
