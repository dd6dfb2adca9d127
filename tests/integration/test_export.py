"""The action `export` with real workers: what is in the file, how an export ends, and that nothing of it is left."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import re
import resource
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

import runwire
from runwire import artifacts
from runwire.app import App
from runwire.artifacts import File
from runwire.domain.access import AccessLevel
from runwire.domain.errors import SetupError
from runwire.domain.lifecycle import Document
from runwire.domain.run import RunCode
from runwire.messaging import cancellation, codec, events, stretch, subjects
from runwire.messaging.broker import Bus
from runwire.settings import Settings
from runwire.uploads import CHUNK, StoreFull, Superseded, Upload
from runwire.worker.actions.builtin import builtin_actions
from tests.integration.test_http import create, is_problem, make_token
from tests.support import CHAIN, Broker, adapter, ended, eventually, make_task, publish_command, worker

OTHER = 99


class WalletRow(BaseModel):
    owner: str
    balance: int


class Wanted(BaseModel):
    at_least: int = 0


class Dataset:
    """A dataset of a test: its rows, with what else happens, and what has become of its generator."""

    def __init__(self, app: App) -> None:
        self.rows: list[Any] = [WalletRow(owner="Ada", balance=3), WalletRow(owner="=Bob", balance=-1)]
        self.error: Exception | None = None
        self.endless = False
        self.given = 0
        self.closed = 0
        self.contexts: list[runwire.Context] = []

        @app.dataset("Wallet")
        async def wallets(params: Wanted, ctx: runwire.Context) -> AsyncIterator[WalletRow]:
            """Who has how much."""
            self.contexts.append(ctx)
            try:
                for row in self.rows:
                    if not isinstance(row, WalletRow) or row.balance >= params.at_least:
                        self.given += 1
                        yield row
                while self.endless:
                    await asyncio.sleep(0.01)
                    self.given += 1
                    yield WalletRow(owner="x" * 20_000, balance=1)
                if self.error is not None:
                    raise self.error
            finally:
                await asyncio.sleep(0)
                self.closed += 1


@pytest.fixture
def dataset(app: App) -> Dataset:
    return Dataset(app)


async def export(bus: Bus, index: str, *, task: int = 1, chain: int = CHAIN, **target: Any) -> Document:
    """The end of an export's run."""
    run = f"r{task}"
    await make_task(bus, "export", task=task, chain=chain, export_index=index, **target)
    await publish_command(bus, run, task=task, chain=chain)
    return await ended(bus, run, task=task, chain=chain, within=30)


async def content(bus: Bus, document: Document) -> str:
    """The file of the run, which is DONE."""
    run = document.run
    assert run.code is RunCode.DONE, run.error
    found = await artifacts.get(bus, File(run.chain, run.task, run.id, run.result["file"]).object_name)
    assert len(found) == run.result["bytes"]
    return found.decode()


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))


async def stored(bus: Bus) -> int:
    """Messages that the object store is made of."""
    return (await bus.js.stream_info(artifacts.STREAM)).state.messages


def failure(document: Document) -> tuple[str, str]:
    assert document.run.code is RunCode.ERROR
    return document.run.error.code, document.run.error.message


# --- datasets of one's own -------------------------------------------------------------------------------


async def test_a_dataset_becomes_a_file_named_as_it_was_asked_for(
    bus: Bus, app: App, settings: Settings, dataset: Dataset
) -> None:
    async with worker(bus, app, settings):
        document = await export(bus, "wALLET", at_least=-5, trigger={"segment": "gold"})
        as_json = await export(bus, "Wallet", task=2, export_format="json", at_least=0)
        raw = await export(bus, "wallet", task=3, export_raw=True)
    assert document.run.result == {"rows": 2, "bytes": 32, "file": "Wallet_Export-1.csv"}
    assert await content(bus, document) == "owner,balance\r\nAda,3\r\n'=Bob,-1\r\n"
    assert dataset.contexts[0].filters == {"segment": "gold"}
    assert as_json.run.result["file"] == "Wallet_Export-2.json"
    assert await content(bus, as_json) == '[\n{"owner":"Ada","balance":3}\n]\n'
    assert await content(bus, raw) == "owner,balance\r\nAda,3\r\n"
    assert dataset.closed == 3


