"""The examples do what their READMEs say, by the commands that stand there."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.acceptance.test_readme import ROOT, blocks
from tests.acceptance.test_up import Running, running
from tests.support import free_port

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


async def test_a_web_hook_is_called_and_again_when_it_is_not_ready(tmp_path: Path) -> None:
    here = shutil.copytree(EXAMPLES / "webhook", tmp_path / "webhook")
    port = free_port()
    text = (here / "README.md").read_text().replace("9000", str(port))
    receiver, up = (match.split() for match in re.findall(r"^```\n(\S.*)\n```$", text, re.MULTILINE))
    allowed = up[0].removeprefix("RUNWIRE_HTTP_ALLOW=")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, *receiver[1:]], cwd=here, text=True, **pipes) as other:
        try:
            assert other.stdout.readline() == f"listening on http://127.0.0.1:{port}\n"
            async with running(here, *up[3:], RUNWIRE_HTTP_ALLOW=allowed) as service:
                _, created, executed, runs, task = await output(service, text)
        finally:
            other.terminate()
            calls = [line.partition('"')[2] for line in other.stderr if "POST" in line]
    assert json.loads(created)["trigger"]["next"]
    assert json.loads(executed)["code"] == "DONE"
    (run,) = json.loads(runs)
    assert (run["attempt"], run["result"]["values"]) == (2, {"number": 1})
    messages = [entry["message"] for entry in json.loads(task)["logs"]]
    assert messages == [
        'the answer begins with: {"error": "still warming up"}',
        "unexpected_status: The server answered 503 (Service Unavailable).",
        "attempt 2 begins in 1.0 s",
        messages[3],
    ]
    assert re.fullmatch(rf"POST 127\.0\.0\.1:{port}: 200 in 0\.\d+ s", messages[3])
    assert [call.partition('" ')[2].split()[0] for call in calls] == ["503", "200"]
