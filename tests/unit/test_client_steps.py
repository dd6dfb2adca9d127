"""The steps of the client's methods, carried out by hand: what is repeated, when, and when no more."""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runwire.client import DownloadDamaged, NoAnswer, NotFinished, Problem, calls, follow
from runwire.client.sse import Message, Parser
from runwire.client.steps import Call, Done, Emit, Open, Pause, Read, Step, Steps, Terms, advance, ask

RUN = {"id": "r1", "task": 1, "chain": 7, "attempt": 1, "source": "http", "accepted": "2026-05-26T14:35:00Z"}
STARTED = RUN | {"code": "INPROGRESS", "started": "2026-05-26T14:35:00Z", "finished": None}
ENDED = STARTED | {"code": "DONE", "finished": "2026-05-26T14:35:45Z"}
NONE = {"result": None, "error": None}


class Told:
    """Carries out steps by what it was told: answers in order; a pause lets its time pass on the clock."""

    def __init__(self, *outcomes: Any, took: float = 0, timeout: float = 10) -> None:
        self.outcomes = list(outcomes)
        self.took = took
        """Seconds that each answer takes."""
        self.now = 1000.0
        self.terms = Terms(url="http://here", timeout=timeout, clock=lambda: self.now)
        self.calls: list[Call] = []
        self.pauses: list[float] = []
        self.emitted: list[Any] = []

    def carry_out(self, steps: Steps[Any]) -> Any:
        step = advance(steps, None)
        while not isinstance(step, Done):
            step = advance(steps, self._outcome(step))
        return step.value

    def _outcome(self, step: Step) -> Any:
        match step:
            case Pause(seconds):
                self.now += seconds
                self.pauses.append(seconds)
            case Emit(item):
                self.emitted.append(item)
            case Call() | Open():
                self.calls.append(step.call if isinstance(step, Open) else step)
                self.now += self.took
                return self.outcomes.pop(0)
            case Read():
                return self.outcomes.pop(0)
        return None


def problem(status: int, code: str, **headers: str) -> httpx.Response:
    members = {"status": status, "code": code, "detail": f"It is {code}."}
    return httpx.Response(status, json=members, headers={"Content-Type": "application/problem+json", **headers})


CUT = httpx.RemoteProtocolError("Server disconnected without sending a response.")
AWAY = httpx.ConnectError("Connection refused")
GET = Call(method="GET", path="/tasks/1")


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "runwire.client")


# --- what is repeated ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trouble",
    [
        AWAY, CUT, httpx.ReadTimeout("silence"), httpx.Response(500, text="Internal Server Error"),
        httpx.Response(502, text="Bad Gateway"), httpx.Response(503), httpx.Response(504), problem(503, "not_accepted"),
        problem(503, "draining"), problem(429, "rate_limited"),
    ],
)  # fmt: skip
def test_what_passes_by_itself_is_borne(trouble: Any) -> None:
    told = Told(trouble, trouble, httpx.Response(200))
    assert told.carry_out(ask(GET, told.terms)).status_code == 200
    assert len(told.pauses) == 2


@pytest.mark.parametrize(
    "answer", [problem(404, "task_not_found"), problem(409, "task_busy"), problem(500, "internal"), httpx.Response(404)]
)
def test_what_does_not_is_raised_at_once(answer: httpx.Response) -> None:
    told = Told(answer)
    with pytest.raises(Problem):
        told.carry_out(ask(GET, told.terms))
    assert told.pauses == []


@pytest.mark.parametrize(
    "trouble", [CUT, httpx.ReadTimeout("silence"), httpx.Response(502), problem(503, "not_accepted")]
)
def test_a_call_that_may_have_had_an_effect_is_not_repeated_where_that_matters(trouble: Any) -> None:
    told = Told(trouble)
    with pytest.raises((NoAnswer, Problem)):
        told.carry_out(calls.cancel(told.terms, 1, None))
    assert told.pauses == []


@pytest.mark.parametrize("trouble", [AWAY, problem(503, "draining"), problem(429, "rate_limited")])
def test_one_that_had_none_is_repeated_even_there(trouble: Any) -> None:
    told = Told(trouble, httpx.Response(200, headers={"Run-Id": "r1"}))
    assert told.carry_out(calls.cancel(told.terms, 1, None)) == "r1"