async def test_a_plain_generator_may_block(bus: Bus, app: App, settings: Settings) -> None:
    may_go_on = threading.Event()

    @app.dataset("blocking")
    def blocking(ctx: runwire.Context) -> Iterator[WalletRow]:
        may_go_on.wait(30)
        yield WalletRow(owner=threading.current_thread().name, balance=1)

    await make_task(bus, "export", task=1, export_index="blocking")
    await make_task(bus, task=2)
    async with worker(bus, app, settings):
        await publish_command(bus, "slow", task=1)
        await publish_command(bus, "quick", task=2)
        await ended(bus, "quick", task=2)
        may_go_on.set()
        document = await ended(bus, "slow", task=1)
    assert table(await content(bus, document))[0]["balance"] == "1"


async def test_no_rows_are_a_file_too(bus: Bus, app: App, settings: Settings, dataset: Dataset) -> None:
    dataset.rows = []
    async with worker(bus, app, settings):
        assert await content(bus, await export(bus, "wallet")) == "owner,balance\r\n"
        assert await content(bus, await export(bus, "wallet", task=2, export_format="json")) == "[]\n"


async def test_rows_of_another_kind_end_the_run(bus: Bus, app: App, settings: Settings, dataset: Dataset) -> None:
    async with worker(bus, app, settings):
        dataset.rows = [*dataset.rows, {"owner": "Eve", "balance": 1}]
        code, message = failure(await export(bus, "wallet", at_least=-5))
        assert (code, message) == ("invalid_row", "Row 3 of the dataset 'Wallet' is of type dict, not WalletRow.")
        dataset.rows = [WalletRow.model_construct(owner="Eve", balance="much")]
        dataset.rows[0].balance = 1
        dataset.rows[0].owner = 17
        code, message = failure(await export(bus, "wallet", task=2))
        assert code == "invalid_row"
        assert message.startswith("Row 1 of the dataset 'Wallet' is no WalletRow")
    assert dataset.closed == 2
    assert await stored(bus) == 0


async def test_a_dataset_that_raises_is_closed_and_leaves_nothing(
    bus: Bus, app: App, settings: Settings, dataset: Dataset
) -> None:
    dataset.rows = [WalletRow(owner="x" * 50_000, balance=1)] * 10
    dataset.error = ValueError("the book is torn")
    async with worker(bus, app, settings):
        assert failure(await export(bus, "wallet")) == ("handler_error", "ValueError: the book is torn")
        dataset.error = runwire.Fail("book_closed", "come back tomorrow")
        assert failure(await export(bus, "wallet", task=2)) == ("book_closed", "come back tomorrow")
    assert dataset.closed == 2
    assert await stored(bus) == 0


@pytest.mark.parametrize(
    ("target", "code", "message"),
    [
        ({"export_index": "nothing"}, "unknown_dataset", "There is no dataset 'nothing'; there are: Wallet, audit, "),
        ({"export_index": "wallet", "at_least": "much"}, "invalid_parameters", "/target/at_least: "),
        ({"export_index": "wallet", "export_fromat": "json"}, "invalid_parameters", "/target/export_fromat: "),
        ({"export_index": "wallet", "export_format": "xml"}, "invalid_parameters", "/target/export_format: "),
        ({}, "invalid_parameters", "/target/export_index: "),
    ],
)
async def test_what_cannot_be_exported_says_why(
    bus: Bus, app: App, settings: Settings, dataset: Dataset, target: dict[str, Any], code: str, message: str
) -> None:
    await make_task(bus, "export", **target)
    async with worker(bus, app, settings):
        await publish_command(bus, "r")
        found, said = failure(await ended(bus, "r"))
    assert found == code
    assert said.startswith(message)
    assert dataset.given == 0


