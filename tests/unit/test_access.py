"""Access tokens as values: what each change makes of one, and which secrets open it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from runwire.domain import access
from runwire.domain.access import AccessLevel, AccessToken, Principal, TokenChange, TokenKind
from runwire.domain.errors import Forbidden, TaskNotFound

NOW = datetime(2026, 5, 26, 14, 35, tzinfo=UTC)
HOUR = timedelta(hours=1)


def token(**fields: object) -> AccessToken:
    given = {"kind": TokenKind.ADMIN, "levels": {1: AccessLevel.OPERATOR}, "by": "ada", "now": NOW, "expires": None}
    return access.create_token("t", "first", **(given | fields))


def rotated(found: AccessToken, secret: str = "second", *, overlap: timedelta = HOUR) -> AccessToken:
    return access.rotate(found, secret, overlap=overlap, expires=NOW + access.LIFETIME, by="bob", now=NOW)


@pytest.mark.parametrize(
    ("user", "named"),
    [
        ("t", ("t", None)),
        ("a-b_C.17", ("a-b_C", 17)),
        ("", None),
        ("t.", None),
        (".17", None),
        ("t.017", None),
        ("t.0", None),
        ("t.-1", None),
        ("t.1.2", None),
        ("t.*", None),
        ("t.>", None),
        ("t 17", None),
        ("t.17\n", None),
        ("t.\u0661", None),
        ("t" * 65, None),
    ],
)
def test_a_client_of_the_bus_names_its_token_and_maybe_a_chain(user: str, named: object) -> None:
    assert access.parse_bus_user(user) == named


def test_a_client_of_the_bus_is_let_into_one_chain() -> None:
    one, two = token(levels={1: AccessLevel.VIEWER}), token(levels={1: AccessLevel.VIEWER, 2: AccessLevel.MANAGER})
    assert [one.chain_of(named) for named in (None, 1, 2)] == [1, 1, None]
    assert [two.chain_of(named) for named in (None, 1, 2, 3)] == [None, 1, 2, None]


def test_a_secret_ends_with_its_overlap_or_with_the_token() -> None:
    former, new = access.digest("first"), access.digest("second")
    assert token().end_of(former) is None
    found = rotated(token())
    assert (found.end_of(former), found.end_of(new)) == (NOW + HOUR, NOW + access.LIFETIME)


def test_a_mark_is_good_for_as_long_as_its_secret() -> None:
    former, new = (access.mark_of(access.digest(secret)) for secret in ("first", "second"))
    found = rotated(token())
    assert found.has_secret(former, NOW)
    assert found.has_secret(new, NOW)
    assert not found.has_secret(former, NOW + HOUR)
    assert not found.has_secret(access.mark_of(access.digest("third")), NOW)
    assert not access.delete(found, by="ada", now=NOW).has_secret(new, NOW)
    assert not found.has_secret(new, NOW + access.LIFETIME)


def test_a_new_token_says_who_made_it_and_when() -> None:
    new = token(now=NOW + timedelta(milliseconds=700))
    assert (new.change, new.by, new.changed, new.created) == (TokenChange.CREATED, "ada", NOW, NOW)
    assert new.accepts("first", NOW)


def test_a_rotated_token_takes_both_secrets_until_the_overlap_ends() -> None:
    new = rotated(token())
    assert (new.change, new.by, new.expires) == (TokenChange.ROTATED, "bob", NOW + access.LIFETIME)
    assert new.accepts("first", NOW + HOUR - timedelta(seconds=1))
    assert not new.accepts("first", NOW + HOUR)
    assert new.accepts("second", NOW)
    assert new.accepts("second", NOW + HOUR)
    assert not new.accepts("third", NOW)


def test_without_an_overlap_the_old_secret_ends_at_once() -> None:
    new = rotated(token(), overlap=timedelta(0))
    assert new.previous is None
    assert not new.accepts("first", NOW)


def test_a_second_rotation_ends_the_first_secret() -> None:
    new = rotated(rotated(token()), "third")
    assert [new.accepts(secret, NOW) for secret in ("first", "second", "third")] == [False, True, True]


def test_a_token_that_is_off_opens_nothing_until_it_is_on_again() -> None:
    off = access.set_active(token(), active=False, by="bob", now=NOW)
    assert (off.change, off.by, off.accepts("first", NOW)) == (TokenChange.DEACTIVATED, "bob", False)
    on = access.set_active(off, active=True, by="bob", now=NOW)
    assert (on.change, on.accepts("first", NOW)) == (TokenChange.ACTIVATED, True)


def test_what_changes_nothing_leaves_the_token_as_it_is() -> None:
    assert access.set_active(token(), active=True, by="bob", now=NOW) == token()
    assert access.describe(token(desc="a"), "a", by="bob", now=NOW) == token(desc="a")
    assert access.describe(token(desc="a"), "b", by="bob", now=NOW).change is TokenChange.EDITED


def test_a_deleted_token_opens_nothing_with_either_secret() -> None:
    gone = access.delete(rotated(token()), by="bob", now=NOW)
    assert (gone.change, gone.deleted) == (TokenChange.DELETED, NOW)
    assert not gone.accepts("first", NOW)
    assert not gone.accepts("second", NOW)


def test_an_expired_token_takes_neither_secret() -> None:
    new = rotated(token()).model_copy(update={"expires": NOW + timedelta(seconds=1)})
    assert new.accepts("first", NOW)
    assert not new.accepts("first", NOW + timedelta(seconds=1))
    assert not new.accepts("second", NOW + timedelta(seconds=1))


def test_no_version_of_a_token_holds_a_secret() -> None:
    stored = rotated(token()).model_dump_json()
    assert "first" not in stored
    assert "second" not in stored


def test_what_is_read_back_equals_what_was_written() -> None:
    """By this a change whose acknowledgement was lost is recognised."""
    written = access.delete(rotated(token(expires=NOW + HOUR)), by="bob", now=NOW + timedelta(microseconds=1))
    for version in (written, rotated(token()), token()):
        assert AccessToken.model_validate_json(version.model_dump_json()) == version


def test_a_token_from_before_changes_were_kept_is_still_read() -> None:
    old = token().model_dump_json(exclude={"desc", "deleted", "previous", "change", "by", "changed"})
    assert AccessToken.model_validate_json(old).accepts("first", NOW)


def test_a_refusal_names_the_chain_that_is_to_hear_of_it() -> None:
    principal = Principal(token="t", levels={1: AccessLevel.VIEWER, 2: AccessLevel.MANAGER})
    assert principal.managed == (2,)
    with pytest.raises(Forbidden) as known:
        principal.require(AccessLevel.MANAGER, 1)
    with pytest.raises(Forbidden) as unknown:
        principal.require(AccessLevel.MANAGER, 3)
    with pytest.raises(TaskNotFound) as foreign:
        principal.require_task(AccessLevel.VIEWER, 3, 17)
    assert (known.value.chain, unknown.value.chain, foreign.value.chain) == (1, None, 3)
