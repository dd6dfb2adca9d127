"""The examples do what their READMEs say, by the commands that stand there."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from pathlib import Path

from tests.acceptance.test_readme import ROOT, blocks
from tests.acceptance.test_up import Running, running

EXAMPLES = ROOT / "examples"


async def output(service: Running, text: str) -> list[str]:
    """What the commands of the README print, a part for each paragraph of commands."""
    script = "set -e\n" + re.sub(r"\n\n+", "\necho; echo ----\n", "\n\n".join(blocks("sh", text)))
    script = script.replace("localhost:8080", f"127.0.0.1:{service.env['RUNWIRE_HTTP_PORT']}")
    command = ["bash", "-c", script]
    done = await asyncio.to_thread(
        subprocess.run, command, cwd=service.cwd, capture_output=True, text=True, check=False, timeout=50
    )
    assert done.returncode == 0, done.stderr
    return [part.strip() for part in done.stdout.split("----")]


async def test_a_dataset_of_ones_own_is_exported_and_downloaded(tmp_path: Path) -> None:
    here = shutil.copytree(EXAMPLES / "export", tmp_path / "export")
    text = (here / "README.md").read_text()
    command = re.search(r"^```\n\S*/runwire up (.*)\n```$", text, re.MULTILINE)[1]
    async with running(here, *command.split()) as service:
        _, created, executed, _, _, file = await output(service, text)
    assert json.loads(created)["id"] == 501
    assert json.loads(executed)["code"] == "DONE"
    assert file.splitlines() == blocks("csv", text)[0].splitlines()
