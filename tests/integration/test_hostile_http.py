"""Clients that mean no good, over raw sockets: a 4xx problem or the end of the connection, never more."""

from __future__ import annotations

import asyncio
import json
import re
import resource
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from runwire.app import App, Context
from runwire.http import body, protocol
from runwire.messaging.broker import Bus
from runwire.settings import Settings
from tests.integration.test_downloads import slow_connection, stored
from tests.integration.test_http import create
from tests.support import TOKEN, adapter, eventually, worker

AUTHORIZED = f"Host: a\r\nAuthorization: Bearer {TOKEN}\r\n"
GET = f"GET /tasks HTTP/1.1\r\n{AUTHORIZED}\r\n".encode()
WITHIN = 20.0
"""Seconds after which a connection counts as hanging."""


@pytest.fixture
def base_settings(base_settings: Settings) -> Settings:
    """With room for a large file."""
    return base_settings.model_copy(update={"store_bytes": 1 << 30})


@pytest.fixture
async def http(settings: Settings, bus: Bus) -> AsyncIterator[httpx.AsyncClient]:
    async with adapter(settings) as client:
        yield client


class Connection:
    """A raw connection to the adapter."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, *pieces: bytes) -> Connection:
        """As far as the other side takes it."""
        with suppress(ConnectionError):
            for piece in pieces:
                self.writer.write(piece)
                await self.writer.drain()
        return self

    async def rest(self) -> bytes:
        """Everything until the other side closes."""
        received = b""
        with suppress(ConnectionError):
            async with asyncio.timeout(WITHIN):
                while part := await self.reader.read(1 << 16):
                    received += part
        return received

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The next answer: status, headers, body."""
        async with asyncio.timeout(WITHIN):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            status, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            content = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return int(status.split()[1]), headers, content


@asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator[Connection]:
    reader, writer = await asyncio.open_connection("127.0.0.1", settings.http_port)
    try:
        yield Connection(reader, writer)
    finally:
        writer.transport.abort()


async def refused(settings: Settings, *pieces: bytes) -> tuple[int, str]:
    """Status and code of the problem that these bytes end in; the connection is closed after it."""
    async with connected(settings) as connection:
        received = await (await connection.send(*pieces)).rest()
    return problem_in(received)


def problem_in(received: bytes) -> tuple[int, str]:
    head, _, content = received.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head, received[:300]
    assert b"connection: close" in head.lower()
    assert f"content-length: {len(content)}".encode() in head
    problem = json.loads(content)
    assert head.startswith(f"HTTP/1.1 {problem['status']} ".encode())
    return problem["status"], problem["code"]


async def is_well(http: httpx.AsyncClient) -> bool:
    began = time.monotonic()
    answer = await http.get("/tasks?limit=1")
    return answer.status_code == 200 and time.monotonic() - began < 1.0


