"""Bodies of requests and answers about subscriptions, with examples."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, RootModel, Strict, model_validator

from runwire.domain.errors import InvalidFields
from runwire.domain.subscription import (
    MOST_FILTERS,
    MOST_TASKS,
    EventCode,
    Subscription,
    SubscriptionKind,
    new_secret,
)
from runwire.domain.task import INTEGRAL, LONGEST_ACTION, MAX_ID, ChainId, TaskId
from runwire.http.json_body import parse_json
from runwire.http.schemas import NO_NUL, Instant, instant
from runwire.messaging.subscriptions import Standing
from runwire.outgoing.url import LONGEST_URL, URL_FORM, checked_url

LONGEST_DESC = 500
"""Characters of a description."""
MOST_ACTIONS = 20
DEFAULT_OVERLAP, LONGEST_OVERLAP = 86_400, 604_800
"""Seconds that the former secret of a web hook signs beside the new one: a day, a week."""
UNIQUE: dict[str, JsonValue] = {"uniqueItems": True}
VARIANT = re.compile(r"^/(pull|web_hook)(?=/|$)")

EXAMPLE_PULL: dict[str, Any] = {
    "id": "sub-1764-3-0b7e6f0e-3f0c-4c4e-9a53-5d3b8f6f2a11",
    "kind": "pull",
    "chain": 1764,
    "token": "0b7e6f0e-3f0c-4c4e-9a53-5d3b8f6f2a11",
    "desc": "The billing service",
    "tasks": [12345],
    "codes": ["done", "error"],
    "url": None,
    "actions": [],
    "disabled": None,
    "previous_until": None,
    "from_sequence": None,
    "from_time": "2026-05-26T14:35:00Z",
    "created": "2026-05-26T14:40:00Z",
    "stream": "EVENTS",
    "pending": 12,
    "unacknowledged": 1,
    "redelivered": 0,
    "acknowledged": 4711,
    "last_active": "2026-05-26T14:41:00Z",
    "waiting": 1,
}


EXAMPLE_HOOK: dict[str, Any] = EXAMPLE_PULL | {
    "id": "hook-1764-9f3c2a7be1d04586",
    "kind": "web_hook",
    "tasks": [],
    "url": "https://example.com/events",
    "actions": ["export"],
}
EXAMPLE_SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oDJ8eLdvVhFfw="  # noqa: S105 - opens nothing


def _as_url(text: str) -> str:
    checked_url(text)
    return text


def _distinct(values: Sequence[Any]) -> Sequence[Any]:
    if len(set(values)) < len(values):
        msg = "must not name anything twice"
        raise ValueError(msg)
    return values


def _without_nul(text: str) -> str:
    if "\x00" in text:
        msg = "must not contain NUL"
        raise ValueError(msg)
    return text


ActionName = Annotated[str, Field(min_length=1, max_length=LONGEST_ACTION)]
Sequences = Annotated[int, Strict(), Field(ge=1, le=MAX_ID), INTEGRAL]


class Wanted(BaseModel):
    """What every new subscription says."""

    model_config = ConfigDict(extra="forbid")

    chain: ChainId
    desc: Annotated[
        str,
        Field(max_length=LONGEST_DESC, description="What it is for.", json_schema_extra=NO_NUL),
        AfterValidator(_without_nul),
    ] = ""
    tasks: Annotated[
        list[TaskId],
        Field(max_length=MOST_TASKS, description="Only events of these tasks; none: of all.", json_schema_extra=UNIQUE),
        AfterValidator(_distinct),
    ] = []
    codes: Annotated[
        list[EventCode],
        Field(max_length=len(EventCode), description="Only these; none: all.", json_schema_extra=UNIQUE),
        AfterValidator(_distinct),
    ] = []
    from_sequence: Annotated[
        Sequences | None, Field(description="Begin with the event of this sequence; 1: with the oldest there is.")
    ] = None
    from_time: Annotated[
        Instant | None, Field(description="Begin with the first event since. Without either: with the next event.")
    ] = None

    @model_validator(mode="after")
    def _fits(self) -> Wanted:
        if self.from_sequence is not None and self.from_time is not None:
            msg = "from_sequence and from_time exclude each other"
            raise ValueError(msg)
        if len(self.tasks) * len(self.codes) > MOST_FILTERS:
            msg = f"tasks and codes make more than {MOST_FILTERS} pairs"
            raise ValueError(msg)
        return self


class PullBody(Wanted):
    """Clients of the bus that log in with the calling token fetch the events."""

    kind: Literal["pull"]


class WebHookBody(Wanted):
    """The events are sent to a URL."""

    kind: Literal["web_hook"]
    url: Annotated[
        str,
        Field(pattern=URL_FORM, max_length=LONGEST_URL, description="Where to, in ASCII, without user and password."),
        AfterValidator(_as_url),
    ]
    actions: Annotated[
        list[ActionName],
        Field(
            max_length=MOST_ACTIONS,
            description="Only events of tasks with these actions; none: of all.",
            json_schema_extra=UNIQUE,
        ),
        AfterValidator(_distinct),
    ] = []


class SubscriptionBody(RootModel[Annotated[PullBody | WebHookBody, Field(discriminator="kind")]]):
    """A new subscription. Its id is made here."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"kind": "pull", "chain": 1764, "tasks": [12345], "codes": ["done", "error"], "desc": "billing"},
                {"kind": "web_hook", "chain": 1764, "url": "https://example.com/events", "actions": ["export"]},
            ]
        }
    )


