"""A web hook as a user makes one: `runwire up`, a call, a receiver."""

from __future__ import annotations

import json
from pathlib import Path

from tests.acceptance.test_up import running
from tests.integration.test_http_action import site
from tests.support import eventually


async def test_the_end_of_a_run_is_sent_to_a_web_hook(tmp_path: Path) -> None:
    async with site() as there, running(tmp_path, RUNWIRE_HTTP_ALLOW=f"127.0.0.1:{there.port}") as service:
        body = {"kind": "web_hook", "chain": 1764, "url": there.url, "codes": ["done", "error"]}
        made = await service.http.post("/subscriptions", json=body)
        assert made.status_code == 201, made.text
        ended = await service.http.post("/tasks/12345/execute")
        await eventually(lambda: there.requests)
    event = json.loads(there.requests[0].body)
    assert (event["type"], event["subject"]) == ("dev.runwire.task.done.v1", ended.headers["run-id"])
    assert event["data"]["task"]["state"]["code"] == ended.json()["code"] == "DONE"
