"""A worker against a real broker: how runs end, and what happens when things go wrong around them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from uuid import uuid4

import pytest
from pydantic import BaseModel

import runwire
from runwire import artifacts
from runwire.app import App
from runwire.domain import lifecycle
from runwire.domain.lifecycle import Change
from runwire.domain.run import Command, Done, RunCode, Source
from runwire.domain.task import RetryPolicy, StateCode
from runwire.messaging import codec, deadletters, events
from runwire.messaging.broker import Bus
from runwire.settings import Settings
from tests.support import (
    CHAIN,
    Broker,
    connected,
    dead_letters,
    ended,
    eventually,
    history,
    lifecycle_now,
    make_task,
    publish_command,
    queue_is_empty,
    worker,
)


class Greeting(BaseModel):
    name: str


class Gate:
    """An action that waits until it is let go; counts how often it was begun."""

    def __init__(self, app: App, name: str = "gate") -> None:
        self.begun = 0
        self.opened = asyncio.Event()

        @app.action(name)
        async def gate(params: dict[str, object], ctx: runwire.Context) -> dict[str, object]:
            self.begun += 1
            await self.opened.wait()
            return {"attempt": ctx.attempt}

    async def is_running(self, times: int = 1) -> None:
        await eventually(lambda: self.begun >= times, what=f"the action was begun {times} times")


def finals(documents: list[lifecycle.Document]) -> list[str]:
    return [document.run.id for document in documents if document.change is Change.CONCLUDED]


async def logs_of(bus: Bus, task: int = 1) -> list[str]:
    info = await bus.js.stream_info("LOGS")
    lines = [await bus.js.get_msg("LOGS", number) for number in range(1, info.state.last_seq + 1)]
    return [codec.decode_log(line.data).message for line in lines if line.subject == f"tasks.log.{CHAIN}.{task}"]


async def test_a_run_ends_as_done_with_its_result_and_its_command_is_gone(
    bus: Bus, app: App, settings: Settings
) -> None:
    @app.action("greet")
    async def greet(params: Greeting, ctx: runwire.Context) -> dict[str, str]:
        return {"text": f"Hello {params.name}", "run": ctx.run_id}

    await make_task(bus, "greet", name="Ada")
    async with worker(bus, app, settings):
        await publish_command(bus, "r1")
        document = await ended(bus, "r1")
        await eventually(lambda: queue_is_empty(bus))
    assert document.task.state.code is StateCode.DONE
    assert document.task.result == {"text": "Hello Ada", "run": "r1"}
    assert [d.task.state.code for d in await history(bus)] == ["READY", "INPROGRESS", "DONE"]


async def test_what_utf8_cannot_hold_is_replaced(bus: Bus, app: App, settings: Settings) -> None:
    @app.action("odd")
    async def odd(params: dict[str, object], ctx: runwire.Context) -> None:
        ctx.log("a file called \udcff")
        raise ValueError("no such file: \udcff")

    await make_task(bus, "odd")
    async with worker(bus, app, settings):
        await publish_command(bus, "r1")
        document = await ended(bus, "r1")
    assert document.run.error.message == "ValueError: no such file: ?"
    assert "a file called ?" in await logs_of(bus)


async def test_events_are_cloudevents_in_binary_mode(bus: Bus, app: App, settings: Settings) -> None:
    await make_task(bus)
    async with worker(bus, app, settings):
        await publish_command(bus, "r1")
        await ended(bus, "r1")
    message = await bus.js.get_msg("EVENTS", subject=f"tasks.evt.{CHAIN}.1.done")
    headers = message.headers
    assert headers["ce-specversion"] == "1.0"
    assert headers["ce-type"] == "dev.runwire.task.done.v1"
    assert headers["ce-source"] == f"/chains/{CHAIN}/tasks/1"
    assert headers["ce-subject"] == "r1"
    assert headers["ce-datacontenttype"] == "application/json"
    assert headers["ce-time"].endswith("Z")
    assert len(headers["ce-id"]) == 32


async def test_the_same_command_twice_is_one_run(bus: Bus, app: App, settings: Settings) -> None:
    gate = Gate(app)
    await make_task(bus, "gate")
    async with worker(bus, app, settings):
        await publish_command(bus, "r1")
        await gate.is_running()
        assert (await publish_command(bus, "r1")).duplicate
        gate.opened.set()
        await ended(bus, "r1")
        await eventually(lambda: queue_is_empty(bus))
    assert gate.begun == 1
    assert finals(await history(bus)) == ["r1"]


async def test_a_command_stored_again_after_its_run_has_ended_is_not_run_again(
    bus: Bus, app: App, settings: Settings
) -> None:
    """A crash makes the broker forget the message id, and the publisher tries again: the ring remembers."""
    await make_task(bus)
    async with worker(bus, app, settings):
        for run in ("r1", "r2"):
            await publish_command(bus, run)
            await ended(bus, run)
            await eventually(lambda: queue_is_empty(bus))
        await bus.js.publish(f"tasks.cmd.{CHAIN}.1.execute", b"{}", headers={"Run-Id": "r1"})
        await eventually(lambda: queue_is_empty(bus))
    assert finals(await history(bus)) == ["r1", "r2"]


async def test_a_second_command_is_refused_by_the_broker_while_one_is_outstanding(
    bus: Bus, app: App, settings: Settings
) -> None:
    gate = Gate(app)
    await make_task(bus, "gate")
    async with worker(bus, app, settings):
        await publish_command(bus, "r1")
        await gate.is_running()
        with pytest.raises(Exception, match="maximum messages per subject"):
            await publish_command(bus, "r2")
        gate.opened.set()
        await ended(bus, "r1")


async def test_a_command_without_an_id_gets_one_from_its_place_in_the_stream(
    bus: Bus, app: App, settings: Settings
) -> None:
    await make_task(bus)
    async with worker(bus, app, settings):
        ack = await publish_command(bus, None, body=b"")
        document = await ended(bus, f"bus-{ack.seq}")
    assert document.run.source is Source.BUS


async def test_what_an_action_raises_becomes_error_with_a_log_entry(bus: Bus, app: App, settings: Settings) -> None:
    @app.action("broken")
    async def broken(params: dict[str, object], ctx: runwire.Context) -> None:
        ctx.log("about to break")
        raise ValueError("no such customer")

    await make_task(bus, "broken")
    async with worker(bus, app, settings):
        await publish_command(bus, "r1")
        document = await ended(bus, "r1")
    assert document.task.state.code is StateCode.ERROR
    assert (document.run.error.code, document.run.error.message) == ("handler_error", "ValueError: no such customer")
    lines = await logs_of(bus)
    assert lines[0] == "about to break"
    assert "Traceback" in lines[1]
    assert lines[2] == "handler_error: ValueError: no such customer"


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (lambda: runwire.Fail("out_of_stock", "nothing left"), "out_of_stock"),
        (lambda: runwire.Retry("later"), "handler_error"),
        (lambda: SystemExit(3), "handler_error"),
        (asyncio.CancelledError, "handler_error"),
        (lambda: TimeoutError("its own"), "handler_error"),
    ],
)
async def test_whatever_an_action_raises_ends_the_run(
    bus: Bus, app: App, settings: Settings, raised: Callable[[], BaseException], code: str
) -> None:
    @app.action("broken")
    async def broken(params: dict[str, object], ctx: runwire.Context) -> None:
        raise raised()

    await make_task(bus, "broken")
    async with worker(bus, app, settings):
        await publish_command(bus, "r1")
        assert (await ended(bus, "r1")).run.error.code == code


async def test_an_attempt_over_its_timeout_is_an_error(bus: Bus, app: App, settings: Settings) -> None:
    Gate(app)
    await make_task(bus, "gate", timeout=0.2)
    async with worker(bus, app, settings):
        await publish_command(bus, "r1")
        error = (await ended(bus, "r1")).run.error
    assert (error.code, error.message) == ("timeout", "The action took longer than 0.2 s.")


async def test_parameters_that_do_not_fit_are_named(bus: Bus, app: App, settings: Settings) -> None:
    await make_task(bus, "sleep", seconds="long")
    async with worker(bus, app, settings):
        await publish_command(bus, "r1")
        error = (await ended(bus, "r1")).run.error
    assert error.code == "invalid_parameters"
    assert "/target/seconds" in error.message


@pytest.mark.parametrize(
    ("result", "code"),
    [({"x": object()}, "invalid_result"), ([1, 2], "invalid_result"), ("text", "invalid_result")],
)
async def test_a_result_that_is_no_json_object_is_an_error(
    bus: Bus, app: App, settings: Settings, result: object, code: str
) -> None:
    @app.action("odd")
    async def odd(params: dict[str, object], ctx: runwire.Context) -> object:
        return result

    await make_task(bus, "odd")
    async with worker(bus, app, settings):
        await publish_command(bus, "r1")
        assert (await ended(bus, "r1")).run.error.code == code


@pytest.mark.parametrize(("levels", "code"), [(100, "DONE"), (101, "ERROR"), (240, "ERROR"), (1500, "ERROR")])
async def test_a_result_is_only_as_deep_as_everybody_can_read(
    bus: Bus, app: App, settings: Settings, levels: int, code: str
) -> None:
    @app.action("deep")
    async def deep(params: dict[str, object], ctx: runwire.Context) -> dict[str, object]:
        value: dict[str, object] = {}
        for _ in range(levels - 1):
            value = {"in": value}
        return value

    await make_task(bus, "deep")
    async with worker(bus, app, settings):
        await publish_command(bus, "r1")
        run = (await ended(bus, "r1")).run
    assert run.code == code
    assert run.error is None or run.error.code == "invalid_result"


async def test_a_result_larger_than_a_message_is_kept_as_a_file(bus: Bus, app: App, settings: Settings) -> None:
    @app.action("large")
    async def large(params: dict[str, object], ctx: runwire.Context) -> dict[str, str]:
        return {"text": "x" * 3_000_000}

    await make_task(bus, "large")
    async with worker(bus, app, settings):
        await publish_command(bus, "r1")
        document = await ended(bus, "r1")
    assert document.run.code is RunCode.DONE
    assert document.task.result == {"file": "Result-1.json", "bytes": 3_000_011}
    assert len(await artifacts.get(bus, f"{CHAIN}/1/r1/Result-1.json")) == 3_000_011


async def test_a_result_that_finds_no_room_is_an_error_and_the_run_still_ends(
    bus: Bus, app: App, settings: Settings
) -> None:
    @app.action("large")
    async def large(params: dict[str, object], ctx: runwire.Context) -> dict[str, str]:
        return {"text": "x" * 500_000}

    info = await bus.js.stream_info("OBJ_runwire-artifacts")
    await bus.js.update_stream(info.config.evolve(max_bytes=200_000))
    await make_task(bus, "large")
    async with worker(bus, app, settings):
        await publish_command(bus, "r1")
        error = (await ended(bus, "r1")).run.error
    assert error.code == "result_too_large"
    assert "could not be stored" in error.message


async def test_a_huge_error_message_is_cut(bus: Bus, app: App, settings: Settings) -> None:
    @app.action("loud")
    async def loud(params: dict[str, object], ctx: runwire.Context) -> None:
        raise ValueError("x" * 5_000_000)

    await make_task(bus, "loud")
    async with worker(bus, app, settings):
        await publish_command(bus, "r1")
        assert len((await ended(bus, "r1")).run.error.message) < 1100


async def test_log_lines_from_any_thread_are_stored_in_order_before_the_last_event(
    bus: Bus, app: App, settings: Settings
) -> None:
    @app.action("chatty")
    async def chatty(params: dict[str, object], ctx: runwire.Context) -> None:
        ctx.log("first", level="warning")
        await asyncio.to_thread(ctx.log, "second")
        for number in range(200):
            ctx.log(number)

    await make_task(bus, "chatty")
    async with worker(bus, app, settings):
        await publish_command(bus, "r1")
        document = await ended(bus, "r1")
    lines = await logs_of(bus)
    assert lines == ["first", "second", *map(str, range(200))]
    assert document.run.log_seq == 202


async def test_a_flood_of_log_lines_is_cut_with_a_count(bus: Bus, app: App, settings: Settings) -> None:
    @app.action("flood")
    async def flood(params: dict[str, object], ctx: runwire.Context) -> None:
        for _ in range(2500):
            ctx.log("x" * 1000)

    await make_task(bus, "flood")
    async with worker(bus, app, settings):
        await publish_command(bus, "r1")
        await ended(bus, "r1", within=30)
    last = await bus.js.get_msg("LOGS", subject=f"tasks.log.{CHAIN}.1")
    assert codec.decode_log(last.data).message.startswith("500 further lines were dropped")


# --- what cannot be run ----------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"\xff\xfe garbage", b"[]", b'{"run": "no spaces"}', b'{"unknown": 1}', b"{" * 5000])
async def test_an_undecodable_command_becomes_a_dead_letter_with_the_reason(
    bus: Bus, app: App, settings: Settings, body: bytes
) -> None:
    await make_task(bus)
    async with worker(bus, app, settings):
        await publish_command(bus, "r1", body=body)
        letter = await eventually(lambda: dead_letters(bus))
        await eventually(lambda: queue_is_empty(bus))
    assert letter.data == body
    assert deadletters.letter_in(letter).reason == "undecodable"
    assert deadletters.letter_in(letter).detail
    assert len(await history(bus)) == 1


async def test_a_command_for_a_task_that_does_not_exist_becomes_a_dead_letter(
    bus: Bus, app: App, settings: Settings
) -> None:
    async with worker(bus, app, settings):
        await publish_command(bus, "r1", task=77)
        letter = await eventually(lambda: dead_letters(bus, task=77))
        await eventually(lambda: queue_is_empty(bus))
    assert deadletters.letter_in(letter).reason == "no_such_task"
    assert deadletters.letter_in(letter).run == "r1"


async def test_a_command_for_a_deleted_task_becomes_a_dead_letter(bus: Bus, app: App, settings: Settings) -> None:
    created = await make_task(bus)
    gone = created.model_copy(update={"change": Change.DELETED})
    await events.append(bus, gone, expected=1, event_id="gone")
    async with worker(bus, app, settings):
        await publish_command(bus, "r1")
        letter = await eventually(lambda: dead_letters(bus))
    assert deadletters.letter_in(letter).reason == "task_deleted"
    assert len(await history(bus)) == 2


async def test_a_command_whose_subject_names_no_task_becomes_a_dead_letter(
    bus: Bus, app: App, settings: Settings
) -> None:
    async with worker(bus, app, settings):
        await bus.js.publish("tasks.cmd.abc.-1.execute", b"{}")
        await eventually(lambda: dead_letters(bus, chain=0, task=0))
        await eventually(lambda: queue_is_empty(bus))


async def test_an_unknown_action_ends_as_error_after_a_wait_that_is_told(
    bus: Bus, app: App, settings: Settings
) -> None:
    await make_task(bus, "bulk issue rewards")
    async with worker(bus, app, settings):
        await publish_command(bus, "r1")
        document = await ended(bus, "r1")
    assert document.run.error.code == "unknown_action"
    assert "waiting up to 1 s for a worker that knows the action 'bulk issue rewards'" in await logs_of(bus)


async def test_an_unknown_action_is_done_when_a_worker_that_knows_it_turns_up(
    bus: Bus, app: App, settings: Settings
) -> None:
    patient = settings.model_copy(update={"action_wait": 30.0})
    await make_task(bus, "new")
    async with worker(bus, app, patient):
        await publish_command(bus, "r1")
        await eventually(lambda: logs_of(bus))
        newer = App()

        @newer.action("new")
        async def new(params: dict[str, object], ctx: runwire.Context) -> dict[str, int]:
            return {"version": 2}

        async with worker(bus, newer, patient):
            assert (await ended(bus, "r1")).task.result == {"version": 2}


# --- tries and crashes -----------------------------------------------------------------------------------


async def test_a_failing_run_is_tried_again_as_its_task_says(bus: Bus, app: App, settings: Settings) -> None:
    @app.action("flaky")
    async def flaky(params: dict[str, object], ctx: runwire.Context) -> dict[str, int]:
        if ctx.attempt < 3:
            raise ConnectionError("not yet")
        return {"attempt": ctx.attempt}

    await make_task(bus, "flaky", retry=RetryPolicy(attempts=3, backoff=0.1))
    async with worker(bus, app, settings):
        await publish_command(bus, "r1")
        document = await ended(bus, "r1")
    assert document.task.result == {"attempt": 3}
    changes = [d.change for d in await history(bus)]
    assert changes == ["created", "claimed", "retrying", "claimed", "retrying", "claimed", "concluded"]


async def test_a_run_that_was_queued_past_its_deadline_never_begins(bus: Bus, app: App, settings: Settings) -> None:
    gate = Gate(app)
    await make_task(bus, "gate", deadline=0.1)
    await publish_command(bus, "r1")
    await asyncio.sleep(0.1)  # until the deadline has passed
    async with worker(bus, app, settings):
        document = await ended(bus, "r1")
        await eventually(lambda: queue_is_empty(bus))
    assert (document.run.error.code, document.run.attempt, gate.begun) == ("deadline_exceeded", 0, 0)


async def test_a_run_is_stopped_at_its_deadline_and_not_tried_again(bus: Bus, app: App, settings: Settings) -> None:
    gate = Gate(app)
    await make_task(bus, "gate", deadline=0.3, timeout=60, retry=RetryPolicy(attempts=5, backoff=0))
    async with worker(bus, app, settings):
        await publish_command(bus, "r1")
        document = await ended(bus, "r1")
    assert (document.run.error.code, document.run.attempt, gate.begun) == ("deadline_exceeded", 1, 1)
    assert document.run.error.message == "The run was not over 0.3 s after it had been accepted."


async def test_a_run_with_no_time_left_for_another_try_ends_with_its_error(
    bus: Bus, app: App, settings: Settings
) -> None:
    @app.action("never")
    async def never(params: dict[str, object], ctx: runwire.Context) -> None:
        raise ConnectionError("not yet")

    await make_task(bus, "never", deadline=30, retry=RetryPolicy(attempts=5, backoff=60))
    async with worker(bus, app, settings):
        await publish_command(bus, "r1")
        document = await ended(bus, "r1")
    assert (document.run.error.code, document.run.attempt) == ("handler_error", 1)


async def test_an_action_sees_the_nearer_of_timeout_and_deadline(bus: Bus, app: App, settings: Settings) -> None:
    left = {}

    @app.action("look")
    async def look(params: dict[str, object], ctx: runwire.Context) -> None:
        left[ctx.task] = (ctx.deadline - lifecycle_now()).total_seconds()

    await make_task(bus, "look", task=1, timeout=100, deadline=50)
    await make_task(bus, "look", task=2, timeout=100, deadline=500)
    async with worker(bus, app, settings):
        for task in (1, 2):
            await publish_command(bus, f"r{task}", task=task)
            await ended(bus, f"r{task}", task=task)
    assert 40 < left[1] <= 50
    assert 90 < left[2] <= 100


async def test_a_run_whose_workers_always_die_ends_as_attempts_exhausted(
    bus: Bus, app: App, settings: Settings
) -> None:
    """Deliveries that nobody answers, as by workers that die at once."""
    document = await make_task(bus)
    await publish_command(bus, "r1")
    for delivery in range(1, settings.max_deliveries + 1):
        command = Command(
            chain=CHAIN, task=1, run="r1", source=Source.BUS, accepted=lifecycle_now(), sequence=1, delivery=delivery
        )
        document = lifecycle.claim(document, command, claim_id=uuid4().hex, now=lifecycle_now())
        await events.append(bus, document, expected=delivery, event_id=uuid4().hex)
    sub = await bus.js.pull_subscribe_bind(f"workers-{CHAIN}", "COMMANDS")
    for _ in range(settings.max_deliveries):
        (message,) = await sub.fetch(1, timeout=5)
        await message.nak()
    async with worker(bus, app, settings):
        ended_document = await ended(bus, "r1")
    assert ended_document.run.error.code == "attempts_exhausted"


async def test_a_command_whose_worker_died_before_the_claim_goes_to_another(
    bus: Bus, app: App, settings: Settings
) -> None:
    await make_task(bus)
    await publish_command(bus, "r1")
    dead = await bus.js.pull_subscribe_bind(f"workers-{CHAIN}", "COMMANDS")
    await dead.fetch(1, timeout=5)  # and never a word again
    async with worker(bus, app, settings):
        document = await ended(bus, "r1", within=settings.ack_wait + 5)
    assert (document.run.attempt, document.run.claim.delivery) == (1, 2)


async def test_a_command_whose_worker_died_after_the_last_event_is_acknowledged_without_running(
    bus: Bus, app: App, settings: Settings
) -> None:
    gate = Gate(app)
    created = await make_task(bus, "gate")
    await publish_command(bus, "r1")
    command = Command(
        chain=CHAIN, task=1, run="r1", source=Source.BUS, accepted=lifecycle_now(), sequence=1, delivery=1
    )
    working = lifecycle.claim(created, command, claim_id="dead", now=lifecycle_now())
    await events.append(bus, working, expected=1, event_id="claim")
    await events.append(bus, lifecycle.conclude(working, Done(None), now=lifecycle_now()), expected=2, event_id="end")
    async with worker(bus, app, settings):
        await eventually(lambda: queue_is_empty(bus))
    assert gate.begun == 0
    assert len(await history(bus)) == 3


async def test_a_remembered_event_that_is_out_of_date_costs_another_look_and_nothing_else(
    bus: Bus, app: App, settings: Settings
) -> None:
    """A worker believes what it wrote last about a task; meanwhile another worker ran it, and it was edited."""
    await make_task(bus)
    async with worker(bus, app, settings) as first:
        await publish_command(bus, "r1")
        await ended(bus, "r1")
        await eventually(lambda: queue_is_empty(bus))
        head = await events.load(bus, CHAIN, 1)
        task = head.document.task.model_copy(update={"desc": "edited"})
        await events.append(
            bus, head.document.model_copy(update={"task": task}), expected=head.sequence, event_id="edit"
        )
        assert first._executor._hints[CHAIN, 1].sequence == head.sequence
        await publish_command(bus, "r2")
        document = await ended(bus, "r2")
    assert (document.run.code, document.run.attempt, document.task.desc) == ("DONE", 1, "edited")


async def test_a_changed_ack_wait_is_taken_over_at_the_next_start_of_a_worker(
    bus: Bus, app: App, settings: Settings
) -> None:
    await make_task(bus)
    assert (await bus.js.consumer_info("COMMANDS", f"workers-{CHAIN}")).config.ack_wait == settings.ack_wait
    changed = settings.model_copy(update={"ack_wait": 7.0})
    other = await connected(changed)
    async with worker(other, app, changed):
        assert (await bus.js.consumer_info("COMMANDS", f"workers-{CHAIN}")).config.ack_wait == 7.0
    await other.nc.close()


async def test_a_run_left_behind_without_a_command_is_ended_as_lost_and_the_next_one_runs(
    bus: Bus, app: App, settings: Settings
) -> None:
    created = await make_task(bus)
    command = Command(
        chain=CHAIN, task=1, run="ghost", source=Source.BUS, accepted=lifecycle_now(), sequence=1, delivery=1
    )
    await events.append(
        bus, lifecycle.claim(created, command, claim_id="c", now=lifecycle_now()), expected=1, event_id="ghost"
    )
    async with worker(bus, app, settings):
        await publish_command(bus, "r1")
        assert (await ended(bus, "r1")).run.code is RunCode.DONE
    assert (await ended(bus, "ghost")).run.error.code == "lost"


async def test_a_worker_that_has_lost_its_claim_is_fenced_and_stays_silent(
    bus: Bus, app: App, settings: Settings
) -> None:
    gate = Gate(app)
    await make_task(bus, "gate")
    async with worker(bus, app, settings):
        await publish_command(bus, "r1")
        await gate.is_running()
        head = await events.load(bus, CHAIN, 1)
        command = Command(
            chain=CHAIN, task=1, run="r1", source=Source.BUS, accepted=lifecycle_now(), sequence=1, delivery=2
        )
        taken = lifecycle.claim(head.document, command, claim_id="thief", now=lifecycle_now())
        sequence = await events.append(bus, taken, expected=head.sequence, event_id="thief")
        gate.opened.set()
        info = await bus.js.consumer_info("COMMANDS", f"workers-{CHAIN}")
        await asyncio.sleep(0.3)
        assert (await bus.js.stream_info("COMMANDS")).state.messages == 1, "the zombie must not acknowledge"
        assert info.num_ack_pending == 1
        done = lifecycle.conclude(taken, Done(None), now=lifecycle_now())
        await events.append(bus, done, expected=sequence, event_id="done")
    assert [d.change for d in await history(bus)] == ["created", "claimed", "claimed", "concluded"]


async def test_an_edit_in_the_middle_of_a_run_does_not_cost_the_run(bus: Bus, app: App, settings: Settings) -> None:
    gate = Gate(app)
    await make_task(bus, "gate")
    async with worker(bus, app, settings):
        await publish_command(bus, "r1")
        await gate.is_running()
        head = await events.load(bus, CHAIN, 1)
        task = head.document.task.model_copy(update={"desc": "edited", "version": head.document.task.version + 1})
        edited = head.document.model_copy(update={"task": task})
        await events.append(bus, edited, expected=head.sequence, event_id="edit")
        gate.opened.set()
        document = await ended(bus, "r1")
    assert (document.task.desc, document.run.code, document.task.version) == ("edited", "DONE", 4)
    assert gate.begun == 1


async def test_an_old_delivery_of_a_finished_command_does_nothing(bus: Bus, app: App, settings: Settings) -> None:
    """A worker that was frozen with a command in its socket wakes up long after the run, and 16 more, have ended."""
    from runwire.worker.executor import Executor, Silence

    await make_task(bus)
    async with worker(bus, app, settings):
        for number in range(20):
            await publish_command(bus, f"r{number}")
            await ended(bus, f"r{number}")
            await eventually(lambda: queue_is_empty(bus))
    stale = Command(chain=CHAIN, task=1, run="r0", source=Source.BUS, accepted=lifecycle_now(), sequence=1, delivery=1)
    assert isinstance(await Executor(bus, app, settings).execute(stale), Silence)
    assert finals(await history(bus)).count("r0") == 1


async def test_stopping_a_worker_lets_its_runs_finish(bus: Bus, app: App, settings: Settings) -> None:
    gate = Gate(app)
    await make_task(bus, "gate")
    async with worker(bus, app, settings.model_copy(update={"grace_seconds": 10})) as consumer:
        await publish_command(bus, "r1")
        await gate.is_running()
        stopping = asyncio.create_task(consumer.stop())
        await asyncio.sleep(0)
        gate.opened.set()
        await stopping
    assert (await ended(bus, "r1")).run.code is RunCode.DONE
    assert await queue_is_empty(bus)


async def test_a_run_that_outlasts_the_grace_period_goes_to_another_worker_at_once(
    bus: Bus, app: App, settings: Settings
) -> None:
    slow = settings.model_copy(update={"grace_seconds": 0.1, "ack_wait": 30.0})
    gate = Gate(app)
    await make_task(bus, "gate")
    async with worker(bus, app, slow):
        await publish_command(bus, "r1")
        await gate.is_running()
    second = App()
    other = Gate(second)
    other.opened.set()
    async with worker(bus, second, slow):
        document = await ended(bus, "r1", within=5)
    assert document.task.result == {"attempt": 2}
    assert document.run.claim.interruptions == 0
    assert [d.change for d in await history(bus)] == ["created", "claimed", "released", "claimed", "concluded"]


async def test_a_worker_takes_no_more_than_its_slots(bus: Bus, app: App, settings: Settings) -> None:
    gate = Gate(app)
    for task in range(1, 8):
        await make_task(bus, "gate", task=task)
    async with worker(bus, app, settings.model_copy(update={"worker_slots": 4})):  # of which one is for other chains
        for task in range(1, 8):
            await publish_command(bus, f"r{task}", task=task)
        await gate.is_running(3)
        await asyncio.sleep(0.2)
        info = await bus.js.consumer_info("COMMANDS", f"workers-{CHAIN}")
        assert (gate.begun, info.num_ack_pending, info.num_pending) == (3, 3, 4)
        gate.opened.set()
        for task in range(1, 8):
            await ended(bus, f"r{task}", task=task)
    assert gate.begun == 7


async def test_a_run_longer_than_ack_wait_is_not_given_to_anybody_else(bus: Bus, app: App, settings: Settings) -> None:
    gate = Gate(app)
    await make_task(bus, "gate")
    async with worker(bus, app, settings), worker(bus, app, settings):
        await publish_command(bus, "r1")
        await gate.is_running()
        await asyncio.sleep(2.5 * settings.ack_wait)
        gate.opened.set()
        await ended(bus, "r1")
    assert gate.begun == 1


async def test_a_broker_that_is_killed_in_the_middle_of_a_run_does_not_cost_it(
    bus: Bus, broker: Broker, app: App, settings: Settings
) -> None:
    gate = Gate(app)
    await make_task(bus, "gate")
    async with worker(bus, app, settings):
        await publish_command(bus, "r1")
        await gate.is_running()
        broker.restart()
        gate.opened.set()
        fresh = await connected(settings)
        document = await ended(fresh, "r1", within=20)
        assert document.run.code is RunCode.DONE
        await eventually(lambda: queue_is_empty(fresh))
        assert finals(await history(fresh)) == ["r1"]
        await publish_command(fresh, "r2")
        await ended(fresh, "r2", within=20)
        await fresh.nc.close()


async def test_time_comes_from_the_clock(bus: Bus, app: App, settings: Settings) -> None:
    shifted = lifecycle_now() + timedelta(days=365)
    await make_task(bus)
    async with worker(bus, app, settings, clock=lambda: shifted):
        await publish_command(bus, "r1")
        assert (await ended(bus, "r1")).task.state.last_run_date == shifted.replace(microsecond=0)
