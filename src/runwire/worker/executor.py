"""One run, step by step: read the task, decide, claim, act, conclude.

Every step works on what the one before it returned; what became of the command comes out as a value
(:data:`Disposition`), and the consumer alone tells it to the broker. Between *claim* and *conclude* the
worker owns the run as long as no newer event of the task says otherwise: it finds out when it appends.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from runwire import failpoints
from runwire.app import App
from runwire.domain import lifecycle, ticks
from runwire.domain.errors import Conflict
from runwire.domain.lifecycle import Document
from runwire.domain.run import Command, Failed, Outcome, Run, Source
from runwire.domain.task import LogLevel
from runwire.failpoints import Point
from runwire.messaging import commands, events, site
from runwire.messaging.broker import UNAVAILABLE, Bus
from runwire.messaging.events import Head
from runwire.settings import Settings
from runwire.worker.acting import Actor, HandedBack, Hold, TakenAway
from runwire.worker.places import SHORTEST, Places
from runwire.worker.runlog import RunLog
from runwire.worker.vault import Vault
from runwire.worker.watch import Watch

log = logging.getLogger("runwire.worker")

ROUNDS = 10
"""How often a lost race for the claim is followed by another look at the task."""
HINTS = 10_000
"""Tasks whose last event a worker remembers."""
WAIT_FOR_ACTION = 0.5
"""Seconds before a command with an unknown action is offered again, to this worker or another."""


@dataclass(frozen=True)
class Settled:
    """The command has done its work: acknowledge."""


@dataclass(frozen=True)
class Later:
    """Bring the command again after ``seconds``."""

    seconds: float


@dataclass(frozen=True)
class Silence:
    """The run is somebody else's: no acknowledgement of any kind, it could hit theirs."""

    why: str


@dataclass(frozen=True)
class Dead:
    """The command cannot be run: to the dead letters, then acknowledge."""

    reason: str
    detail: str


Disposition = Settled | Later | Silence | Dead


@dataclass(frozen=True)
class Attempt:
    """A claimed run: what was claimed, and where its log lines go."""

    head: Head
    """The event of the claim."""
    run: Run
    log: RunLog
    accepted: datetime
    began: float
    """Monotonic seconds."""

    @property
    def document(self) -> Document:
        """The task as it was claimed."""
        return self.head.document


def _now() -> datetime:
    return datetime.now(UTC)


