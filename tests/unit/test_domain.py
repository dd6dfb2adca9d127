"""Tokens, ids, preferences, CSV cells and settings: small things with rules."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

import runwire
from runwire.app import App, load_app
from runwire.domain.access import (
    AccessLevel,
    AccessToken,
    Principal,
    TokenKind,
    digest,
    new_credential,
    parse_credential,
)
from runwire.domain.errors import Forbidden, SetupError, TaskNotFound
from runwire.domain.ids import uuid7
from runwire.http import prefer
from runwire.http.prefer import Preference
from runwire.settings import load

NOW = datetime(2026, 5, 26, tzinfo=UTC)


def token(**fields: object) -> AccessToken:
    secret = {"id": "t", "kind": TokenKind.ADMIN, "digest": digest("s"), "levels": {1: AccessLevel.OPERATOR}}
    return AccessToken(**secret, created=NOW, **fields)


def test_a_token_accepts_its_secret_while_it_is_active_and_not_expired() -> None:
    assert token().accepts("s", NOW)
    assert not token().accepts("S", NOW)
    assert not token(active=False).accepts("s", NOW)
    assert token(expires=NOW + timedelta(seconds=1)).accepts("s", NOW)
    assert not token(expires=NOW).accepts("s", NOW)


def test_a_stored_token_holds_no_secret() -> None:
    token_id, secret = new_credential()
    assert len(secret) >= 43
    stored = token().model_copy(update={"id": token_id, "digest": digest(secret)}).model_dump_json()
    assert secret not in stored


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("a:b", ("a", "b")),
        ("a:b:c", ("a", "b:c")),
        ("a:", None),
        (":b", None),
        ("ab", None),
        ("a b:c", None),
        ("a:b\n", None),
        ("x" * 65 + ":b", None),
    ],
)
def test_what_a_credential_looks_like(text: str, parsed: tuple[str, str] | None) -> None:
    assert parse_credential(text) == parsed


def test_a_foreign_chain_is_missing_and_a_low_level_is_forbidden() -> None:
    principal = Principal(token="t", levels={1: AccessLevel.OPERATOR})
    principal.require(AccessLevel.VIEWER, 1)
    principal.require(AccessLevel.OPERATOR, 1)
    with pytest.raises(Forbidden):
        principal.require(AccessLevel.MANAGER, 1)
    with pytest.raises(TaskNotFound):
        principal.require_task(AccessLevel.VIEWER, 2, 7)


def test_uuids_sort_by_time_and_are_version_7() -> None:
    made = [UUID(uuid7()) for _ in range(1000)]
    assert len(set(made)) == 1000
    assert {uuid.version for uuid in made} == {7}
    assert {uuid.variant for uuid in made} == {"specified in RFC 4122"}
    assert [uuid.int >> 80 for uuid in made] == sorted(uuid.int >> 80 for uuid in made)


@pytest.mark.parametrize(
    ("headers", "wanted"),
    [
        ([], Preference()),
        (["wait=10"], Preference(10)),
        (['Wait="10"'], Preference(10)),
        (["respond-async, wait=5"], Preference(5, respond_async=True)),
        (["respond-async", "wait=5; foo=bar"], Preference(5, respond_async=True)),
        (["wait=1, wait=2"], Preference(1)),
        (["wait=99999999999999999999"], Preference(prefer.LONGEST_WAIT)),
        (["wait=x", "return=minimal"], Preference()),
    ],
)
def test_what_a_caller_prefers(headers: list[str], wanted: Preference) -> None:
    assert prefer.parse(headers) == wanted


def test_how_long_a_call_waits() -> None:
    assert Preference().seconds(55) == 55
    assert Preference(0).seconds(55) == 0
    assert Preference(respond_async=True).seconds(55) == 0
    assert Preference(3, respond_async=True).seconds(55) == 3


@given(st.text())
def test_any_prefer_header_is_understood_or_ignored(text: str) -> None:
    preference = prefer.parse([text])
    assert preference.wait is None or 0 <= preference.wait <= prefer.LONGEST_WAIT


def test_an_action_is_registered_once_and_has_to_be_of_the_right_form() -> None:
    app = App()

    @app.action("a")
    async def a(params: dict[str, object], ctx: runwire.Context) -> None: ...

    with pytest.raises(SetupError, match="twice"):
        app.action("a")(a)
    with pytest.raises(SetupError, match="must be a function"):
        app.action("b")(App)
    with pytest.raises(SetupError, match="two arguments"):

        @app.action("c")
        async def c(params: dict[str, object]) -> None: ...


@pytest.mark.parametrize("code", ["", "Not Snake", "ÜBER", "x" * 65, "a\r\nSet-Cookie: x"])
def test_an_error_code_is_safe_in_a_header(code: str) -> None:
    with pytest.raises(ValueError, match="error code"):
        runwire.Fail(code)


def test_a_module_that_breaks_on_import_is_told(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_module.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SetupError, match="ZeroDivisionError"):
        load_app("broken_module:app")


def test_all_complaints_about_settings_come_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNWIRE_HTTP_PORT", "0")
    monkeypatch.setenv("RUNWIRE_NATS_SYNC", "sometimes")
    with pytest.raises(SetupError) as complaint:
        load()
    assert "RUNWIRE_HTTP_PORT: " in str(complaint.value)
    assert "RUNWIRE_NATS_SYNC: " in str(complaint.value)


def test_a_token_in_the_settings_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNWIRE_BOOTSTRAP_TOKEN", "me:not-to-be-seen")
    assert "not-to-be-seen" not in repr(load())
