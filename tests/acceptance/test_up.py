"""`runwire up` as a user starts it: processes, HTTP and the command line, nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import nats
import pytest

from tests.support import TOKEN, Runwire, eventually, free_port, is_alive, let_no_file_grow

ROOT = Path(__file__).parents[2]
APP = "tests.acceptance.actions:app"


def environment(**more: str) -> dict[str, str]:
    return {
        "RUNWIRE_HTTP_PORT": str(free_port()),
        "RUNWIRE_STORE_BYTES": str(128 << 20),
        "RUNWIRE_ACK_WAIT": "1",
        "RUNWIRE_GRACE_SECONDS": "5",
        "PYTHONPATH": str(ROOT),
        **more,
    }


class Running:
    """A running `up`, a client with its token, and where its probes leave their traces."""

    def __init__(self, up: Runwire, env: dict[str, str], http: httpx.AsyncClient, cwd: Path) -> None:
        self.up, self.env, self.http, self.cwd = up, env, http, cwd
        self.trace = cwd / "trace"

    async def probe_task(self, seconds: float = 0, *, block: bool = False, failures: int = 0, **fields: Any) -> int:
        target = {"action": "probe", "file": str(self.trace), "seconds": seconds, "block": block, "failures": failures}
        body = {"chain": 1764, "desc": "probe", "target": target, "trigger": {}, **fields}
        answer = await self.http.post("/tasks", json=body)
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]

    def executions(self) -> list[list[str]]:
        return [line.split() for line in self.trace.read_text().splitlines()] if self.trace.exists() else []

    async def execution_begins(self, times: int = 1) -> None:
        await eventually(lambda: len(self.executions()) >= times, what=f"the action was begun {times} times")


@asynccontextmanager
async def running(tmp_path: Path, *arguments: str, **env: str) -> AsyncIterator[Running]:
    variables = environment(**env)
    up = Runwire("up", *arguments, cwd=tmp_path, **variables)
    try:
        await up.says("Ctrl-C stops everything.")
        token = (tmp_path / "data" / "token").read_text().strip()
        url = f"http://127.0.0.1:{variables['RUNWIRE_HTTP_PORT']}"
        headers = {"Authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=40) as http:
            yield Running(up, variables, http, tmp_path)
    finally:
        up.kill()


def run(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """A `runwire` command that ends by itself."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RUNWIRE_")}
    return subprocess.run(
        [ROOT / ".venv/bin/runwire" if (ROOT / ".venv/bin/runwire").exists() else "runwire", *arguments],
        cwd=cwd, env=clean | env, capture_output=True, text=True, timeout=40, check=False,
    )  # fmt: skip


async def test_the_printed_curl_line_works_and_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        output = service.up.output
        curl = re.search(r"^ +(curl .*)$", output, re.MULTILINE)[1]
        answer = subprocess.run(["bash", "-c", f"{curl} --silent"], capture_output=True, text=True, check=True)
        assert re.fullmatch(
            r'\{"code":"DONE","last_run_date":"[^"]+Z","last_modified":"[^"]+Z","created_date":"[^"]+Z"\}',
            answer.stdout,
        )
        children = service.up.children()
        assert set(children) == {"nats-server", "adapter", "worker"}
        assert await service.up.stop(signal.SIGINT) == 0
        assert not [pid for pid in children.values() if is_alive(pid)]
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", int(service.env["RUNWIRE_HTTP_PORT"]))) != 0


