"""The bus door for programs on asyncio: nats-py, told what docs/bus.md says, and answers as models and errors.

::

    BusClient(chain)
      publish        an execute command, durable once it is acknowledged          tasks.cmd.<chain>.<task>.execute
      execute, get, list, create, cancel      requests to the adapters            api.<chain>.<token>.tasks.<call>
      events         what happens from now on                                     tasks.evt.<chain>.<task>.<code>
      pull           what a durable subscription has for this token               a consumer on EVENTS

There is nothing in it that a client in another language could not do. ``BusClient.nats`` is the connection itself, for
the rest: services and messages of the chain.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal, Self
from uuid import uuid4

import httpx
import nats.errors
from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg
from nats.js.errors import APIError, NoStreamResponseError

from runwire.client.calls import LOOK_AGAIN, TaskRef, quoted
from runwire.client.errors import CommandRefused, NoAnswer, NotFinished, NotLetIn, OutcomeUnknown, Problem
from runwire.client.models import Accepted, Ended, Event, PulledEvent, Task
from runwire.client.place import find_bus
from runwire.client.steps import POLL

log = logging.getLogger("runwire.client")

TIMEOUT = 10.0
"""Seconds the broker, or an adapter, may take for an answer, beside those it was asked to wait."""
PING_INTERVAL = 10
"""Seconds between two pings; two unanswered ones close the connection (nats-py's own 120 s is long)."""
PAGE = 100
"""Tasks that are asked for at once; fewer, when they do not fit into a message."""
PULL_SECONDS = 10.0
"""How long one request for events stands open."""
BUSY = frozenset({10071, 10077})
"""The broker's error codes for: the task has a command already. The second also means: the stream is full."""
LOGIN_IS_OVER = "authentication expired"
"""What the broker says before it closes a connection that has to log in again."""
FULL = "maximum bytes"
"""What tells a full stream from a busy task in the broker's description."""


class BusClient:
    """A connection to the bus, of one access token in one of its chains. Enter it to connect.

    It mends itself for as long as it is entered. Methods raise what :mod:`runwire.client.errors` draws.
    """

    nats: NatsClient
    """The connection."""

    def __init__(
        self, chain: int, *, url: str | None = None, token: str | None = None, timeout: float = TIMEOUT
    ) -> None:
        """Connect to nothing yet.

        ``url``: of the broker; without it the one that ``runwire up`` has started on this machine. ``token``:
        ``ID:SECRET``; without it RUNWIRE_TOKEN, else the first token of the installation on this machine. ``timeout``:
        seconds that an answer may take.
        """
        self.chain = chain
        self._url, credential = find_bus(url, token)
        self.token, _, self._secret = credential.partition(":")
        self._timeout = timeout
        self._trouble: Exception | None = None
        self._is_refused = False
        self._denied: dict[str, set[asyncio.Future[Any]]] = {}

    async def __aenter__(self) -> Self:
        """Connect. Raises NotLetIn, or NoAnswer when nothing listens there, after ``timeout`` seconds of trying."""
        self.nats = _Connection()
        try:
            async with asyncio.timeout(self._timeout):
                await self.nats.connect(
                    self._url.split(","),  # of a cluster, the servers
                    name="runwire-client",
                    user=f"{self.token}.{self.chain}",
                    password=self._secret,
                    inbox_prefix=f"_INBOX_{self.token}",
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=1,
                    ping_interval=PING_INTERVAL,
                    max_outstanding_pings=2,
                    error_cb=self._on_error,
                )
        except TimeoutError:
            await self.nats.close()
            if self._is_refused:
                raise NotLetIn(
                    f"The broker does not let token {self.token} into chain {self.chain}: the token does not go there, "
                    "its secret is another one, or no adapter is up to answer logins."
                ) from None
            raise NoAnswer(f"no answer from {self._url}: {self._trouble or 'nothing came'}") from self._trouble
        self._jetstream = self.nats.jetstream(timeout=self._timeout)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Send what is on its way, and close the connection."""
        with suppress(nats.errors.Error, TimeoutError):
            await self.nats.flush(timeout=2)
        await self.nats.close()

    # --- commands ---

    async def publish(
        self,
        task: TaskRef,
        *,
        run: str | None = None,
        reason: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Accepted:
        """Have the task run: when this returns, the command is stored, and the run will end. Needs operator.

        ``run``: the id of the run, 1 to 64 letters, digits, ``-`` and ``_``; without it a new one. ``reason``: why, for
        people. ``headers``: ``traceparent`` and ``tracestate``, or the attributes of a CloudEvent. Raises
        CommandRefused when nothing was stored, OutcomeUnknown when that is not known: with the same ``run`` it may be
        published again, and is one run.
        """
        number = _id_of(task)
        run = uuid4().hex if run is None else run
        body = {"run": run} | ({} if reason is None else {"reason": reason})
        subject = f"tasks.cmd.{self.chain}.{number}.execute"
        # The broker knows message ids for all tasks together; the run id is the task's own.
        named = {**(headers or {}), "Nats-Msg-Id": f"{self.chain}.{number}.{run}"}
        try:
            stored = await self._unless_denied(
                subject, self._jetstream.publish(subject, json.dumps(body).encode(), headers=named)
            )
        except APIError as error:
            raise _refusal(error, run) from None
        except (NoStreamResponseError, nats.errors.Error, TimeoutError) as error:
            raise OutcomeUnknown(
                f"The broker did not acknowledge the command; with run={run!r} it may be published again.", run=run
            ) from error
        return Accepted(task=number, run=run, duplicate=bool(stored.duplicate), sequence=stored.seq)

    # --- requests ---

    async def execute(
        self,
        task: TaskRef,
        *,
        wait: float | None = None,
        idempotency_key: str | None = None,
        if_running: Literal["join", "queue"] | None = None,
        raise_on_error: bool = False,
    ) -> Ended:
        """Run the task now, and return when the run has ended, however long it takes. As ``Client.execute``.

        What the run returned is in its event, and in the history over HTTP.
        """
        number, clock = _id_of(task), asyncio.get_running_loop().time
        until = math.inf if wait is None else clock() + wait
        key = uuid4().hex if idempotency_key is None else idempotency_key
        asked = {"id": number} | ({} if if_running is None else {"if_running": if_running})
        while True:
            begun = clock()
            poll = max(0, math.ceil(min(POLL, until - begun)))
            headers = {"Prefer": f"wait={poll}", "Idempotency-Key": quoted(key)}
            answer = await self._ask("execute", asked, headers, within=poll + self._timeout)
            if answer.status_code == httpx.codes.OK:
                replayed = idempotency_key is not None and "idempotency-replayed" in answer.headers
                ended = Ended.of(number, answer.headers, answer.json(), replayed=replayed)
                return ended.raise_on_error() if raise_on_error else ended
            if clock() >= until:
                run = answer.headers["run-id"]
                raise NotFinished(f"Run {run} of task {number} has not ended yet.", run=run)
            if clock() - begun < LOOK_AGAIN:  # an adapter that is stopping, or full, does not wait
                await asyncio.sleep(max(0.0, min(LOOK_AGAIN, until - clock())))

    async def get(self, task: TaskRef, *, log_limit: int = 10) -> Task:
        """The task as it stands, with that many of its latest log entries."""
        return Task.model_validate_json((await self._ask("get", {"id": _id_of(task), "log_limit": log_limit})).content)

    async def list(
        self, *, status: str | None = None, action: str | None = None, campaign_id: int | None = None
    ) -> AsyncIterator[Task]:
        """The tasks of the chain, sorted by id, page by page as they are taken."""
        asked = {"status": status, "action": action, "campaign_id": campaign_id, "chain": self.chain}
        offset, size = 0, PAGE
        while True:
            try:
                rows = (await self._ask("list", {**asked, "limit": size, "offset": offset})).json()
            except Problem as problem:
                if problem.code != "reply_too_large" or size == 1:
                    raise
                size //= 2
                continue
            for row in rows:
                yield Task.model_validate(row)
            if len(rows) < size:
                return
            offset += size

    async def create(
        self,
        *,
        target: Mapping[str, Any],
        trigger: Mapping[str, Any] | None = None,
        desc: str = "",
        idempotency_key: str | None = None,
        **fields: Any,
    ) -> Task:
        """Create a task in the chain. ``fields``: ``id``, ``debug``, ``timeout``, ``deadline``, ``retry``."""
        body = {"chain": self.chain, "desc": desc, "target": target, "trigger": trigger or {}, **fields}
        key = {} if idempotency_key is None else {"Idempotency-Key": quoted(idempotency_key)}
        return Task.model_validate_json((await self._ask("create", body, key)).content)

    async def cancel(self, task: TaskRef, run: str | None = None) -> str:
        """End the task's run, queued or running; its id. ``run``: only if this is the one."""
        asked = {"id": _id_of(task)} | ({} if run is None else {"run": run})
        return str((await self._ask("cancel", asked)).headers["run-id"])

    async def _ask(
        self, call: str, asked: Mapping[str, Any], headers: Mapping[str, str] | None = None, *, within: float = 0.0
    ) -> httpx.Response:
        """The answer, as HTTP has it. Raises Problem, or NoAnswer: whether it took effect is not known then."""
        subject = f"api.{self.chain}.{self.token}.tasks.{call}"
        payload = json.dumps(asked).encode()
        try:
            reply = await self._unless_denied(
                subject,
                self.nats.request(
                    subject, payload, timeout=within or self._timeout, headers=dict(headers) if headers else None
                ),
            )
        except (nats.errors.Error, TimeoutError) as error:
            raise NoAnswer(f"no adapter answered to {call}: {str(error) or type(error).__name__}") from error
        said = reply.headers or {}
        answer = httpx.Response(int(said.get("Http-Status", 500)), headers=said, content=reply.data)
        if not answer.is_success:
            raise Problem(answer)
        return answer

    # --- events ---

    @asynccontextmanager
    async def events(self, task: TaskRef | None = None, code: str | None = None) -> AsyncIterator[AsyncIterator[Event]]:
        """What happens to a task, or to all of the chain, from the beginning of the block on.

        ``code``: ready, inprogress, done, error, edited, skipped or deleted; None: all. What happens while the
        connection is away is missed; :meth:`pull` misses nothing.
        """
        subject = f"tasks.evt.{self.chain}.{'*' if task is None else _id_of(task)}.{code or '*'}"
        subscription = await self.nats.subscribe(subject)
        try:
            await self.nats.flush()
            yield (_event(message) async for message in subscription.messages)
        finally:
            with suppress(nats.errors.Error):
                await subscription.unsubscribe()

    async def pull(self, subscription: str, *, batch: int = 1) -> AsyncIterator[PulledEvent]:
        """The events of a durable subscription of this token, without end.

        An event is acknowledged when the next one is asked for: one whose processing failed, or was broken off, comes
        again. ``batch``: how many are fetched at once; all of them have to be processed within 30 s. Raises Problem
        ``subscription_not_found`` when there is none of this id, or no more.
        """
        clock = asyncio.get_running_loop().time
        answered = clock()
        pulling = await self._jetstream.pull_subscribe_bind(subscription, stream="EVENTS")
        try:
            while True:
                fetched: Sequence[Msg] = []
                try:
                    fetched = await pulling.fetch(batch, timeout=PULL_SECONDS)
                except (TimeoutError, nats.errors.TimeoutError):
                    answered = clock()  # nothing has happened
                except (APIError, nats.errors.NoRespondersError):  # there is none, or the broker is only coming up
                    if clock() - answered > self._timeout:
                        detail = f"There is no subscription {subscription} of this token."
                        raise _problem(404, "subscription_not_found", detail) from None
                    await asyncio.sleep(min(LOOK_AGAIN, self._timeout))
                for message in fetched:
                    yield _pulled(message)
                    await message.ack()
                    answered = clock()
        finally:
            with suppress(nats.errors.Error):
                await pulling.unsubscribe()

    # --- what the broker complains of ---

    async def _on_error(self, error: Exception) -> None:
        self._trouble = error
        told = str(error).lower()
        # Who is refused is told so and cut off, and may only see the latter.
        self._is_refused = "authorization violation" in told or isinstance(error, ConnectionResetError)
        for subject, waiting in self._denied.items():
            if "permissions violation" in told and f'"{subject.lower()}"' in told:
                for future in waiting:
                    if not future.done():
                        future.set_exception(_problem(403, "forbidden", f"The token may not publish to {subject}."))
        log.log(logging.DEBUG if self.nats.is_connecting else logging.WARNING, "the broker: %s", told)

    async def _unless_denied(self, subject: str, work: Any) -> Any:
        """What the work returns. Raises Problem ``forbidden`` when the broker refuses the publish: no reply comes."""
        denied: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        waiting = self._denied.setdefault(subject, set())
        waiting.add(denied)
        doing = asyncio.ensure_future(work)
        try:
            await asyncio.wait({doing, denied}, return_when=asyncio.FIRST_COMPLETED)
            return denied.result() if denied.done() else doing.result()
        finally:
            doing.cancel()
            waiting.discard(denied)
            if not waiting:
                self._denied.pop(subject, None)


class _Connection(NatsClient):
    """nats-py, but for one thing: it gives up for good when its login is over, which is after some hours."""

    async def _process_err(self, err_msg: str) -> None:
        if LOGIN_IS_OVER in err_msg.lower():
            await self._process_op_err(nats.errors.StaleConnectionError())
        else:
            await super()._process_err(err_msg)


def _id_of(task: TaskRef) -> int:
    return task.id if isinstance(task, Task) else task


def _refusal(error: APIError, run: str) -> CommandRefused:
    description = error.description or "no reason given"
    if error.err_code in BUSY and FULL not in description:
        return CommandRefused("task_busy", "Another command of the task is queued or running.", run=run)
    return CommandRefused("not_accepted", f"The broker stored nothing: {description}.", run=run)


def _problem(status: int, code: str, detail: str) -> Problem:
    """What the broker says, in the words of the adapters."""
    headers = {"Content-Type": "application/problem+json"}
    return Problem(httpx.Response(status, json={"code": code, "detail": detail}, headers=headers))


def _event(message: Msg) -> Event:
    return Event.model_validate(_facts(message))


def _pulled(message: Msg) -> PulledEvent:
    place = message.metadata
    return PulledEvent.model_validate(
        {**_facts(message), "sequence": place.sequence.stream, "deliveries": place.num_delivered}
    )


def _facts(message: Msg) -> dict[str, Any]:
    """A CloudEvent in binary mode, as a model takes it."""
    said = message.headers or {}
    return {
        "id": said["ce-id"],
        "code": message.subject.rpartition(".")[2],
        "time": said["ce-time"],
        **json.loads(message.data),
    }
