"""`runwire token create --as-operator` goes past the API, not past its rules."""

from __future__ import annotations

import json
from pathlib import Path

from tests.acceptance.test_token_cli import on
from tests.acceptance.test_up import running


async def test_the_operators_tokens_keep_to_the_rules_of_all_tokens(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        runwire = on(service)
        for arguments, says in (
            ([argument for chain in range(1, 102) for argument in ("--chain", str(chain))], "/levels: "),
            (["--chain", "99", "--desc", "x" * 501], "/desc: "),
        ):
            refused = runwire("token", "create", "--as-operator", *arguments)
            assert (refused.returncode, refused.stdout) == (1, "")
            assert refused.stderr.startswith("runwire: The request has invalid fields. ")
            assert says in refused.stderr
            assert refused.stderr.count("\n") == 1
        most = [argument for chain in range(1, 101) for argument in ("--chain", f"{chain}=manager")]
        made = json.loads(runwire("token", "create", "--as-operator", *most, "--json").stdout)
        own = {"Authorization": f"Bearer {made['token']}"}
        for path in ("/audit", "/access_tokens", "/tasks"):
            assert (await service.http.get(path, headers=own)).status_code == 200
