"""`runwire subscription` as a person types it, against a running `up`."""

from __future__ import annotations

import json
from pathlib import Path

from tests.acceptance.test_token_cli import on
from tests.acceptance.test_up import running


async def test_subscriptions_are_made_listed_shown_and_deleted(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        runwire = on(service)
        made = runwire(
            "subscription", "create", "--chain", "1764", "--code", "done", "--code", "error", "--task", "12345",
            "--from-sequence", "1", "--desc", "billing", "--json",
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        pull = json.loads(made.stdout)
        assert (pull["kind"], pull["codes"], pull["tasks"]) == ("pull", ["done", "error"], [12345])
        assert (pull["from_sequence"], pull["desc"]) == (1, "billing")

        hooked = runwire("subscription", "create", "--chain", "1764", "--web-hook", "https://example.com/events")
        assert hooked.returncode == 0, hooked.stderr
        secret, told, _, *facts = hooked.stdout.splitlines()
        assert secret.startswith("whsec_")
        assert "shown this once" in told
        hook = facts[0].split()[1]
        assert "url           https://example.com/events" in facts

        listed = runwire("subscription", "list", "--chain", "1764").stdout
        head, *rows = listed.splitlines()
        assert head.split() == ["ID", "KIND", "CHAIN", "CODES", "STATE", "LAG", "LAST", "EVENT", "DESC"]
        assert {row.split()[0] for row in rows} == {pull["id"], hook}
        assert secret not in listed

        assert "codes         done, error" in runwire("subscription", "get", pull["id"]).stdout.splitlines()
        rotated = runwire("subscription", "rotate", hook).stdout
        assert rotated.startswith("whsec_")
        assert secret not in rotated
        assert "old secret    signs until" in runwire("subscription", "resume", hook).stdout
        assert runwire("subscription", "delete", pull["id"]).stdout == ""
        for arguments, says in (
            (("get", pull["id"]), "There is no subscription"),
            (("get", "a.b"), "A subscription id has"),
            (("create", "--chain", "99"), "chain 99"),
            (("create", "--chain", "1764", "--from-sequence", "0"), "/from_sequence"),
        ):
            refused = runwire("subscription", *arguments)
            assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (1, "", 1), arguments
            assert says in refused.stderr
