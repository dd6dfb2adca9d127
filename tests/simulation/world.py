"""The processes of an installation on one pretended broker, and what happened to them as a history for the checker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from nats.aio.msg import Msg
from nats.js.errors import APIError
from pydantic import BaseModel

import runwire
from runwire.domain import lifecycle
from runwire.domain.errors import Conflict, NotAccepted, NotRunning, TaskBusy, TaskNotFound
from runwire.domain.lifecycle import Definition
from runwire.domain.run import Source
from runwire.domain.task import RetryPolicy, Target
from runwire.http import edit, idempotency
from runwire.http.etag import IfMatch
from runwire.messaging import cancellation, commands, events, subjects
from runwire.messaging.broker import UNAVAILABLE
from runwire.settings import load
from runwire.worker.consumer import Consumer
from runwire.worker.executor import Executor
from tests.chaos.checker import Violation, check
from tests.chaos.history import Call, DeadLetter, Event, Execution, History, Plan, Rest
from tests.simulation.broker import Broker, matches
from tests.simulation.clock import Loop
from tests.simulation.network import Flight, Link, Network

CHAIN = 1764
KEY = b"k" * 32
SETTINGS = load(nats_url="nats://127.0.0.1:1", ack_wait=3600, worker_slots=100)
PATIENCE = 10.0
ROUNDS = 60
"""Of passing, delivering and waiting, within which everything has to come to rest."""
LONG_ENOUGH = 200.0
"""Seconds of each round: longer than any wait between two tries."""
BUSY = 10077


@dataclass(eq=False)
class Acting:
    """An action that is running."""

    worker: Worker
    run: str
    attempt: int
    end: asyncio.Future[str]


class Probe(BaseModel):
    """It takes nothing."""


class Worker:
    """The worker's own consumer and executor; nothing is asked for, a rule hands commands over."""

    def __init__(self, world: World, name: str) -> None:
        self.link = Link(world.network, name, SETTINGS, CHAIN)
        app = runwire.App()

        @app.action("probe")
        async def probe(params: Probe, ctx: runwire.Context) -> dict[str, Any]:
            return await world.act(self, ctx)

        self.executor = Executor(self.link, app, SETTINGS, clock=world.loop.now)
        self.executor._key = KEY
        self.consumer = Consumer(self.link, self.executor, SETTINGS)
        self.consumer._requests = SimpleNamespace(ask=_nothing)
        world.loop.create_task(self.executor._watch.start())

    def receive(self, world: World, sequence: int) -> None:
        """A command is delivered."""
        stored = world.broker.commands.messages[sequence]
        delivery = world.broker.deliveries[sequence] = world.broker.deliveries.get(sequence, 0) + 1
        link = self.link

        def done() -> None:
            world.broker.commands.messages.pop(sequence, None)

        async def ack() -> None:
            link.acknowledge(done)

        async def at_once() -> None:
            done()

        metadata = SimpleNamespace(
            sequence=SimpleNamespace(stream=sequence), num_delivered=delivery, num_pending=0, timestamp=stored.time,
            consumer=subjects.workers(CHAIN),
        )  # fmt: skip
        message = SimpleNamespace(
            subject=stored.subject, data=stored.data, headers=stored.headers, metadata=metadata,
            ack=ack, ack_sync=at_once, nak=_nothing, in_progress=_nothing,
        )  # fmt: skip
        self.consumer._receive(message)


async def _nothing(*_arguments: object, **_options: object) -> None:
    pass


