"""What a method of the client does, in steps that a driver carries out; and how long it bears trouble.

A generator yields a step and is sent what came of it: the answer to a Call or an Open, the bytes of a Read. When the
connection fails, the driver throws httpx's TransportError in its place. What is yielded in an Emit goes to the caller.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import httpx

from runwire.client.errors import NoAnswer, NotFinished, Problem

T = TypeVar("T")

log = logging.getLogger("runwire.client")

POLL = 25
"""Seconds an adapter is asked to wait for the end of a run: less than most proxies allow between two bytes."""
ANSWER_WITHIN = 20.0
"""Seconds an adapter may take for an answer, beside those it was asked to wait."""
SILENCE = 45.0
"""Seconds without a byte after which a stream counts as broken; adapters send a comment after 15."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 3.0
"""Seconds before a call is repeated the first time, and at most; doubled from one to the next."""
LATER = frozenset({429, 502, 503, 504})
"""Statuses that say: not now. 502 and 504 come from proxies whose adapter is away."""
WITHOUT_EFFECT = frozenset({"draining", "broker_unavailable", "too_many_streams", "too_many_connections"})
"""Codes of problems that pass, and after which it is certain that nothing was done."""
CUT_SHORT = "http_500"
"""A 500 that is no problem of an adapter's: what its server says when it is made to stop in the middle of a call."""
MEANT_TO_LAST = 5.0
"""Seconds after which a call that waits has been with an adapter: when it is cut off then, by a proxy that bears no
longer silence, the adapter is asked to wait for half as long."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """A request, whose answer is read whole."""

    method: str
    path: str
    """At the adapter; or an absolute URL, which is asked without the token."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """Query; None: left out."""
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    """The body; None: none."""
    wait: int | None = None
    """Seconds the adapter is asked to wait for the end of a run (``Prefer``); None: it is not."""

    @property
    def all_headers(self) -> dict[str, str]:
        """The headers, with what ``wait`` stands for."""
        return {**self.headers, **({} if self.wait is None else {"Prefer": f"wait={self.wait}"})}

    @property
    def query(self) -> dict[str, Any]:
        """The query as it is sent."""
        return {name: value for name, value in self.params.items() if value is not None}

    @property
    def answer_within(self) -> float:
        """Seconds without a byte after which the connection counts as broken."""
        return ANSWER_WITHIN + (self.wait or 0)


@dataclass(frozen=True)
class Open:
    """A request whose answer is read piece by piece; one that was open is closed."""

    call: Call


@dataclass(frozen=True)
class Read:
    """The next bytes of the answer that is open; none at its end."""


@dataclass(frozen=True)
class Pause:
    """Let time pass."""

    seconds: float


@dataclass(frozen=True)
class Emit:
    """Something for the caller."""

    item: Any


Step = Call | Open | Read | Pause | Emit
Steps = Generator[Step, Any, T]


@dataclass(frozen=True)
class Done:
    """There are no more steps."""

    value: Any
    """What the generator returned."""


def advance(steps: Steps[Any], outcome: Any) -> Step | Done:
    """Tell what came of a step (None: of none yet), and get the next one."""
    try:
        if isinstance(outcome, httpx.TransportError):
            return steps.throw(outcome)
        return steps.send(outcome)
    except StopIteration as end:
        return Done(end.value)


Trouble = httpx.TransportError | Problem
"""What may pass by itself: the connection failed, or the adapter refused."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What every call goes by."""

    url: str
    """Of the adapter, as it is named in complaints."""
    timeout: float
    """Seconds that trouble is borne: an adapter that is away, or takes nothing now."""
    clock: Callable[[], float] = time.monotonic

    def after(self, seconds: float | None) -> float:
        """The time in so many seconds; None: never."""
        return math.inf if seconds is None else self.clock() + seconds