class Executor:
    """Carries out commands. Holds no state between two of them but hints, which the fence checks."""

    def __init__(
        self,
        bus: Bus,
        app: App,
        settings: Settings,
        *,
        vault: Vault | None = None,
        clock: Callable[[], datetime] = _now,
    ) -> None:
        """``vault`` None: one of its own, as the settings say. ``clock`` tells the time in UTC."""
        self._bus = bus
        self._actor = Actor(bus, app, settings, vault or Vault(settings.secrets), clock=clock)
        self._watch = Watch(bus, interval=settings.ack_wait / 3)
        self._places = Places({a.name: a.concurrency for a in app.actions.values() if a.concurrency is not None})
        self._settings = settings
        self._clock = clock
        self._hints: OrderedDict[tuple[int, int], Head] = OrderedDict()
        self._key = b""

    async def start(self) -> None:
        """Listen for runs that are ended from outside. Raises one of UNAVAILABLE; then it may be called again."""
        self._actor.start()
        self._key = await site.server_key(self._bus)
        await self._watch.start()

    async def stop(self) -> None:
        """Listen no longer, and let go of what actions needed."""
        await self._watch.stop()
        await self._actor.stop()

    def hand_back(self) -> None:
        """Stop the actions that are running now; their runs go back to the broker, for another worker to begin."""
        self._actor.hand_back()

    async def execute(self, command: Command) -> Disposition:
        """Do what the command asks for, as far as it is still to be done. Raises one of UNAVAILABLE, or Undecodable."""
        command = self._proven(command)
        verified = False
        for _ in range(ROUNDS):
            head, decision = await self._look(command, verified=verified)
            if isinstance(decision, lifecycle.Reject):  # nothing fences this one off: only on the leader's word
                head = await events.load(self._bus, command.chain, command.task, leader=True)
                decision = self._decide(head, command, verified=verified)
            match decision:
                case lifecycle.Reject(reason, detail):
                    return Dead(reason, detail)
                case lifecycle.Finished():
                    return Settled()
                case lifecycle.Postpone(seconds):
                    return Later(seconds)
                case lifecycle.Ignore():
                    return Silence("an older delivery of a run that is being worked on")
                case lifecycle.Verify():
                    if not await commands.is_held(self._bus, command):
                        return Silence("the command has been removed meanwhile")
                    verified = True
                case lifecycle.EndLost() if head:
                    await self._try_append(head, lifecycle.lost(head.document, now=self._clock()))
                case lifecycle.Exhausted() if head:
                    await self._try_append(head, lifecycle.exhausted(head.document, now=self._clock()))
                case lifecycle.Overdue() if head:
                    await self._try_append(head, lifecycle.overdue(head.document, command, now=self._clock()))
                case lifecycle.Begin() if head:
                    if self._must_wait_for_action(head, command):
                        return await self._wait_for_action(head, command)
                    disposition = await self._attempt_in_place(head, command)
                    if disposition is not None:
                        return disposition
        return Later(1.0)

    def _proven(self, command: Command) -> Command:
        """The command without what it only claims: that it stands for a tick of the schedule."""
        if command.tick is None and command.source is not Source.SCHEDULE:
            return command
        tick = command.tick
        if tick is not None and command.run == ticks.run_id(self._key, command.chain, command.task, tick):
            return command
        return replace(command, tick=None, source=Source.BUS)

    async def _look(self, command: Command, *, verified: bool) -> tuple[Head | None, lifecycle.Decision]:
        """The task's last event and what to do about the command.

        What this worker itself wrote last is believed as far as beginning a run goes: if it is not the last
        event any more the claim is refused, and the next look asks the stream.
        """
        hint = self._hints.pop((command.chain, command.task), None)
        if hint is not None:
            decision = self._decide(hint, command, verified=verified)
            if isinstance(decision, lifecycle.Begin):
                return hint, decision
        head = await events.load(self._bus, command.chain, command.task)
        return head, self._decide(head, command, verified=verified)

    def _decide(self, head: Head | None, command: Command, *, verified: bool) -> lifecycle.Decision:
        return lifecycle.decide(
            head.document if head else None,
            command,
            now=self._clock(),
            max_deliveries=self._settings.max_deliveries,
            verified=verified,
        )

    # --- claim ---------------------------------------------------------------------------------------

    def _must_wait_for_action(self, head: Head, command: Command) -> bool:
        waited = (self._clock() - command.accepted).total_seconds()
        return not self._actor.knows(head.document.task_in_force) and waited < self._settings.action_wait

    async def _wait_for_action(self, head: Head, command: Command) -> Disposition:
        """Another worker may know the action, or one that is being rolled out. Says so in the logs, once."""
        if command.delivery == 1:
            line = RunLog(self._bus, chain=command.chain, task=command.task, run=command.run, claim_id=command.run)
            action, wait = head.document.task_in_force.target.action, self._settings.action_wait
            line.note(LogLevel.WARNING, f"waiting up to {wait:g} s for a worker that knows the action {action!r}")
            await line.flush()
        return Later(WAIT_FOR_ACTION)

    async def _attempt_in_place(self, head: Head, command: Command) -> Disposition | None:
        """As :meth:`_attempt`, where the action has a place for it; else the run stays as it is."""
        task = head.document.task_in_force
        with self._places.place(task.target.action, command.sequence) as delay:
            if delay is None:
                return await self._attempt(head, command)
        left = lifecycle.time_left(task, command.accepted, now=self._clock())
        return Later(delay if left is None else min(delay, max(left, SHORTEST)))

    async def _attempt(self, head: Head, command: Command) -> Disposition | None:
        """Append INPROGRESS and carry the run out; None when somebody else was first."""
        claim_id = secrets.token_hex(16)
        document = lifecycle.claim(head.document, command, claim_id=claim_id, now=self._clock())
        if document.run is None:
            return None
        with self._watch.over(document.run) as hold:  # from before the claim, so that no cancel of it is missed
            failpoints.reach(Point.BEFORE_CLAIM)
            claimed = await self._try_append(head, document)
            if claimed is None:
                return None
            failpoints.reach(Point.CLAIM_STORED)
            run = document.run
            line_log = RunLog(
                self._bus, chain=run.chain, task=run.task, run=run.id, claim_id=claim_id, attempt=run.attempt
            )
            attempt = Attempt(claimed, run, line_log, command.accepted, time.monotonic())
            ending = await self._act(attempt, hold)
        match ending:
            case HandedBack():
                return await self._release(attempt)
            case TakenAway():
                attempt.log.close()
                _report("stopped", attempt, "the run was ended by somebody else")
                return Silence("the run was ended by somebody else")
            case _:
                return await self._conclude(attempt, ending)

    async def _try_append(self, head: Head, document: Document) -> Head | None:
        """Append on top of ``head``; None when somebody else was first."""
        event_id = secrets.token_hex(16)
        try:
            sequence = await events.append_surely(self._bus, document, expected=head.sequence, event_id=event_id)
        except Conflict:
            return None
        return Head(document, sequence, event_id)

    # --- act and conclude ------------------------------------------------------------------------------

    async def _act(self, attempt: Attempt, hold: Hold) -> Outcome | HandedBack | TakenAway:
        try:
            return await self._actor.act(attempt.document.task_in_force, hold, attempt.log, accepted=attempt.accepted)
        except (HandedBack, TakenAway) as interruption:
            return interruption

    async def _conclude(self, attempt: Attempt, outcome: Outcome) -> Disposition:
        """Append how the attempt ended: the run's last event, or the wait for its next try."""
        delay: float | None = None
        if isinstance(outcome, Failed):
            attempt.log.note(LogLevel.ERROR, f"{outcome.error.code}: {outcome.error.message}")
            task = attempt.document.task_in_force
            left = lifecycle.time_left(task, attempt.accepted, now=self._clock())
            delay = lifecycle.delay_before_retry(task, attempt.run, outcome, left=left)
            if delay is not None:
                attempt.log.note(LogLevel.INFO, f"attempt {attempt.run.attempt + 1} begins in {delay:.1f} s")
        log_seq = await attempt.log.flush()
        failpoints.reach(Point.BEFORE_CONCLUSION)

        def following(document: Document) -> Document:
            now = self._clock()
            if isinstance(outcome, Failed) and delay is not None:
                return lifecycle.retry(document, outcome, delay=delay, now=now, log_seq=log_seq)
            return lifecycle.conclude(document, outcome, now=now, log_seq=log_seq)

        if not await self._append_own(attempt, following):
            _report("fenced", attempt, "somebody else has taken over the run, its result is dropped")
            return Silence("fenced")
        if delay is not None:
            _report("retrying", attempt, f"will be tried again in {delay:.1f} s")
            return Later(delay)
        _report("failed" if isinstance(outcome, Failed) else "succeeded", attempt, _summary(outcome))
        return Settled()

    async def _release(self, attempt: Attempt) -> Disposition:
        """The worker is being stopped: give the run back, so that another one begins at once."""
        attempt.log.note(LogLevel.WARNING, "the worker was stopped, the run goes to another one")
        log_seq = await attempt.log.flush()
        if not await self._append_own(
            attempt, lambda document: lifecycle.release(document, now=self._clock(), log_seq=log_seq)
        ):
            return Silence("fenced")
        _report("released", attempt, "the worker is stopping, the run goes to another one")
        return Later(0)

    async def _append_own(self, attempt: Attempt, following: Callable[[Document], Document]) -> bool:
        """Append the successor of the claim, also over an edit of the definition; False: the claim is lost."""
        head = attempt.head
        event_id = secrets.token_hex(16)
        while True:
            document = following(head.document)
            try:
                sequence = await events.append_surely(self._bus, document, expected=head.sequence, event_id=event_id)
            except Conflict:
                newer = await self._load_surely(attempt.run)
                if newer is None or not lifecycle.still_claimed(newer.document, attempt.run.claim.id):
                    return False
                head = newer
            else:
                self._hint(Head(document, sequence, event_id))
                return True

    def _hint(self, head: Head) -> None:
        """Remember what was written last about a task."""
        task = head.document.task
        self._hints[task.chain, task.id] = head
        if len(self._hints) > HINTS:
            self._hints.popitem(last=False)

    async def _load_surely(self, run: Run) -> Head | None:
        while True:
            try:
                return await events.load(self._bus, run.chain, run.task, leader=True)
            except UNAVAILABLE:
                await asyncio.sleep(0.2)


def _summary(outcome: Outcome) -> str:
    return f"{outcome.error.code}: {outcome.error.message}" if isinstance(outcome, Failed) else ""


def _report(action: str, attempt: Attempt, detail: str) -> None:
    """One line about a run for whoever watches the worker."""
    level = logging.WARNING if action in {"fenced", "failed", "stopped"} else logging.INFO
    log.log(
        level,
        "run %s task=%d run=%s attempt=%d action=%s%s %.3f s%s",
        action,
        attempt.run.task,
        attempt.run.id,
        attempt.run.attempt,
        attempt.document.task_in_force.target.action,
        f" trace={attempt.run.trace.id}" if attempt.run.trace else "",
        time.monotonic() - attempt.began,
        f" {detail}" if detail else "",
        extra={"action": action},
    )