async def test_the_datasets_are_told_where_the_actions_are(bus: Bus, app: App, dataset: Dataset) -> None:
    schema = builtin_actions(bus, app).actions["export"].parameters.json_schema()
    first, *lines = schema["properties"]["export_index"]["description"].splitlines()
    assert first == "Which dataset: Wallet, audit, runs, tasks."
    assert "Wallet (at_least): Who has how much." in lines
    assert "runs: The chain's runs that have ended, oldest first." in lines
    assert schema["required"] == ["export_index"]


async def test_ones_own_dataset_wins_over_a_built_in_one(bus: Bus, app: App, settings: Settings) -> None:
    @app.dataset("RUNS")
    async def runs(ctx: runwire.Context) -> AsyncIterator[WalletRow]:
        yield WalletRow(owner="mine", balance=1)

    async with worker(bus, app, settings):
        assert table(await content(bus, await export(bus, "runs"))) == [{"owner": "mine", "balance": "1"}]


# --- the built-in ones -----------------------------------------------------------------------------------


async def test_a_chain_sees_its_own_tasks_and_runs_and_nobody_elses(bus: Bus, app: App, settings: Settings) -> None:
    await make_task(bus, task=30, trigger={"segment": "gold"}, note="mine")
    await make_task(bus, task=4, chain=OTHER)
    async with worker(bus, app, settings):
        for task, chain in ((30, CHAIN), (4, OTHER)):
            await publish_command(bus, f"run-{chain}", task=task, chain=chain)
            await ended(bus, f"run-{chain}", task=task, chain=chain)
        await make_task(bus, task=2)
        tasks = table(await content(bus, await export(bus, "tasks", task=50)))
        runs = table(await content(bus, await export(bus, "runs", task=51)))
        theirs = table(await content(bus, await export(bus, "tasks", task=52, chain=OTHER)))
        nobodys = table(await content(bus, await export(bus, "runs", task=53, chain=7)))
    assert [(row["id"], row["chain"], row["code"]) for row in tasks] == [
        ("2", "1764", "READY"),
        ("30", "1764", "DONE"),
        ("50", "1764", "INPROGRESS"),
    ]
    assert (tasks[1]["action"], json.loads(tasks[1]["trigger"])) == ("noop", {"segment": "gold"})
    assert json.loads(tasks[1]["target"]) == {"action": "noop", "note": "mine"}
    assert [(row["id"], row["task"], row["code"]) for row in runs] == [
        (f"run-{CHAIN}", "30", "DONE"),
        ("r50", "50", "DONE"),
    ]
    assert [row["id"] for row in theirs] == ["4", "52"]
    assert nobodys == []


async def test_a_run_that_failed_says_why_in_columns(bus: Bus, app: App, settings: Settings) -> None:
    async with worker(bus, app, settings):
        await export(bus, "nothing")
        found = await content(bus, await export(bus, "runs", task=2, export_format="json"))
    (row,) = json.loads(found)
    assert list(row) == [
        "id", "task", "chain", "code", "attempt", "source", "accepted", "started", "finished", "result", "error_code",
        "error_message",
    ]  # fmt: skip
    assert (row["code"], row["error_code"], row["result"]) == ("ERROR", "unknown_dataset", None)
    assert datetime.fromisoformat(row["finished"]).tzinfo is not None


async def test_a_deleted_task_is_no_task_any_more(bus: Bus, app: App, settings: Settings) -> None:
    async with adapter(settings) as http, worker(bus, app, settings):
        kept, deleted = await create(http, "noop"), await create(http, "noop")
        assert (await http.delete(f"/tasks/{deleted}")).status_code == 204
        rows = table(await content(bus, await export(bus, "tasks", task=77_000)))
    ids = [int(row["id"]) for row in rows]
    assert kept in ids
    assert deleted not in ids


