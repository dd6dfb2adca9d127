"""The OpenAPI document: complete, true (the service is run against it), and good enough to generate a client from."""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import os
import re
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest

from runwire.app import App
from runwire.http.app import ENDPOINTS
from runwire.messaging.broker import Bus
from runwire.settings import Settings
from tests.support import CHAIN, TOKEN, adapter, worker

SCRIPTS = Path(sys.executable).parent
CASES = 32 // int(os.environ.get("FUZZ_SHARE", "8"))
"""Cases that are generated per operation and phase."""

Operation = tuple[str, str, dict[str, Any]]
"""(method, path, operation object)."""


@pytest.fixture
async def live(settings: Settings, bus: Bus, app: App) -> AsyncIterator[httpx.AsyncClient]:
    """An adapter with a worker; calls that wait do not wait long."""
    patient = settings.model_copy(update={"wait_seconds": 2.0, "action_wait": 0.5})
    async with adapter(patient) as http, worker(bus, app, patient):
        yield http


@pytest.fixture
async def document(live: httpx.AsyncClient) -> dict[str, Any]:
    return (await live.get("/openapi.json")).json()


def operations(document: dict[str, Any]) -> Iterator[Operation]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


# --- complete --------------------------------------------------------------------------------------------


async def test_every_endpoint_and_every_status_is_in_it(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    found = {(method, path): operation for method, path, operation in operations(document)}
    assert set(found) == {(endpoint.method, endpoint.path) for endpoint in ENDPOINTS}
    assert len({operation["operationId"] for operation in found.values()}) == len(found)
    for (method, path), operation in found.items():
        where = f"{method} {path}"
        assert operation["summary"], where
        assert "500" in operation["responses"], where
        assert any(status.startswith("2") for status in operation["responses"]), where
        for status, answer in operation["responses"].items():
            assert answer["description"], f"{where} {status}"
            if status >= "400" and path != "/readyz":
                assert list(answer["content"]) == ["application/problem+json"], f"{where} {status}"
            if status in {"401", "403"}:
                assert "WWW-Authenticate" in answer["headers"], where
            if status in {"429", "503"} and path != "/readyz":
                assert "Retry-After" in answer["headers"], where


async def test_every_call_names_its_parameters_and_its_security(document: dict[str, Any]) -> None:
    for method, path, operation in operations(document):
        where = f"{method} {path}"
        public = ("/livez", "/readyz", "/problems", "/downloads", "/asyncapi")
        assert bool(operation["security"]) != path.startswith(public), where
        declared = {parameter["name"] for parameter in operation.get("parameters", []) if parameter["in"] == "path"}
        assert declared == set(re.findall(r"\{(\w+)\}", path)), where
        for parameter in operation.get("parameters", []):
            assert parameter["description"], f"{where} {parameter['name']}"
            assert parameter["schema"], f"{where} {parameter['name']}"
            if parameter["in"] != "query":
                assert "example" in parameter, f"{where} {parameter['name']}"
    assert document["components"]["securitySchemes"]["AccessToken"]["scheme"] == "bearer"


async def test_no_reference_dangles(document: dict[str, Any]) -> None:
    for reference in set(re.findall(r'"\$ref": "#/components/schemas/([^"]+)"', json.dumps(document))):
        assert reference in document["components"]["schemas"]


async def test_every_body_has_an_example_that_fits_its_schema(document: dict[str, Any]) -> None:
    """Of requests, and of successful answers."""
    for method, path, operation in operations(document):
        bodies = [("request", operation["requestBody"])] if "requestBody" in operation else []
        bodies += [(status, answer) for status, answer in operation["responses"].items()]
        for which, body in bodies:
            for kind, media in body.get("content", {}).items():
                if "json" not in kind:
                    continue
                examples = list(_examples(media, document))
                if which[0] != "5":
                    assert examples, f"{method} {path} {which} has no example"
                check = jsonschema_rs.validator_for({**media["schema"], "components": document["components"]})
                for example in examples:
                    errors = [str(error) for error in check.iter_errors(example)]
                    assert not errors, f"{method} {path} {which}: {errors[:2]}"


def _examples(media: dict[str, Any], document: dict[str, Any]) -> Iterator[Any]:
    """Those of the media type object, else those of the schema it refers to."""
    if "example" in media:
        yield media["example"]
    yield from (named["value"] for named in media.get("examples", {}).values())
    if "example" not in media and "examples" not in media:
        yield from _examples_of(media["schema"], document)


def _examples_of(schema: dict[str, Any], document: dict[str, Any]) -> Iterator[Any]:
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if schema.get("type") == "array":
        yield list(_examples_of(schema["items"], document))
    yield from schema.get("examples", [])


# --- true ------------------------------------------------------------------------------------------------


@pytest.mark.timeout(240)  # thousands of calls
async def test_the_service_does_what_its_document_says(
    live: httpx.AsyncClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Examples, boundary values, random valid and invalid calls, and sequences of calls, each answer checked."""
    with caplog.at_level(logging.ERROR, "runwire"):
        run = await asyncio.create_subprocess_exec(
            str(SCRIPTS / "schemathesis"),
            "--config-file",
            str(Path(__file__).parents[1] / "schemathesis.toml"),
            "run",
            f"{live.base_url}/openapi.json",
            *("--header", f"Authorization: Bearer {TOKEN}"),
            *("--max-examples", str(CASES), "--seed", "20261124", "--no-shrink", "--continue-on-failure"),
            *("--request-timeout", "30", "--workers", "1", "--suppress-health-check", "all"),
            cwd=tmp_path,
            env={**os.environ, "SCHEMATHESIS_HOOKS": str(Path(__file__).parents[1] / "schemathesis_hooks.py")},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await run.communicate()
    text = output.decode()
    assert run.returncode == 0, text[-12_000:]
    assert len(re.findall(r"✅ +(?:Examples|Coverage|Fuzzing|Stateful)", text)) >= 4, text[-3_000:]
    broken = [record for record in caplog.records if getattr(record, "action", "") == "unexpected"]
    assert not broken, broken


# --- useful ----------------------------------------------------------------------------------------------


async def test_a_client_generated_from_it_works(
    live: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "openapi.json").write_text((await live.get("/openapi.json")).text)
    generator = await asyncio.create_subprocess_exec(
        str(SCRIPTS / "openapi-python-client"),
        *("generate", "--path", "openapi.json", "--meta", "none", "--output-path", "generated_client"),
        "--fail-on-warning",
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{SCRIPTS}:{os.environ['PATH']}"},  # it calls ruff
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await generator.communicate()
    assert generator.returncode == 0, output.decode()[-5_000:]
    monkeypatch.syspath_prepend(str(tmp_path))
    client_class = importlib.import_module("generated_client").AuthenticatedClient
    models = importlib.import_module("generated_client.models")
    client = client_class(base_url=str(live.base_url), token=TOKEN)
    create = importlib.import_module("generated_client.api.tasks.create_task").asyncio
    execute = importlib.import_module("generated_client.api.tasks.execute").asyncio
    get = importlib.import_module("generated_client.api.tasks.get_task").asyncio
    body = {"chain": CHAIN, "desc": "made by a generated client", "target": {"action": "noop"}, "trigger": {}}
    async with client:
        created = await create(client=client, body=models.TaskBody.from_dict(body))
        assert isinstance(created, models.TaskView)
        ended = await execute(created.id, client=client)
        assert (type(ended).__name__, str(ended.code)) == ("ExecuteView", "DONE")
        assert str((await get(created.id, client=client)).state.code) == "DONE"
        missing = await get(54321, client=client)
        assert (type(missing).__name__, missing.code) == ("Problem", "task_not_found")
