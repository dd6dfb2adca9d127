"""Which streams and consumers have to be there, and how they are configured.

Provisioned with nats-py, as FastStream's stream model lacks some of the fields. An existing stream is left
as it is: what an operator changed stays changed. ``runwire doctor`` says what differs where it matters.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DeliverPolicy,
    DiscardPolicy,
    KeyValueConfig,
    ObjectStoreConfig,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)
from nats.js.errors import APIError, BadRequestError, BucketNotFoundError, NotFoundError, ServiceUnavailableError

from runwire.domain.errors import SetupError
from runwire.domain.subscription import Subscription, SubscriptionKind
from runwire.messaging import subjects
from runwire.messaging.broker import Bus
from runwire.settings import Settings

DUPLICATE_WINDOW = 120.0
"""Seconds the broker remembers message ids."""
LARGEST_COMMAND = 64 * 1024
"""Bytes of a command; the broker refuses larger ones."""
LARGEST_EVENT = 256 * 1024
MAX_OUTSTANDING = 100_000
"""Commands of a chain that may be with workers or waiting for a retry at once: a delayed one counts, too."""
MAX_WAITING = 8192
"""Requests of all workers together that may wait for a chain's next command."""
MAX_CHAINS = MAX_SUBSCRIPTIONS = 100_000
"""Consumers that COMMANDS and EVENTS may have. nats-server 2.15 takes a limit that is not given, or -1, for 1,000."""
SUBSCRIBER_PENDING = 1000
"""Events that a subscriber may have got, and not acknowledged; then it gets no new ones."""
SUBSCRIBER_WAIT = 30.0
"""Seconds after which an event that a subscriber has not acknowledged comes again."""
SUBSCRIBER_REQUESTS = 512
"""Requests for events of a subscription that may be open at once."""
IDLE_DAYS = 7
"""Days after which a pull subscription that nobody asks for events is gone."""
LOG_LINES_PER_TASK = 10_000
LOG_DAYS, DEAD_LETTER_DAYS, ARTIFACT_DAYS, AUDIT_DAYS = 30, 30, 30, 90
REFUSALS_PER_CHAIN = 10_000
"""Messages about refused calls that are kept for a chain: flooding one costs no other its trail."""
LARGEST_ACTION = 64 * 1024
"""Bytes of an action's entry: its name, description and schemas."""

ACTIONS_KEPT = 900.0
"""Seconds an action stays listed that no worker publishes any more."""

TOKEN_HISTORY = 64
"""Changes of one access token that are remembered (the most a bucket can)."""
DAY = 86_400.0
SHARES = {
    subjects.EVENTS: 55,
    subjects.LOGS: 15,
    subjects.COMMANDS: 5,
    subjects.DEADLETTERS: 5,
    subjects.KEYS: 3,
    subjects.AUDIT: 2,
}
"""Percent of ``store_bytes`` that each stream may take."""
ARTIFACTS_SHARE = 15
"""Percent of ``store_bytes`` for result files."""
INSUFFICIENT_STORAGE = 10047
"""The broker's error code for: the reserved sizes do not fit its disk."""
NO_PEERS = 10005
"""The broker's error code for: too few servers of the cluster are there for so many copies."""


def stream_configs(settings: Settings) -> list[StreamConfig]:
    """Every stream, as it is created."""

    def stream(name: str, *accepted: str, **config: object) -> StreamConfig:
        share = SHARES.get(name)
        return StreamConfig(
            name=name,
            subjects=[*accepted],
            storage=StorageType.FILE,
            num_replicas=settings.nats_replicas,
            max_bytes=settings.store_bytes * share // 100 if share else None,
        ).evolve(**config)

    return [
        stream(
            subjects.COMMANDS,
            subjects.ALL_COMMANDS,
            retention=RetentionPolicy.WORK_QUEUE,
            # One outstanding command per task, refused by the broker itself: whoever publishes.
            max_msgs_per_subject=1,
            discard=DiscardPolicy.NEW,
            discard_new_per_subject=True,
            max_msg_size=LARGEST_COMMAND,
            max_consumers=MAX_CHAINS,
            duplicate_window=DUPLICATE_WINDOW,
        ),
        stream(
            subjects.EVENTS,
            subjects.ALL_EVENTS,
            max_msgs_per_subject=settings.events_history,
            # A full stream refuses; it never drops the last event of a task to make room.
            discard=DiscardPolicy.NEW,
            max_msg_size=LARGEST_EVENT,
            max_consumers=MAX_SUBSCRIPTIONS,
            duplicate_window=DUPLICATE_WINDOW,
            allow_direct=True,
        ),
        stream(
            subjects.LOGS,
            subjects.ALL_LOGS,
            max_msgs_per_subject=LOG_LINES_PER_TASK,
            max_age=LOG_DAYS * DAY,
            allow_rollup_hdrs=True,
        ),
        # An alarm is never dropped, whatever its size or age: there is one per task, and only we write here. It stays
        # until it rings, as no consumer ever takes in tasks.sch.>.
        stream(
            subjects.SCHEDULES,
            subjects.ALL_ALARMS,
            subjects.ALL_DUE,
            retention=RetentionPolicy.WORK_QUEUE,
            allow_msg_schedules=True,
            allow_direct=True,
        ),
        stream(subjects.DEADLETTERS, subjects.ALL_DEADLETTERS, max_age=DEAD_LETTER_DAYS * DAY, allow_direct=True),
        # A key that a full stream would forget is a run that could happen twice: it refuses instead.
        stream(
            subjects.KEYS,
            subjects.ALL_KEYS,
            max_msgs_per_subject=1,
            discard=DiscardPolicy.NEW,
            allow_msg_ttl=True,
            allow_direct=True,
        ),
        stream(subjects.AUDIT, subjects.ALL_AUDIT, max_msgs_per_subject=REFUSALS_PER_CHAIN, max_age=AUDIT_DAYS * DAY),
        stream(subjects.IDS, subjects.ID_COUNTER, max_msgs_per_subject=1, allow_msg_counter=True),
    ]


