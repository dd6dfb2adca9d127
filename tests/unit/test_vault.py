"""Secrets come from the operator's files, by name and by chain, and from nowhere else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runwire.domain.errors import Fail, Retry, SetupError
from runwire.worker import vault
from runwire.worker.vault import Vault


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    secrets = tmp_path / "secrets"
    (secrets / "17").mkdir(parents=True)
    (secrets / "token").write_text("everybodys-token\n")
    (secrets / "17" / "token").write_text("token-of-17\r\n")
    (secrets / "17" / "own").write_text("own-of-17")
    (tmp_path / "outside").write_text("outside")
    return secrets


def test_a_chains_own_secret_wins_over_everybodys(directory: Path) -> None:
    secrets = Vault(directory)
    assert secrets.open_for(17).get("token", own=False) == "token-of-17"
    assert secrets.open_for(18).get("token", own=False) == "everybodys-token"


def test_a_chain_gets_its_own_secrets_alone_when_that_is_asked_for(directory: Path) -> None:
    secrets = Vault(directory)
    assert secrets.open_for(17).get("token", own=True) == "token-of-17"
    for chain, name in ((18, "token"), (18, "own")):
        with pytest.raises(Fail) as refusal:
            secrets.open_for(chain).get(name, own=True)
        assert refusal.value.code == "unknown_secret"


@pytest.mark.parametrize(
    "name",
    [
        "nothing",
        "",
        ".",
        "..",
        "../outside",
        "17/own",
        "/etc/hostname",
        "17",
        ".hidden",
        "token\n",
        "to ken",
        "a" * 129,
    ],
)
def test_what_is_no_name_of_a_secret_is_none(directory: Path, name: str) -> None:
    (directory / ".hidden").write_text("hidden")
    with pytest.raises(Fail) as refusal:
        Vault(directory).open_for(18).get(name, own=False)
    assert refusal.value.code == "unknown_secret"
    assert str(directory) not in str(refusal.value)


def test_a_secret_is_read_anew_each_time(directory: Path) -> None:
    secrets = Vault(directory).open_for(18)
    assert secrets.get("token", own=False) == "everybodys-token"
    (directory / "token").write_text("a-new-one\n\n")
    assert secrets.get("token", own=False) == "a-new-one\n"
    assert secrets.redact("everybodys-token, a-new-one") == "***, ***"


def test_what_is_too_large_or_no_text_is_refused(directory: Path) -> None:
    (directory / "large").write_bytes(b"x" * (vault.LARGEST + 1))
    (directory / "largest").write_bytes(b"x" * vault.LARGEST)
    (directory / "binary").write_bytes(b"\xff\xfe")
    os.mkfifo(directory / "fifo")
    secrets = Vault(directory).open_for(18)
    for name in ("large", "binary", "fifo"):
        with pytest.raises(Fail, match=name):
            secrets.get(name, own=False)
    assert len(secrets.get("largest", own=False)) == vault.LARGEST


def test_a_file_that_cannot_be_read_is_worth_another_try(directory: Path) -> None:
    (directory / "round").symlink_to("round")
    with pytest.raises(Retry) as refusal:
        Vault(directory).open_for(18).get("round", own=False)
    assert refusal.value.code == "unknown_secret"


def test_without_a_directory_there_are_no_secrets(tmp_path: Path) -> None:
    with pytest.raises(Fail):
        Vault(None).open_for(18).get("token", own=False)
    with pytest.raises(SetupError, match="RUNWIRE_SECRETS"):
        Vault(tmp_path / "nowhere")


def test_later_runs_of_the_chain_hide_it_too_and_other_chains_do_not_learn_of_it(directory: Path) -> None:
    secrets = Vault(directory)
    assert secrets.open_for(17).redact("token-of-17") == "token-of-17"
    secrets.open_for(17).get("token", own=False)
    secrets.open_for(18).get("token", own=False)
    assert secrets.open_for(17).redact("token-of-17, everybodys-token") == "***, ***"
    assert secrets.open_for(18).redact("token-of-17, everybodys-token") == "token-of-17, ***"


def test_the_oldest_are_forgotten_but_not_while_their_run_lasts(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vault, "REMEMBERED", 3)
    secrets = Vault(directory)
    run = secrets.open_for(17)
    run.get("own", own=False)
    for number in range(4):
        (directory / "token").write_text(f"token-{number}")
        secrets.open_for(18).get("token", own=False)
    assert run.redact("own-of-17") == "***"
    assert secrets.open_for(17).redact("own-of-17, token-0, token-3") == "own-of-17, token-0, ***"