async def test_a_second_start_keeps_token_tasks_and_runs(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        token = (tmp_path / "data/token").read_text()
        first = await service.http.post("/tasks/12345/execute")
        await service.up.stop()
    async with running(tmp_path) as service:
        assert token.strip() in service.up.output
        run_ = await service.http.get(first.headers["location"])
        assert run_.json()["code"] == "DONE"
        assert (await service.http.post("/tasks/12345/execute")).json()["code"] == "DONE"


async def test_the_first_token_can_be_preset(tmp_path: Path) -> None:
    async with running(tmp_path, RUNWIRE_BOOTSTRAP_TOKEN=TOKEN) as service:
        answer = await service.http.get("/tasks/12345", headers={"Authorization": f"Bearer {TOKEN}"})
        assert answer.status_code == 200


async def test_a_second_up_on_the_same_data_directory_is_refused_in_one_line(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        second = run("up", cwd=tmp_path, RUNWIRE_HTTP_PORT=str(free_port()))
        assert second.returncode != 0
        assert second.stderr == f"runwire: runwire is running on data already (process {service.up.process.pid})\n"
        assert (await service.http.post("/tasks/12345/execute")).status_code == 200


async def test_no_child_survives_a_parent_that_is_killed(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        children = service.up.children()
        assert len(children) == 3
        service.up.process.kill()
        await eventually(lambda: not [pid for pid in children.values() if is_alive(pid)], within=5)
    async with running(tmp_path) as service:
        assert (await service.http.post("/tasks/12345/execute")).json()["code"] == "DONE"


@pytest.mark.parametrize("name", ["worker", "adapter", "nats-server"])
async def test_a_child_that_dies_is_started_again(tmp_path: Path, name: str) -> None:
    async with running(tmp_path) as service:
        before = service.up.children()[name]
        os.kill(before, signal.SIGKILL)
        await eventually(lambda: service.up.children().get(name, before) != before)

        async def works() -> bool:
            try:
                answer = await service.http.post("/tasks/12345/execute", headers={"Prefer": "wait=5"})
            except httpx.TransportError:
                return False
            return answer.status_code == 200

        await eventually(works, within=30)


async def test_a_broker_whose_disk_was_full_is_started_anew_when_there_is_room(tmp_path: Path) -> None:
    async with running(tmp_path, "--app", APP) as service:
        task = await service.probe_task()
        let_no_file_grow(service.up.children()["nats-server"])
        with suppress(httpx.ReadTimeout):
            await service.http.post(f"/tasks/{task}/execute", timeout=0.3)
        await service.up.says("the broker could not write to its disk (file too large), starting it anew")

        async def is_accepted() -> httpx.Response | None:  # the adapter looks every few seconds
            answer = await service.http.post(f"/tasks/{task}/execute", params={"if_running": "queue"})
            assert answer.status_code in {200, 503}, answer.text
            return answer if answer.status_code == 200 else None

        assert (await eventually(is_accepted)).json()["code"] == "DONE"
        assert (await service.http.get("/readyz")).status_code == 200


async def test_a_worker_killed_in_the_middle_of_a_run_costs_the_caller_nothing(tmp_path: Path) -> None:
    async with running(tmp_path, "--app", APP) as service:
        task = await service.probe_task(seconds=1)
        calling = asyncio.create_task(service.http.post(f"/tasks/{task}/execute"))
        await service.execution_begins()
        os.kill(service.up.children()["worker"], signal.SIGKILL)
        answer = await calling
        assert (answer.status_code, answer.json()["code"]) == (200, "DONE")
        run_ = (await service.http.get(answer.headers["location"])).json()
        assert (run_["attempt"], run_["result"]["attempt"]) == (2, 2)
        assert [line[1] for line in service.executions()] == ["1", "2"]


async def test_a_worker_frozen_past_ack_wait_and_woken_is_fenced(tmp_path: Path) -> None:
    async with running(tmp_path, "--app", APP) as service:
        urls = (tmp_path / "data/broker.url").read_text().strip()
        task = await service.probe_task(seconds=2)
        calling = asyncio.create_task(service.http.post(f"/tasks/{task}/execute"))
        await service.execution_begins()
        frozen = service.up.children()["worker"]
        os.kill(frozen, signal.SIGSTOP)
        second = Runwire("worker", "--app", APP, cwd=tmp_path, **service.env, RUNWIRE_NATS_URL=urls)
        try:
            await second.says("worker ready")
            await service.execution_begins(2)
            os.kill(frozen, signal.SIGCONT)
            answer = await calling
            run_ = (await service.http.get(answer.headers["location"])).json()
            assert (run_["code"], run_["attempt"]) == ("DONE", 2)
            assert run_["result"]["pid"] == second.process.pid
            await service.up.says("run fenced")
        finally:
            second.kill()


async def test_an_action_that_blocks_its_worker_is_taken_over_and_its_late_result_dropped(tmp_path: Path) -> None:
    async with running(tmp_path, "--app", APP) as service:
        url = (tmp_path / "data/broker.url").read_text().strip()
        second = Runwire("worker", "--app", APP, cwd=tmp_path, **service.env, RUNWIRE_NATS_URL=url)
        try:
            await second.says("worker ready")
            task = await service.probe_task(seconds=4, block=True)
            answer = await service.http.post(f"/tasks/{task}/execute")
            run_ = (await service.http.get(answer.headers["location"])).json()
            assert (run_["code"], run_["attempt"]) == ("DONE", 2)
            (first, _), (other, attempt) = [(line[2], line[1]) for line in service.executions()]
            assert (run_["result"], attempt) == ({"attempt": 2, "pid": int(other)}, "2")
            assert first != other
            await eventually(lambda: "run fenced" in service.up.output + second.output)
            state = (await service.http.get(f"/tasks/{task}")).json()
            assert (state["state"]["code"], state["version"]) == ("DONE", 4)
        finally:
            second.kill()


async def test_the_broker_killed_in_the_middle_of_a_run_costs_the_caller_nothing(tmp_path: Path) -> None:
    async with running(tmp_path, "--app", APP) as service:
        task = await service.probe_task(seconds=1)
        calling = asyncio.create_task(service.http.post(f"/tasks/{task}/execute"))
        await service.execution_begins()
        os.kill(service.up.children()["nats-server"], signal.SIGKILL)
        answer = await calling
        assert (answer.status_code, answer.json()["code"]) == (200, "DONE")
        again = await service.http.post(f"/tasks/{task}/execute")
        assert (again.status_code, again.json()["code"]) == (200, "DONE")


async def test_a_run_that_waits_for_its_next_try_outlives_everything(tmp_path: Path) -> None:
    async with running(tmp_path, "--app", APP) as service:
        task = await service.probe_task(failures=1, retry={"attempts": 2, "backoff": 5})
        answer = await service.http.post(f"/tasks/{task}/execute", headers={"Prefer": "respond-async"})
        location = answer.headers["location"]

        async def waits() -> bool:
            return bool((await service.http.get(location)).json()["next_attempt"])

        await eventually(waits)
        waiting = (await service.http.get(location)).json()
        assert (waiting["code"], waiting["error"]["code"]) == ("INPROGRESS", "handler_error")
        service.up.kill()
    async with running(tmp_path, "--app", APP) as service:
        done = (await service.http.get(location, headers={"Prefer": "wait=30"})).json()
    assert (done["code"], done["attempt"], done["next_attempt"]) == ("DONE", 2, None)
    assert datetime.fromisoformat(done["finished"]) >= datetime.fromisoformat(waiting["next_attempt"])
    assert [line[1] for line in service.executions()] == ["1", "2"]


async def test_an_adapter_killed_while_a_call_waits_loses_no_run(tmp_path: Path) -> None:
    async with running(tmp_path, "--app", APP) as service:
        task = await service.probe_task(seconds=1)
        key = {"Idempotency-Key": "order-1"}
        calling = asyncio.create_task(service.http.post(f"/tasks/{task}/execute", headers=key))
        await service.execution_begins()
        before = service.up.children()["adapter"]
        os.kill(before, signal.SIGKILL)
        with pytest.raises(httpx.TransportError):
            await calling
        await eventually(lambda: service.up.children().get("adapter", before) != before)
        await eventually(lambda: service.up.output.count("adapter ready") == 2)
        again = await service.http.post(f"/tasks/{task}/execute", headers=key)
        assert (again.status_code, again.json()["code"]) == (200, "DONE")
        assert len(service.executions()) == 1


async def test_a_stopping_adapter_answers_waiting_calls_with_202(tmp_path: Path) -> None:
    async with running(tmp_path, "--app", APP) as service:
        task = await service.probe_task(seconds=3)
        calling = asyncio.create_task(service.http.post(f"/tasks/{task}/execute"))
        await service.execution_begins()
        os.kill(service.up.children()["adapter"], signal.SIGTERM)
        answer = await asyncio.wait_for(calling, 3)
        assert answer.status_code == 202
        assert answer.json()["code"] == "INPROGRESS"
        await eventually(lambda: service.up.output.count("adapter ready") == 2)
        run_ = await service.http.get(answer.headers["location"], headers={"Prefer": "wait=20"})
        assert run_.json()["code"] == "DONE"
        assert len(service.executions()) == 1


async def test_a_deleted_read_model_is_rebuilt_to_the_same_answers(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        for _ in range(3):
            last = await service.http.post("/tasks/12345/execute")
        before = (await service.http.get("/tasks/12345")).json()
        await service.up.stop()
    for file in (tmp_path / "data").glob("readmodel.db*"):
        file.unlink()
    async with running(tmp_path) as service:
        assert (await service.http.get("/tasks/12345")).json() == before
        assert (await service.http.get(last.headers["location"])).json()["code"] == "DONE"


async def test_rebuild_and_doctor_say_what_they_see(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        await service.http.post("/tasks/12345/execute")
        healthy = run("doctor", cwd=tmp_path, RUNWIRE_HTTP_PORT=service.env["RUNWIRE_HTTP_PORT"])
        assert healthy.returncode == 0, healthy.stdout + healthy.stderr
        lines = healthy.stdout.splitlines()
        assert [line.split("  ")[0] for line in lines] == [
            "broker", "stream COMMANDS", "stream EVENTS", "stream LOGS", "stream SCHEDULES",
            "stream DEADLETTERS", "stream KEYS", "stream AUDIT", "stream IDS",
            "workers", "bus logins", "dead letters", "read model", "adapter",
        ]  # fmt: skip
        assert all(" OK " in line for line in lines)
        busy = run("rebuild", cwd=tmp_path)
        assert busy.returncode != 0
        assert "running on data already" in busy.stderr
        before = (await service.http.get("/tasks/12345")).json()
        await service.up.stop()
    sick = run("doctor", cwd=tmp_path)
    assert sick.returncode == 1
    assert sick.stdout.startswith("broker               FAIL  RUNWIRE_NATS_URL is not set")
    rebuilt = run("rebuild", cwd=tmp_path)
    assert rebuilt.returncode == 0, rebuilt.stderr
    assert rebuilt.stdout.startswith("rebuilt data/readmodel.db from ")
    async with running(tmp_path) as service:
        assert (await service.http.get("/tasks/12345")).json() == before


async def on_the_bus(folder: Path, token: str | None = None, **options) -> nats.aio.client.Client:
    """A client of the running broker, with the first token or another."""
    token_id, _, secret = (token or (folder / "data/token").read_text().strip()).partition(":")
    url = (folder / "data/bus.url").read_text().strip()
    return await nats.connect(url, user=token_id, password=secret, inbox_prefix=f"_INBOX_{token_id}", **options)


async def test_the_first_token_of_a_new_chain_works_on_the_bus_at_once(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        made = run(
            "token", "create", "--chain", "3", "--as-operator", "--json", cwd=tmp_path,
            RUNWIRE_HTTP_PORT=service.env["RUNWIRE_HTTP_PORT"],
        )  # fmt: skip
        bus = await on_the_bus(tmp_path, json.loads(made.stdout)["token"])
        ack = await bus.jetstream().publish("tasks.cmd.3.1.execute", b"{}")
        assert ack.stream == "COMMANDS"
        await bus.close()


async def test_the_key_of_bus_logins_stays_and_is_the_owners(tmp_path: Path) -> None:
    key = tmp_path / "data/nats/bus.key"
    async with running(tmp_path) as service:
        made = key.read_text()
        assert key.stat().st_mode & 0o777 == 0o600
        await service.up.stop()
    async with running(tmp_path):
        assert key.read_text() == made
        bus = await on_the_bus(tmp_path)
        await bus.close()


async def test_a_service_on_the_bus_starts_a_run_and_sees_its_events(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        bus = await on_the_bus(tmp_path)
        seen = []

        async def remember(message) -> None:
            seen.append(message)

        await bus.subscribe("tasks.evt.1764.>", cb=remember)
        await bus.flush()
        ack = await bus.jetstream().publish("tasks.cmd.1764.12345.execute", b"{}")
        assert ack.stream == "COMMANDS"
        await eventually(lambda: len(seen) == 2)
        assert [message.subject for message in seen] == ["tasks.evt.1764.12345.inprogress", "tasks.evt.1764.12345.done"]
        assert [message.headers["ce-type"] for message in seen] == [
            "dev.runwire.task.inprogress.v1", "dev.runwire.task.done.v1",
        ]  # fmt: skip
        run_id = f"bus-{ack.seq}"
        assert seen[1].headers["ce-subject"] == run_id
        run_ = (await service.http.get(f"/tasks/12345/runs/{run_id}", headers={"Prefer": "wait=10"})).json()
        assert (run_["code"], run_["source"]) == ("DONE", "bus")
        await bus.close()


async def test_a_service_on_the_bus_can_do_nothing_else(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        errors = []

        async def remember(error: Exception) -> None:
            errors.append(str(error))

        bus = await on_the_bus(tmp_path, error_cb=remember)
        js = bus.jetstream(timeout=0.5)
        for subject in (
            "tasks.cmd.99.1.execute",
            "tasks.evt.1764.12345.done",
            "$JS.API.STREAM.INFO.EVENTS",
            "tasks.log.1764.1",
        ):
            with pytest.raises(
                (nats.errors.TimeoutError, nats.errors.NoRespondersError, nats.js.errors.NoStreamResponseError)
            ):
                await js.publish(subject, b"{}")
        assert len([error for error in errors if "permissions violation for publish" in error.lower()]) == 4
        # A forged reply subject does not make the broker write an event.
        await bus.publish("tasks.cmd.1764.777.execute", b"{}", reply="tasks.evt.1764.12345.done")
        await bus.flush()
        state = (await service.http.get("/tasks/12345")).json()
        assert (state["state"]["code"], state["version"]) == ("READY", 1)
        await bus.close()


async def test_actions_of_ones_own_are_loaded(tmp_path: Path) -> None:
    (tmp_path / "mymodule.py").write_text(
        "import runwire\n"
        "from pydantic import BaseModel\n\n"
        "app = runwire.App()\n\n"
        "class Greeting(BaseModel):\n"
        "    name: str\n\n"
        '@app.action("greet")\n'
        "async def greet(params: Greeting, ctx: runwire.Context) -> dict:\n"
        '    ctx.log(f"greeting {params.name}")\n'
        '    return {"text": f"Hello {params.name}"}\n'
    )
    async with running(tmp_path, "--app", "mymodule:app") as service:
        target = {"action": "greet", "name": "Ada"}
        task = await service.http.post("/tasks", json={"chain": 1764, "desc": "", "target": target, "trigger": {}})
        path = task.headers["location"]
        assert (await service.http.post(f"{path}/execute")).json()["code"] == "DONE"
        found = (await service.http.get(path)).json()
        assert found["result"] == {"text": "Hello Ada"}
        assert [entry["message"] for entry in found["logs"]] == ["greeting Ada"]


# --- what cannot work is told in one line ----------------------------------------------------------------


async def test_a_port_in_use_stops_up_with_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        refused = run("up", cwd=tmp_path, RUNWIRE_HTTP_PORT=port, RUNWIRE_STORE_BYTES=str(128 << 20))
        assert refused.returncode != 0
        assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in refused.stderr
        assert "Traceback" not in refused.stderr
        broker = run("up", cwd=tmp_path, RUNWIRE_NATS_PORT=port)
        assert broker.stderr == f"runwire: port {port} for the broker: Address already in use; set RUNWIRE_NATS_PORT\n"


@pytest.mark.parametrize(
    ("arguments", "env", "complaint"),
    [
        (["worker"], {}, "RUNWIRE_NATS_URL is not set"),
        (["adapter"], {"RUNWIRE_NATS_URL": "http://x"}, "RUNWIRE_NATS_URL: must be nats://USER:PASSWORD@HOST:PORT"),
        (["up"], {"RUNWIRE_ACK_WAIT": "0", "RUNWIRE_HTTP_PORT": "x"}, "RUNWIRE_ACK_WAIT: greater than or equal to 0.5"),
        (["up"], {"RUNWIRE_BOOTSTRAP_TOKEN": "nocolon"}, "RUNWIRE_BOOTSTRAP_TOKEN: must be ID:SECRET"),
        (["up"], {"RUNWIRE_DATA_DIR": "/proc/nowhere"}, "cannot write the data directory /proc/nowhere"),
        (["up"], {"RUNWIRE_NATS_SERVER": "/nowhere"}, "RUNWIRE_NATS_SERVER: /nowhere is no program"),
        (["up", "--app", "nowhere:app"], {}, "--app nowhere:app: ModuleNotFoundError"),
        (["up", "--app", "runwire"], {}, "--app runwire: must be MODULE:ATTRIBUTE"),
        (["up", "--app", "json:dumps"], {}, "--app json:dumps: is a function, not a runwire.App"),
        (["worker", "--app", "json:dumps"], {"RUNWIRE_NATS_URL": "nats://x"}, "is a function, not a runwire.App"),
    ],
)
def test_what_cannot_work_is_told_in_one_line(
    tmp_path: Path, arguments: list[str], env: dict[str, str], complaint: str
) -> None:
    refused = run(*arguments, cwd=tmp_path, **environment() | env)
    assert refused.returncode == 78
    (line,) = [line for line in refused.stderr.splitlines() if not re.match(r"\d\d:\d\d:\d\d adapter ", line)]
    assert line.startswith("runwire: ")
    assert complaint in line
    assert not refused.stdout


@pytest.mark.parametrize("process", ["adapter", "worker"])
def test_an_unreachable_broker_is_told_in_one_line(tmp_path: Path, process: str) -> None:
    url = f"nats://me:secret@127.0.0.1:{free_port()}"
    refused = run(process, cwd=tmp_path, RUNWIRE_NATS_URL=url, RUNWIRE_HTTP_PORT=str(free_port()))
    assert refused.returncode == 1
    assert refused.stderr.startswith("runwire: cannot reach the broker at nats://127.0.0.1:")
    assert "secret" not in refused.stderr
    assert len(refused.stderr.splitlines()) == 1, refused.stderr


async def test_a_wrong_broker_password_is_told_in_one_line(tmp_path: Path) -> None:
    async with running(tmp_path):
        url = re.sub(r":[^:@]+@", ":wrong@", (tmp_path / "data/broker.url").read_text().strip())
        refused = run("worker", cwd=tmp_path, RUNWIRE_NATS_URL=url)
    assert refused.returncode == 1
    assert "Authorization Violation" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1, refused.stderr


async def test_an_adapter_that_is_still_connecting_can_be_stopped(tmp_path: Path) -> None:
    with socket.socket() as silent:  # accepts, and never says a word
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"nats://127.0.0.1:{silent.getsockname()[1]}"
        adapter = Runwire("adapter", cwd=tmp_path, **environment(RUNWIRE_NATS_URL=url))
        await eventually((tmp_path / "data/readmodel.db").exists)
        assert await adapter.stop(signal.SIGTERM, within=3) != 0


async def test_faststream_and_uvicorn_run_the_same_apps(tmp_path: Path) -> None:
    env = environment(RUNWIRE_NATS_PORT=str(free_port()))
    async with running(tmp_path, **env) as service:
        url = (tmp_path / "data/broker.url").read_text().strip()
        os.kill(service.up.children()["worker"], signal.SIGSTOP)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RUNWIRE_")}
        worker = subprocess.Popen(
            [ROOT / ".venv/bin/faststream", "run", "--factory", "runwire.bootstrap.worker:worker_app"],
            cwd=tmp_path, env=clean | env | {"RUNWIRE_NATS_URL": url},
            stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        port = free_port()
        data = {"RUNWIRE_DATA_DIR": str(tmp_path / "second")}
        adapter = subprocess.Popen(
            [ROOT / ".venv/bin/uvicorn", "--factory", "runwire.bootstrap.adapter:adapter_app", "--port", str(port)],
            cwd=tmp_path, env=clean | env | data | {"RUNWIRE_NATS_URL": url},
            stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:

            async def ready() -> bool:
                try:
                    return (await service.http.get(f"http://127.0.0.1:{port}/readyz")).status_code == 200
                except httpx.TransportError:
                    return False

            await eventually(ready)
            answer = await service.http.post(f"http://127.0.0.1:{port}/tasks/12345/execute")
            assert (answer.status_code, answer.json()["code"]) == (200, "DONE")
        finally:
            for process in (worker, adapter):
                process.terminate()
                process.wait(timeout=20)