def test_the_time_that_an_adapter_asks_for_is_given_to_it() -> None:
    told = Told(problem(429, "rate_limited", **{"Retry-After": "7"}), httpx.Response(200))
    told.carry_out(ask(GET, told.terms))
    assert told.pauses == [7]


def test_patience_ends_with_what_was_wrong_last() -> None:
    told = Told(*[AWAY] * 100, timeout=10)
    with pytest.raises(NoAnswer, match="no answer from http://here: Connection refused"):
        told.carry_out(ask(GET, told.terms))
    assert 5 < sum(told.pauses) <= 10
    assert told.pauses[0] <= 0.1
    assert max(told.pauses) <= 3
    told = Told(problem(429, "rate_limited", **{"Retry-After": "60"}), timeout=10)
    with pytest.raises(Problem, match="rate_limited"):
        told.carry_out(ask(GET, told.terms))
    assert told.pauses == [], "it would be over before the 60 s are"


def test_without_a_timeout_nothing_is_repeated() -> None:
    told = Told(AWAY, timeout=0)
    with pytest.raises(NoAnswer):
        told.carry_out(ask(GET, told.terms))


def test_trouble_is_told_once_and_that_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    told = Told(AWAY, AWAY, AWAY, httpx.Response(200))
    told.carry_out(ask(GET, told.terms))
    assert [record.getMessage() for record in caplog.records] == [
        "no answer from http://here: Connection refused; trying again",
        "http://here answers again",
    ]


# --- waiting ---------------------------------------------------------------------------------------------------


def execute(told: Told, **options: Any) -> Steps[Any]:
    how = {"wait": None, "idempotency_key": None, "if_running": None, "raise_on_error": False, **options}
    return calls.execute(told.terms, 1, **how)


def accepted(status: int = 202, **headers: str) -> httpx.Response:
    body = {"code": "DONE", "last_run_date": "2026-05-26T14:35:00Z", "last_modified": "2026-05-26T14:35:45Z"}
    return httpx.Response(status, json=body, headers={"Run-Id": "r1", **headers})


def test_every_repetition_has_the_key_of_the_first_call() -> None:
    told = Told(CUT, problem(503, "not_accepted"), accepted(), httpx.Response(200, json=ENDED | NONE))
    assert told.carry_out(execute(told)).code == "DONE"
    keys = {call.headers.get("Idempotency-Key") for call in told.calls[:3]}
    assert len(keys) == 1
    assert None not in keys
    another = Told(accepted(200), httpx.Response(200, json=ENDED | NONE))
    another.carry_out(execute(another))
    assert another.calls[0].headers["Idempotency-Key"] not in keys


def test_a_proxy_that_bears_no_long_silence_is_asked_to_bear_less() -> None:
    told = Told(CUT, CUT, accepted(), httpx.Response(200, json=ENDED | NONE), took=10, timeout=5)
    told.carry_out(execute(told))
    assert [call.wait for call in told.calls] == [25, 12, 6, 25]


def test_a_wait_that_is_over_ends_the_waiting_whatever_the_trouble() -> None:
    told = Told(accepted(), httpx.Response(200, json=STARTED | NONE), took=3)
    with pytest.raises(NotFinished) as raised:
        told.carry_out(execute(told, wait=5))
    assert raised.value.run == "r1"
    assert [call.wait for call in told.calls] == [5, 2]
    away = Told(*[AWAY] * 100, timeout=60)
    with pytest.raises(NotFinished) as raised:
        away.carry_out(execute(away, wait=5))
    assert (raised.value.run, away.now) == (None, 1005)


def test_a_run_that_an_adapter_does_not_know_is_asked_for_by_its_key() -> None:
    told = Told(accepted(), problem(404, "run_not_found"), accepted(200, **{"Task-Error": "timeout"}),
                problem(404, "run_not_found"))  # fmt: skip
    result = told.carry_out(execute(told))
    assert (result.run, result.error.code, result.value) == ("r1", "timeout", None)
    assert [call.method for call in told.calls] == ["POST", "GET", "POST", "GET"]


def test_an_adapter_that_does_not_wait_is_not_asked_again_at_once() -> None:
    told = Told(accepted(), *[httpx.Response(200, json=STARTED | NONE)] * 3, httpx.Response(200, json=ENDED | NONE))
    told.carry_out(execute(told))
    assert told.pauses == [1, 1, 1]


# --- streams ---------------------------------------------------------------------------------------------------