def workers_config(settings: Settings, chain: int) -> ConsumerConfig:
    """The consumer of a chain, which all workers share.

    One for each chain, so that none waits behind another's queue. Attempts are counted in our events, so
    deliveries are not limited.
    """
    return ConsumerConfig(
        name=subjects.workers(chain),
        durable_name=subjects.workers(chain),
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=settings.ack_wait,
        max_deliver=-1,
        max_ack_pending=MAX_OUTSTANDING,
        max_waiting=MAX_WAITING,
        filter_subject=subjects.commands_of(chain),
    )


def subscription_config(subscription: Subscription) -> ConsumerConfig:
    """The consumer of a subscription; what the subscription says of itself is in its metadata."""
    start: dict[str, Any] = {"deliver_policy": DeliverPolicy.NEW}
    if subscription.from_sequence is not None:
        start = {"deliver_policy": DeliverPolicy.BY_START_SEQUENCE, "opt_start_seq": subscription.from_sequence}
    elif subscription.from_time is not None:
        start = {"deliver_policy": DeliverPolicy.BY_START_TIME, "opt_start_time": subscription.from_time}
    return ConsumerConfig(
        name=subscription.id,
        durable_name=subscription.id,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=SUBSCRIBER_WAIT,
        max_deliver=-1,
        max_ack_pending=SUBSCRIBER_PENDING,
        max_waiting=SUBSCRIBER_REQUESTS,
        filter_subjects=subjects.subscribed(subscription.chain, subscription.tasks, subscription.codes),
        inactive_threshold=IDLE_DAYS * DAY if subscription.kind is SubscriptionKind.PULL else None,
        metadata={subjects.SUBSCRIPTION: subscription.model_dump_json(exclude_none=True)},
        **start,
    )


async def provision(bus: Bus, settings: Settings) -> None:
    """Create what is missing; may be called by every process at every start. Raises SetupError or one of UNAVAILABLE.

    The consumers of the chains come with their first task (:mod:`runwire.messaging.chains`).
    """
    try:
        for config in stream_configs(settings):
            await _ensure_stream(bus, config)
        await _ensure_bucket(bus, subjects.TOKENS_BUCKET, settings, history=TOKEN_HISTORY)
        await _ensure_bucket(bus, subjects.TOKEN_USE_BUCKET, settings)
        await _ensure_bucket(bus, subjects.SETTINGS_BUCKET, settings)
        await _ensure_bucket(bus, subjects.ACTIONS_BUCKET, settings, ttl=ACTIONS_KEPT, max_value_size=LARGEST_ACTION)
        await _ensure_artifacts(bus, settings)
        with suppress(NotFoundError):  # what it had in hand comes again, through the consumer of its chain
            await bus.js.delete_consumer(subjects.COMMANDS, subjects.SHARED_WORKERS)
    except ServiceUnavailableError:  # an election, most often
        raise
    except APIError as error:
        if error.err_code == INSUFFICIENT_STORAGE:
            raise SetupError(
                f"the broker's disk has no room for {settings.store_bytes:,} bytes: set RUNWIRE_STORE_BYTES lower"
            ) from None
        if error.err_code == NO_PEERS:  # they may be starting, too
            raise ServiceUnavailableError(code=503, description=f"{error.description}") from None
        raise SetupError(f"the broker refused a stream: {error.description}") from None


async def _ensure_stream(bus: Bus, config: StreamConfig) -> None:
    try:
        info = await bus.js.stream_info(str(config.name))
    except NotFoundError:
        try:
            await bus.js.add_stream(config)
        except BadRequestError:  # somebody else created it meanwhile, from other settings
            await bus.js.stream_info(str(config.name))
        return
    if config.max_consumers and (info.config.max_consumers or 0) <= 0:  # created by an earlier version
        await bus.js.update_stream(info.config.evolve(max_consumers=config.max_consumers))
    if config.allow_rollup_hdrs and not info.config.allow_rollup_hdrs:  # so was this one
        await bus.js.update_stream(info.config.evolve(allow_rollup_hdrs=True))


async def _ensure_bucket(bus: Bus, bucket: str, settings: Settings, *, history: int = 1, **config: Any) -> None:
    try:
        await bus.js.key_value(bucket)
    except BucketNotFoundError:
        await bus.js.create_key_value(
            KeyValueConfig(bucket=bucket, history=history, replicas=settings.nats_replicas, **config)
        )


async def _ensure_artifacts(bus: Bus, settings: Settings) -> None:
    try:
        await bus.js.object_store(subjects.ARTIFACTS_BUCKET)
    except (BucketNotFoundError, NotFoundError):
        await bus.js.create_object_store(
            subjects.ARTIFACTS_BUCKET,
            config=ObjectStoreConfig(
                bucket=subjects.ARTIFACTS_BUCKET,
                ttl=ARTIFACT_DAYS * DAY,
                max_bytes=settings.store_bytes * ARTIFACTS_SHARE // 100,
                replicas=settings.nats_replicas,
            ),
        )
