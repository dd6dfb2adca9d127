"""The client for programs that wait: each method returns when it is done, and may be called from any thread."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import httpx

from runwire.client import calls, follow
from runwire.client.calls import SubscriptionRef, TaskRef
from runwire.client.files import Destination
from runwire.client.models import Event, Line, Progress, Result, Run, Subscription, Task
from runwire.client.place import find_place
from runwire.client.steps import Call, Done, Emit, Open, Pause, Read, Step, Steps, Terms, advance, ask
from runwire.client.transport import TIMEOUT, arguments, request_of, stream_request_of

T = TypeVar("T")


class Client:
    """A client of one adapter, or of several behind one address.

    What is wrong for a while is borne: an adapter that is away or restarting, a connection that breaks, 429 and 503
    (as long as ``Retry-After`` says). The call is then repeated, where that cannot do anything twice; and so it goes on
    for ``timeout`` seconds. Methods raise what :mod:`runwire.client.errors` draws, first of all Problem.
    """

    def __init__(self, url: str | None = None, token: str | None = None, *, timeout: float = TIMEOUT) -> None:
        """Connect to nothing yet.

        ``url``: without it RUNWIRE_URL, else the adapter on this machine. ``token``: ``ID:SECRET``; without it
        RUNWIRE_TOKEN, else the first token of the installation on this machine. ``timeout``: seconds that a call
        bears an adapter which does not answer; it does not limit how long a run may take.
        """
        place = find_place(url, token)
        self._token = place.token
        self._http = httpx.Client(**arguments(place))
        self._terms = Terms(url=place.url, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # --- runs ---

    def execute(
        self,
        task: TaskRef,
        *,
        wait: float | None = None,
        idempotency_key: str | None = None,
        if_running: Literal["join", "queue"] | None = None,
        raise_on_error: bool = False,
    ) -> Result:
        """Run the task now, and return when the run has ended, however long it takes.

        ``wait``: seconds after which NotFinished is raised instead; the run goes on. ``idempotency_key``: calls with
        the same one are one run, also of other processes and later (for a day after its end); without it each call
        has its own, so that it can be repeated when its answer is lost. ``if_running``: of a busy task ``join`` waits
        for the run it is busy with, ``queue`` for one's turn; else it is Problem ``task_busy``. ``raise_on_error``:
        raise RunFailed when the run ends as ERROR; else that is a result like another.
        """
        return self._returned(
            calls.execute(
                self._terms, task, wait=wait, idempotency_key=idempotency_key, if_running=if_running,
                raise_on_error=raise_on_error,
            )
        )  # fmt: skip

    def start(
        self,
        task: TaskRef,
        *,
        wait: float | None = None,
        idempotency_key: str | None = None,
        if_running: Literal["join", "queue"] | None = None,
    ) -> str:
        """Have the task run, and return the id of the run as soon as it is accepted.

        As :meth:`execute` otherwise. ``wait``: seconds to wait for one's turn with ``queue``.
        """
        return self._returned(
            calls.start(self._terms, task, wait=wait, idempotency_key=idempotency_key, if_running=if_running)
        )

    def wait_for(self, task: TaskRef, run: str, *, wait: float | None = None, raise_on_error: bool = False) -> Result:
        """Return when the run has ended; ``wait`` and ``raise_on_error`` as for :meth:`execute`."""
        return self._returned(calls.wait_for(self._terms, task, run, wait=wait, raise_on_error=raise_on_error))

    def cancel(self, task: TaskRef, run: str | None = None) -> str:
        """End the task's run, queued or running; its id. ``run``: only if this is the one."""
        return self._returned(calls.cancel(self._terms, task, run))

    def run(self, task: TaskRef, run: str) -> Run:
        """One run as it stands."""
        return self._returned(calls.get_run(self._terms, task, run))

    def runs(self, task: TaskRef, *, code: str | None = None, limit: int | None = None) -> Iterator[Run]:
        """The runs of a task, newest first, page by page as they are taken. ``code``: only runs in this state."""
        return self._emitted(calls.pages(self._terms, f"{calls.task_path(task)}/runs", Run, {"code": code}, limit))

    def logs(self, task: TaskRef, run: str, *, after: int = 0, follow: bool = False) -> Iterator[Line]:
        """The lines of a run's log, oldest first; with ``follow`` also those to come, until the run has ended."""
        return self._emitted(calls.logs(self._terms, task, run, after=after, follow=follow))

    def follow(self, task: TaskRef, run: str) -> Iterator[Event | Line | Progress]:
        """What happens to a run, what it logs and how far it has come, as it happens; up to its end."""
        return self._emitted(follow.follow(self._terms, task, run))

    def events(
        self,
        task: TaskRef | None = None,
        *,
        chain: int | None = None,
        code: str | None = None,
        after: str | None = None,
    ) -> Iterator[Event]:
        """What happens to a task, or to all tasks of the token's chains, as it happens; without gap or repeat.

        ``code``: only events with this one, such as ``done``. ``after``: the id of an event to go on after; ``"0"``:
        from the first that is kept; None: from now on. It ends only with the deletion of its task; break off at will.
        """
        return self._emitted(follow.events(self._terms, task, chain=chain, code=code, after=after))

    # --- tasks ---

    def create(
        self,
        *,
        chain: int,
        target: Mapping[str, Any],
        trigger: Mapping[str, Any] | None = None,
        desc: str = "",
        idempotency_key: str | None = None,
        **fields: Any,
    ) -> Task:
        """Create a task. ``fields``: ``id``, ``debug``, ``timeout``, ``deadline``, ``retry``."""
        body = {"chain": chain, "desc": desc, "target": target, "trigger": trigger or {}, **fields}
        return self._returned(calls.create(self._terms, body, idempotency_key))

    def get(self, task: TaskRef, *, log_limit: int = 10) -> Task:
        """The task as it stands, with that many of its latest log entries."""
        return self._returned(calls.get(self._terms, task, log_limit))

    def list(
        self,
        *,
        status: str | None = None,
        action: str | None = None,
        campaign_id: int | None = None,
        chain: int | None = None,
        limit: int | None = None,
    ) -> Iterator[Task]:
        """The tasks that the token reaches, sorted by id, page by page as they are taken."""
        params = {"status": status, "action": action, "campaign_id": campaign_id, "chain": chain}
        return self._emitted(calls.pages(self._terms, "/tasks", Task, params, limit))

    def update(self, task: TaskRef, **changes: Any) -> Task:
        """Change fields of a task; what an object leaves out stays, None takes a field away.

        A Task in the place of its id: only if it has not changed since (else Problem ``stale``).
        """
        return self._returned(calls.update(self._terms, task, changes))

    def delete(self, task: TaskRef, *, force: bool = False) -> None:
        """Delete a task; with ``force`` also one that is queued or running: its run is cancelled first."""
        self._returned(calls.delete(self._terms, task, force=force))

    def download(self, task: TaskRef, to: str | PathLike[str]) -> Path:
        """Save the file that the task has exported last; its path.

        ``to``: the file, or a directory. A broken transfer goes on where it stopped; the file is there when all of it
        is, and has the digest it was stored with.
        """
        with Destination(to) as destination:
            for piece in self._emitted(follow.download(self._terms, task)):
                destination.write(piece)
            return destination.keep()

    # --- subscriptions ---

    def create_subscription(
        self,
        *,
        chain: int,
        kind: Literal["pull", "web_hook"] = "pull",
        tasks: Sequence[int] = (),
        codes: Sequence[str] = (),
        desc: str = "",
        from_sequence: int | None = None,
        from_time: datetime | None = None,
        url: str | None = None,
        actions: Sequence[str] = (),
    ) -> Subscription:
        """Subscribe to events of a chain.

        ``kind``: ``pull``, for a client of the bus with this token (:class:`runwire.BusClient`), or ``web_hook``, to be
        sent to ``url``; the ``secret`` of its signatures is in the answer, this once. ``tasks``, ``codes``, and of a
        web hook ``actions``: only events of these; none: of all. ``from_sequence``, ``from_time``: where to begin;
        neither: with the next event. Made again only when it is certain that it was not made.
        """
        wanted = {
            "kind": kind, "chain": chain, "tasks": tuple(tasks), "codes": tuple(codes), "desc": desc, "url": url,
            "actions": tuple(actions), "from_sequence": from_sequence,
            "from_time": None if from_time is None else from_time.isoformat(),
        }  # fmt: skip
        return self._returned(calls.subscribe(self._terms, wanted))

    def subscription(self, subscription: SubscriptionRef) -> Subscription:
        """A subscription, and how far it has come."""
        return self._returned(calls.get_subscription(self._terms, subscription))

    def subscriptions(self, *, chain: int | None = None, limit: int | None = None) -> Iterator[Subscription]:
        """One's own subscriptions, and all of the chains that one manages, oldest first."""
        return self._emitted(calls.pages(self._terms, "/subscriptions", Subscription, {"chain": chain}, limit))

    def rotate_subscription(self, subscription: SubscriptionRef, *, overlap: int = 86_400) -> Subscription:
        """Give a web hook a new ``secret``; events are signed with both for ``overlap`` seconds."""
        return self._returned(calls.rotate_subscription(self._terms, subscription, overlap))

    def resume_subscription(self, subscription: SubscriptionRef) -> Subscription:
        """Have events sent again to a web hook whose receiver had said 410 Gone."""
        return self._returned(calls.resume_subscription(self._terms, subscription))

    def delete_subscription(self, subscription: SubscriptionRef) -> None:
        """End a subscription, and forget how far it has come."""
        self._returned(calls.unsubscribe(self._terms, subscription))

    # --- anything else ---

    def request(
        self, method: str, path: str, *, params: Mapping[str, Any] | None = None, json: Any = None
    ) -> httpx.Response:
        """Call anything else. Sent again only when it is certain that it had no effect. Raises Problem or NoAnswer."""
        call = Call(method=method, path=path, params=params or {}, json=json)
        return self._returned(ask(call, self._terms, repeatable=method == "GET"))

    # --- how steps are carried out ---

    def _returned(self, steps: Steps[T]) -> T:
        """Carry out the steps; what they return."""
        with _Exchange(self._http, self._token) as exchange:
            step = advance(steps, None)
            while not isinstance(step, Done):
                step = advance(steps, exchange.carry_out(step))
        value: T = step.value
        return value

    def _emitted(self, steps: Steps[None]) -> Iterator[Any]:
        """Carry out the steps; what they emit."""
        with _Exchange(self._http, self._token) as exchange:
            step = advance(steps, None)
            while not isinstance(step, Done):
                if isinstance(step, Emit):
                    yield step.item
                step = advance(steps, exchange.carry_out(step))


class _Exchange:
    """Carries out steps, and holds the answer that is open between two of them."""

    def __init__(self, http: httpx.Client, token: str) -> None:
        self._http, self._token = http, token
        self._open: httpx.Response | None = None
        self._pieces: Iterator[bytes] = iter(())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def carry_out(self, step: Step) -> Any:
        """What comes of the step: an answer, bytes, or a TransportError."""
        try:
            match step:
                case Call():
                    return self._http.send(request_of(step, self._http, self._token))
                case Open(call):
                    return self._ask_for_stream(call)
                case Read():
                    return next(self._pieces, b"")
                case Pause(seconds):
                    time.sleep(seconds)
        except httpx.TransportError as trouble:
            return trouble
        return None

    def _ask_for_stream(self, call: Call) -> httpx.Response:
        self._close()
        self._open = self._http.send(stream_request_of(call, self._http, self._token), stream=True)
        if self._open.is_success:
            self._pieces = self._open.iter_bytes()
        else:
            self._open.read()
        return self._open

    def _close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None