def test_a_stream_is_opened_again_after_its_last_event() -> None:
    told = Told(
        httpx.Response(200), b"id: 4\nretry: 2000\n\n", CUT, httpx.Response(200), b"id: 5\nevent: a\nda",
        b"ta: x\n\nid: 6\nevent: a\ndata: cut", b"", AWAY, httpx.Response(200), CUT, httpx.Response(200),
        b"id: 6\nevent: a\ndata: y\n\n",
    )  # fmt: skip
    stream = follow.Stream(told.terms, "/events", {})
    got = [told.carry_out(stream.next()) for _ in range(2)]
    assert got == [Message("a", "5", "x"), Message("a", "6", "y")]
    assert [call.headers.get("Last-Event-ID") for call in told.calls] == [None, "4", "5", "5", "5"]
    assert len(told.pauses) == 4


def test_204_is_the_end_of_a_stream() -> None:
    told = Told(httpx.Response(204))
    assert told.carry_out(follow.Stream(told.terms, "/events", {}).next()) is None


EVENTS = [Message("task.log", "1-2", '{"a": "ä"}'), Message("message", "1-2", "one\ntwo")]


@given(st.data(), st.sampled_from(["\n", "\r", "\r\n"]))
def test_events_are_the_same_however_their_bytes_are_cut(data: st.DataObject, end: str) -> None:
    text = 'retry: 5\n\n: hello\n\nevent: task.log\nid: 1-2\ndata: {"a": "ä"}\n\ndata: one\ndata:two\n\nevent: none\n\n'
    raw = text.replace("\n", end).encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, len(raw) - 1))))
    parser = Parser()
    pieces = [raw[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    assert [message for piece in pieces for message in parser.feed(piece)] == EVENTS
    assert parser.heard


# --- downloads -------------------------------------------------------------------------------------------------


def file_answer(content: bytes, status: int = 200, name: str = "a.csv") -> httpx.Response:
    tag = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode()
    disposition = f'attachment; filename="{name}"'
    return httpx.Response(status, headers={"ETag": f'"{tag}"', "Content-Disposition": disposition})


LINK = httpx.Response(200, json={"url": "http://here/downloads/x"})


def written(pieces: Iterator[follow.Piece]) -> bytes:
    content = b""
    for piece in pieces:
        content = content[: piece.offset] + piece.content
    return content


def test_a_download_goes_on_with_the_byte_it_lacks() -> None:
    told = Told(LINK, file_answer(b"abcdef"), b"ab", CUT, file_answer(b"abcdef", 206), b"cdef", b"")
    told.carry_out(follow.download(told.terms, 1))
    assert written(told.emitted) == b"abcdef"
    assert told.calls[2].headers["Range"] == "bytes=2-"
    assert told.calls[2].headers["If-Range"] == file_answer(b"abcdef").headers["etag"]


def test_a_file_that_has_been_replaced_meanwhile_is_fetched_from_its_first_byte() -> None:
    told = Told(LINK, file_answer(b"abcdef"), b"ab", CUT, file_answer(b"other"), b"other", b"")
    told.carry_out(follow.download(told.terms, 1))
    assert written(told.emitted) == b"other"


def test_a_link_that_has_expired_is_asked_for_again() -> None:
    told = Told(LINK, file_answer(b"ab"), b"a", CUT, problem(410, "link_expired"), LINK,
                file_answer(b"ab", 206), b"b", b"")  # fmt: skip
    told.carry_out(follow.download(told.terms, 1))
    assert written(told.emitted) == b"ab"


def test_bytes_with_another_digest_are_no_file() -> None:
    told = Told(LINK, file_answer(b"abcdef"), b"abcdeX", b"")
    with pytest.raises(DownloadDamaged, match=r"a\.csv"):
        told.carry_out(follow.download(told.terms, 1))


@pytest.mark.parametrize(
    ("name", "kept"),
    [("../../etc/passwd", "passwd"), ("..", "download"), ("", "download"), ("a\\\\b.csv", "b.csv"), ("Ü.csv", "Ü.csv")],
)
def test_a_server_names_a_file_and_no_place(name: str, kept: str) -> None:
    answer = httpx.Response(200, headers={"Content-Disposition": f'attachment; filename="{name}"'.encode()})
    told = Told(LINK, answer, b"x", b"")
    told.carry_out(follow.download(told.terms, 1))
    assert {piece.name for piece in told.emitted} == {kept}
