"""The broker of the simulation answers as the real one does, as far as the protocol looks."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from runwire.messaging import chains, subjects
from runwire.messaging.broker import Bus
from tests.simulation.broker import Broker
from tests.support import CHAIN

FENCE = {subjects.EXPECTED_SUBJECT: subjects.events_of(CHAIN, 1)}
READY, DONE, COMMAND = f"tasks.evt.{CHAIN}.1.ready", f"tasks.evt.{CHAIN}.1.done", subjects.command(CHAIN, 1)
GET, DELETE = "$JS.API.STREAM.MSG.GET", "$JS.API.STREAM.MSG.DELETE"
QUESTIONS: list[tuple[str, object, dict[str, str]]] = [
    (READY, {}, FENCE | {subjects.EXPECTED_SEQUENCE: "0"}),
    (READY, {}, FENCE | {subjects.EXPECTED_SEQUENCE: "0"}),  # refused
    (DONE, {"n": 1}, FENCE | {subjects.EXPECTED_SEQUENCE: "1", "ce-id": "x"}),
    (DONE, {}, FENCE | {subjects.EXPECTED_SEQUENCE: "1"}),  # refused
    (f"$JS.API.DIRECT.GET.EVENTS.{subjects.events_of(CHAIN, 1)}", None, {}),
    (f"$JS.API.DIRECT.GET.EVENTS.{subjects.events_of(CHAIN, 2)}", None, {}),  # there is none
    (f"{GET}.EVENTS", {"last_by_subj": subjects.events_of(CHAIN, 1)}, {}),
    (f"{GET}.EVENTS", {"next_by_subj": subjects.events_of(CHAIN, 1), "seq": 2}, {}),
    (f"{GET}.EVENTS", {"next_by_subj": subjects.events_of(CHAIN, 1), "seq": 3}, {}),  # there is none
    (COMMAND, {}, {subjects.MSG_ID: "a"}),
    (COMMAND, {}, {subjects.MSG_ID: "a"}),  # a duplicate
    (COMMAND, {}, {subjects.MSG_ID: "b"}),  # refused
    (f"{GET}.COMMANDS", {"last_by_subj": COMMAND}, {}),
    (f"{DELETE}.COMMANDS", {"seq": 1}, {}),
    (f"{DELETE}.COMMANDS", {"seq": 1}, {}),  # gone
    (f"{GET}.COMMANDS", {"seq": 1}, {}),  # gone
    (COMMAND, {}, {subjects.MSG_ID: "a"}),  # still a duplicate
    (COMMAND, {}, {subjects.MSG_ID: "b"}),  # free again
]


def said(data: bytes, headers: dict[str, str] | None) -> dict[str, object]:
    """What our code looks at in an answer."""
    known = headers or {}
    if "Nats-Sequence" in known or known.get("Status"):
        return {name: known.get(name) for name in ("Nats-Subject", "Nats-Sequence", "Status", "ce-id")} | {"data": data}
    answer = json.loads(data)
    message = answer.get("message", {})
    error = answer.get("error", {})
    return {
        "code": error.get("code"), "err_code": error.get("err_code"), "seq": answer.get("seq") or None,
        "duplicate": answer.get("duplicate", False), "success": answer.get("success", False),
        "message": {name: message.get(name) for name in ("subject", "seq", "data")},
    }  # fmt: skip


async def test_the_broker_of_the_simulation_says_what_the_real_one_says(bus: Bus) -> None:
    pretended = Broker()
    await chains.ensure(bus, CHAIN)
    for number, (subject, question, headers) in enumerate(QUESTIONS):
        data = b"" if question is None else json.dumps(question).encode()
        real = await bus.nc.request(subject, data, headers=headers or None, timeout=5)
        ours = pretended.answer(subject, data, headers, datetime.now(UTC))
        assert said(ours.data, ours.headers) == said(real.data, real.headers), (number, subject)