class HookRotationBody(BaseModel):
    """How the secret of a web hook is exchanged."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"overlap": DEFAULT_OVERLAP}]})

    overlap: Annotated[
        int,
        Strict(),
        Field(ge=0, le=LONGEST_OVERLAP, description="Seconds that events are signed with the old secret, too."),
        INTEGRAL,
    ] = DEFAULT_OVERLAP


class SubscriptionView(BaseModel):
    """A subscription, and how far it has come."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_PULL, EXAMPLE_HOOK]})

    id: Annotated[str, Field(description="Of a pull subscription also the name of the consumer to bind to.")]
    kind: SubscriptionKind
    chain: int
    token: Annotated[str, Field(description="The access token that made it; a pull subscription works with this one.")]
    desc: str
    tasks: list[int]
    codes: list[EventCode]
    url: Annotated[str | None, Field(description="Of a web hook.")]
    actions: list[str]
    disabled: Annotated[
        datetime | None, Field(description="When the web hook's receiver said 410 Gone; null: it did not.")
    ]
    previous_until: Annotated[
        datetime | None,
        Field(description="Until when a web hook's events are signed with its former secret, too; null: they are not."),
    ]
    from_sequence: int | None
    from_time: datetime | None
    created: datetime
    stream: Annotated[Literal["EVENTS"], Field(description="The stream that the consumer is on.")]
    pending: Annotated[int, Field(description="Lag: events that were not delivered yet.")]
    unacknowledged: Annotated[int, Field(description="Events that were delivered, and not acknowledged yet.")]
    redelivered: Annotated[int, Field(description="Of these, how many were delivered more than once.")]
    acknowledged: Annotated[int, Field(description="Sequence up to which every event is acknowledged; 0: none yet.")]
    last_active: Annotated[datetime | None, Field(description="When an event was last delivered; null: never.")]
    waiting: Annotated[int, Field(description="Requests for events that are open: somebody is there.")]


class NewSubscriptionView(SubscriptionView):
    """A subscription as it was made."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_HOOK | {"secret": EXAMPLE_SECRET}]})

    secret: Annotated[
        str | None, Field(description="What a web hook's events are signed with; shown this once. null: it is none.")
    ]


def subscription_view(standing: Standing) -> dict[str, Any]:
    """The subscription as the API shows it; never its secret."""
    subscription = standing.subscription
    return {
        "id": subscription.id,
        "kind": subscription.kind.value,
        "chain": subscription.chain,
        "token": subscription.token,
        "desc": subscription.desc,
        "tasks": list(subscription.tasks),
        "codes": [code.value for code in subscription.codes],
        "url": subscription.url,
        "actions": list(subscription.actions),
        "disabled": instant(subscription.disabled),
        "previous_until": instant(subscription.previous_until),
        "from_sequence": subscription.from_sequence,
        "from_time": instant(subscription.from_time),
        "created": instant(subscription.created),
        "stream": "EVENTS",
        "pending": standing.pending,
        "unacknowledged": standing.unacknowledged,
        "redelivered": standing.redelivered,
        "acknowledged": standing.acknowledged,
        "last_active": instant(standing.last_active),
        "waiting": standing.waiting,
    }


def new_subscription(wanted: PullBody | WebHookBody, **fields: Any) -> Subscription:
    """What a body asks for; ``fields``: what it does not say."""
    if isinstance(wanted, WebHookBody):
        fields |= {"url": wanted.url, "actions": tuple(wanted.actions), "secret": new_secret()}
    return Subscription(
        kind=SubscriptionKind(wanted.kind),
        chain=wanted.chain,
        desc=wanted.desc,
        tasks=tuple(wanted.tasks),
        codes=tuple(wanted.codes),
        from_sequence=wanted.from_sequence,
        from_time=wanted.from_time,
        **fields,
    )


def parse_wanted(body: bytes) -> PullBody | WebHookBody:
    """The new subscription in a request body. Raises MalformedBody or InvalidFields."""
    try:
        return parse_json(body, SubscriptionBody).root
    except InvalidFields as invalid:  # pydantic's places name the variant, a pointer must not
        raise InvalidFields(
            [replace(error, pointer=VARIANT.sub("", error.pointer or "")) for error in invalid.errors]
        ) from None
