"""Subjects and messages: what is built can be parsed, and nothing a user writes becomes a subject."""

from __future__ import annotations

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
        (b'{"run": "mine"}', {"Run-Id": "other"}, "mine"),
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
