"""Lists at size: every page comes from an index, every count from the tally, whatever has happened before."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from importlib import resources
from itertools import product
from pathlib import Path

import pytest

from runwire.domain import lifecycle
from runwire.domain.lifecycle import Definition, Document
from runwire.domain.run import Command, Done, Failed, RunError, Source
from runwire.domain.task import StateCode, Target
from runwire.messaging.logs import Line
from runwire.readmodel import projection
from runwire.readmodel.projection import EventRecord
from runwire.readmodel.reader import TaskFilter, _count, _ids, stretches_of

NOW = datetime(2026, 5, 26, 14, 35, tzinfo=UTC)
CHAINS, ACTIONS, CAMPAIGNS = (1, 2, 3), ("export", "sleep", "rare"), (None, 7, 8)


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as found:
        for script in sorted((resources.files("runwire.readmodel") / "migrations").iterdir(), key=lambda f: f.name):
            found.executescript(Path(str(script)).read_text())
        found.executescript(projection.STAGES)
        yield found


class Life:
    """Tasks whose lives are random, as events."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.sequence = 0
        self.tasks: dict[int, Document] = {}

    def next(self) -> EventRecord:
        self.sequence += 1
        task = self.dice.randint(1, 40)
        document = self.tasks.get(task)
        following = self._create(task) if document is None else self._change(document)
        if following.change is lifecycle.Change.DELETED:
            del self.tasks[task]
        else:
            self.tasks[task] = following
        return EventRecord(self.sequence, following, following.model_dump_json().encode())

    def _definition(self) -> Definition:
        campaign = self.dice.choice(CAMPAIGNS)
        target = {"action": self.dice.choice(ACTIONS)} | ({"campaign": campaign} if campaign else {})
        return Definition(chain=self.dice.choice(CHAINS), desc="", target=Target.model_validate(target), trigger={})

    def _create(self, task: int) -> Document:
        return lifecycle.create(self._definition(), task, NOW)

    def _change(self, document: Document) -> Document:
        if document.run is not None and not document.run.is_final:
            outcome = self.dice.choice([Done(None), Failed(RunError(code="handler_error", message=""))])
            return lifecycle.conclude(document, outcome, now=NOW)
        choice = self.dice.random()
        if choice < 0.1:
            return lifecycle.delete(document, by="tester")
        if choice < 0.3:
            return lifecycle.edit(document, self._definition(), by="tester", now=NOW)
        command = Command(
            chain=document.task.chain, task=document.task.id, run=f"r{self.sequence}", source=Source.HTTP,
            accepted=NOW, sequence=self.sequence, delivery=1,
        )  # fmt: skip
        return lifecycle.claim(document, command, claim_id="c", now=NOW)


FILTERS = [
    TaskFilter(chains=chains, code=code, action=action, campaign=campaign)
    for chains, code, action, campaign in product(
        [(1,), (3,), (1, 2, 3), (99,)], [None, *StateCode], [None, *ACTIONS, "never"], [None, 7, 9]
    )
]


@pytest.mark.parametrize("seed", range(5))
def test_every_filter_finds_and_counts_what_it_should(connection: sqlite3.Connection, seed: int) -> None:
    life = Life(seed)
    for _ in range(60):
        batch = [life.next() for _ in range(life.dice.randint(1, 25))]
        projection.apply_events(connection, batch, history=5)
    for which in FILTERS:
        expected = sorted(
            number
            for number, document in life.tasks.items()
            if document.task.chain in which.chains
            and which.code in {None, document.task.state.code}
            and which.action in {None, document.task.target.action}
            and which.campaign in {None, document.task.target.parameters.get("campaign")}
        )
        assert _count(connection, which) == len(expected), which
        assert _ids(connection, which, limit=1000, offset=0) == expected, which
        assert _ids(connection, which, limit=3, offset=2) == expected[2:5], which


@pytest.mark.parametrize("seed", range(5))
def test_one_batch_or_many_leave_the_same_rows(connection: sqlite3.Connection, seed: int) -> None:
    life = Life(seed)
    records = [life.next() for _ in range(600)]
    projection.apply_events(connection, records, history=5)
    at_once = everything(connection)
    for table in ("task", "tally", "run", "deleted"):
        connection.execute(f"DELETE FROM {table}")
    for record in records:
        projection.apply_events(connection, [record], history=5)
    assert everything(connection) == at_once


def everything(connection: sqlite3.Connection) -> dict[str, list[tuple[object, ...]]]:
    return {
        "task": connection.execute("SELECT * FROM task ORDER BY id").fetchall(),
        "tally": connection.execute("SELECT * FROM tally WHERE tasks <> 0 ORDER BY 1, 2, 3, 4").fetchall(),
        "run": connection.execute("SELECT sequence, task, id, code, document FROM run ORDER BY sequence").fetchall(),
        "deleted": connection.execute("SELECT * FROM deleted ORDER BY 1").fetchall(),
    }


@pytest.mark.parametrize("which", FILTERS)
def test_a_page_reads_its_stretch_of_an_index_and_nothing_else(
    connection: sqlite3.Connection, which: TaskFilter
) -> None:
    for sql, values in stretches_of(which):
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", values)]
        assert len(plan) == 1, plan
        assert plan[0].startswith("SEARCH task USING COVERING INDEX"), plan


def test_applying_a_batch_never_reads_a_whole_table(connection: sqlite3.Connection) -> None:
    """It did once: fine for a thousand tasks, and a rebuild that never ends with a million."""
    plans: list[str] = []

    class Explaining:
        def execute(self, sql: str, values: object = ()) -> sqlite3.Cursor:
            if not sql.startswith("INSERT INTO staged"):
                plans.extend(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", values))
            return connection.execute(sql, values)

    life = Life(1)
    projection.apply_events(Explaining(), [life.next() for _ in range(300)], history=5)
    projection.apply_logs(Explaining(), [Line(1, 1, "r1", b"{}")], lines=5)
    assert any(plan.startswith("SEARCH task") for plan in plans)
    scanned = [plan for plan in plans if plan.startswith("SCAN") and plan.split()[1] in {"task", "run", "log", "tally"}]
    assert not scanned


def test_log_lines_of_a_deleted_task_are_not_kept(connection: sqlite3.Connection) -> None:
    """EVENTS and LOGS are read on their own: a line may come after the deletion."""
    created = lifecycle.create(
        Definition(chain=1, desc="", target=Target.model_validate({"action": "export"}), trigger={}), 5, NOW
    )
    deleted = lifecycle.delete(created, by="tester")
    lines = [Line(1, 5, "r1", b"{}"), Line(2, 6, "r2", b"{}")]
    projection.apply_events(connection, [EventRecord(1, created, b"{}"), EventRecord(2, deleted, b"{}")], history=5)
    projection.apply_logs(connection, lines, lines=5)
    assert connection.execute("SELECT task FROM log").fetchall() == [(6,)]
    projection.apply_events(connection, [EventRecord(3, created, b"{}")], history=5)
    projection.apply_logs(connection, [Line(3, 5, "r3", b"{}")], lines=5)
    assert connection.execute("SELECT task FROM log ORDER BY task").fetchall() == [(5,), (6,)]
