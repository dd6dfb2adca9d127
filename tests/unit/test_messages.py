"""Subjects and messages: what is built can be parsed, and nothing a user writes becomes a subject."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nats.aio.client import Client

from runwire.domain import lifecycle
from runwire.domain.errors import Undecodable
from runwire.domain.lifecycle import Definition
from runwire.domain.run import RUN_ID, Source
from runwire.domain.task import MAX_ID, Target
from runwire.messaging import codec, subjects
from runwire.messaging.broker import parse_headers

NOW = datetime(2026, 5, 26, 14, 35, 0, 123_456, tzinfo=UTC)
ids = st.integers(min_value=1, max_value=MAX_ID)


def decode(subject: str = "tasks.cmd.1764.7.execute", payload: bytes = b"{}", headers: dict[str, str] | None = None):
    return codec.decode_command(subject, payload, headers, sequence=9, delivery=1, accepted=NOW)


@given(ids, ids)
def test_what_is_built_is_parsed(chain: int, task: int) -> None:
    for subject in (subjects.command(chain, task), subjects.log(chain, task), subjects.dead_letter(chain, task)):
        assert subjects.parse(subject) == (chain, task)


@given(st.text(), st.text())
def test_no_text_makes_a_subject(chain: str, task: str) -> None:
    try:
        parsed = subjects.parse(f"tasks.cmd.{chain}.{task}.execute")
    except Undecodable:
        return
    assert re.fullmatch(r"tasks\.cmd\.\d+\.\d+\.execute", subjects.command(*parsed))


@pytest.mark.parametrize("token", ["07", "+7", "-7", " 7", "7_0", "٧", "0", "", "9" * 5000, str(MAX_ID + 1)])
def test_a_task_has_one_spelling(token: str) -> None:
    """A task that also answered to another one could have two commands outstanding."""
    for subject in (f"tasks.cmd.1764.{token}.execute", f"tasks.cmd.{token}.7.execute"):
        with pytest.raises(Undecodable):
            subjects.parse(subject)


@pytest.mark.parametrize("number", [0, -1, MAX_ID + 1])
def test_numbers_that_are_no_ids_make_no_subject(number: int) -> None:
    with pytest.raises(ValueError, match="no id"):
        subjects.command(number, 1)
    with pytest.raises(ValueError, match="no id"):
        subjects.events_of(1, number)


def test_the_subject_of_an_event_says_what_it_is() -> None:
    definition = Definition(chain=1764, desc="", target=Target.model_validate({"action": "bulk issue > *"}), trigger={})
    document = lifecycle.create(definition, 7, NOW)
    assert subjects.event(document) == "tasks.evt.1764.7.ready"
    deleted = document.model_copy(update={"change": lifecycle.Change.DELETED})
    assert subjects.event(deleted) == "tasks.evt.1764.7.deleted"


def test_a_document_survives_the_wire() -> None:
    target = Target.model_validate({"action": "a", "export_index": "runs", "nested": {"x": [1, None, "ü"]}})
    definition = Definition(chain=1764, desc="ü", target=target, trigger={"segment": "vip"})
    document = lifecycle.create(definition, 7, NOW)
    assert codec.decode(codec.encode(document)) == document
    assert b'"created_date":"2026-05-26T14:35:00Z"' in codec.encode(document)


def test_a_field_of_a_newer_version_does_not_disturb() -> None:
    document = lifecycle.create(Definition(chain=1, desc="", target=Target(action="a"), trigger={}), 7, NOW)
    newer = codec.encode(document)[:-1] + b',"invented_later":true}'
    assert codec.decode(newer) == document


@given(st.binary(max_size=200))
def test_bytes_that_are_no_document_are_undecodable(payload: bytes) -> None:
    with pytest.raises(Undecodable):
        codec.decode(payload)


@given(st.binary(max_size=200))
def test_any_body_of_a_command_is_a_command_or_undecodable(payload: bytes) -> None:
    try:
        command = decode(payload=payload)
    except Undecodable as undecodable:
        assert str(undecodable)
    else:
        assert RUN_ID.fullmatch(command.run)


@given(
    st.one_of(
        st.binary(max_size=200),
        st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20))).map(
            lambda pairs: b"".join(f"{name}:{value}\r\n".encode() for name, value in pairs)
        ),
        st.from_regex(rb"\A([A-Za-z -]{0,9}: ?[a-z ]{0,9}\r\n){0,9}\Z"),
    )
)
@example(b"\x1c:")
@example(b"a\x1cb: c\r\n : d\r\n:e")
@example(b"\xc3\xa4: b\r\nno colon\r\na b: c")
def test_headers_are_read_as_nats_py_reads_them(raw: bytes) -> None:
    assert parse_headers(raw) == Client._parse_header_lines(raw)


@pytest.mark.parametrize(
    ("payload", "headers", "run"),
    [
        (b"", None, "bus-9"),
        (b"{}", {}, "bus-9"),
        (b'{"run": "mine"}', {"Run-Id": "mine", "Nats-Msg-Id": "other"}, "mine"),
        (b"{}", {"run-id": "mine", "Nats-Msg-Id": "other"}, "mine"),
        (b"{}", {"Nats-Msg-Id": "mine"}, "mine"),
        (b"{}", {"Nats-Msg-Id": "order:17/3"}, "msg-9160b5dbfda17b2e16a45f82b8dfbb63"),
    ],
)
def test_where_a_run_id_comes_from(payload: bytes, headers: dict[str, str] | None, run: str) -> None:
    command = decode(payload=payload, headers=headers)
    if run.startswith("msg-"):
        assert re.fullmatch(r"msg-[0-9a-f]{32}", command.run)
        assert command.run == decode(payload=payload, headers=headers).run
    else:
        assert command.run == run
    assert codec.run_of_command(headers, payload, 9) == command.run


def test_an_invented_source_is_the_bus() -> None:
    assert decode(headers={"Run-Source": "root"}).source is Source.BUS
    assert decode(headers={"Run-Source": "http"}).source is Source.HTTP


def test_a_run_id_that_is_none_is_undecodable() -> None:
    with pytest.raises(Undecodable, match="no run id"):
        decode(headers={"Run-Id": "../../etc"})


def test_two_run_ids_are_one_too_many() -> None:
    payload, headers = b'{"run": "a"}', {"Run-Id": "b"}
    with pytest.raises(Undecodable, match="two runs: 'a' in its body, 'b' in Run-Id"):
        decode(payload=payload, headers=headers)
    assert codec.run_of_command(headers, payload, 9) == "b"


def test_a_reason_is_kept() -> None:
    assert decode(payload=b'{"reason": " the nightly one failed "}').reason == "the nightly one failed"
    assert decode(payload=b'{"reason": " "}').reason is None
    assert decode(payload=codec.encode_command('why: \u00fc "x"')).reason == 'why: ü "x"'
    assert decode(payload=codec.encode_command(None)).reason is None


@pytest.mark.parametrize(
    ("payload", "complaint"),
    [
        (b"now!", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "object"),
        (b'"now"', "object"),
        (b"null", "object"),
        (b'{"run": "a", "run": "b"}', "'run' twice"),
        (b'{"run": "no spaces"}', "run: "),
        (b'{"run": 17}', "run: "),
        (b'{"reason": "' + b"x" * 1001 + b'"}', "reason: .*1000"),
        (b'{"reason": "a\\u0000b"}', "reason: "),
        (b'{"reason": "\\ud800"}', "does not fit"),
        (b'{"unknown": 1}', "unknown: "),
        (b'{"a":' * 20_000, "nested too deeply"),
    ],
)
def test_what_is_wrong_with_a_body_is_told(payload: bytes, complaint: str) -> None:
    with pytest.raises(Undecodable, match=complaint):
        decode(payload=payload)
    assert codec.run_of_command({"Nats-Msg-Id": "m"}, payload, 9) == "m"


# --- CloudEvents -----------------------------------------------------------------------------------------

BINARY = {"ce-specversion": "1.0", "ce-id": "order-17", "ce-source": "/orders", "ce-type": "com.example.order.paid"}
STRUCTURED = {"Content-Type": "application/cloudevents+json; charset=utf-8"}


def structured(**members: object) -> bytes:
    event = {name.removeprefix("ce-"): value for name, value in BINARY.items()} | members
    return json.dumps({name: value for name, value in event.items() if value is not None}).encode()


@pytest.mark.parametrize("payload", [b"", b'{"reason": "paid"}'])
def test_a_command_may_be_a_cloudevent_in_binary_mode(payload: bytes) -> None:
    headers = {"Content-Type": "application/json", **{name.upper(): value for name, value in BINARY.items()}}
    command = decode(payload=payload, headers=headers)
    assert (command.run, command.reason) == ("order-17", "paid" if payload else None)
    assert codec.run_of_command(headers, payload, 9) == "order-17"


@pytest.mark.parametrize(
    "data",
    [
        {"data": {"reason": "paid"}},
        {"data": {"reason": "paid"}, "datacontenttype": "application/vnd.order+json; v=1"},
        {"data_base64": "eyJyZWFzb24iOiAicGFpZCJ9"},
    ],
)
def test_a_command_may_be_a_cloudevent_in_structured_mode(data: dict[str, object]) -> None:
    payload = structured(partitionkey="a", anumber=7, **data)
    command = decode(payload=payload, headers=STRUCTURED)
    assert (command.run, command.reason) == ("order-17", "paid")
    assert codec.run_of_command(STRUCTURED, payload, 9) == "order-17"


def test_a_cloudevent_without_data_is_a_command_too() -> None:
    assert decode(payload=structured(), headers=STRUCTURED).run == "order-17"


def test_what_names_the_run_wins_over_the_id_of_the_event() -> None:
    assert decode(payload=b'{"run": "mine"}', headers=BINARY).run == "mine"
    assert decode(payload=b"", headers={**BINARY, "Run-Id": "mine"}).run == "mine"
    assert decode(payload=b"", headers={**BINARY, "Nats-Msg-Id": "mine"}).run == "mine"
    assert decode(payload=structured(data={"run": "mine"}), headers=STRUCTURED).run == "mine"


def test_the_id_of_an_event_that_is_no_run_id_is_hashed_with_its_source() -> None:
    def run(event_id: str, source: str) -> str:
        return decode(payload=b"", headers={**BINARY, "ce-id": event_id, "ce-source": source}).run

    assert re.fullmatch("evt-[0-9a-f]{32}", run("order:17", "/a"))
    assert run("order:17", "/a") == run("order%3A17", "/a"), "headers are percent-encoded"
    assert len({run("order:17", "/a"), run("order:17", "/b"), run("order:18", "/a")}) == 3


@pytest.mark.parametrize(
    ("headers", "payload", "complaint"),
    [
        *(({**BINARY, name: ""}, b"", f"has no {name[3:]}") for name in BINARY),
        ({"ce-id": "1"}, b"", "has no specversion, source, type"),
        ({**BINARY, "ce-specversion": "0.3"}, b"", "specversion is '0.3'"),
        ({**BINARY, "ce-datacontenttype": "text/xml"}, b"<run/>", "'text/xml'; JSON"),
        (BINARY, b"[]", "object"),
        (STRUCTURED, b"", "not JSON"),
        (STRUCTURED, b"{", "not JSON"),
        (STRUCTURED, b"[]", "no JSON object"),
        (STRUCTURED, b"{}", "has no specversion, id, source, type"),
        (STRUCTURED, structured(id=17), "has no id"),
        (STRUCTURED, structured(source=None), "has no source"),
        (STRUCTURED, structured(specversion="2.0"), "specversion is '2.0'"),
        (STRUCTURED, structured(data="run!"), "object"),
        (STRUCTURED, structured(data={"run": "a b"}), "run: "),
        (STRUCTURED, structured(data={"x": 1}), "x: "),
        (STRUCTURED, structured(data={}, data_base64="e30="), "both"),
        (STRUCTURED, structured(data_base64="?"), "no Base64"),
        (STRUCTURED, structured(data_base64=7), "no Base64"),
        (STRUCTURED, b'{"id": "a", "id": "b"}', "'id' twice"),
        ({"Content-Type": "application/cloudevents-batch+json"}, b"[]", "cloudevents-batch"),
        ({"content-type": "application/cloudevents+avro"}, b"", "avro"),
        ({"content-type": "application/cloudevents"}, b"", "not understood"),
    ],
)
def test_what_is_wrong_with_a_cloudevent_is_told(headers: dict[str, str], payload: bytes, complaint: str) -> None:
    with pytest.raises(Undecodable, match=complaint):
        decode(payload=payload, headers=headers)
    assert RUN_ID.fullmatch(codec.run_of_command(headers, payload, 9))


@given(
    st.dictionaries(st.sampled_from([*BINARY, "Content-Type", "Run-Id", "Nats-Msg-Id"]), st.text(max_size=30)),
    st.binary(max_size=100) | st.builds(structured, data=st.text() | st.none(), id=st.text() | st.integers()),
)
def test_any_message_is_a_command_or_undecodable(headers: dict[str, str], payload: bytes) -> None:
    try:
        command = decode(payload=payload, headers=headers)
    except Undecodable as undecodable:
        assert str(undecodable)
        assert RUN_ID.fullmatch(codec.run_of_command(headers, payload, 9))
    else:
        assert codec.run_of_command(headers, payload, 9) == command.run