class World:
    """All of it."""

    def __init__(self, *, workers: int = 3, tasks: int = 2) -> None:
        self.loop = Loop()
        self.broker = Broker()
        self.network = Network(self.loop, self.broker)
        self.network.stored.append(self._hint)
        self.history = History([Plan(seed=0, chain=CHAIN)])
        self.hints: list[tuple[Link, Callable[[Msg], Coroutine[Any, Any, None]], str]] = []
        """Copies of events on their way to those who listen."""
        self.acting: list[Acting] = []
        self.asked: list[tuple[str, int, str]] = []
        """(door, task, run) of every call so far."""
        self.callers: set[asyncio.Task[None]] = set()
        self.adapters = [Link(self.network, f"adapter-{n}", SETTINGS, CHAIN) for n in (1, 2)]
        self.workers = [self.loop.call(lambda n=n: Worker(self, f"worker-{n}")) for n in range(1, workers + 1)]
        self.tasks = list(range(1, tasks + 1))
        for task in self.tasks:
            self._create(task)

    def _create(self, task: int) -> None:
        retry = RetryPolicy(attempts=3, backoff=5) if task % 2 == 0 else None
        definition = Definition(
            chain=CHAIN, desc="as created", target=Target(action="probe"), trigger={}, retry=retry, deadline=1000,
        )  # fmt: skip
        document = lifecycle.create(definition, task, self.loop.now())
        self.loop.call(
            lambda: self.loop.create_task(
                events.append(self.adapters[0], document, expected=0, event_id=f"created-{task}")
            )
        )
        self.pass_all()

    # --- what callers do ---------------------------------------------------------------------------------

    def execute(self, adapter: int, door: str, task: int, run: str) -> None:
        """Ask for a run, through an adapter or on the bus; with a run that was asked for before: once more."""
        self.asked.append((door, task, run))
        link = self.adapters[adapter]
        work = self._publish(link, task, run) if door == "http" else self._publish_raw(link, task, run)
        self._begin(work, door=door, what="execute", task=task, run=run, key=run if door == "http" else None)

    def cancel(self, adapter: int, task: int) -> None:
        """End the task's run."""
        self._begin(self._cancel(self.adapters[adapter], task), door="http", what="cancel", task=task)

    def edit(self, adapter: int, task: int, desc: str) -> None:
        """Change the task's description."""
        self._begin(self._edit(self.adapters[adapter], task, desc), door="http", what="edit", task=task)

    def delete(self, adapter: int, task: int, *, force: bool) -> None:
        """Delete the task."""
        link = self.adapters[adapter]
        self._spawn(self._quietly(edit._delete(link, CHAIN, task, IfMatch(None), force=force, by="somebody")))

    def new_run(self, door: str, task: int) -> str:
        """A run id as the door makes them."""
        number = str(len(self.asked))
        if door == "bus":
            return f"bus-{number}"
        return idempotency.run_of(KEY, idempotency.name_of(KEY, "execute", "somebody", number), task)

    async def _publish(self, link: Link, task: int, run: str) -> dict[str, Any]:
        await commands.publish(link, CHAIN, task, run, source=Source.HTTP, patience=PATIENCE)
        return {"run": run}

    async def _publish_raw(self, link: Link, task: int, run: str) -> dict[str, Any]:
        try:
            await link.js.publish(subjects.command(CHAIN, task), b"{}", headers={subjects.MSG_ID: run})
        except APIError as error:
            if error.err_code == BUSY:
                raise TaskBusy(run) from None
            raise
        return {"run": run}

    async def _cancel(self, link: Link, task: int) -> dict[str, Any]:
        head = await cancellation.cancel(link, CHAIN, task, by="somebody")
        run = head.document.run
        assert run is not None
        return {"run": run.id, "code": run.code, "error": run.error and run.error.code}

    async def _edit(self, link: Link, task: int, desc: str) -> dict[str, Any]:
        while True:
            head = await edit._load(link, CHAIN, task)
            known = head.document.task
            definition = Definition(
                chain=CHAIN, desc=desc, target=known.target, trigger=known.trigger, retry=known.retry,
                deadline=known.deadline, timeout=known.timeout,
            )  # fmt: skip
            edited = lifecycle.edit(head.document, definition, by="somebody", now=self.loop.now())
            try:
                await events.append_confirmed(link, edited, expected=head.sequence)
            except Conflict:
                continue
            return {"version": edited.task.version, "desc": desc}

    def _begin(self, work: Coroutine[Any, Any, dict[str, Any]], **call: Any) -> None:
        """A caller asks, and writes down what was answered."""
        sent = self.loop.now().timestamp()

        async def ask() -> None:
            try:
                answer = {"outcome": "accepted", **await work}
            except (TaskBusy, NotRunning, TaskNotFound) as refusal:
                answer = {"outcome": "refused", "status": type(refusal).__name__}
            except (NotAccepted, *UNAVAILABLE) as failure:
                answer = {"outcome": "unknown", "status": type(failure).__name__}
            self.history.add(Call(**(call | answer), sent=sent, answered=self.loop.now().timestamp()))

        self._spawn(ask())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self.loop.call(lambda: self.loop.create_task(work))
        self.callers.add(task)
        task.add_done_callback(self.callers.discard)
        self.loop.settle()

    async def _quietly(self, work: Coroutine[Any, Any, Any]) -> None:
        try:
            await work
        except (TaskBusy, NotRunning, TaskNotFound, NotAccepted, *UNAVAILABLE):
            pass

    # --- what workers do ---------------------------------------------------------------------------------

    async def act(self, worker: Worker, ctx: runwire.Context) -> dict[str, Any]:
        """The action of every task: it ends when a rule says so, and as it says."""
        acting = Acting(worker, ctx.run_id, ctx.attempt, asyncio.get_running_loop().create_future())
        self.acting.append(acting)
        self._trace(acting, ended=False)
        try:
            how = await acting.end
        finally:
            if acting in self.acting:
                self.acting.remove(acting)
        self._trace(acting, ended=True)
        if how == "fail":
            raise runwire.Fail("probe_failed", "as it was told")
        if how == "retry":
            raise runwire.Retry("as it was told")
        return {"run": ctx.run_id, "attempt": ctx.attempt}

    def _trace(self, acting: Acting, *, ended: bool) -> None:
        at = self.loop.now().timestamp()
        self.history.add(Execution(run=acting.run, attempt=acting.attempt, pid=0, at=at, ended=ended))

    def finish(self, acting: Acting, how: str) -> None:
        """An action comes to its end."""
        if not acting.end.done():
            acting.end.set_result(how)
        self.loop.settle()

    def deliver(self, worker: int, sequence: int) -> None:
        """The broker hands a command to a worker, whoever else has it."""
        self.loop.call(lambda: self.workers[worker].receive(self, sequence))

    def kill(self, worker: int) -> None:
        """SIGKILL; another process takes the worker's place."""
        dead = self.workers[worker]
        self.network.cut_off(dead.link)
        for acting in [acting for acting in self.acting if acting.worker is dead]:
            self.acting.remove(acting)
        self.workers[worker] = self.loop.call(lambda: Worker(self, dead.link.name))

    def stop(self, worker: int) -> None:
        """SIGTERM: the actions that are running are stopped, and their runs handed back."""
        self.loop.call(self.workers[worker].executor.hand_back)

    # --- what the broker and the network do ------------------------------------------------------------------

    def let_pass(self, flight: Flight, *, behind: int = 0) -> None:
        """A message arrives, and its answer does."""
        self.network.reply(flight, self.network.arrive(flight, behind=behind))
        self.loop.settle()

    def lose_answer(self, flight: Flight) -> None:
        """A message arrives, its answer does not."""
        self.network.arrive(flight)
        self.network.reply(flight, None)
        self.loop.settle()

    def lose(self, flight: Flight) -> None:
        """A message does not arrive."""
        self.network.lose(flight)
        self.loop.settle()

    def delay(self, flight: Flight) -> None:
        """A message arrives when nobody expects it any more."""
        self.network.delay(flight)
        self.loop.settle()

    def arrive_late(self, flight: Flight) -> None:
        """One of those does."""
        self.network.arrive(flight)
        self.loop.settle()

    def pass_all(self) -> None:
        """Everything that is on its way arrives, and what follows from it, in order."""
        while self.network.flights or self.hints:
            if self.hints:
                self.hear(0)
            else:
                self.let_pass(self.network.flights[0])

    def hear(self, number: int) -> None:
        """A copy of an event reaches one who listens."""
        link, callback, subject = self.hints.pop(number)
        if not link.is_dead:
            self.loop.call(lambda: self.loop.create_task(callback(SimpleNamespace(subject=subject))))

    def _hint(self, subject: str) -> None:
        for link in [worker.link for worker in self.workers]:
            self.hints += [(link, callback, subject) for wanted, callback in link.hears if matches(wanted, subject)]

    # --- the end ---------------------------------------------------------------------------------------------

    def heal(self) -> None:
        """Everything goes well from now on, until nothing is left to be done."""
        for flight in list(self.network.late):
            self.arrive_late(flight)
        for _ in range(ROUNDS):
            self.pass_all()
            for acting in list(self.acting):
                self.finish(acting, "done")
            self.pass_all()
            if not self.broker.commands.messages and not self.callers:
                return
            for number, sequence in enumerate(list(self.broker.commands.messages)):
                if sequence in self.broker.commands.messages:
                    self.deliver(number % len(self.workers), sequence)
                    self.pass_all()
            self.loop.advance(LONG_ENOUGH)

    def violations(self) -> list[Violation]:
        """What the checker says of all that happened; call it after :meth:`heal`."""
        for stored in self.broker.events.messages.values():
            self.history.add(
                Event(
                    sequence=stored.sequence, subject=stored.subject, stored=stored.time.timestamp(),
                    headers=stored.headers, document=json.loads(stored.data),
                )
            )  # fmt: skip
        for letter in self.broker.streams[subjects.DEADLETTERS].messages.values():
            headers = letter.headers
            task = int(letter.subject.split(".")[3])
            self.history.add(DeadLetter(task=task, run=headers[subjects.RUN_ID], reason=headers[subjects.DEAD_REASON]))
        rest = Rest(
            after=0, commands=len(self.broker.commands.messages), alarms=0, unacknowledged=0,
            last_sequence=self.broker.events.last, waiting=len(self.callers),
        )  # fmt: skip
        self.history.add(rest)
        return check(self.history).violations

    def close(self) -> None:
        """End what still runs."""
        for link in (*self.adapters, *(worker.link for worker in self.workers)):
            link.is_dead = True
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.settle()
        self.loop.close()
