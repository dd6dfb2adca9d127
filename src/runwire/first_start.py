"""What an installation finds on its first start: an admin token and a sample task.

The plan is written to the settings bucket before it is carried out, and carried out so that every step may be
repeated: a crash in the middle is made good by the next start, and of two adapters one plan wins.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from datetime import UTC, datetime
from uuid import uuid4

from runwire.domain import lifecycle
from runwire.domain.access import (
    OPERATOR,
    AccessLevel,
    TokenKind,
    create_token,
    new_credential,
    parse_credential,
)
from runwire.domain.errors import Conflict
from runwire.domain.sample import CHAIN, SAMPLE, SAMPLE_ID
from runwire.embedded import write_private
from runwire.messaging import events, site, tokens
from runwire.messaging.broker import Bus
from runwire.messaging.site import FirstStart
from runwire.settings import Settings

log = logging.getLogger("runwire.adapter")


async def make_first_start(bus: Bus, settings: Settings) -> None:
    """Create the first token and the sample task, unless that has been done."""
    plan = await site.first_start_seen(bus) or await _plan(bus, settings)
    if plan.done:
        return
    await tokens.create(bus, plan.token)
    document = lifecycle.create(SAMPLE, SAMPLE_ID, datetime.now(UTC))
    with suppress(Conflict):
        await events.append(bus, document, expected=0, event_id=uuid4().hex, unique_id=True)
    await site.first_start_done(bus, plan)
    log.info(
        "first start: token %s and task %d for chain %d",
        plan.token.id,
        SAMPLE_ID,
        CHAIN,
        extra={"action": "first_start"},
    )


async def _plan(bus: Bus, settings: Settings) -> FirstStart:
    """Choose the first token and keep its secret for the owner; the bucket gets the hash only."""
    preset = settings.bootstrap_token.get_secret_value() if settings.bootstrap_token else _kept_token(settings)
    token_id, secret = (parse_credential(preset) if preset else None) or new_credential()
    write_private(settings.token_path, f"{token_id}:{secret}\n")
    token = create_token(
        token_id,
        secret,
        kind=TokenKind.ADMIN,
        levels={CHAIN: AccessLevel.MANAGER},
        by=OPERATOR,
        now=datetime.now(UTC),
        expires=None,
        desc="The first token",
    )
    plan = await site.first_start(bus, FirstStart(token=token))
    if plan.token.digest != token.digest:  # another adapter was first, and keeps its own token
        settings.token_path.unlink(missing_ok=True)
    return plan


def _kept_token(settings: Settings) -> str | None:
    """The token that an interrupted first start has written down."""
    try:
        return settings.token_path.read_text().strip()
    except OSError:
        return None
