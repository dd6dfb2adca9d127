"""A rung alarm becomes an execute command, and the next alarm is set.

::

    read the task ---> turn ---> record what was missed ---> command ---> next alarm ---> (acknowledge)

Each step may be repeated, so a forwarder may die after any of them, and two may have the same alarm in hand: the run
id derives from the tick, so its command is the same one; the document remembers how far the schedule has come; an
alarm is only ever replaced by a later one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime

from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from runwire import failpoints
from runwire.domain import lifecycle, ticks
from runwire.domain.errors import Conflict, NotAccepted, TaskBusy
from runwire.domain.lifecycle import Document
from runwire.domain.run import Run, Source
from runwire.domain.task import LogEntry, LogLevel, whole_seconds
from runwire.domain.ticks import Alarm, Plan, Skipped, Turn
from runwire.failpoints import Point
from runwire.messaging import alarms, codec, commands, events, logs, subjects
from runwire.messaging.broker import Bus

log = logging.getLogger("runwire.scheduler")

PATIENCE = 10.0
"""Seconds a broker that does not answer is asked again to store a command."""
ROUNDS = 50
"""How often a lost race is followed by another look before the alarm is put off."""
FULL = 0.85
"""Share of EVENTS that may be filled; the rest is for the ends of runs."""
ROOM_INTERVAL = 2.0
"""Seconds the last look at that share is believed."""
SHORTEST_PAUSE, LONGEST_PAUSE = 0.05, 5.0
"""Seconds between two looks at a task that is waited for; an event of the task brings the next look forward."""


class Forwarding:
    """The steps, over one alarm at a time."""

    def __init__(self, bus: Bus, *, clock: Callable[[], datetime]) -> None:
        """``clock`` tells the time in UTC."""
        self._bus = bus
        self._clock = clock
        self._looked = float("-inf")
        self._share = 0.0
        self.key = b""
        """The installation's key, which the run ids derive from."""

    async def forward(
        self, chain: int, task: int, alarm: Alarm, *, rang: datetime, again: bool, on_wait: Callable[[], None]
    ) -> None:
        """Do what the alarm asks for, as far as it is still to be done.

        ``rang``: when it did, by the broker's clock, which is not earlier now. ``again``: it was delivered before.
        ``on_wait`` is called when this will take as long as a run does. Raises NotAccepted (later) or one of
        UNAVAILABLE.
        """
        if again and await self._has_gone_on(chain, task, alarm):
            return
        document = await self._document(chain, task)
        plan = ticks.plan_of(document)
        if document is None or plan is None or plan.version != alarm.version:
            return  # the task was changed: its alarm has been set anew, or will be
        await self._require_room()
        turn = ticks.turn(plan, alarm, now=max(rang, self._clock()))
        begun = await self._handed_over(plan, alarm) if again else None
        if begun is not None:
            turn = Turn(begun, until=begun, making_up_until=alarm.making_up_until)
            await self._go_on(plan, alarm, turn, until=self._last_passed(plan, alarm, begun))
            return
        busy_with = await self._record_before(plan, alarm, turn, document)
        if turn.run is None:
            await self._go_on(plan, alarm, turn, until=turn.until)
            return
        if busy_with is None:
            busy_with = await self._start(plan, alarm, turn.run, on_wait=on_wait)
        if busy_with is None:
            await self._go_on(plan, alarm, turn, until=self._last_passed(plan, alarm, turn.run))
        elif plan.may_wait(turn):
            await self._wait(plan, alarm, turn, turn.run)
        else:
            await self._go_on(plan, alarm, turn, until=turn.run, busy_with=busy_with)

    async def _has_gone_on(self, chain: int, task: int, alarm: Alarm) -> bool:
        """Whether the forwarder that had the alarm before has set the next one already: its last step."""
        found = await alarms.pending(self._bus, chain, task)
        if found is None or found.alarm is None:
            return False
        return (found.alarm.version, found.alarm.due) > (alarm.version, alarm.due)

    async def _handed_over(self, plan: Plan, alarm: Alarm) -> datetime | None:
        """The tick that the forwarder which had the alarm before has given a command, which is not claimed yet."""
        task = plan.task
        held = await commands.outstanding(self._bus, task.chain, task.id)
        tick = codec.tick_of_command(held.headers) if held is not None else None
        if held is None or tick is None or tick.version != plan.version or tick.due < alarm.due:
            return None
        is_proven = commands.run_of(held) == ticks.run_id(self.key, task.chain, task.id, tick)
        return tick.due if is_proven and tick.due > plan.cursor else None

    async def _document(self, chain: int, task: int) -> Document | None:
        head = await events.load(self._bus, chain, task, leader=True)
        return head.document if head else None

    async def _require_room(self) -> None:
        """Raises NotAccepted when EVENTS is so full that nothing new may begin."""
        now = asyncio.get_running_loop().time()
        if now - self._looked > ROOM_INTERVAL:
            self._looked = now  # at once: one look for all that are in hand
            self._share = await events.fullness(self._bus)
            if self._share >= FULL:
                log.warning("EVENTS is %.0f %% full, nothing that is due is started", self._share * 100,
                            extra={"action": "full"})  # fmt: skip
        if self._share >= FULL:
            raise NotAccepted("The event stream is nearly full.")

    # --- the run -----------------------------------------------------------------------------------------

    async def _start(self, plan: Plan, alarm: Alarm, due: datetime, *, on_wait: Callable[[], None]) -> str | None:
        """Have the tick run, now or when the task is free; None: it has its command, else the run in its way."""
        try:
            await self._publish(plan, due)
        except TaskBusy as busy:
            if not alarm.waiting:
                return busy.run
        else:
            return None
        on_wait()
        await self._publish_when_free(plan, due)
        return None

    async def _wait(self, plan: Plan, alarm: Alarm, turn: Turn, due: datetime) -> None:
        """The tick will wait. Whoever has to go on with it must know that, so its alarm rings once more and says so."""
        again = alarm.model_copy(update={"due": due, "waiting": True, "making_up_until": turn.making_up_until})
        await self._set(plan, again, at=self._clock())

    async def _publish(self, plan: Plan, due: datetime) -> None:
        """Store the tick's command; one that was stored before is the same one. Raises TaskBusy or NotAccepted."""
        task, tick = plan.task, plan.tick(due)
        run = ticks.run_id(self.key, task.chain, task.id, tick)
        await commands.publish(
            self._bus, task.chain, task.id, run, source=Source.SCHEDULE, patience=PATIENCE, tick=tick
        )

    async def _publish_when_free(self, plan: Plan, due: datetime) -> None:
        """Store the tick's command once the task is free, unless the schedule has been changed by then."""
        pause = SHORTEST_PAUSE
        async with self._events_of(plan) as happened:
            while True:
                happened.clear()
                current = ticks.plan_of(await self._document(plan.task.chain, plan.task.id))
                if current is None or current.version != plan.version or current.cursor >= due:
                    return None
                try:
                    return await self._publish(plan, due)
                except TaskBusy:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(pause):
                            await happened.wait()
                pause = SHORTEST_PAUSE if happened.is_set() else min(pause * 2, LONGEST_PAUSE)

    @asynccontextmanager
    async def _events_of(self, plan: Plan) -> AsyncIterator[asyncio.Event]:
        """Set with every event of the task. A hint: it may come before the event is in the stream, or not at all."""
        happened = asyncio.Event()

        async def hear(_message: Msg) -> None:
            happened.set()

        subject = subjects.events_of(plan.task.chain, plan.task.id)
        subscription = await self._bus.nc.subscribe(subject, cb=hear)
        try:
            yield happened
        finally:
            with suppress(NatsError):
                await subscription.unsubscribe()

    # --- what was not run ----------------------------------------------------------------------------------

    async def _record_before(self, plan: Plan, alarm: Alarm, turn: Turn, document: Document) -> str | None:
        """Record what has to be recorded before anything is run; returns the run that the task is busy with.

        Unless there is something, nobody looks whether it is: the broker says so.
        """
        skipped = ticks.unrecorded(plan, alarm, alarm.due - ticks.INSTANT)
        if skipped is not None:
            held = await commands.outstanding(self._bus, plan.task.chain, plan.task.id)
            busy_with = commands.run_of(held) if held else None
            may_share = turn.run is not None and turn.missed is None and not plan.may_wait(turn)
            if busy_with is not None and may_share and not lifecycle.has_ended(document, busy_with):
                return busy_with  # this tick is skipped as well, and shares their record
            await self._record(plan, skipped)
        if turn.missed is not None:
            await self._record(plan, turn.missed)
        return None

    def _last_passed(self, plan: Plan, alarm: Alarm, due: datetime) -> datetime:
        """The last tick that has been dealt with when this one has its command; those it has waited through count."""
        if not alarm.waiting or alarm.making_up_until is not None:
            return due
        return plan.schedule.latest_until(self._clock() - plan.delay, after=due) or due

    async def _record(self, plan: Plan, skipped: Skipped) -> None:
        """Write skipped ticks into the task's history: a log line, then an event. Raises NotAccepted."""
        for _ in range(ROUNDS):
            head = await events.load(self._bus, plan.task.chain, plan.task.id, leader=True)
            current = ticks.plan_of(head.document if head else None)
            if head is None or current is None or current.version != plan.version:
                return  # another schedule begins, and this one is of no interest any more
            left = ticks.beyond(plan, skipped, current.cursor)
            if left is None:
                return
            document = lifecycle.skip(head.document, await self._entry(plan, left), until=left.last)
            try:
                await events.append_confirmed(self._bus, document, expected=head.sequence)
            except Conflict:
                continue
            log.info("task=%d %s", plan.task.id, ticks.in_words(left), extra={"action": "skipped"})
            return
        raise NotAccepted("The task kept changing.")

    async def _entry(self, plan: Plan, skipped: Skipped) -> Run:
        """Skipped ticks as they stand in the history; their log line has been stored."""
        task = plan.task
        entry = ticks.record(self.key, task, plan.version, skipped, now=self._clock(), log_seq=0)
        line = LogEntry(
            date=whole_seconds(self._clock()), level=LogLevel.WARNING, message=ticks.in_words(skipped), run=entry.id
        )
        log_seq = await logs.publish(self._bus, task.chain, task.id, line, line_id=entry.id)
        return entry.model_copy(update={"log_seq": log_seq})

    # --- the next alarm ------------------------------------------------------------------------------------

    async def _go_on(
        self, plan: Plan, alarm: Alarm, turn: Turn, *, until: datetime | None, busy_with: str | None = None
    ) -> None:
        """Record what was skipped, unless that can wait, and set the alarm of the tick that follows ``until``."""
        now = self._clock()
        following = plan.schedule.next_after(until or max(plan.cursor, alarm.due - ticks.INSTANT))
        recorded = alarm.recorded
        handed_over = turn.run if turn.run is not None and busy_with is None else alarm.handed_over
        if until is not None:
            ahead = alarm.model_copy(update={"handed_over": handed_over})
            skipped = ticks.unrecorded(plan, ahead, until, busy_with=busy_with)
            if skipped is not None and not ticks.may_go_unrecorded(alarm, following, now=now):
                await self._record(plan, skipped)
                recorded = now
        if following is None:
            return
        is_behind = following <= now - plan.delay
        making_up_until = turn.making_up_until if is_behind else None
        wanted = Alarm(
            version=plan.version,
            due=following,
            making_up_until=making_up_until,
            waiting=making_up_until is not None and following <= making_up_until,
            handed_over=handed_over,
            recorded=recorded,
        )
        await self._set(plan, wanted, at=plan.rings_at(wanted))

    async def _set(self, plan: Plan, alarm: Alarm, *, at: datetime) -> None:
        """Set the alarm, unless there is one that is further on. Raises NotAccepted."""
        chain, task = plan.task.chain, plan.task.id
        failpoints.reach(Point.BEFORE_ALARM)
        expected = 0  # as a rule: the last one has rung
        for _ in range(ROUNDS):
            try:
                return await alarms.put(self._bus, chain, task, alarm, at=at, expected=expected)
            except Conflict:
                found = await alarms.pending(self._bus, chain, task)
            if found is None:
                expected = 0
            elif found.alarm is not None and (found.alarm.version, found.alarm.due) >= (alarm.version, alarm.due):
                return None
            else:
                expected = found.sequence
        raise NotAccepted("The alarm of the task kept changing.")
