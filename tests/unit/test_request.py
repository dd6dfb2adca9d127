"""What the action `request` makes of a reply, and what the names of services can be."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from runwire.app import Context
from runwire.domain.errors import Fail, Retry
from runwire.messaging import subjects
from runwire.worker.actions.publish import Publish
from runwire.worker.actions.request import Reply, Request, request_action

FAR = datetime.now(UTC) + timedelta(hours=1)
CONTEXT = Context(run_id="r1", attempt=1, deadline=FAR, task=1, chain=1764)


async def ask(reply: Reply, **fields: Any) -> Any:
    """What comes of a request that is answered like this."""

    async def answer(_ctx: Context, _service: str, _payload: bytes, _until: datetime) -> Reply:
        return reply

    return await request_action(answer)(Request(service="invoices.render", **fields), CONTEXT)


@pytest.mark.parametrize(
    ("body", "result"),
    [(b'{"pages": 3}', {"pages": 3}), (b" {} ", {}), (b"", None), (b"null", None)],
)
async def test_a_json_object_or_nothing_is_a_result(body: bytes, result: object) -> None:
    assert await ask(Reply(body)) == result


@pytest.mark.parametrize("body", [b"done", b"[1]", b'"text"', b"7", b'{"x": NaN}', b'{"x": 1', b"\xff", b"[" * 100_000])
async def test_anything_else_is_none(body: bytes) -> None:
    with pytest.raises(Fail) as failure:
        await ask(Reply(body))
    assert failure.value.code == "invalid_result"


@pytest.mark.parametrize("code", ["400", "404", "422", "499"])
async def test_an_error_of_the_request_is_the_end(code: str) -> None:
    with pytest.raises(Fail) as failure:
        await ask(Reply(b"", "no such invoice", code))
    assert (failure.value.code, str(failure.value)) == ("service_error", f"invoices.render: {code} no such invoice")


@pytest.mark.parametrize("code", ["500", "503", "408", "429", "", "E17", "4040", "\u0664\u0660\u0664"])
async def test_any_other_error_may_be_tried_again(code: str) -> None:
    with pytest.raises(Retry) as failure:
        await ask(Reply(b"", "busy", code))
    assert (failure.value.code, failure.value.after) == ("service_error", None)


async def test_a_service_may_have_codes_of_its_own_and_say_when_to_come_again() -> None:
    with pytest.raises(Retry) as failure:
        await ask(Reply(b'{"code": "printer_jammed", "message": "Tray 2", "retry_after": 30}', "busy", "503"))
    assert (failure.value.code, str(failure.value), failure.value.after) == (
        "printer_jammed",
        "invoices.render: Tray 2",
        30,
    )


@pytest.mark.parametrize("body", [b"oops", b'{"code": "Not A Code"}', b'{"retry_after": -1}', b"[]"])
async def test_a_body_that_says_nothing_of_use_is_passed_over(body: bytes) -> None:
    with pytest.raises(Fail) as failure:
        await ask(Reply(body, "", "404"))
    assert (failure.value.code, str(failure.value)) == ("service_error", "invoices.render: 404")


@pytest.mark.parametrize(("seconds", "latest"), [(None, 3600), (60, 60), (7200, 3600)])
async def test_a_service_is_told_until_when_somebody_waits(seconds: float | None, latest: float) -> None:
    told: list[datetime] = []

    async def answer(_ctx: Context, _service: str, _payload: bytes, until: datetime) -> Reply:
        told.append(until)
        return Reply(b"")

    context = Context(run_id="r1", attempt=1, deadline=datetime.now(UTC) + timedelta(hours=1), task=1, chain=1764)
    await request_action(answer)(Request(service="a", seconds=seconds), context)
    assert (told[0] - datetime.now(UTC)).total_seconds() == pytest.approx(latest, abs=2)


BAD_NAMES = ["", ".", "a.", ".a", "a..b", "*", ">", "a.*", "a.>", "a b", "a\n", "a\r\nPUB x", "é", "$SRV", "a" * 101]


@pytest.mark.parametrize("name", ["a", "invoices.render", "A-1_b.c.d", "a" * 100])
def test_names_that_can_be_parts_of_subjects(name: str) -> None:
    assert subjects.service(1764, Request(service=name).service) == f"services.1764.{name}"
    assert subjects.message(1764, Publish(subject=name).subject) == f"messages.1764.{name}"


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_cannot(name: str) -> None:
    with pytest.raises(ValidationError):
        Request(service=name)
    with pytest.raises(ValidationError):
        Publish(subject=name)
    for build in (subjects.service, subjects.message):
        with pytest.raises(ValueError, match="no name"):
            build(1764, name)