async def test_the_audit_trail_is_for_managers_and_of_their_chain(bus: Bus, app: App, settings: Settings) -> None:
    viewer = await make_token(bus, "viewer", {CHAIN: AccessLevel.VIEWER, OTHER: AccessLevel.VIEWER})
    operator = await make_token(bus, "operator", {CHAIN: AccessLevel.OPERATOR})
    await make_token(bus, "elsewhere", {OTHER: AccessLevel.VIEWER})
    await make_task(bus, task=40, chain=OTHER)
    async with adapter(settings) as http, worker(bus, app, settings):
        task = await create(http, target={"action": "export", "export_index": "AUDIT", "export_format": "json"})
        is_problem(await http.delete(f"/tasks/{task}", headers=viewer), 403, "forbidden")
        await eventually(lambda: _is_told(http), what="the refusal is in the trail")
        told = (await http.get("/audit")).json()
        assert (await http.post(f"/tasks/{task}/execute", headers=operator)).json()["code"] == "DONE"
        for below in (viewer, operator):
            is_problem(await http.get(f"/tasks/{task}/download_url", headers=below), 403, "forbidden")
        url = (await http.get(f"/tasks/{task}/download_url")).json()["url"]
        exported = (await http.get(url)).json()
        assert (await http.get(f"/tasks/{task}")).json()["result"]["needs"] == "manager"
    assert {row["chain"] for row in exported} == {CHAIN}
    by_date = sorted(exported, key=lambda row: row["date"])
    assert [row["date"] for row in exported] == [row["date"] for row in by_date]
    wanted = [row for row in told if row["chain"] == CHAIN]
    assert {json.dumps(row, sort_keys=True) for row in exported} == {json.dumps(row, sort_keys=True) for row in wanted}
    assert {"task.created", "token.created", "call.refused"} <= {row["action"] for row in exported}


async def _is_told(http: httpx.AsyncClient) -> bool:
    return bool((await http.get("/audit?action=call.refused")).json())


# --- ends that are no success ----------------------------------------------------------------------------


async def test_a_cancelled_export_stops_at_once_and_leaves_nothing(
    bus: Bus, app: App, settings: Settings, dataset: Dataset
) -> None:
    dataset.endless = True
    await make_task(bus, "export", export_index="wallet")
    async with worker(bus, app, settings):
        await publish_command(bus, "r")
        await eventually(lambda: _holds_chunks(bus), what="a part of the file is stored")
        began = time.monotonic()
        await cancellation.cancel(bus, CHAIN, 1, by="tester")
        await eventually(lambda: dataset.closed == 1, within=1)
        await eventually(lambda: _is_empty(bus), within=1, what="what was stored is taken back")
        assert time.monotonic() - began < 1
    assert (await ended(bus, "r")).run.error.code == "cancelled"


async def test_an_export_that_takes_too_long_leaves_nothing(
    bus: Bus, app: App, settings: Settings, dataset: Dataset
) -> None:
    dataset.endless = True
    async with worker(bus, app, settings):
        document = await export(bus, "wallet", timeout=0.5)
    assert failure(document)[0] == "timeout"
    assert (document.run.finished - document.run.started).total_seconds() <= 2
    assert dataset.given > 0
    assert dataset.closed == 1
    assert await stored(bus) == 0


async def _holds_chunks(bus: Bus) -> bool:
    return await stored(bus) > 1


async def _is_empty(bus: Bus) -> bool:
    return await stored(bus) == 0


async def test_a_store_without_room_ends_the_run_and_leaves_room(
    bus: Bus, app: App, settings: Settings, dataset: Dataset
) -> None:
    config = (await bus.js.stream_info(artifacts.STREAM)).config
    await bus.js.update_stream(config.evolve(max_bytes=1 << 20))
    dataset.rows = [WalletRow(owner="x" * 50_000, balance=1)] * 40
    async with worker(bus, app, settings):
        code, message = failure(await export(bus, "wallet"))
        assert (code, message) == ("store_full", "There is no room for the file: maximum bytes exceeded.")
        assert await stored(bus) == 0
        dataset.rows = dataset.rows[:10]
        assert len(await content(bus, await export(bus, "wallet", task=2))) > 500_000


