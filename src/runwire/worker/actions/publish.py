"""``publish``: a message for the services of the chain that listen at that moment."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from pydantic import BaseModel, ConfigDict, JsonValue
from pydantic_core import to_json

from runwire.app import Context, Handler
from runwire.worker.actions.request import SubjectName

Send = Callable[[Context, str, bytes], Awaitable[str]]
"""Sends a message to the services of the run's chain: (context, name, payload) -> its subject. Raises Retry."""


class Publish(BaseModel):
    """Parameters of ``publish``."""

    model_config = ConfigDict(extra="forbid")

    subject: SubjectName
    """What the message is about, such as ``invoices.changed``: the end of its subject."""
    payload: dict[str, JsonValue] = {}
    """What it says."""


def publish_action(send: Send) -> Handler:
    """The action over this way to send."""

    async def publish(params: Publish, ctx: Context) -> dict[str, str]:
        """Publish a message for the chain's services that listen at that moment."""
        return {"subject": await send(ctx, params.subject, to_json(params.payload))}

    return publish
