"""The client for programs on asyncio: what takes time is awaited, what goes on is iterated over with ``async for``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
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


class AsyncClient:
    """As :class:`runwire.client.Client`, method for method; any number of calls may wait at once."""

    def __init__(self, url: str | None = None, token: str | None = None, *, timeout: float = TIMEOUT) -> None:
        """As for Client; connects to nothing yet."""
        place = find_place(url, token)
        self._token = place.token
        self._http = httpx.AsyncClient(**arguments(place))
        self._terms = Terms(url=place.url, timeout=timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    # --- runs ---

    async def execute(
        self,
        task: TaskRef,
        *,
        wait: float | None = None,
        idempotency_key: str | None = None,
        if_running: Literal["join", "queue"] | None = None,
        raise_on_error: bool = False,
    ) -> Result:
        """Run the task now, and return when the run has ended. As ``Client.execute``."""
        return await self._returned(
            calls.execute(
                self._terms, task, wait=wait, idempotency_key=idempotency_key, if_running=if_running,
                raise_on_error=raise_on_error,
            )
        )  # fmt: skip

    async def start(
        self,
        task: TaskRef,
        *,
        wait: float | None = None,
        idempotency_key: str | None = None,
        if_running: Literal["join", "queue"] | None = None,
    ) -> str:
        """Have the task run; the id of the run. As ``Client.start``."""
        return await self._returned(
            calls.start(self._terms, task, wait=wait, idempotency_key=idempotency_key, if_running=if_running)
        )

    async def wait_for(
        self, task: TaskRef, run: str, *, wait: float | None = None, raise_on_error: bool = False
    ) -> Result:
        """Return when the run has ended. As ``Client.wait_for``."""
        return await self._returned(calls.wait_for(self._terms, task, run, wait=wait, raise_on_error=raise_on_error))

    async def cancel(self, task: TaskRef, run: str | None = None) -> str:
        """End the task's run, queued or running; its id. As ``Client.cancel``."""
        return await self._returned(calls.cancel(self._terms, task, run))

    async def run(self, task: TaskRef, run: str) -> Run:
        """One run as it stands."""
        return await self._returned(calls.get_run(self._terms, task, run))

    def runs(self, task: TaskRef, *, code: str | None = None, limit: int | None = None) -> AsyncIterator[Run]:
        """The runs of a task, newest first. As ``Client.runs``."""
        return self._emitted(calls.pages(self._terms, f"{calls.task_path(task)}/runs", Run, {"code": code}, limit))

    def logs(self, task: TaskRef, run: str, *, after: int = 0, follow: bool = False) -> AsyncIterator[Line]:
        """The lines of a run's log, oldest first. As ``Client.logs``."""
        return self._emitted(calls.logs(self._terms, task, run, after=after, follow=follow))

    def follow(self, task: TaskRef, run: str) -> AsyncIterator[Event | Line | Progress]:
        """What happens to a run, as it happens; up to its end. As ``Client.follow``."""
        return self._emitted(follow.follow(self._terms, task, run))

    def events(
        self,
        task: TaskRef | None = None,
        *,
        chain: int | None = None,
        code: str | None = None,
        after: str | None = None,
    ) -> AsyncIterator[Event]:
        """What happens to a task, or to all of the token's chains, as it happens. As ``Client.events``."""
        return self._emitted(follow.events(self._terms, task, chain=chain, code=code, after=after))

    # --- tasks ---

    async def create(
        self,
        *,
        chain: int,
        target: Mapping[str, Any],
        trigger: Mapping[str, Any] | None = None,
        desc: str = "",
        idempotency_key: str | None = None,
        **fields: Any,
    ) -> Task:
        """Create a task. As ``Client.create``."""
        body = {"chain": chain, "desc": desc, "target": target, "trigger": trigger or {}, **fields}
        return await self._returned(calls.create(self._terms, body, idempotency_key))

    async def get(self, task: TaskRef, *, log_limit: int = 10) -> Task:
        """The task as it stands, with that many of its latest log entries."""
        return await self._returned(calls.get(self._terms, task, log_limit))

    def list(
        self,
        *,
        status: str | None = None,
        action: str | None = None,
        campaign_id: int | None = None,
        chain: int | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[Task]:
        """The tasks that the token reaches, sorted by id. As ``Client.list``."""
        params = {"status": status, "action": action, "campaign_id": campaign_id, "chain": chain}
        return self._emitted(calls.pages(self._terms, "/tasks", Task, params, limit))

    async def update(self, task: TaskRef, **changes: Any) -> Task:
        """Change fields of a task. As ``Client.update``."""
        return await self._returned(calls.update(self._terms, task, changes))

    async def delete(self, task: TaskRef, *, force: bool = False) -> None:
        """Delete a task. As ``Client.delete``."""
        await self._returned(calls.delete(self._terms, task, force=force))

    async def download(self, task: TaskRef, to: str | PathLike[str]) -> Path:
        """Save the file that the task has exported last; its path. As ``Client.download``."""
        with Destination(to) as destination:
            async for piece in self._emitted(follow.download(self._terms, task)):
                await asyncio.to_thread(destination.write, piece)
            return destination.keep()

    # --- subscriptions ---

    async def create_subscription(
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
        """Subscribe to events of a chain. As ``Client.create_subscription``."""
        wanted = {
            "kind": kind, "chain": chain, "tasks": tuple(tasks), "codes": tuple(codes), "desc": desc, "url": url,
            "actions": tuple(actions), "from_sequence": from_sequence,
            "from_time": None if from_time is None else from_time.isoformat(),
        }  # fmt: skip
        return await self._returned(calls.subscribe(self._terms, wanted))

    async def subscription(self, subscription: SubscriptionRef) -> Subscription:
        """A subscription, and how far it has come."""
        return await self._returned(calls.get_subscription(self._terms, subscription))

    def subscriptions(self, *, chain: int | None = None, limit: int | None = None) -> AsyncIterator[Subscription]:
        """One's own subscriptions, and all of the chains that one manages, oldest first."""
        return self._emitted(calls.pages(self._terms, "/subscriptions", Subscription, {"chain": chain}, limit))

    async def rotate_subscription(self, subscription: SubscriptionRef, *, overlap: int = 86_400) -> Subscription:
        """Give a web hook a new ``secret``; events are signed with both for ``overlap`` seconds."""
        return await self._returned(calls.rotate_subscription(self._terms, subscription, overlap))

    async def resume_subscription(self, subscription: SubscriptionRef) -> Subscription:
        """Have events sent again to a web hook whose receiver had said 410 Gone."""
        return await self._returned(calls.resume_subscription(self._terms, subscription))

    async def delete_subscription(self, subscription: SubscriptionRef) -> None:
        """End a subscription, and forget how far it has come."""
        await self._returned(calls.unsubscribe(self._terms, subscription))

    # --- anything else ---

    async def request(
        self, method: str, path: str, *, params: Mapping[str, Any] | None = None, json: Any = None
    ) -> httpx.Response:
        """Call anything else. As ``Client.request``."""
        call = Call(method=method, path=path, params=params or {}, json=json)
        return await self._returned(ask(call, self._terms, repeatable=method == "GET"))

    # --- how steps are carried out ---

    async def _returned(self, steps: Steps[T]) -> T:
        """Carry out the steps; what they return."""
        async with _Exchange(self._http, self._token) as exchange:
            step = advance(steps, None)
            while not isinstance(step, Done):
                step = advance(steps, await exchange.carry_out(step))
        value: T = step.value
        return value

    async def _emitted(self, steps: Steps[None]) -> AsyncIterator[Any]:
        """Carry out the steps; what they emit."""
        async with _Exchange(self._http, self._token) as exchange:
            step = advance(steps, None)
            while not isinstance(step, Done):
                if isinstance(step, Emit):
                    yield step.item
                step = advance(steps, await exchange.carry_out(step))


class _Exchange:
    """Carries out steps, and holds the answer that is open between two of them."""

    def __init__(self, http: httpx.AsyncClient, token: str) -> None:
        self._http, self._token = http, token
        self._open: httpx.Response | None = None
        self._pieces: AsyncIterator[bytes] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    async def carry_out(self, step: Step) -> Any:
        """What comes of the step: an answer, bytes, or a TransportError."""
        try:
            match step:
                case Call():
                    return await self._http.send(request_of(step, self._http, self._token))
                case Open(call):
                    return await self._ask_for_stream(call)
                case Read():
                    return b"" if self._pieces is None else await anext(self._pieces, b"")
                case Pause(seconds):
                    await asyncio.sleep(seconds)
        except httpx.TransportError as trouble:
            return trouble
        return None

    async def _ask_for_stream(self, call: Call) -> httpx.Response:
        await self._close()
        self._open = await self._http.send(stream_request_of(call, self._http, self._token), stream=True)
        if self._open.is_success:
            self._pieces = self._open.aiter_bytes()
        else:
            await self._open.aread()
        return self._open

    async def _close(self) -> None:
        if self._open is not None:
            await self._open.aclose()
            self._open = None
