"""`runwire token` and `runwire audit` as a person types them, against a running `up`."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx

from tests.acceptance.test_up import Running, run, running
from tests.support import eventually

Command = Callable[..., subprocess.CompletedProcess[str]]


def on(service: Running) -> Command:
    """`runwire` in the directory and with the variables of the running service."""

    def command(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        return run(*arguments, cwd=service.cwd, **(service.env | env))

    return command


async def test_a_token_is_made_used_rotated_and_deleted(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        runwire = on(service)
        made = runwire("token", "create", "--chain", "1764", "--desc", "billing", "--json")
        assert made.returncode == 0, made.stderr
        token = json.loads(made.stdout)
        assert (token["levels"], token["desc"], token["kind"]) == ({"1764": "operator"}, "billing", "privileged")
        own = json.loads(runwire("token", "show", "--json", RUNWIRE_TOKEN=token["token"]).stdout)
        assert own["id"] == token["id"]

        listed = runwire("token", "list")
        assert token["id"] in listed.stdout
        assert "billing" in listed.stdout
        assert token["secret"] not in listed.stdout

        rotated = runwire("token", "rotate", token["id"], "--overlap", "0")
        assert rotated.returncode == 0, rotated.stderr
        fresh = rotated.stdout.splitlines()[0]
        assert fresh.startswith(f"{token['id']}:")
        assert "shown this once" in rotated.stdout
        assert runwire("token", "show", RUNWIRE_TOKEN=token["token"]).returncode == 1
        assert runwire("token", "show", RUNWIRE_TOKEN=fresh).returncode == 0

        assert "inactive" in runwire("token", "deactivate", token["id"]).stdout
        assert "state      active" in runwire("token", "activate", token["id"]).stdout
        gone = runwire("token", "delete", token["id"])
        assert (gone.returncode, gone.stdout) == (0, "")
        assert token["id"] in runwire("token", "list", "--deleted").stdout
        assert token["id"] not in runwire("token", "list").stdout


async def test_the_operator_makes_the_first_manager_of_a_new_chain(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        runwire = on(service)
        refused = runwire("token", "create", "--chain", "99", "--level", "manager")
        assert refused.returncode == 1
        made = runwire("token", "create", "--as-operator", "--admin", "--chain", "99=manager", "--json")
        assert made.returncode == 0, made.stderr
        token = json.loads(made.stdout)
        assert (token["by"], token["levels"]) == ("operator", {"99": "manager"})
        task = {"chain": 99, "desc": "", "target": {"action": "noop"}, "trigger": {}}
        async with httpx.AsyncClient(base_url=service.http.base_url) as http:
            answer = await http.post("/tasks", json=task, headers={"Authorization": f"Bearer {token['token']}"})
        assert answer.status_code == 201


async def test_what_is_refused_is_told_in_one_line(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        runwire = on(service)
        for arguments, env, says in (
            (("token", "show", "nobody"), {}, "There is no access token nobody."),
            (("token", "show", "a.b"), {}, "An access token id has"),
            (("token", "create", "--chain", "5"), {}, "manager in chain 5"),
            (("token", "create", "--chain", "x"), {}, "'x' is no chain"),
            (("token", "create", "--chain", "5=owner"), {}, "no access level"),
            (("token", "list"), {"RUNWIRE_TOKEN": "nobody:x"}, "A valid access token is required"),
            (("token", "list"), {"RUNWIRE_DATA_DIR": "nowhere"}, "set RUNWIRE_TOKEN"),
            (("token", "list", "--url", "http://127.0.0.1:1"), {}, "no answer from http://127.0.0.1:1"),
            (("audit", "--since", "yesterday"), {}, "since"),
        ):
            done = runwire(*arguments, **env)
            assert done.returncode == 1, arguments
            assert done.stdout == ""
            assert done.stderr.startswith("runwire: ")
            assert done.stderr.count("\n") == 1
            assert says in done.stderr


async def test_the_audit_trail_tells_who_did_what(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        runwire = on(service)
        token = json.loads(runwire("token", "create", "--chain", "1764", "--level", "viewer", "--json").stdout)
        runwire("token", "list", RUNWIRE_TOKEN=token["token"])

        async def rows() -> list[dict[str, object]]:
            found = await asyncio.to_thread(runwire, "audit", "--json")
            listed = json.loads(found.stdout)
            return listed if any(row["action"] == "call.refused" for row in listed) else []

        found = await eventually(rows, what="the refusal is in the audit trail")
        assert {"task.created", "token.created", "call.refused"} <= {row["action"] for row in found}
        text = runwire("audit", "--action", "call.refused").stdout
        assert "GET /access_tokens" in text
        assert token["secret"] not in text
