"""W3C Trace Context: what is taken over, what counts as absent, and what is passed on."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runwire.app import Context
from runwire.domain import trace
from runwire.domain.trace import Trace
from runwire.messaging import services
from runwire.worker.actions import command, http
from runwire.worker.actions.http_request import HttpRequest

ID, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{ID}-{SPAN}-01"


def test_a_valid_traceparent_is_taken_over() -> None:
    asked = trace.parse(PARENT, "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7")
    assert asked == Trace(parent=PARENT, state="congo=t61rcWkgMzE,rojo=00f067aa0ba902b7")
    assert asked.id == ID
    assert asked.headers() == {"traceparent": PARENT, "tracestate": asked.state}
    assert trace.parse(PARENT).headers() == {"traceparent": PARENT}


@pytest.mark.parametrize(
    "parent",
    [
        None, "", "00", PARENT.upper(), f" {PARENT}", f"{PARENT} ", PARENT[:-1], f"{PARENT}0", f"{PARENT}-",
        f"{PARENT}-x", f"ff-{ID}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01", f"00-{ID}-{'0' * 16}-01",
        f"00-{ID[:-1]}-{SPAN}-01", f"00_{ID}_{SPAN}_01", f"00-{ID[:-1]}g-{SPAN}-01", f"01-{ID}-{SPAN}-01.x",
        f"{PARENT},{PARENT}", f"{PARENT}\n", f"cc-{ID}-{SPAN}-01-{'x' * 300}", "٠٠" + PARENT[2:],
    ],
)  # fmt: skip
def test_what_is_no_traceparent_counts_as_absent(parent: str | None) -> None:
    assert trace.parse(parent, "a=b") is None


def test_a_later_version_is_read_as_far_as_it_is_known() -> None:
    assert trace.parse(f"cc-{ID}-{SPAN}-01").parent == PARENT
    assert trace.parse(f"cc-{ID}-{SPAN}-ff-what-the-future-holds").parent == f"00-{ID}-{SPAN}-03"


@pytest.mark.parametrize(
    "state", ["", "a", "a=", "=b", "A=b", "a=b,a=c", "a=b=c", "a=é", "a=b\x00", ",".join(f"k{n}=v" for n in range(33))]
)
def test_a_tracestate_that_is_none_is_left_out(state: str) -> None:
    assert trace.parse(PARENT, state) == Trace(parent=PARENT)


def test_a_tracestate_may_have_empty_members_and_space() -> None:
    assert trace.parse(PARENT, " a=1 ,\t,b@c=2 2,").state == "a=1,b@c=2 2"


def test_a_long_tracestate_loses_its_last_members() -> None:
    given = ",".join(f"k{n:02}={'v' * 100}" for n in range(9))
    kept = trace.parse(PARENT, given).state
    assert len(kept) <= 512
    assert given.startswith(f"{kept},")
    assert kept.count("=") == 4
    assert trace.parse(PARENT, "a=" + "v" * 256).state is not None
    assert trace.parse(PARENT, ",".join(f"k{n}={'v' * 250}" for n in range(32))).state.count("=") == 2


def test_a_run_has_one_span_of_its_own_in_the_trace() -> None:
    asked = trace.parse(PARENT, "a=b")
    mine = trace.of_run(asked, "r1")
    assert mine == trace.of_run(asked, "r1"), "whoever looks"
    assert (mine.id, mine.state, mine.parent[-3:]) == (ID, "a=b", "-01")
    assert trace.parse(mine.parent, mine.state) == mine
    other = trace.parse(f"00-{ID}-{'1' * 16}-01")
    assert len({asked.parent, mine.parent, trace.of_run(asked, "r2").parent, trace.of_run(other, "r1").parent}) == 4
    assert trace.of_run(None, "r1") is None


def hexadecimal(length: int) -> st.SearchStrategy[str]:
    return st.text("0123456789abcdef", min_size=length, max_size=length)


@given(
    st.text()
    | st.builds("-".join, st.tuples(hexadecimal(2), hexadecimal(32), hexadecimal(16), hexadecimal(2)))
    | st.builds(f"cc-{ID}-{SPAN}-01-{{}}".format, st.text()),
    st.text() | st.builds(",".join, st.lists(st.builds("{}={}".format, hexadecimal(2), st.text(max_size=9)))),
)
def test_whatever_comes_what_goes_on_is_valid(parent: str, state: str) -> None:
    found = trace.parse(parent, state)
    if found is not None:
        assert trace.parse(found.parent, found.state) == found


def context(**given: str) -> Context:
    return Context(run_id="r1", attempt=1, deadline=datetime(2026, 5, 26, tzinfo=UTC), task=7, chain=1764, **given)


def test_whom_a_run_calls_learns_its_trace() -> None:
    inside = context(traceparent=PARENT, tracestate="a=b")
    sent = services._headers(inside)
    assert (sent["traceparent"], sent["tracestate"], sent["Run-Id"]) == (PARENT, "a=b", "r1")
    headers = dict(http._request(HttpRequest(url="http://example.com/"), inside).headers)
    assert (headers["traceparent"], headers["tracestate"]) == (PARENT, "a=b")
    variables = command._variables(inside)
    assert (variables["TRACEPARENT"], variables["TRACESTATE"]) == (PARENT, "a=b")


def test_whom_a_run_calls_hears_of_no_trace_where_there_is_none() -> None:
    sent = {
        *services._headers(context()),
        *dict(http._request(HttpRequest(url="http://example.com/"), context()).headers),
        *command._variables(context()),
    }
    assert not {name for name in sent if "trace" in name.lower()}
    assert set(context(traceparent=PARENT).trace_headers) == {"traceparent"}


def test_a_trace_that_the_task_names_wins() -> None:
    request = HttpRequest(url="http://example.com/", headers={"Traceparent": "mine"})
    headers = dict(http._request(request, context(traceparent=PARENT, tracestate="a=b")).headers)
    assert {name: value for name, value in headers.items() if "trace" in name.lower()} == {"Traceparent": "mine"}