async def test_a_broker_that_goes_away_meanwhile_is_waited_for(
    bus: Bus, app: App, settings: Settings, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish, gone = bus.js.publish, []

    async def interrupted(subject: str, *arguments: Any, **named: Any) -> Any:
        if subject.startswith("$O.") and not gone and await stored(bus) == 10:
            gone.append(subject)
            broker.kill()
            await eventually(lambda: not bus.is_connected, what="the broker is gone")
            asyncio.get_running_loop().call_later(0.3, broker.start)
        return await publish(subject, *arguments, **named)

    @app.dataset("large")
    async def large(ctx: runwire.Context) -> AsyncIterator[WalletRow]:
        for number in range(200):
            yield WalletRow(owner=f"{number:>20000}", balance=number)

    back = asyncio.Event()
    bus.on_reconnect.append(_setting(back))
    monkeypatch.setattr(bus.js, "publish", interrupted)
    await make_task(bus, "export", export_index="large")
    async with worker(bus, app, settings):
        await publish_command(bus, "r")
        await asyncio.wait_for(back.wait(), 20)
        document = await ended(bus, "r", within=30)
    assert [row["balance"] for row in table(await content(bus, document))] == [str(number) for number in range(200)]


async def test_the_history_and_a_stream_are_read_on_after_a_restart_of_the_broker(bus: Bus, broker: Broker) -> None:
    await asyncio.gather(*(make_task(bus, task=task) for task in range(1, stretch.PAGE + 20)))
    until = await events.last_sequence(bus)
    history = events.history(bus, [subjects.events_of_chain(CHAIN)], until=until)
    messages = stretch.read_surely(bus, subjects.EVENTS, [subjects.ALL_EVENTS])
    found = [(await anext(history)).sequence], [(await anext(messages)).metadata.sequence.stream]
    back = asyncio.Event()
    bus.on_reconnect.append(_setting(back))
    broker.restart()
    await back.wait()
    found[0].extend([event.sequence async for event in history])
    found[1].extend([message.metadata.sequence.stream async for message in messages])
    assert found == (list(range(1, stretch.PAGE + 20)), list(range(1, stretch.PAGE + 20)))


def _setting(event: asyncio.Event) -> Callable[[], Awaitable[None]]:
    async def reconnected() -> None:
        event.set()

    return reconnected


# --- attempts --------------------------------------------------------------------------------------------


FILE = File(CHAIN, 1, "r", "Wallet_Export-1.csv")


async def test_what_a_killed_attempt_has_left_is_removed_by_the_next(bus: Bus) -> None:
    killed = Upload(bus, FILE, 1)
    await killed.write(b"x" * 3 * CHUNK)
    assert await stored(bus) == 3
    async with Upload(bus, FILE, 2) as upload:
        assert await stored(bus) == 0
        await upload.write(b"new")
        assert await artifacts.get(bus, FILE.object_name) is None  # nothing can be seen yet
        assert await upload.finish() == 3
    assert await artifacts.get(bus, FILE.object_name) == b"new"


async def test_an_attempt_that_was_taken_for_dead_touches_nothing(bus: Bus) -> None:
    frozen, other = Upload(bus, FILE, 1), Upload(bus, FILE, 1)  # the other one has not stored anything yet
    await frozen.write(b"x" * CHUNK)
    async with Upload(bus, FILE, 2) as upload:
        await upload.write(b"new")
        await upload.finish()
    for late in (frozen, other):
        with pytest.raises(Superseded):
            async with late:
                await late.write(b"old" * CHUNK)
                await late.finish()
    assert await artifacts.get(bus, FILE.object_name) == b"new"
    assert await stored(bus) == 2


async def test_an_attempt_replaces_the_file_of_an_earlier_one(bus: Bus) -> None:
    for attempt, text in ((1, b"one" * CHUNK), (2, b"two")):
        async with Upload(bus, FILE, attempt) as upload:
            await upload.write(text)
            await upload.finish()
        assert await artifacts.get(bus, FILE.object_name) == text
    assert await stored(bus) == 2


async def test_a_run_whose_id_was_used_long_ago_begins_anew(bus: Bus) -> None:
    """As a task remembers its last runs only."""
    for attempt, text in ((2, b"old" * CHUNK), (1, b"new")):
        async with Upload(bus, FILE, attempt) as upload:
            await upload.write(text)
            await upload.finish()
    assert await artifacts.get(bus, FILE.object_name) == b"new"
    assert await stored(bus) == 2


async def test_files_of_the_same_run_id_are_kept_apart(bus: Bus) -> None:
    """As run ids are unique within a task only."""
    files = [FILE, File(CHAIN, 2, "r", "a"), File(OTHER, 1, "r", "a")]
    for number, file in enumerate(files):
        async with Upload(bus, file, 3) as upload:
            await upload.write(b"%d" % number)
            await upload.finish()
    assert [await artifacts.get(bus, file.object_name) for file in files] == [b"0", b"1", b"2"]


async def test_a_chunk_whose_acknowledgement_was_lost_is_stored_once(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    publish, lost = bus.js.publish, []

    async def without_answer(*arguments: Any, **named: Any) -> Any:
        answer = await publish(*arguments, **named)
        if len(lost) in {1, 3, 4}:  # the second chunk, the fourth message, and the description
            lost.append(answer)
            raise TimeoutError
        lost.append(answer)
        return answer

    monkeypatch.setattr(bus.js, "publish", without_answer)
    text = b"".join(bytes([letter]) * CHUNK for letter in b"abc")
    async with Upload(bus, FILE, 1) as upload:
        await upload.write(text)
        await upload.finish()
    assert await artifacts.get(bus, FILE.object_name) == text


async def test_a_full_store_is_told_by_name(bus: Bus) -> None:
    config = (await bus.js.stream_info(artifacts.STREAM)).config
    await bus.js.update_stream(config.evolve(max_bytes=2 * CHUNK))
    with pytest.raises(StoreFull):
        async with Upload(bus, FILE, 1) as upload:
            await upload.write(b"x" * 3 * CHUNK)
    assert await stored(bus) == 0


# --- size ------------------------------------------------------------------------------------------------


async def test_an_export_needs_no_more_memory_the_larger_it_is(bus: Bus, app: App, settings: Settings) -> None:
    measured: list[int] = []

    @app.dataset("large")
    async def large(ctx: runwire.Context) -> AsyncIterator[WalletRow]:
        for number in range(60_000):
            if number % 1000 == 0:
                measured.append(resident())
            yield WalletRow(owner=f"the owner of wallet {number}, and of nothing else in all the world", balance=number)

    async with worker(bus, app, settings):
        document = await export(bus, "large", export_format="json")
    assert document.run.result["rows"] == 60_000
    assert document.run.result["bytes"] > 5 << 20
    assert max(measured) - measured[5] < 3 << 20
    said = codec.decode_progress((await bus.js.get_msg("LOGS", subject=subjects.progress(CHAIN, 1))).data)
    assert said.fraction is None
    assert re.fullmatch(r"[0-9,]+ rows", said.message)


def resident() -> int:
    """Bytes of memory this process has in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def test_a_worker_is_told_of_a_mistake_in_a_dataset_when_it_loads_the_app(bus: Bus) -> None:
    with pytest.raises(SetupError, match="dataset 'odd' must be a generator"):
        App().dataset("odd")(lambda ctx: [WalletRow(owner=str(datetime.now(UTC)), balance=1)])
