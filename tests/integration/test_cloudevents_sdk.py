"""The bus as the CloudEvents SDK sees it: it reads our events, and we run what it writes.

It has no binding for NATS; that of HTTP differs in one thing only: the content type stands in a header of its own.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_binary_event, to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent

from runwire.app import App
from runwire.messaging.broker import Bus
from runwire.settings import Settings
from tests.support import CHAIN, ended, make_task, publish_command, worker

COMMAND = f"tasks.cmd.{CHAIN}.1.execute"


async def event(bus: Bus, code: str) -> CloudEvent:
    """The task's last event with this code."""
    message = await bus.js.get_msg("EVENTS", subject=f"tasks.evt.{CHAIN}.1.{code}")
    headers = dict(message.headers)
    headers["content-type"] = headers.pop("ce-datacontenttype")
    return from_binary_event(HTTPMessage(headers=headers, body=message.data))


async def test_it_reads_the_events_of_a_run(bus: Bus, app: App, settings: Settings) -> None:
    await make_task(bus, text="é")
    async with worker(bus, app, settings):
        await publish_command(bus, "r1")
        await ended(bus, "r1")
    for code in ("ready", "inprogress", "done"):
        found = await event(bus, code)
        assert found.get_type() == f"dev.runwire.task.{code}.v1"
        assert found.get_source() == f"/chains/{CHAIN}/tasks/1"
        assert found.get_subject() == (None if code == "ready" else "r1")
        assert abs(found.get_time() - datetime.now(UTC)) < timedelta(minutes=1)
        assert found.get_data()["task"]["target"]["text"] == "é"
    assert len({(await event(bus, code)).get_id() for code in ("ready", "inprogress", "done")}) == 3


@pytest.mark.parametrize("write", [to_binary_event, to_structured_event])
async def test_a_command_that_it_writes_is_run(bus: Bus, app: App, settings: Settings, write) -> None:
    asked = CloudEvent(
        attributes={
            "type": "com.example.order.paid", "source": "/shop", "id": "order 17/é", "specversion": "1.0",
            "time": datetime.now(UTC), "datacontenttype": "application/json",
        },
        data={"run": "order-17", "reason": "paid"},
    )  # fmt: skip
    message = write(asked)
    await make_task(bus)
    async with worker(bus, app, settings):
        await bus.js.publish(COMMAND, message.body, headers=message.headers)
        run = (await ended(bus, "order-17")).run
    assert (run.code, run.reason, run.source) == ("DONE", "paid", "bus")
