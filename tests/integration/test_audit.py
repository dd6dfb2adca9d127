"""The audit trail: a row for everything that somebody did or was refused, told to whom it concerns, and no secrets."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from runwire.bootstrap.adapter import start_projector
from runwire.domain import access, lifecycle
from runwire.domain.access import AccessLevel, TokenKind
from runwire.domain.lifecycle import Change
from runwire.domain.run import Command, Failed, RunError, Source
from runwire.messaging import audit as refusals
from runwire.messaging import events, streams, subjects, tokens
from runwire.messaging.audit import MOST_PENDING, Refusals
from runwire.messaging.broker import UNAVAILABLE, Bus
from runwire.messaging.trail import AuditRow
from runwire.readmodel import audit
from runwire.readmodel.audit import AuditFilter, Told, Trail
from runwire.readmodel.database import LAYOUT, Database, open_database
from runwire.readmodel.heads import Heads
from runwire.readmodel.waiters import Waiters
from runwire.settings import Settings
from tests.support import CHAIN, TOKEN, Broker, adapter, eventually, make_task

NOW = datetime(2026, 5, 26, 14, 35, tzinfo=UTC)
TASK = {"chain": CHAIN, "desc": "a task", "target": {"action": "noop"}, "trigger": {}}


@pytest.fixture
async def http(settings: Settings, bus: Bus) -> AsyncIterator[httpx.AsyncClient]:
    async with adapter(settings) as client:
        yield client


async def hold(bus: Bus, token_id: str, **levels: AccessLevel) -> dict[str, str]:
    """A token straight in the bucket, and the header that calls with it; ``c1=...``: its level in chain 1."""
    token = access.create_token(
        token_id,
        "secret",
        kind=TokenKind.ADMIN,
        levels={int(name[1:]): level for name, level in levels.items()},
        by="operator",
        now=datetime.now(UTC),
        expires=None,
    )
    assert await tokens.create(bus, token)
    return {"Authorization": f"Bearer {token_id}:secret"}


async def trail(
    http: httpx.AsyncClient, count: int, headers: dict[str, str] | None = None, **query: object
) -> list[dict[str, Any]]:
    """The rows, as soon as there are so many."""

    async def rows() -> list[dict[str, Any]] | None:
        answer = await http.get("/audit", params=query, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.json() if len(answer.json()) >= count else None

    return await eventually(rows, what=f"{count} rows {query}")


# --- what was done ---------------------------------------------------------------------------------------


async def test_every_change_of_a_token_has_a_row(http: httpx.AsyncClient) -> None:
    made = (await http.post("/access_tokens", json={"kind": "privileged", "chain": CHAIN})).json()
    path = f"/access_tokens/{made['id']}"
    for method, suffix, body in (
        ("PATCH", "", {"desc": "new"}),
        ("PATCH", "", {"active": False}),
        ("PATCH", "", {"active": True}),
        ("POST", "/rotate", {"overlap": 60}),
        ("DELETE", "", None),
    ):
        assert (await http.request(method, path + suffix, json=body)).is_success
    rows = [row for row in await trail(http, 8) if row["subject"] == path]
    changes = ["deleted", "rotated", "activated", "deactivated", "edited", "created"]
    assert [row["action"] for row in rows] == [f"token.{change}" for change in changes]
    assert {(row["by"], row["chain"], row["detail"]["level"]) for row in rows} == {("tester", CHAIN, "operator")}
    assert rows[1]["detail"]["old_secret_until"] > rows[1]["date"]
    assert list(rows[0]) == ["date", "chain", "by", "action", "subject", "detail"]


async def test_tasks_and_the_first_start_have_rows(http: httpx.AsyncClient) -> None:
    made = await http.post("/tasks", json=TASK)
    rows = await trail(http, 3)
    assert {(row["action"], row["by"], row["subject"]) for row in rows} == {
        ("task.created", "tester", made.headers["location"]),
        ("task.created", "operator", "/tasks/12345"),
        ("token.created", "operator", "/access_tokens/tester"),
    }
    assert rows[0]["action"] == "task.created"


async def test_edits_cancellations_and_deletions_of_tasks_have_rows(http: httpx.AsyncClient, bus: Bus) -> None:
    head = await make_task(bus, task=7)
    sequence = (await events.load(bus, CHAIN, 7, leader=True)).sequence
    command = Command(chain=CHAIN, task=7, run="r1", source=Source.HTTP, accepted=NOW, sequence=1, delivery=1)
    claimed = lifecycle.claim(head, command, claim_id="c", now=NOW)
    failed = Failed(RunError(code="cancelled", message=""))
    cancelled = lifecycle.conclude(claimed, failed, now=NOW).model_copy(update={"by": "ada"})
    edited = cancelled.model_copy(update={"change": Change.EDITED, "by": "bob"})
    deleted = edited.model_copy(update={"change": Change.DELETED, "by": "eve"})
    for document in (claimed, cancelled, edited, deleted):
        sequence = await events.append(bus, document, expected=sequence, event_id=uuid4().hex)
    rows = [row for row in await trail(http, 6) if row["subject"] == "/tasks/7"]
    assert [(row["action"], row["by"]) for row in rows] == [
        ("task.deleted", "eve"),
        ("task.edited", "bob"),
        ("task.cancelled", "ada"),
        ("task.created", "operator"),
    ]
    assert rows[2]["detail"]["run"] == "r1"


# --- what was refused ------------------------------------------------------------------------------------


async def test_refused_calls_are_told_in_the_chain_they_concern(http: httpx.AsyncClient, bus: Bus) -> None:
    await make_task(bus, task=7)
    viewer = await hold(bus, "viewer", **{f"c{CHAIN}": AccessLevel.VIEWER})
    stranger = await hold(bus, "stranger", c5=AccessLevel.MANAGER)
    wrong = {"Authorization": "Bearer viewer:wrong"}
    assert (await http.post("/tasks/7/execute", headers=viewer)).status_code == 403
    assert (await http.get("/tasks/7?log_limit=3", headers=stranger)).status_code == 404
    assert (await http.get("/tasks/99999", headers=stranger)).status_code == 404
    assert (await http.get("/tasks", headers=wrong)).status_code == 401
    assert (await http.post("/tasks", json=TASK, headers=stranger)).status_code == 403
    rows = await trail(http, 3, action="call.refused")
    found = {(row["by"], row["subject"], row["detail"]["method"], row["detail"]["code"]) for row in rows}
    assert found == {
        ("viewer", "/tasks/{id}/execute", "POST", "forbidden"),
        ("stranger", "/tasks/{id}", "GET", "task_not_found"),
        ("viewer", "/tasks", "GET", "unauthenticated"),
    }
    # A chain that the token does not reach is not told of every such try: those who manage the token are.
    own = await trail(http, 1, stranger, action="call.refused")
    assert [(row["chain"], row["by"], row["subject"]) for row in own] == [(5, "stranger", "/tasks")]


async def test_a_thousand_refused_calls_are_few_rows(http: httpx.AsyncClient, bus: Bus) -> None:
    viewer = await hold(bus, "viewer", **{f"c{CHAIN}": AccessLevel.VIEWER})
    limit = asyncio.Semaphore(32)

    async def call() -> int:
        async with limit:
            return (await http.post("/tasks/12345/execute", headers=viewer)).status_code

    began = asyncio.get_running_loop().time()
    assert set(await asyncio.gather(*(call() for _ in range(1000)))) == {403}
    took = asyncio.get_running_loop().time() - began

    async def all_told() -> bool:
        rows = await trail(http, 1, action="call.refused")
        return sum(row["detail"]["count"] for row in rows) == 1000

    await eventually(all_told, what="every refused call was counted")
    assert (await bus.js.stream_info(subjects.AUDIT)).state.messages <= took + 2


async def test_unknown_tokens_leave_a_line_and_no_rows(
    http: httpx.AsyncClient, bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "runwire.adapter"):
        for _ in range(5):
            answer = await http.get("/tasks", headers={"Authorization": f"Bearer {uuid4()}:x"})
            assert answer.status_code == 401
        await eventually(lambda: "calls without a known token" in caplog.text, what="they are in the log")
    assert (await bus.js.stream_info(subjects.AUDIT)).state.messages == 0


async def test_refusals_wait_for_a_broker_that_is_away(bus: Bus, broker: Broker) -> None:
    noted = Refusals(bus)
    bus.js._timeout = 0.2
    noted.note([CHAIN], token="t", method="GET", route="/tasks", code="forbidden", now=NOW)
    broker.kill()
    await eventually(lambda: not bus.is_connected, what="the broker is gone")
    with pytest.raises(UNAVAILABLE):
        await noted.write()
    broker.start()
    await eventually(lambda: bus.is_connected, what="the broker is back")

    async def is_written() -> bool:
        try:
            await noted.write()
        except Exception:
            return False
        return True

    await eventually(is_written, what="it is written")
    await noted.write()
    assert (await bus.js.stream_info(subjects.AUDIT)).state.messages == 1


async def test_different_refusals_take_a_bounded_memory(bus: Bus) -> None:
    noted = Refusals(bus)
    for number in range(MOST_PENDING + 5):
        noted.note([number + 1], token="t", method="GET", route="/tasks", code="forbidden", now=NOW)
    assert len(noted._tallies) == MOST_PENDING
    assert noted._dropped == 5


# --- who may read it -------------------------------------------------------------------------------------


async def test_managers_read_the_chains_they_manage_and_nobody_else_does(http: httpx.AsyncClient, bus: Bus) -> None:
    manager = await hold(bus, "manager1", c1=AccessLevel.MANAGER, c2=AccessLevel.OPERATOR)
    operator = await hold(bus, "operator1", c1=AccessLevel.OPERATOR)
    both = await hold(bus, "both", c1=AccessLevel.MANAGER, c2=AccessLevel.MANAGER)
    await hold(bus, "elsewhere", c2=AccessLevel.VIEWER)
    rows = await trail(http, 3, manager)
    assert {row["chain"] for row in rows} == {1}
    assert {row["subject"].rpartition("/")[2] for row in rows} == {"manager1", "operator1", "both"}
    assert '"2"' not in str(rows)
    assert len(await trail(http, 6, both)) == 6
    assert len(await trail(http, 3, both, chain=2)) == 3
    for headers, query in ((operator, {}), (manager, {"chain": 2}), (manager, {"chain": 3})):
        answer = await http.get("/audit", params=query, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


async def test_pages_go_back_from_the_newest(http: httpx.AsyncClient) -> None:
    for _ in range(4):
        await http.post("/tasks", json=TASK)
    everything = await trail(http, 6)
    pages = [await http.get("/audit", params={"limit": 2, "offset": offset}) for offset in (0, 2, 4)]
    assert [row for page in pages for row in page.json()] == everything
    assert {page.headers["x-total-count"] for page in pages} == {"6"}
    assert 'rel="next"' in pages[0].headers["link"]
    assert [row["date"] for row in everything] == sorted((row["date"] for row in everything), reverse=True)
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    assert (await http.get("/audit", params={"since": later})).json() == []
    assert (await http.get("/audit", params={"since": "yesterday"})).status_code == 422


# --- no secrets ------------------------------------------------------------------------------------------


async def test_no_secret_is_anywhere_but_in_its_answer(
    settings: Settings, bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    secrets = [TOKEN.partition(":")[2], "in-the-query", "in-the-body"]
    with caplog.at_level(logging.DEBUG):
        async with adapter(settings) as http:
            made = (await http.post("/access_tokens", json={"kind": "privileged", "chain": CHAIN})).json()
            rotated = (await http.post(f"/access_tokens/{made['id']}/rotate")).json()
            secrets += [made["secret"], rotated["secret"]]
            for secret in (made["secret"], rotated["secret"]):
                headers = {"Authorization": f"Bearer {made['id']}:{secret}"}
                assert (await http.get("/tasks", headers=headers)).status_code == 200
                refused = await http.post("/tasks", json=TASK | {"debug": "in-the-body"}, headers=headers)
                assert refused.status_code == 403
            await http.get("/audit?action=in-the-query", headers=headers)
            await http.get("/tasks", headers={"Authorization": f"Bearer {made['id']}:in-the-body"})
            await http.delete(f"/access_tokens/{made['id']}")
            await http.get("/tasks", headers=headers)
            rows = await trail(http, 3, action="call.refused")
            assert all(secret not in str(rows) for secret in secrets)
    stores = {}
    for stream in (subjects.TOKENS_STREAM, f"KV_{subjects.TOKEN_USE_BUCKET}", subjects.AUDIT, subjects.EVENTS):
        state = (await bus.js.stream_info(stream)).state
        assert state.messages
        stores[stream] = b""
        for sequence in range(state.first_seq, state.last_seq + 1):
            try:
                message = await bus.js.get_msg(stream, sequence)
            except Exception:
                continue
            stores[stream] += (message.data or b"") + str(message.headers).encode()
    for file in settings.data_dir.glob("readmodel*"):
        stores[file.name] = file.read_bytes()
    ours = [record for record in caplog.records if record.name.startswith("runwire")]
    assert ours
    stores["log"] = "\n".join(f"{record.getMessage()} {vars(record)}" for record in ours).encode()
    assert made["id"].encode() in stores[subjects.TOKENS_STREAM]
    for name, content in stores.items():
        for secret in secrets:
            assert secret.encode() not in content, (name, secret)


# --- a projection ----------------------------------------------------------------------------------------


async def everything(database: Database) -> list[tuple[object, ...]]:
    return await database.read(
        lambda connection: connection.execute(  # the ordinals only count
            "SELECT stream, sequence, chain, date, actor, action, subject, detail, source FROM audit "
            "ORDER BY stream, sequence, chain"
        ).fetchall()
    )


async def test_a_rebuilt_trail_is_the_one_that_was_kept_up(settings: Settings, bus: Bus, tmp_path: Path) -> None:
    async with adapter(settings) as http:
        await hold(bus, "wide", c1=AccessLevel.VIEWER, c2=AccessLevel.VIEWER)
        viewer = await hold(bus, "viewer", **{f"c{CHAIN}": AccessLevel.VIEWER})
        made = (await http.post("/access_tokens", json={"kind": "privileged", "chain": CHAIN})).json()
        for number in range(streams.TOKEN_HISTORY + 6):  # more than the bucket remembers
            await http.patch(f"/access_tokens/{made['id']}", json={"desc": str(number)})
        await http.post("/tasks", json=TASK)
        await http.post("/tasks/12345/execute", headers=viewer)
        await trail(http, 1, action="call.refused")
        last = (await bus.js.stream_info(subjects.TOKENS_STREAM)).state.last_seq
        live = http.services.trail._database

        async def is_read() -> bool:
            return any(row[:2] == (subjects.TOKENS_STREAM, last) for row in await everything(live))

        await eventually(is_read, what="the last change was read")
        kept = await everything(live)
    database = await open_database(tmp_path / "rebuilt.db")
    projector = await start_projector(bus, database, Heads(), Waiters(1), settings)
    rebuilt = await everything(database)
    await projector.stop()
    await database.close()
    assert len(kept) == streams.TOKEN_HISTORY + 7
    assert rebuilt == kept


async def test_a_read_model_from_before_the_trail_is_read_anew(settings: Settings, bus: Bus, tmp_path: Path) -> None:
    import sqlite3
    from importlib import resources

    await make_task(bus, task=7)
    path = tmp_path / "old.db"
    old = sqlite3.connect(path)
    old.executescript((resources.files("runwire.readmodel") / "migrations" / "0001_initial.sql").read_text())
    created = str((await bus.js.stream_info(subjects.EVENTS)).created)
    old.execute("INSERT INTO position VALUES ('EVENTS', ?, 1)", (created,))
    old.execute("PRAGMA user_version = 1")
    old.execute(f"PRAGMA application_id = {LAYOUT}")
    old.commit()
    old.close()
    database = await open_database(path)
    projector = await start_projector(bus, database, Heads(), Waiters(1), settings)
    rows, total = await Trail(database).page(AuditFilter(chains=(CHAIN,)), limit=10, offset=0, now=datetime.now(UTC))
    await projector.stop()
    await database.close()
    assert (total, rows[0].action, rows[0].subject) == (1, "task.created", "/tasks/7")


async def test_what_is_older_than_the_trail_goes_back_is_forgotten(tmp_path: Path) -> None:
    def told(sequence: int, date: datetime) -> Told:
        row = AuditRow(
            stream="EVENTS", sequence=sequence, chain=1, date=date, by="t", action="task.created", subject="", detail={}
        )
        return Told(source=f"s{sequence}", rows=[row])

    oldest = NOW - timedelta(days=streams.AUDIT_DAYS)
    database = await open_database(tmp_path / "trail.db")
    for now, rows in (
        (NOW, [told(1, oldest - timedelta(seconds=1)), told(2, oldest), told(3, NOW)]),
        (NOW + timedelta(seconds=1), [told(4, NOW)]),
    ):
        await database.transact(lambda connection, rows=rows, now=now: audit.apply(connection, rows, kept=9, now=now))
        found = [found[1] for found in await everything(database)]
        assert found == ([2, 3] if now == NOW else [3, 4])
    page, total = await Trail(database).page(
        AuditFilter(chains=(1,)), limit=10, offset=0, now=NOW + timedelta(days=streams.AUDIT_DAYS, seconds=1)
    )
    await database.close()
    assert (page, total) == ([], 0)


async def test_garbage_on_the_streams_is_left_out(http: httpx.AsyncClient, bus: Bus, caplog: Any) -> None:
    await bus.js.publish(subjects.audit(CHAIN), b"{}")
    await bus.js.publish(f"$KV.{subjects.TOKENS_BUCKET}.broken", b"{}")
    await (await bus.bucket(subjects.TOKENS_BUCKET)).purge("broken")
    await http.post("/tasks", json=TASK)
    assert len(await trail(http, 3)) == 3
    with pytest.raises(Exception, match="required"):
        refusals.decode(b"{}")
