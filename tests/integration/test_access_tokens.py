"""Access tokens over HTTP: who may make, see and change which, and how soon a change holds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from nats.js.kv import KeyValue

from runwire.domain import access
from runwire.domain.access import AccessLevel, Principal, TokenKind
from runwire.messaging import subjects, tokens
from runwire.messaging.broker import Bus
from runwire.messaging.tokens import Uses
from runwire.settings import Settings
from tests.support import CHAIN, adapter, eventually, free_port

NEVER_MADE = "0b7e6f0e-3f0c-4c4e-9a53-5d3b8f6f2a11"
FIELDS = [
    "id", "kind", "levels", "desc", "active", "created", "expires", "deleted", "last_used", "previous_until", "change",
    "changed", "by",
]  # fmt: skip


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


async def make(http: httpx.AsyncClient, headers: dict[str, str] | None = None, **fields: object) -> dict[str, Any]:
    body = {"kind": "privileged", "chain": CHAIN} | fields
    answer = await http.post("/access_tokens", json=body, headers=headers)
    assert answer.status_code == 201, answer.text
    return answer.json()


def bearer(made: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {made['token']}"}


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


# --- making one ------------------------------------------------------------------------------------------


async def test_a_new_token_comes_with_its_secret_once_and_lasts_90_days(http: httpx.AsyncClient) -> None:
    answer = await http.post("/access_tokens", json={"kind": "privileged", "chain": CHAIN, "desc": "billing"})
    made = answer.json()
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/access_tokens/{made['id']}"
    assert answer.headers["cache-control"] == "no-store"
    assert list(made) == [*FIELDS, "secret", "token"]
    assert made["token"] == f"{made['id']}:{made['secret']}"
    assert (made["levels"], made["kind"], made["desc"]) == ({str(CHAIN): "operator"}, "privileged", "billing")
    assert (made["change"], made["by"], made["last_used"]) == ("created", "tester", None)
    lifetime = datetime.fromisoformat(made["expires"]) - datetime.fromisoformat(made["created"])
    assert lifetime == timedelta(days=90)
    shown = await http.get(answer.headers["location"])
    assert list(shown.json()) == FIELDS
    assert made["secret"] not in shown.text + (await http.get("/access_tokens")).text
    assert (await http.get("/tasks", headers=bearer(made))).status_code == 200


async def test_an_admin_token_has_a_level_per_chain_and_an_end_of_its_own(http: httpx.AsyncClient, bus: Bus) -> None:
    manager = await hold(bus, "both", c1=AccessLevel.MANAGER, c2=AccessLevel.MANAGER)
    levels = {"1": "viewer", "2": "manager"}
    end = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    answer = await http.post(
        "/access_tokens", json={"kind": "admin", "levels": levels, "expires": end}, headers=manager
    )
    made = answer.json()
    assert (answer.status_code, made["levels"], made["expires"]) == (201, levels, end[:19] + "Z")


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"kind": "privileged", "chain": CHAIN, "id": "mine"}, "/id"),
        ({"kind": "privileged", "chain": CHAIN, "secret": "mine"}, "/secret"),
        ({"kind": "privileged", "chain": CHAIN, "levels": {"1": "viewer"}}, "/levels"),
        ({"kind": "privileged", "chain": CHAIN, "level": 3}, "/level"),
        ({"kind": "privileged", "chain": CHAIN, "level": "owner"}, "/level"),
        ({"kind": "privileged"}, "/chain"),
        ({"kind": "privileged", "chain": CHAIN, "expires": "2020-01-01T00:00:00Z"}, "/expires"),
        ({"kind": "privileged", "chain": CHAIN, "expires": "9999-12-31T23:59:59-23:59"}, "/expires"),
        ({"kind": "privileged", "chain": CHAIN, "expires": 99999999999}, "/expires"),
        ({"kind": "privileged", "chain": CHAIN, "desc": "x" * 501}, "/desc"),
        ({"kind": "privileged", "chain": CHAIN, "desc": "\x00"}, "/desc"),
        ({"kind": "admin", "levels": {}}, "/levels"),
        ({"kind": "admin", "levels": {"0": "viewer"}}, "/levels/0"),
        ({"kind": "admin", "levels": {str(chain): "viewer" for chain in range(1, 102)}}, "/levels"),
        ({"kind": "root"}, ""),
        ({}, ""),
        ([], ""),
    ],
)
async def test_what_a_new_token_cannot_be_is_pointed_at(http: httpx.AsyncClient, body: object, pointer: str) -> None:
    answer = await http.post("/access_tokens", json=body)
    assert code(answer) == (422, "invalid_fields")
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]


# --- nobody gets more than they have ---------------------------------------------------------------------


async def test_only_managers_make_tokens_and_only_for_chains_they_manage(http: httpx.AsyncClient, bus: Bus) -> None:
    operator = await hold(bus, "operator1", c1=AccessLevel.OPERATOR)
    manager = await hold(bus, "manager1", c1=AccessLevel.MANAGER, c2=AccessLevel.OPERATOR)
    for headers, body in (
        (operator, {"kind": "privileged", "chain": 1, "level": "viewer"}),
        (manager, {"kind": "privileged", "chain": 2, "level": "viewer"}),
        (manager, {"kind": "privileged", "chain": 3}),
        (manager, {"kind": "admin", "levels": {"1": "viewer", "2": "viewer"}}),
        (manager, {"kind": "admin", "levels": {"9999999999999999": "viewer"}}),
    ):
        answer = await http.post("/access_tokens", json=body, headers=headers)
        assert code(answer) == (403, "forbidden"), body
    assert {token.id for token in await tokens.list_all(bus)} == {"tester", "manager1", "operator1"}


async def test_only_managers_list_and_see_only_the_chains_they_manage(http: httpx.AsyncClient, bus: Bus) -> None:
    viewer = await hold(bus, "viewer1", c1=AccessLevel.VIEWER)
    manager = await hold(bus, "manager1", c1=AccessLevel.MANAGER, c4=AccessLevel.VIEWER)
    await hold(bus, "wide", c1=AccessLevel.VIEWER, c2=AccessLevel.MANAGER, c4=AccessLevel.VIEWER)
    await hold(bus, "elsewhere", c4=AccessLevel.VIEWER)
    assert code(await http.get("/access_tokens", headers=viewer)) == (403, "forbidden")
    assert code(await http.get("/access_tokens?chain=2", headers=manager)) == (403, "forbidden")
    assert code(await http.get("/access_tokens?chain=4", headers=manager)) == (403, "forbidden")
    seen = {token["id"]: token["levels"] for token in (await http.get("/access_tokens", headers=manager)).json()}
    assert seen == {"viewer1": {"1": "viewer"}, "manager1": {"1": "manager"}, "wide": {"1": "viewer"}}
    assert (await http.get("/access_tokens/wide", headers=manager)).json()["levels"] == {"1": "viewer"}


async def test_changing_needs_manager_in_every_chain_and_does_not_tell_which(http: httpx.AsyncClient, bus: Bus) -> None:
    manager = await hold(bus, "manager1", c1=AccessLevel.MANAGER)
    viewer = await hold(bus, "viewer1", c1=AccessLevel.VIEWER)
    await hold(bus, "wide", c1=AccessLevel.VIEWER, c77=AccessLevel.VIEWER)
    for headers in (manager, viewer):
        for answer in (
            await http.patch("/access_tokens/wide", json={"active": False}, headers=headers),
            await http.post("/access_tokens/wide/rotate", headers=headers),
            await http.delete("/access_tokens/wide", headers=headers),
        ):
            assert code(answer) == (403, "forbidden")
            assert "77" not in answer.text
    assert code(await http.get("/access_tokens/wide", headers=viewer)) == (403, "forbidden")
    stored = await tokens.get(bus, "wide")
    assert stored.active
    assert stored.deleted is None


async def test_a_foreign_token_looks_like_a_missing_one(http: httpx.AsyncClient, bus: Bus) -> None:
    manager = await hold(bus, "manager1", c1=AccessLevel.MANAGER)
    await hold(bus, NEVER_MADE.replace("0b", "1b"), c2=AccessLevel.VIEWER)
    for method, suffix, body in (
        ("GET", "", None),
        ("PATCH", "", {"active": False}),
        ("POST", "/rotate", {}),
        ("DELETE", "", None),
    ):
        foreign, missing = [
            await http.request(method, f"/access_tokens/{token}{suffix}", json=body, headers=manager)
            for token in (NEVER_MADE.replace("0b", "1b"), NEVER_MADE)
        ]
        assert code(missing) == (404, "token_not_found")
        assert foreign.text.replace("1b7e", "0b7e") == missing.text
        assert {**foreign.headers, "date": ""} == {**missing.headers, "date": ""}
    assert code(await http.get("/access_tokens/a.b", headers=manager)) == (400, "malformed_id")


async def test_everybody_may_look_at_themselves(http: httpx.AsyncClient, bus: Bus) -> None:
    viewer = await hold(bus, "viewer1", c1=AccessLevel.VIEWER, c2=AccessLevel.OPERATOR)
    for path in ("self", "viewer1"):
        shown = await http.get(f"/access_tokens/{path}", headers=viewer)
        assert (shown.status_code, shown.json()["id"]) == (200, "viewer1")
        assert shown.json()["levels"] == {"1": "viewer", "2": "operator"}
    nobody = await http.get("/access_tokens/self", headers={"Authorization": "Bearer viewer1:wrong"})
    assert code(nobody) == (401, "unauthenticated")


# --- changing one ----------------------------------------------------------------------------------------


async def test_scope_is_immutable(http: httpx.AsyncClient) -> None:
    made = await make(http)
    for name, value in (
        ("levels", {"1": "manager"}),
        ("chain", 2),
        ("kind", "admin"),
        ("secret", "x"),
        ("expires", None),
    ):
        answer = await http.patch(f"/access_tokens/{made['id']}", json={name: value})
        assert code(answer) == (422, "invalid_fields")
        assert answer.json()["errors"][0]["pointer"] == f"/{name}"


async def test_a_token_is_switched_off_and_on_and_described_anew(http: httpx.AsyncClient) -> None:
    made = await make(http)
    path = f"/access_tokens/{made['id']}"
    assert (await http.get("/tasks", headers=bearer(made))).status_code == 200
    off = await http.patch(path, json={"active": False})
    assert (off.status_code, off.json()["active"], off.json()["change"]) == (200, False, "deactivated")
    assert code(await http.get("/tasks", headers=bearer(made))) == (401, "unauthenticated")
    assert (await http.patch(path, json={"active": True, "desc": "new"})).json()["desc"] == "new"
    assert (await http.get("/tasks", headers=bearer(made))).status_code == 200
    before = (await http.get(path)).json()
    same = await http.patch(path, json={"active": True, "desc": "new"})
    assert (same.json()["change"], same.json()["changed"]) == (before["change"], before["changed"])


async def test_nobody_locks_themselves_out(http: httpx.AsyncClient) -> None:
    assert code(await http.patch("/access_tokens/tester", json={"active": False})) == (409, "own_token")
    assert code(await http.delete("/access_tokens/tester")) == (409, "own_token")
    assert (await http.patch("/access_tokens/tester", json={"desc": "mine"})).status_code == 200
    assert (await http.get("/access_tokens/self")).json()["active"]


async def test_a_deleted_token_is_kept_and_changes_no_more(http: httpx.AsyncClient) -> None:
    made = await make(http)
    path = f"/access_tokens/{made['id']}"
    gone = await http.delete(path)
    assert (gone.status_code, gone.content) == (204, b"")
    shown = (await http.get(path)).json()
    assert (shown["active"], shown["change"]) == (False, "deleted")
    assert shown["deleted"]
    for answer in (
        await http.delete(path),
        await http.patch(path, json={"active": True}),
        await http.post(f"{path}/rotate"),
    ):
        assert code(answer) == (404, "token_not_found")
    listed = await http.get("/access_tokens")
    assert made["id"] not in listed.text
    assert [token["id"] for token in (await http.get("/access_tokens?deleted=true")).json()] == [made["id"]]
    refused = await http.get("/tasks", headers=bearer(made))
    unknown = await http.get("/tasks", headers={"Authorization": f"Bearer {NEVER_MADE}:x"})
    assert (refused.text, refused.headers["www-authenticate"]) == (unknown.text, unknown.headers["www-authenticate"])


async def test_lists_are_paged_oldest_first(http: httpx.AsyncClient, bus: Bus) -> None:
    for number in range(5):
        await hold(bus, f"t{number}", **{f"c{CHAIN}": AccessLevel.VIEWER})
    page = await http.get(f"/access_tokens?limit=2&offset=2&chain={CHAIN}")
    assert (len(page.json()), page.headers["x-total-count"]) == (2, "6")
    assert 'rel="next"' in page.headers["link"]
    assert code(await http.get("/access_tokens?offset=x")) == (422, "invalid_fields")


# --- rotation --------------------------------------------------------------------------------------------


async def test_both_secrets_work_during_the_overlap_and_one_after_it(http: httpx.AsyncClient, bus: Bus) -> None:
    made = await make(http, expires=(datetime.now(UTC) + timedelta(days=1)).isoformat())
    answer = await http.post(f"/access_tokens/{made['id']}/rotate", json={"overlap": 3})
    rotated = answer.json()
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    assert rotated["secret"] != made["secret"]
    assert rotated["previous_until"] > made["created"]
    assert datetime.fromisoformat(rotated["expires"]) > datetime.now(UTC) + timedelta(days=89)
    assert (await http.get("/tasks", headers=bearer(rotated))).status_code == 200
    assert (await http.get("/tasks", headers=bearer(made))).status_code == 200
    authenticate = http.services.authenticate
    former, current = [
        Principal(token=made["id"], levels={CHAIN: AccessLevel.OPERATOR}, secret_digest=access.digest(which["secret"]))
        for which in (made, rotated)
    ]
    assert await authenticate.still_valid(former)

    async def old_is_refused() -> bool:
        return (await http.get("/tasks", headers=bearer(made))).status_code == 401

    await eventually(old_is_refused, what="the old secret ended")
    old = await http.get("/tasks", headers=bearer(made))
    unknown = await http.get("/tasks", headers={"Authorization": f"Bearer {NEVER_MADE}:x"})
    assert old.content == unknown.content
    assert not await authenticate.still_valid(former)
    assert await authenticate.still_valid(current)
    assert (await http.get("/tasks", headers=bearer(rotated))).status_code == 200


async def test_without_an_overlap_the_old_secret_ends_with_the_answer(http: httpx.AsyncClient) -> None:
    made = await make(http)
    rotated = (await http.post(f"/access_tokens/{made['id']}/rotate", json={"overlap": 0})).json()
    assert (await http.get("/tasks", headers=bearer(made))).status_code == 401
    assert (await http.get("/tasks", headers=bearer(rotated))).status_code == 200


@pytest.mark.parametrize(
    "body", [{"overlap": -1}, {"overlap": 604_801}, {"overlap": 1.5}, {"expires": "2020-01-01T00:00:00Z"}]
)
async def test_a_rotation_that_makes_no_sense_is_refused(http: httpx.AsyncClient, body: dict[str, object]) -> None:
    made = await make(http)
    assert code(await http.post(f"/access_tokens/{made['id']}/rotate", json=body)) == (422, "invalid_fields")
    assert (await http.get("/tasks", headers=bearer(made))).status_code == 200


async def test_of_many_changes_at_once_each_is_made_on_top_of_the_other(http: httpx.AsyncClient, bus: Bus) -> None:
    made = await make(http)
    path = f"/access_tokens/{made['id']}"
    answers = await asyncio.gather(
        http.patch(path, json={"active": False}),
        http.patch(path, json={"desc": "one"}),
        http.post(f"{path}/rotate"),
    )
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    stored = await tokens.get(bus, made["id"])
    assert (stored.active, stored.desc, stored.digest) == (False, "one", access.digest(answers[2].json()["secret"]))


class Forgetful:
    """A bucket whose next acknowledgement is lost on the way."""

    def __init__(self, bucket: KeyValue) -> None:
        self._bucket = bucket
        self.lost = 0

    async def get(self, key: str) -> KeyValue.Entry:
        return await self._bucket.get(key)

    async def update(self, key: str, value: bytes, last: int) -> int:
        revision = await self._bucket.update(key, value, last=last)
        if not self.lost:
            self.lost += 1
            raise TimeoutError
        return revision


async def test_a_change_whose_acknowledgement_was_lost_is_made_once(bus: Bus) -> None:
    await hold(bus, "t", c1=AccessLevel.VIEWER)
    forgetful = Forgetful(await bus.bucket(subjects.TOKENS_BUCKET))
    bus._buckets[subjects.TOKENS_BUCKET] = forgetful
    now = datetime.now(UTC)

    def rotated(token: access.AccessToken) -> access.AccessToken:
        return access.rotate(token, "new", overlap=timedelta(hours=1), expires=now, by="ada", now=now)

    changed = await tokens.change(bus, "t", rotated)
    assert forgetful.lost == 1
    assert changed.previous.digest == access.digest("secret")
    assert (await bus.js.stream_info(subjects.TOKENS_STREAM)).state.messages == 2


# --- everywhere, soon ------------------------------------------------------------------------------------


async def test_a_change_holds_on_another_adapter_within_five_seconds(
    http: httpx.AsyncClient, settings: Settings, tmp_path: Path
) -> None:
    made = await make(http)
    other_settings = settings.model_copy(update={"data_dir": tmp_path / "other", "http_port": free_port()})
    async with adapter(other_settings) as other:
        for client in (http, other):
            assert (await client.get("/tasks", headers=bearer(made))).status_code == 200
        await http.patch(f"/access_tokens/{made['id']}", json={"active": False})
        began = asyncio.get_running_loop().time()
        assert (await http.get("/tasks", headers=bearer(made))).status_code == 401

        async def refused() -> bool:
            return (await other.get("/tasks", headers=bearer(made))).status_code == 401

        await eventually(refused, what="the other adapter refuses it")
        assert asyncio.get_running_loop().time() - began < 5


async def test_the_last_use_appears_and_is_written_once_a_minute(http: httpx.AsyncClient, bus: Bus) -> None:
    made = await make(http)
    path = f"/access_tokens/{made['id']}"
    assert (await http.get(path)).json()["last_used"] is None
    await http.get("/tasks", headers=bearer(made))
    assert (await http.get(path)).json()["last_used"]

    async def is_written() -> datetime | None:
        return await tokens.last_use(bus, made["id"])

    written = await eventually(is_written, what="the use is in the bucket")
    assert abs(datetime.now(UTC) - written) < timedelta(minutes=1)
    listed = {token["id"]: token["last_used"] for token in (await http.get("/access_tokens")).json()}
    assert datetime.fromisoformat(listed[made["id"]]) >= written


async def test_uses_are_written_when_they_are_due_only(bus: Bus) -> None:
    uses = Uses(bus)
    first, second = datetime(2026, 5, 26, 14, 0, tzinfo=UTC), datetime(2026, 5, 26, 14, 1, tzinfo=UTC)
    uses.saw("t", first)
    await uses.write(everything=False)
    uses.saw("t", second)
    await uses.write(everything=False)
    assert await tokens.last_use(bus, "t") == first
    assert uses.latest("t") == second
    await uses.write(everything=True)
    assert await tokens.last_use(bus, "t") == second
    assert uses.latest("t") is None


async def test_the_first_token_never_expires_and_says_where_it_came_from(http: httpx.AsyncClient) -> None:
    first = (await http.get("/access_tokens/self")).json()
    assert (first["id"], first["expires"], first["change"], first["by"]) == ("tester", None, "created", "operator")


async def test_a_large_bucket_is_listed_whole(bus: Bus) -> None:
    bucket = await bus.bucket(subjects.TOKENS_BUCKET)
    template = access.create_token(
        "x",
        "s",
        kind=TokenKind.ADMIN,
        levels={1: AccessLevel.VIEWER},
        by="operator",
        now=datetime.now(UTC),
        expires=None,
    )
    for start in range(0, 1000, 100):
        await asyncio.gather(
            *(
                bucket.put(f"t{n}", template.model_copy(update={"id": f"t{n}"}).model_dump_json().encode())
                for n in range(start, start + 100)
            )
        )
    assert len(await tokens.list_all(bus)) == 1000


async def test_an_empty_bucket_is_listed_at_once(bus: Bus) -> None:
    async with asyncio.timeout(2):
        assert await tokens.list_all(bus) == []
        assert await tokens.last_uses(bus) == {}