class Patience:
    """How often, and how long, one thing is tried again."""

    def __init__(self, terms: Terms, *, until: float = math.inf, run: str | None = None) -> None:
        """``until``: when the caller's own wait is over; ``run``: what is waited for, as far as it is known."""
        self.terms = terms
        self._until, self._run = until, run
        self._ends: float | None = None
        self._told = False
        self._pause = FIRST_PAUSE

    def restored(self) -> None:
        """All is well again."""
        if self._told:
            log.info("%s answers again", self.terms.url, extra={"action": "answers_again"})
        self._ends, self._told, self._pause = None, False, FIRST_PAUSE

    def bear(self, trouble: Trouble | None) -> Steps[None]:
        """Pause before the next try. Raises Problem or NoAnswer when patience is over, NotFinished when the wait is.

        None: no trouble, but nothing either that would be worth asking again at once.
        """
        now = self.terms.clock()
        if self._ends is None:
            self._ends = now + self.terms.timeout
        asked = trouble.retry_after if isinstance(trouble, Problem) else None
        pause = self._pause * random.uniform(0.5, 1.0) if asked is None else asked  # noqa: S311 - spreads, hides nothing
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        if trouble is not None and now + pause > self._ends < self._until:
            raise given_up(trouble, self.terms)
        if trouble is not None and not self._told:
            self._told = True
            log.warning("%s; trying again", in_words(trouble, self.terms), extra={"action": "trying_again"})
        if now + pause > self._until:
            yield Pause(max(0.0, self._until - now))
            raise NotFinished("The wait is over, and the end of the run is not known.", run=self._run)
        yield Pause(pause)


def ask(
    call: Call, terms: Terms, *, until: float = math.inf, run: str | None = None, repeatable: bool = True
) -> Steps[httpx.Response]:
    """The answer to a call, which is repeated while the adapter is away or says: not now.

    ``until`` cuts the call's ``wait`` short, and ends the trying. A call that is not ``repeatable`` is only sent again
    when it is certain that it had no effect. Raises Problem, NoAnswer or NotFinished.
    """
    patience = Patience(terms, until=until, run=run)
    wait = call.wait
    while True:
        if wait is not None:
            call = replace(call, wait=max(0, math.ceil(min(wait, until - terms.clock()))))
        asked = terms.clock()
        try:
            answer: httpx.Response = yield call
            if answer.is_success:
                patience.restored()
                return answer
            trouble: Trouble = Problem(answer)
        except httpx.TransportError as error:
            trouble = error
        if not _may_pass(trouble, repeatable=repeatable):
            raise given_up(trouble, terms)
        if wait is not None and _was_cut(trouble) and terms.clock() - asked > MEANT_TO_LAST:
            patience.restored()
            wait = max(1, wait // 2)
        yield from patience.bear(trouble)


def ask_for_stream(call: Call, patience: Patience) -> Steps[httpx.Response]:
    """As :func:`ask`, for an answer that is read piece by piece."""
    while True:
        try:
            answer: httpx.Response = yield Open(call)
            if answer.is_success:
                return answer
            trouble: Trouble = Problem(answer)
        except httpx.TransportError as error:
            trouble = error
        if not _may_pass(trouble, repeatable=True):
            raise given_up(trouble, patience.terms)
        yield from patience.bear(trouble)


def read() -> Steps[bytes]:
    """The next bytes of the answer that is open."""
    piece: bytes = yield Read()
    return piece


def given_up(trouble: Trouble, terms: Terms) -> Problem | NoAnswer:
    """What is raised: a problem itself; NoAnswer for a connection that failed."""
    if isinstance(trouble, Problem):
        return trouble
    no_answer = NoAnswer(in_words(trouble, terms))
    no_answer.__cause__ = trouble
    return no_answer


def in_words(trouble: Trouble, terms: Terms) -> str:
    """The trouble in a line."""
    if isinstance(trouble, Problem):
        return str(trouble)
    return f"no answer from {terms.url}: {str(trouble) or type(trouble).__name__}"


def _may_pass(trouble: Trouble, *, repeatable: bool) -> bool:
    """Whether it is worth it, and does no harm, to send the call again."""
    if isinstance(trouble, Problem):
        had_no_effect = trouble.status == httpx.codes.TOO_MANY_REQUESTS or trouble.code in WITHOUT_EFFECT
        return had_no_effect or (repeatable and (trouble.status in LATER or trouble.code == CUT_SHORT))
    return repeatable or isinstance(trouble, httpx.ConnectError | httpx.ConnectTimeout)


def _was_cut(trouble: Trouble) -> bool:
    """Whether somebody on the way ended the connection, or the answer, while the adapter was to be waited for."""
    if isinstance(trouble, Problem):
        return trouble.status == httpx.codes.GATEWAY_TIMEOUT
    return isinstance(trouble, httpx.ReadError | httpx.RemoteProtocolError)
