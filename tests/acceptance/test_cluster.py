"""`runwire up --cluster 3`: the broker is three servers, and each of them may go."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
from pathlib import Path

import httpx
import nats
import nats.errors

from tests.acceptance.test_up import run, running
from tests.support import eventually, free_port, is_alive

LEADERS = ("COMMANDS", "EVENTS", "LOGS", "KEYS", "KV_runwire-tokens")
"""Streams that a call cannot do without, not even for the time of an election."""


async def test_a_cluster_goes_on_when_one_of_its_brokers_is_killed(tmp_path: Path) -> None:
    async with running(tmp_path, "--cluster", "3") as service:
        output = service.up.output
        curl = re.search(r"^ +(curl .*)$", output, re.MULTILINE)[1]
        answer = subprocess.run(["bash", "-c", f"{curl} --silent"], capture_output=True, text=True, check=True)
        assert answer.stdout.startswith('{"code":"DONE"'), answer.stdout
        children = service.up.children()
        assert set(children) == {"nats-server-1", "nats-server-2", "nats-server-3", "adapter", "worker"}

        token_id, _, secret = (tmp_path / "data/token").read_text().strip().partition(":")
        urls = (tmp_path / "data/bus.url").read_text().strip().split(",")
        bus = await nats.connect(urls, user=token_id, password=secret, inbox_prefix=f"_INBOX_{token_id}")
        ack = await bus.jetstream().publish("tasks.cmd.1764.12345.execute", b"{}")
        assert ack.stream == "COMMANDS"
        await bus.close()

        await let_others_lead((tmp_path / "data/broker.url").read_text().strip().split(","), "broker-2")
        os.kill(children["nats-server-2"], signal.SIGKILL)
        for _ in range(3):
            await works(service.http)
        again = await eventually(lambda: service.up.children().get("nats-server-2"))
        assert again != children["nats-server-2"]
        assert await service.up.stop() == 0
        assert not [pid for pid in (again, *children.values()) if is_alive(pid)]

        single = run("up", cwd=tmp_path, RUNWIRE_HTTP_PORT=str(free_port()))
        assert single.returncode == 78
        assert single.stderr == "runwire: data is that of 3 brokers: start it with --cluster 3, or take another one\n"


async def let_others_lead(urls: list[str], broker: str) -> None:
    """An election takes longer than a test should; what happens in one is shown by `make cluster`."""
    bus = await nats.connect(urls)
    groups = {f"STREAM.{{}}.{stream}": f"STREAM.LEADER.STEPDOWN.{stream}" for stream in LEADERS}
    groups["CONSUMER.{}.COMMANDS.workers-1764"] = "CONSUMER.LEADER.STEPDOWN.COMMANDS.workers-1764"

    async def has_given_way(info: str, step_down: str) -> bool:
        try:
            told = json.loads((await bus.request(f"$JS.API.{info}", b"", timeout=1)).data)
            leader = told.get("cluster", {}).get("leader")
            if leader == broker:
                await bus.request(f"$JS.API.{step_down}", b"", timeout=1)
        except nats.errors.Error:  # nobody leads at the moment
            return False
        return leader not in {None, broker}

    try:
        for group, step_down in groups.items():
            await eventually(lambda g=group, s=step_down: has_given_way(g.format("INFO"), s), what=f"{group} has moved")
    finally:
        await bus.close()


async def works(http: httpx.AsyncClient) -> None:
    """A call comes to its end, if need be when it is made again, as its caller would."""
    key = {"Idempotency-Key": os.urandom(8).hex()}

    async def answered() -> bool:
        answer = await http.post("/tasks/12345/execute?if_running=queue", headers=key)
        assert answer.status_code in {200, 202, 503}, answer.text
        await asyncio.sleep(0 if answer.status_code == 200 else 0.2)
        return answer.status_code == 200

    await eventually(answered, within=40)


def test_a_broker_of_ones_own_or_another_shape_is_told_from_a_cluster(tmp_path: Path) -> None:
    (tmp_path / "data/nats/jetstream").mkdir(parents=True)
    other = run("up", "--cluster", "3", cwd=tmp_path)
    assert other.returncode == 78
    assert other.stderr == "runwire: data is that of a single broker: start it without --cluster, or take another one\n"
    own = run("up", "--cluster", "3", cwd=tmp_path, RUNWIRE_NATS_URL="nats://127.0.0.1:4222")
    assert own.returncode == 78
    assert "--cluster starts a broker, and RUNWIRE_NATS_URL names one" in own.stderr