# --- too much --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([b"GET /tasks HTTP/1.1\r\n" + b"A: b\r\n" * 101 + b"\r\n"], (431, "headers_too_large")),
        ([b"GET /tasks HTTP/1.1\r\nA: " + b"x" * 33_000 + b"\r\n\r\n"], (431, "headers_too_large")),
        ([b"GET /tasks HTTP/1.1\r\nA: " + b"x" * 20_000, *[b"x" * 20_000] * 50], (431, "headers_too_large")),
        ([b"GET /tasks HTTP/1.1\r\n", *[b"A: " + b"x" * 1000 + b"\r\n"] * 3000], (431, "headers_too_large")),
        ([b"GET /tasks HTTP/1.1\r\n", *[b"A:b\r\n" * 10_000] * 100], (431, "headers_too_large")),
        ([b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n"], (414, "target_too_long")),
        ([b"GET /tasks?" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n"], (414, "target_too_long")),
        ([b"GET /" + b"a" * 9000, *[b"a" * 50_000] * 50], (414, "target_too_long")),
    ],
    ids=["many headers", "a large header", "a header without end", "headers without end", "a flood of small headers",
         "a long path", "a long query", "a target without end"],
)  # fmt: skip
async def test_too_much_of_a_head_is_refused(
    settings: Settings, http: httpx.AsyncClient, pieces: list[bytes], expected: tuple[int, str]
) -> None:
    assert await refused(settings, *pieces) == expected
    assert await is_well(http)


async def test_what_is_within_the_limits_is_served(settings: Settings, http: httpx.AsyncClient) -> None:
    many = "".join(f"X-{number}: {'v' * 250}\r\n" for number in range(95))
    async with connected(settings) as connection:
        for piece in ("GET /tasks HTTP/1.1\r\n", AUTHORIZED, many, "\r\n"):
            await connection.send(piece.encode())
            await asyncio.sleep(0.05)
        assert (await connection.answer())[0] == 200
        await connection.send(f"GET /tasks/{'9' * 2000} HTTP/1.1\r\n{AUTHORIZED}\r\n".encode())
        status, _, content = await connection.answer()
        assert (status, json.loads(content)["code"]) == (400, "malformed_id")
        await connection.send(f"GET /tasks?action={'a' * 7000} HTTP/1.1\r\n{AUTHORIZED}\r\n".encode())
        assert (await connection.answer())[0] == 422


@pytest.mark.parametrize("framing", ["Content-Length: 300000", "Transfer-Encoding: chunked"])
async def test_a_large_body_is_refused(settings: Settings, http: httpx.AsyncClient, framing: str) -> None:
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n" if "chunked" in framing else b" " * 65536
    async with connected(settings) as connection:
        await connection.send(f"POST /tasks HTTP/1.1\r\n{AUTHORIZED}{framing}\r\n\r\n".encode(), *[chunk] * 5)
        status, _, content = await connection.answer()
        assert (status, json.loads(content)["code"]) == (413, "body_too_large")


async def test_a_body_without_end_is_cut_off(settings: Settings, http: httpx.AsyncClient) -> None:
    """Also behind an answer that was given without reading it, in chunk extensions, and in a trailer."""
    start = f"POST /tasks HTTP/1.1\r\n{AUTHORIZED}Transfer-Encoding: chunked\r\n\r\n".encode()
    floods = (
        [start.replace(b"POST /tasks", b"GET /livez"), *[b"10000\r\n" + b" " * 65536 + b"\r\n"] * 400],
        [start, b"1;", *[b"e" * 65536] * 400],
        [start, b"2\r\n{}\r\n0\r\nX: ", *[b"t" * 65536] * 400],
        [start, b"2\r\n{}\r\n0\r\n", *[b"T: t\r\n" * 10_000] * 400],
    )
    before = resident()
    for flood in floods:
        async with connected(settings) as connection:
            await connection.send(*flood)
            received = await connection.rest()
        assert re.match(rb"HTTP/1.1 (2|4)|$", received)
    assert resident() - before < 32 << 20
    assert await is_well(http)


async def test_a_trailer_adds_nothing_to_the_headers(settings: Settings, http: httpx.AsyncClient) -> None:
    request = (
        "POST /tasks HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        f"2\r\n{{}}\r\n0\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
    )
    async with connected(settings) as connection:
        await connection.send(request.encode())
        assert (await connection.answer())[0] == 401


async def test_a_flood_of_pipelined_requests_ends_with_a_few_answers(
    settings: Settings, http: httpx.AsyncClient
) -> None:
    async with connected(settings) as connection:
        await connection.send(*[b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n" * 5000] * 10)
        received = await connection.rest()
    assert 1 <= received.count(b"HTTP/1.1 200") <= 200
    assert await is_well(http)


async def test_a_few_pipelined_requests_are_answered_in_order(settings: Settings, http: httpx.AsyncClient) -> None:
    async with connected(settings) as connection:
        await connection.send(GET + GET.replace(b"/tasks", b"/nothing") + GET)
        assert [(await connection.answer())[0] for _ in range(3)] == [200, 404, 200]


# --- too slow --------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.5)
    monkeypatch.setattr(protocol, "STALL_SECONDS", 0.5)
    monkeypatch.setattr(body, "SILENCE_SECONDS", 0.5)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("piece", [b"G", b"GET /tasks HTTP/1.1\r\n", b"GET /tasks HTTP/1.1\r\nHost: a"])
async def test_half_a_head_is_not_waited_for(settings: Settings, http: httpx.AsyncClient, piece: bytes) -> None:
    assert await refused(settings, piece) == (408, "request_timeout")


@pytest.mark.usefixtures("impatient")
async def test_the_time_for_a_head_does_not_begin_anew_with_every_byte(
    settings: Settings, http: httpx.AsyncClient
) -> None:
    async with connected(settings) as connection:

        async def drip() -> None:
            for byte in b"GET /tasks HTTP/1.1\r\n" + b"A: b\r\n" * 100:
                await connection.send(bytes([byte]))
                await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        assert problem_in(await connection.rest()) == (408, "request_timeout")
        dripping.cancel()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("noise", [b"", b"\r\n", b"\r\n\r\n\r\n"])
async def test_a_connection_that_asks_for_nothing_is_closed(
    settings: Settings, http: httpx.AsyncClient, noise: bytes
) -> None:
    async with connected(settings) as connection:
        assert await (await connection.send(noise)).rest() == b""
    async with connected(settings) as connection:
        await connection.send(GET)
        assert (await connection.answer())[0] == 200
        assert await (await connection.send(noise)).rest() == b""


@pytest.mark.usefixtures("impatient")
async def test_half_a_head_on_a_used_connection_is_not_waited_for(settings: Settings, http: httpx.AsyncClient) -> None:
    async with connected(settings) as connection:
        await connection.send(GET)
        await connection.answer()
        await connection.send(GET[:30])
        assert problem_in(await connection.rest()) == (408, "request_timeout")


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "start",
    [
        "Content-Length: 100\r\n\r\n",
        'Content-Length: 100\r\n\r\n{"chain": 1',
        "Transfer-Encoding: chunked\r\n\r\n5\r\n{",
    ],
)
async def test_half_a_body_is_not_waited_for(settings: Settings, http: httpx.AsyncClient, start: str) -> None:
    request = f"POST /tasks HTTP/1.1\r\n{AUTHORIZED}{start}".encode()
    assert await refused(settings, request) == (408, "request_timeout")


@pytest.mark.usefixtures("impatient")
async def test_a_body_that_drips_for_ever_comes_to_an_end(
    settings: Settings, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body, "BODY_SECONDS", 1.0)
    async with connected(settings) as connection:
        await connection.send(f"POST /tasks HTTP/1.1\r\n{AUTHORIZED}Content-Length: 10000\r\n\r\n".encode())

        async def drip() -> None:
            while True:
                await connection.send(b" ")
                await asyncio.sleep(0.1)

        dripping = asyncio.create_task(drip())
        assert problem_in(await connection.rest()) == (408, "request_timeout")
        dripping.cancel()


@pytest.mark.usefixtures("impatient")
async def test_a_body_that_nobody_reads_does_not_hold_the_connection(
    settings: Settings, http: httpx.AsyncClient
) -> None:
    async with connected(settings) as connection:
        await connection.send(b"GET /livez HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n")
        assert (await connection.answer())[0] == 200

        async def drip() -> None:
            while True:
                await connection.send(b" ")
                await asyncio.sleep(0.1)

        dripping = asyncio.create_task(drip())
        assert await connection.rest() == b""
        dripping.cancel()


async def test_a_caller_that_hangs_up_in_its_body_is_no_error_of_ours(
    settings: Settings, http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        async with connected(settings) as connection:
            await connection.send(f"POST /tasks HTTP/1.1\r\n{AUTHORIZED}Content-Length: 100\r\n\r\n{{".encode())
            await asyncio.sleep(0.05)
    assert await is_well(http)
    assert not [record for record in caplog.records if getattr(record, "action", "") == "unexpected"]


@pytest.mark.usefixtures("impatient")
async def test_a_caller_that_takes_nothing_of_its_answer_is_cut_off(
    settings: Settings, http: httpx.AsyncClient, bus: Bus
) -> None:
    path = await stored(bus, bytes(16 << 20))
    states = http_connections(http)
    with await slow_connection(settings, path):
        await eventually(lambda: any(state.flow.write_paused for state in states()), what="it stalls")
        await eventually(lambda: not any(state.flow.write_paused for state in states()), what="it is cut off")
    assert await is_well(http)


async def test_nobody_waits_while_500_send_a_byte_a_second(
    settings: Settings, http: httpx.AsyncClient, bus: Bus, app: App
) -> None:
    connections = [await asyncio.open_connection("127.0.0.1", settings.http_port) for _ in range(500)]

    async def drip(writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            for byte in b"POST /tasks HTTP/1.1\r\nHost: a\r\n" + b"A: b\r\n" * 20:
                writer.write(bytes([byte]))
                await asyncio.sleep(1.0)

    dripping = [asyncio.create_task(drip(writer)) for _, writer in connections]
    async with worker(bus, app, settings):
        task = await create(http)
        took = []
        for _ in range(20):
            began = time.monotonic()
            assert (await http.post(f"/tasks/{task}/execute")).json()["code"] == "DONE"
            took.append(time.monotonic() - began)
            await asyncio.sleep(0.1)
    for dropping in dripping:
        dropping.cancel()
    for _, writer in connections:
        writer.transport.abort()
    assert max(took) < 1.0


# --- not HTTP --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"hello\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /tasks HTTP/9.9\r\n\r\n",
        b"GET /tasks HTTP/1.1\r\nA\r\n\r\n",
        b"GET /tasks HTTP/1.1\r\nA: b\x00c\r\n\r\n",
        b"GET /tasks HTTP/1.1\r\nA\x00: b\r\n\r\n",
        b"GET /tasks HTTP/1.1\r\nA b: c\r\n\r\n",
        b"GET /tasks HTTP/1.1\r\n A: folded\r\n\r\n",
        b"GET /t\x00 HTTP/1.1\r\n\r\n",
        b"GET /t\xff HTTP/1.1\r\n\r\n",
        b"GET http:// HTTP/1.1\r\n\r\n",
        b"CONNECT a:80 HTTP/1.1\r\n\r\n",
        b"POST /tasks HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n{}",
        b"POST /tasks HTTP/1.1\r\nContent-Length: -1\r\n\r\n{}",
        b"POST /tasks HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n{}",
        b"POST /tasks HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /tasks HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n",
        b"POST /tasks HTTP/1.1\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        b"POST /tasks HTTP/1.1\r\n" + AUTHORIZED.encode() + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        b"POST /tasks HTTP/1.1\r\n" + AUTHORIZED.encode() + b"Transfer-Encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n",
        b"POST /tasks HTTP/1.1\r\n" + AUTHORIZED.encode() + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}xx0\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_a_bad_request(
    settings: Settings, http: httpx.AsyncClient, request_bytes: bytes
) -> None:
    assert await refused(settings, request_bytes) == (400, "bad_request")
    assert await is_well(http)


async def test_no_bytes_make_it_fail_or_hang(
    settings: Settings, http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(body, "SILENCE_SECONDS", 0.3)
    loop = asyncio.get_running_loop()

    async def check(junk: bytes) -> None:
        async with connected(settings) as connection:
            received = await (await connection.send(junk)).rest()
        for status in re.findall(rb"HTTP/1.1 (\d+)", received):
            assert 200 <= int(status) < 500, received

    tokens = st.sampled_from(
        [b"GET ", b"POST ", b"/tasks", b"/tasks/1/execute", b" HTTP/1.1", b"\r\n", b"\r\n\r\n", b"Host: a", b"A: ",
         b"Content-Length: 3", b"Transfer-Encoding: chunked", b"Expect: 100-continue", b"Upgrade: websocket",
         b"Connection: upgrade", b"3\r\nabc\r\n", b"0\r\n\r\n", b"\x00", b"\xff\xfe", b"{}", AUTHORIZED.encode()]
    )  # fmt: skip
    junk = st.one_of(st.binary(max_size=200), st.lists(tokens, max_size=20).map(b"".join))

    @given(junk=junk)
    @hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    def run(junk: bytes) -> None:
        asyncio.run_coroutine_threadsafe(check(junk), loop).result(WITHIN * 2)

    await asyncio.to_thread(run)
    assert await is_well(http)
    assert not [record for record in caplog.records if getattr(record, "action", "") == "unexpected"]


async def test_a_bad_request_does_not_take_the_answer_of_the_one_before(
    settings: Settings, http: httpx.AsyncClient, bus: Bus, app: App
) -> None:
    @app.action("nap")
    async def nap(params: dict[str, object], ctx: Context) -> None:
        await asyncio.sleep(0.5)

    async with worker(bus, app, settings), connected(settings) as connection:
        task = await create(http, "nap")
        await connection.send(f"POST /tasks/{task}/execute HTTP/1.1\r\n{AUTHORIZED}\r\nnonsense\r\n\r\n".encode())
        status, _, content = await connection.answer()
        assert (status, json.loads(content)["code"]) == (200, "DONE")
        assert await connection.rest() == b""


@pytest.mark.parametrize(
    ("framing", "piece"),
    [("Transfer-Encoding: chunked", b"zz\r\n"), ("Content-Length: 9000000", b"x" * 100_000)],
    ids=["a bad chunk", "a flood"],
)
async def test_what_follows_an_answer_gets_none(
    settings: Settings, http: httpx.AsyncClient, framing: str, piece: bytes
) -> None:
    """A second answer to the same request would be taken for that to the next one."""
    async with connected(settings) as connection:
        await connection.send(f"GET /livez HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n".encode())
        assert (await connection.answer())[0] == 200
        await connection.send(*[piece] * 20)
        assert await connection.rest() == b""
    assert await is_well(http)


@pytest.mark.parametrize("last", ["Connection: close\r\n", ""])
async def test_who_sends_everything_before_reading_anything_gets_the_refusal(
    settings: Settings, http: httpx.AsyncClient, last: str
) -> None:
    """A connection that is closed while something comes in is reset, and the answer lost on the way."""
    async with connected(settings) as connection:
        await connection.send(f"POST /tasks HTTP/1.1\r\n{AUTHORIZED}{last}Transfer-Encoding: chunked\r\n\r\n".encode())
        for _ in range(12):
            await connection.send(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
            await asyncio.sleep(0.02)
        status, _, content = await connection.answer()
    assert (status, json.loads(content)["code"]) == (413, "body_too_large")


async def test_not_everything_is_thrown_away_for_ever(settings: Settings, http: httpx.AsyncClient) -> None:
    sent, piece = 0, b"x" * 65536
    async with connected(settings) as connection:
        await connection.send(b"GET /livez HTTP/1.1\r\nA: ")
        with suppress(ConnectionError):
            while sent < 400 << 20:
                connection.writer.write(piece)
                await connection.writer.drain()
                sent += len(piece)
    assert sent < 64 << 20, "what the system buffers, and little more"


# --- too many --------------------------------------------------------------------------------------------


async def test_more_connections_than_may_be_are_told_so(
    settings: Settings, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "RESERVE_SHARE", 4)
    async with adapter(settings.model_copy(update={"max_connections": 20})) as http:
        states = http_connections(http)
        opened = [await asyncio.open_connection("127.0.0.1", settings.http_port) for _ in range(60)]
        await eventually(lambda: len(states()) <= 25, what="those beyond the reserve are cut")
        ask = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        answers = [await (await Connection(*pair).send(ask)).rest() for pair in opened]
        statuses = [answer[9:12] for answer in answers]
        assert statuses.count(b"200") == 20
        assert 1 <= statuses.count(b"503") <= 5
        full = next(answer for answer in answers if answer.startswith(b"HTTP/1.1 503"))
        assert problem_in(full) == (503, "too_many_connections")
        assert b"retry-after: 2\r\n" in full
        for _, writer in opened:
            writer.transport.abort()
        await eventually(lambda: not states(), what="all are gone")
        assert await is_well(http)


@pytest.mark.parametrize(
    ("soft", "hard", "served"), [(5000, 5000, 2000), (300, 5000, 2000), (300, 2000, 1500), (1024, 1024, 768)]
)
def test_an_adapter_takes_no_more_connections_than_it_may_open_files_for(soft: int, hard: int, served: int) -> None:
    """Its own limit it raises itself."""
    program = "from runwire.bootstrap.adapter import affordable_connections as f; import resource as r; "
    asked = subprocess.run(
        [sys.executable, "-c", program + "print(f(2000), r.getrlimit(r.RLIMIT_NOFILE)[0])"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard)),
        capture_output=True,
        check=True,
    )
    connections, files = map(int, asked.stdout.split())
    assert connections == served
    assert files > connections + connections // protocol.RESERVE_SHARE, "there is room for those who are told, too"
    assert (b"ulimit -Hn" in asked.stderr) == (served < 2000)


# --- what the tests know of the server ---------------------------------------------------------------------


def http_connections(http: httpx.AsyncClient):
    """A function that lists the connections the adapter has open at the moment."""
    server = http.server  # type: ignore[attr-defined]
    return lambda: list(server.server_state.connections)


def resident() -> int:
    """Bytes of memory this process has in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
