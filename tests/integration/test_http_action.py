"""The action `http` with real servers: whom it reaches, what it sends, what comes of the answer."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from runwire.app import App, Context
from runwire.domain.addresses import parse_exceptions
from runwire.domain.errors import Fail, Retry, SetupError
from runwire.domain.task import LogLevel
from runwire.messaging import actions, codec
from runwire.messaging.broker import Bus
from runwire.outgoing import exchange
from runwire.outgoing.guard import Forbidden, Guard, is_own
from runwire.settings import Settings, load
from runwire.worker.actions.builtin import builtin_actions
from runwire.worker.actions.http import http_action
from runwire.worker.actions.http_request import HttpRequest
from runwire.worker.announcer import Announcer
from tests.support import (
    CHAIN,
    HEADERS,
    Broker,
    adapter,
    ended,
    eventually,
    free_port,
    lifecycle_now,
    make_task,
    publish_command,
    worker,
)

CERTIFICATE = """
-----BEGIN CERTIFICATE-----
MIIBnDCCAUGgAwIBAgIUEX/z8VWVZdlk/N0QCrvgfk0UOIgwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyNDE4Mzg1NloYDzIxMjYxMDMx
MTgzODU2WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAASreFOr4Vf+9/lXGcxEaylWaXMIqORyxNApssEzc6rgnbDTLrwwWGnw
aJCbW2k/dJdVBXuWyXFu6mbDLgSKjh8jo28wbTAdBgNVHQ4EFgQUlZE61ISSFcSY
ZiBwa6XQerjvbGYwHwYDVR0jBBgwFoAUlZE61ISSFcSYZiBwa6XQerjvbGYwGgYD
VR0RBBMwEYIJbG9jYWxob3N0hwR/AAABMA8GA1UdEwEB/wQFMAMBAf8wCgYIKoZI
zj0EAwIDSQAwRgIhAP5OFNiUN+Ht6Mglcw49AFQs5CzoJ4cdZfvOA5Ysl/WsAiEA
oU6UL8WijKTN2PBAhly8F2wifKiQdz6WePtpU7QJPvM=
-----END CERTIFICATE-----
"""
KEY = """
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgTj+EMvTKiE35lWjr
sDvPIv5LietBhBZm40yMd4T3kRahRANCAASreFOr4Vf+9/lXGcxEaylWaXMIqORy
xNApssEzc6rgnbDTLrwwWGnwaJCbW2k/dJdVBXuWyXFu6mbDLgSKjh8j
-----END PRIVATE KEY-----
"""
"""Of localhost, trusted by nobody, for these tests only; good until 2126."""

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Answer = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Received:
    """A request as it came in."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Site:
    """A server that writes down what it is asked, and answers as it is told: the last answer again and again."""

    answers: list[Answer]
    host: str = "127.0.0.1"
    port: int = 0
    requests: list[Received] = field(default_factory=list)
    connections: int = 0
    open: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}/"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open.add(asyncio.current_task())
        try:
            await self._answer(reader, writer)
            if await reader.read() != b"":
                raise AssertionError("a second request on the same connection")
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            self.open.discard(asyncio.current_task())
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = head[0].split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        self.requests.append(Received(method, target, headers, body))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, bytes):
            writer.write(answer)
            writer.write_eof() if writer.can_write_eof() else writer.close()
        else:
            await answer(writer)


@asynccontextmanager
async def site(*answers: Answer, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> AsyncIterator[Site]:
    found = Site(list(answers) or [reply()], host)
    server = await asyncio.start_server(found.serve, host, 0, ssl=tls)
    found.port = server.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        server.close()
        await eventually(lambda: not found.open, within=2, what="every connection is closed")


def reply(status: int = 200, body: bytes = b"", **headers: str) -> bytes:
    fields = {"content-length": str(len(body)), **{name.replace("_", "-"): value for name, value in headers.items()}}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status} Whatever\r\n{lines}\r\n".encode() + body


def json_reply(value: Any, status: int = 200) -> bytes:
    return reply(status, json.dumps(value).encode(), content_type="application/json")


@dataclass
class Called:
    """What comes of a call: of the action alone, without a broker."""

    lines: list[str] = field(default_factory=list)
    secrets: dict[tuple[str, bool], str] = field(default_factory=dict)

    async def __call__(self, url: str, *, allow: str = "", resolve: Any = None, **fields: Any) -> dict[str, Any]:
        options = {} if resolve is None else {"resolve": resolve}
        action = http_action(parse_exceptions(allow), 4_000_000, **options)
        context = Context(
            run_id="r1",
            attempt=1,
            deadline=datetime.now(UTC) + timedelta(hours=1),
            task=1,
            chain=CHAIN,
            write_log=lambda level, line: self.lines.append(f"{level}: {line}"),
            read_secret=lambda name, own: self.secrets[name, own],
        )
        return await action(HttpRequest.model_validate({"url": url, **fields}), context)

    async def fails(self, url: str, **fields: Any) -> Fail | Retry:
        with pytest.raises((Fail, Retry)) as raised:
            await self(url, **fields)
        return raised.value


@pytest.fixture
def call() -> Called:
    return Called()


def answering(*answers: list[str]) -> Callable[[str, int], Awaitable[list[str]]]:
    """A resolver that has one answer after the other."""
    left = list(answers)

    async def resolve(host: str, port: int) -> list[str]:
        return left.pop(0)

    return resolve


async def test_a_header_may_name_secrets_of_the_chain(call: Called) -> None:
    call.secrets = {("crm.token", True): "t0p s3cret", ("b", True): "x"}
    async with site() as there:
        headers = {"Authorization": "Bearer secret://crm.token", "Cookie": "a=secret://b; c=1"}
        await call(there.url, allow=f"127.0.0.1:{there.port}", headers=headers)
    assert there.requests[0].headers["authorization"] == "Bearer t0p s3cret"
    assert there.requests[0].headers["cookie"] == "a=x; c=1"


@pytest.mark.parametrize("secret", ["a\r\nX-Injected: 1", "a\nb", "\x00", "é", " "])
async def test_a_secret_that_is_no_header_is_not_sent(call: Called, secret: str) -> None:
    call.secrets = {("s", True): secret}
    async with site() as there:
        error = await call.fails(there.url, allow=f"127.0.0.1:{there.port}", headers={"Authorization": "secret://s"})
    assert (error.code, there.connections) == ("invalid_parameters", 0)
    assert str(error) == "/target/headers/Authorization: a secret in it is no line of visible ASCII."


# --- whom it reaches -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.1", "127.0.1", "2130706433", "017700000001", "0x7f000001", "0X7F000001", "0x7f.0.0.1",
        "0x7f.1", "127.127.127.127", "0", "0.0.0.0", "localhost", "LocalHost",
        "[::1]", "[0:0:0:0:0:0:0:1]", "[0000::0001]", "[::]", "[::127.0.0.1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]",
        "[::FFFF:0:127.0.0.1]", "[64:ff9b::127.0.0.1]", "[64:ff9b::7f00:1]", "[64:ff9b:1::7f00:1]", "[2002:7f00:1::]",
        "[2001:0:7f00:1::1]", "[2001:0:101:101::80ff:fffe]", "[fe80::1]", "[fec0::1]", "[fc00::1]", "[ff02::1]",
        "169.254.169.254", "0xa9fea9fe", "2852039166", "[::ffff:a9fe:a9fe]", "[fd00:ec2::254]",
        "[fd20:ce::254]", "100.100.100.200", "168.63.129.16", "192.0.0.192",
        "10.0.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1", "198.18.0.1", "224.0.0.1", "255.255.255.255",
    ],
)  # fmt: skip
async def test_no_spelling_of_a_forbidden_address_is_connected_to(host: str, call: Called) -> None:
    async with site(host=None) as everywhere:
        error = await call.fails(f"http://{host}:{everywhere.port}/")
        assert (error.code, str(error).lower()) == (
            "forbidden_address",
            f"{host.strip('[]').lower()} may not be called.",
        )
        assert everywhere.connections == 0


@pytest.mark.parametrize("host", ["127.0.0.1.", "localhost.", socket.gethostname()])
async def test_a_name_of_this_machine_is_no_way_in_either(host: str, call: Called) -> None:
    async with site(host=None) as everywhere:
        error = await call.fails(f"http://{host}:{everywhere.port}/")
        assert error.code in {"forbidden_address", "connection_failed"}  # not every system knows them
        assert everywhere.connections == 0


async def test_a_redirect_is_not_followed_unless_asked_for(call: Called) -> None:
    async with site() as target, site(reply(302, location=target.url)) as first:
        error = await call.fails(first.url, allow=f"127.0.0.1:{first.port}, 127.0.0.1:{target.port}")
        assert (error.code, str(error)) == ("unexpected_status", "The server answered 302 (Found).")
        assert target.connections == 0


async def test_a_redirect_to_a_forbidden_address_is_not_followed(call: Called) -> None:
    async with site(host="127.0.0.2") as forbidden:
        for location in (forbidden.url, f"http://0x7f000002:{forbidden.port}/", f"//127.0.0.2:{forbidden.port}"):
            async with site(reply(302, location=location)) as first:
                error = await call.fails(first.url, allow=f"127.0.0.1:{first.port}", redirects=3)
                assert (error.code, str(error)) == (
                    "forbidden_address",
                    "The server redirected to an address that may not be called.",
                )
        assert forbidden.connections == 0


async def test_a_name_is_looked_up_once_for_a_request_and_again_for_the_next(call: Called) -> None:
    async with site(reply(302, location="/again")) as allowed:
        rebinding = answering(["127.0.0.1"], ["127.0.0.2"])
        error = await call.fails(
            f"http://rebinding.example:{allowed.port}/",
            allow=f"127.0.0.1:{allowed.port}",
            resolve=rebinding,
            redirects=1,
        )
        assert error.code == "forbidden_address"
        assert [request.target for request in allowed.requests] == ["/"]
        assert allowed.requests[0].headers["host"] == f"rebinding.example:{allowed.port}"


@pytest.mark.parametrize("answer", [["127.0.0.1", "127.0.0.2"], ["127.0.0.2", "127.0.0.1"], ["127.0.0.1", "::1"]])
async def test_one_forbidden_address_among_the_answers_is_enough(answer: list[str], call: Called) -> None:
    async with site(host=None) as everywhere:
        error = await call.fails(
            f"http://mixed.example:{everywhere.port}/",
            allow=f"127.0.0.1:{everywhere.port}",
            resolve=answering(answer),
        )
        assert error.code == "forbidden_address"
        assert everywhere.connections == 0


async def test_an_address_that_does_not_answer_is_followed_by_the_next(call: Called) -> None:
    async with site() as second:
        result = await call(
            f"http://two.example:{second.port}/",
            allow="127.0.0.1, 127.0.0.3",
            resolve=answering(["127.0.0.3", "::ffff:127.0.0.1"]),
        )
        assert result["status"] == 200


async def test_what_the_operator_lets_in_is_let_in_on_that_port_only(call: Called) -> None:
    async with site() as allowed, site() as other:
        for host in ("127.0.0.1", "localhost", "0x7f.1", "[::ffff:127.0.0.1]"):
            resolve = answering(["127.0.0.1"]) if host == "localhost" else None  # which may have two addresses
            url = f"http://{host}:{allowed.port}/"
            assert (await call(url, allow=f"127.0.0.1:{allowed.port}", resolve=resolve))["status"] == 200
        error = await call.fails(other.url, allow=f"127.0.0.1:{allowed.port}")
        assert (error.code, other.connections) == ("forbidden_address", 0)


async def test_the_workers_own_address_is_not_public_whatever_its_number() -> None:
    guard = Guard(
        parse_exceptions(""), resolve=answering(["1.1.1.1"]), is_own=lambda address: str(address) == "1.1.1.1"
    )
    with pytest.raises(Forbidden):
        await guard.connect_tcp("own.example", 443)


@pytest.mark.parametrize(("address", "own"), [("127.0.0.1", True), ("127.0.0.9", False), ("192.0.2.1", False)])
def test_an_address_is_the_workers_own_when_it_would_be_talking_to_itself(address: str, own: bool) -> None:
    assert is_own(ip_address(address)) is own


async def test_the_environment_names_no_proxy(call: Called, monkeypatch: pytest.MonkeyPatch) -> None:
    async with site() as proxy, site() as target:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        await call(target.url, allow="127.0.0.1")
        assert (proxy.connections, target.connections) == (0, 1)


def test_exceptions_that_are_none_keep_a_worker_from_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNWIRE_HTTP_ALLOW", "10.0.0.0/8, intranet:80")
    with pytest.raises(SetupError, match=r"RUNWIRE_HTTP_ALLOW: intranet:80: must be a network"):
        load()


# --- what it sends -------------------------------------------------------------------------------------


async def test_json_goes_out_as_json(call: Called) -> None:
    async with site() as target:
        await call(f"{target.url}a?b=c%20d", allow="127.0.0.1", method="POST", body={"name": "Ada é", "n": [1, None]})
        (request,) = target.requests
        assert (request.method, request.target) == ("POST", "/a?b=c%20d")
        assert json.loads(request.body) == {"name": "Ada é", "n": [1, None]}
        assert request.headers == {
            "host": f"127.0.0.1:{target.port}",
            "user-agent": "runwire/0.1.0",
            "accept": "*/*",
            "accept-encoding": "identity",
            "connection": "close",
            "content-length": str(len(request.body)),
            "content-type": "application/json",
            "idempotency-key": "r1",
        }


async def test_text_goes_out_as_it_is_and_headers_are_the_tasks(call: Called) -> None:
    headers = {"content-type": "text/csv", "IDEMPOTENCY-KEY": "order-17", "Authorization": "Basic eA==", "X-A": "a,  b"}
    async with site() as target:
        await call(target.url, allow="127.0.0.1", method="PUT", body="a,b\né", headers=headers)
        (request,) = target.requests
        assert request.body == "a,b\né".encode()
        sent = {name: request.headers[name] for name in ("content-type", "idempotency-key", "authorization", "x-a")}
        assert sent == {"content-type": "text/csv", "idempotency-key": "order-17", "authorization": "Basic eA==",
                        "x-a": "a,  b"}  # fmt: skip


@pytest.mark.parametrize(("body", "sent"), [(None, b""), (False, b"false"), (0, b"0"), ([], b"[]"), ("", b"")])
async def test_only_null_is_no_body(body: Any, sent: bytes, call: Called) -> None:
    async with site() as target:
        await call(target.url, allow="127.0.0.1", method="POST", body=body)
        (request,) = target.requests
        assert request.body == sent
        assert ("content-length" in request.headers) is (body is not None)


async def test_nothing_of_a_call_is_there_for_the_next(call: Called) -> None:
    async with site(reply(set_cookie="a=b", connection="keep-alive")) as target:
        await call(target.url, allow="127.0.0.1")
        await call(target.url, allow="127.0.0.1")
        assert target.connections == 2
        assert [request for request in target.requests if "cookie" in request.headers] == []


async def test_a_redirect_goes_with_what_it_needs(call: Called) -> None:
    headers = {"Authorization": "Bearer canary", "X-Api-Key": "canary", "Accept": "text/plain"}
    async with site(reply(body=b"there")) as target, site(reply(303, location=f"{target.url}end")) as second:
        async with site(reply(307, location="/x"), reply(308, location="/y"), reply(302, location=second.url)) as first:
            result = await call(
                first.url, allow="127.0.0.1", method="POST", body={"a": 1}, headers=headers, redirects=3, expect=[303]
            )
        assert result["status"] == 303, "of four redirects three are followed"
        assert [(r.method, r.target, r.body) for r in first.requests] == [
            ("POST", "/", b'{"a":1}'), ("POST", "/x", b'{"a":1}'), ("POST", "/y", b'{"a":1}')]  # fmt: skip
        assert all(request.headers["authorization"] == "Bearer canary" for request in first.requests)
        (request,) = second.requests
        assert (request.method, request.body) == ("GET", b"")
        assert {"authorization", "x-api-key", "content-type"}.isdisjoint(request.headers)
        assert (request.headers["accept"], request.headers["idempotency-key"]) == ("text/plain", "r1")
        assert target.connections == 0


# --- what comes of the answer --------------------------------------------------------------------------


async def test_a_result_has_status_some_headers_and_the_body(call: Called) -> None:
    answer = reply(201, b'{"id": 7}', content_type="application/json; charset=utf-8", etag='"1"', location="/orders/7",
                   set_cookie="session=canary", server="x")  # fmt: skip
    async with site(answer) as target:
        result = await call(f"{target.url}secret-path?key=canary", allow="127.0.0.1", method="POST")
    assert result == {
        "status": 201,
        "headers": {"content-type": "application/json; charset=utf-8", "etag": '"1"', "location": "/orders/7"},
        "body": {"id": 7},
    }
    (line,) = call.lines
    assert line.startswith(f"info: POST 127.0.0.1:{target.port}: 201 in ")


@pytest.mark.parametrize(
    ("content_type", "body", "found"),
    [
        ("application/json", b"[1, 2.5, null]", [1, 2.5, None]),
        ("application/problem+json", b'{"a": "\xc3\xa9"}', {"a": "é"}),
        ("application/json", b"", None),
        ("application/json", b"{broken", "{broken"),
        ("application/json", b"[NaN]", "[NaN]"),
        ("application/json", b"[1e999]", "[1e999]"),
        ("application/json", b"1" * 5000, "1" * 5000),
        ("application/json", b"[" * 5000, "[" * 5000),
        ("application/json", b"\xff\xfe\xff", "\ufffd\ufffd\ufffd"),
        ("text/plain", b"[1]", "[1]"),
        ("text/plain; charset=utf-8", "é".encode(), "é"),
        ("text/plain; charset=ISO-8859-1", b"\xe9", "é"),
        ("text/plain; charset=windows-1252", b"\x80", "€"),
        ("text/plain; charset=rot13", b"abc", "abc"),
        ("text/plain; charset=utf-7", b"+AGE-", "+AGE-"),
        ("application/octet-stream", b"\x00\xff", "\x00\ufffd"),
        ("", b"plain", "plain"),
    ],
)
async def test_a_body_is_json_when_it_is_json_and_text_else(
    content_type: str, body: bytes, found: Any, call: Called
) -> None:
    async with site(reply(body=body, content_type=content_type)) as target:
        assert (await call(target.url, allow="127.0.0.1"))["body"] == found


async def test_a_head_has_no_body_however_large(call: Called) -> None:
    async with site(reply(content_length="99999999999", content_type="text/html")) as target:
        result = await call(target.url, allow="127.0.0.1", method="HEAD")
        assert result == {"status": 200, "headers": {"content-type": "text/html"}, "body": None}


async def test_what_is_asked_for_is_taken_out_of_the_body(call: Called) -> None:
    answer = {"data": {"total": 3, "rows": [{"id": "a"}, {"id": "b"}]}, "a/b": None}
    async with site(json_reply(answer)) as target:
        extract = {"total": "/data/total", "last": "/data/rows/1/id", "nothing": "/a~1b", "rows": "/data/rows"}
        result = await call(target.url, allow="127.0.0.1", extract=extract)
        assert result["values"] == {"total": 3, "last": "b", "nothing": None, "rows": [{"id": "a"}, {"id": "b"}]}
        assert "body" not in result
        error = await call.fails(target.url, allow="127.0.0.1", extract={"x": "/data/x"})
        assert (error.code, str(error)) == ("invalid_response", "The answer has nothing at /data/x.")


@pytest.mark.parametrize("body", [b"", b"text", b"{", b"NaN", b"[" * 5000])
async def test_nothing_can_be_taken_out_of_what_is_no_json(body: bytes, call: Called) -> None:
    async with site(reply(body=body, content_type="application/json")) as target:
        error = await call.fails(target.url, allow="127.0.0.1", extract={"x": ""})
        assert (error.code, str(error)) == ("invalid_response", "The answer is no JSON.")


@pytest.mark.parametrize(
    ("status", "retried"),
    [(200, False), (302, False), (400, False), (401, False), (404, False), (409, False), (422, False), (499, False),
     (408, True), (425, True), (429, True), (500, True), (502, True), (503, True), (599, True)],
)  # fmt: skip
async def test_a_status_that_is_not_expected(status: int, retried: bool, call: Called) -> None:
    async with site(reply(status, b"no  such\n order")) as target:
        error = await call.fails(target.url, allow="127.0.0.1", expect=[201])
    assert error.code == "unexpected_status"
    assert str(error).startswith(f"The server answered {status}")
    assert isinstance(error, Retry) is retried
    assert call.lines[-1] == "warning: the answer begins with: no such order"


@pytest.mark.parametrize(
    ("header", "low", "high"),
    [
        ("120", 120, 120),
        ("0", 0, 0),
        ("soon", None, None),
        ("-5", None, None),
        ("", None, None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 1e9, 1e12),
        ("Wed, 21 Oct 2015 07:28:00 +99999999999999", None, None),
    ],
)
async def test_when_to_try_again(header: str, low: float | None, high: float | None, call: Called) -> None:
    async with site(reply(503, retry_after=header)) as target:
        error = await call.fails(target.url, allow="127.0.0.1")
    if low is None:
        assert error.after is None
    else:
        assert low <= error.after <= high


async def for_ever(writer: asyncio.StreamWriter, head: bytes, piece: bytes) -> None:
    """Goes on until the other side hangs up."""
    writer.write(b"HTTP/1.1 200 OK\r\n" + head)
    while True:
        writer.write(piece)
        await writer.drain()


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"content-length: 99999999999\r\n\r\n", b"x" * 10_000),
        (b"transfer-encoding: chunked\r\n\r\n", b"400\r\n" + b"x" * 1024 + b"\r\n"),
        (b"transfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 1000),
        (b"\r\n", b"x" * 10_000),
    ],
    ids=["declared", "chunked", "byte by byte", "until it closes"],
)
async def test_a_body_without_end_is_left(head: bytes, piece: bytes, call: Called) -> None:
    async with site(lambda writer: for_ever(writer, head, piece)) as target:
        error = await call.fails(target.url, allow="127.0.0.1", max_bytes=100_000)
        assert isinstance(error, Fail)
        assert (error.code, str(error)) == ("response_too_large", "The answer has more than 100,000 bytes.")
        await eventually(lambda: not target.open, within=1, what="the connection is closed")


async def test_of_an_unexpected_answer_the_beginning_is_enough(call: Called) -> None:
    head = b"content-type: text/plain\r\n\r\n"
    async with site(lambda writer: for_ever(writer, head, b"sorry, " * 1000)) as target:
        error = await call.fails(target.url, allow="127.0.0.1", expect=[201], seconds=20)
        assert error.code == "unexpected_status"
        (line,) = [line for line in call.lines if line.startswith("warning")]
        assert line.startswith("warning: the answer begins with: sorry, sorry, ")
        assert len(line) < 600


async def test_the_largest_body_that_is_allowed_is_read(call: Called) -> None:
    async with site(reply(body=b"x" * 5000)) as target:
        assert len((await call(target.url, allow="127.0.0.1", max_bytes=5000))["body"]) == 5000
        assert (await call.fails(target.url, allow="127.0.0.1", max_bytes=4999)).code == "response_too_large"


async def test_nothing_is_decompressed(call: Called) -> None:
    bomb = gzip.compress(b" " * 10_000_000)
    async with site(reply(body=bomb, content_encoding="gzip")) as target:
        error = await call.fails(target.url, allow="127.0.0.1", max_bytes=100_000)
        assert isinstance(error, Fail)
        assert (error.code, str(error)) == (
            "invalid_response",
            "The answer is compressed, which was not asked for.",
        )


async def silence(writer: asyncio.StreamWriter) -> None:
    """Not a word."""


async def drip(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nx")
    await writer.drain()


@pytest.mark.parametrize("answer", [silence, drip])
async def test_a_server_that_takes_too_long_is_left(answer: Answer, call: Called) -> None:
    async with site(answer) as target:
        error = await call.fails(target.url, allow="127.0.0.1", seconds=0.3)
        assert isinstance(error, Retry)
        assert (error.code, str(error)) == ("timeout", "There was no answer within 0.3 s.")
        await eventually(lambda: target.connections == 1 and not target.open, within=1, what="the connection is closed")


async def test_a_name_that_takes_too_long_is_left(call: Called, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "CONNECT_SECONDS", 0.1)

    async def never(host: str, port: int) -> list[str]:
        await asyncio.Event().wait()
        return []

    error = await call.fails("http://slow.example/", resolve=never)
    assert isinstance(error, Retry)
    assert error.code == "connection_failed"


async def vanish(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"", "Server disconnected without sending a response"),
        (vanish, "The connection failed: "),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "The connection failed: "),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nx", "peer closed connection"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx", "Content-Length"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000, "The connection failed: "),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", "The connection failed: "),
    ],
)
async def test_a_connection_that_breaks_is_worth_another_try(answer: Answer, says: str, call: Called) -> None:
    async with site(answer) as target:
        error = await call.fails(target.url, allow="127.0.0.1")
    assert isinstance(error, Retry)
    assert error.code == "connection_failed"
    assert says in str(error)


async def test_a_server_that_is_not_there_is_worth_another_try(call: Called) -> None:
    error = await call.fails(f"http://127.0.0.1:{free_port()}/", allow="127.0.0.1")
    assert isinstance(error, Retry)
    assert (error.code, str(error)) == ("connection_failed", "The connection failed: Connection refused.")

    async def unknown(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    error = await call.fails("http://nowhere.example/", resolve=unknown)
    assert (error.code, str(error)) == ("connection_failed", "The connection failed: Name or service not known.")


async def test_an_answer_before_the_whole_request_was_read_counts(call: Called) -> None:
    closed = asyncio.Event()

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply(413))
        await writer.drain()
        await reader.read()
        writer.close()
        closed.set()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        error = await call.fails(url, allow="127.0.0.1", method="POST", body="x" * 3_000_000, seconds=5)
        await closed.wait()
    assert (error.code, str(error)) == ("unexpected_status", "The server answered 413 (Request Entity Too Large).")


async def test_switching_protocols_is_no_answer(call: Called) -> None:
    async with site(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n") as target:
        assert (await call.fails(target.url, allow="127.0.0.1")).code == "connection_failed"


# --- https ---------------------------------------------------------------------------------------------


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    file = tmp_path / "certificate.pem"
    file.write_text(CERTIFICATE)
    return file


@pytest.fixture
def tls(certificate: Path, tmp_path: Path) -> ssl.SSLContext:
    (tmp_path / "key.pem").write_text(KEY)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, tmp_path / "key.pem")
    return context


async def test_a_certificate_that_nobody_trusts_is_refused(call: Called, tls: ssl.SSLContext) -> None:
    async with site(tls=tls) as target:
        error = await call.fails(f"https://127.0.0.1:{target.port}/", allow="127.0.0.1")
        assert (error.code, str(error)) == ("connection_failed", "The connection failed: self-signed certificate.")
        assert target.requests == []


async def test_a_certificate_that_the_system_trusts_is_taken_for_its_names(
    call: Called, tls: ssl.SSLContext, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    home = {"allow": "127.0.0.1", "resolve": answering(*[["127.0.0.1"]] * 4)}
    async with site(tls=tls) as target:
        for host in ("127.0.0.1", "localhost", "localhost."):
            assert (await call(f"https://{host}:{target.port}/", **home))["status"] == 200
        error = await call.fails(f"https://other.example:{target.port}/", **home)
        assert error.code == "connection_failed"
        assert "Hostname mismatch" in str(error)
        assert len(target.requests) == 3


async def test_https_does_not_redirect_to_http(
    call: Called, tls: ssl.SSLContext, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with site() as plain, site(reply(302, location=plain.url), tls=tls) as target:
        error = await call.fails(f"https://127.0.0.1:{target.port}/", allow="127.0.0.1", redirects=3)
        assert (error.code, str(error)) == ("invalid_response", "The server redirected from https to http.")
        assert plain.connections == 0


# --- as a task -----------------------------------------------------------------------------------------


async def test_headers_are_in_no_log(call: Called, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        async with site(reply(500)) as target:
            await call.fails(
                f"{target.url}?key=canary", allow="127.0.0.1", headers={"X-Api-Key": "canary"}, body={"a": "canary"}
            )
    assert "canary" not in caplog.text
    assert "canary" not in "".join(call.lines)


@pytest.fixture
def settings(base_settings: Settings, broker: Broker) -> Settings:
    return base_settings.model_copy(update={"nats_url": broker.url, "http_allow": "127.0.0.1"})


async def test_an_overloaded_server_is_asked_again_with_the_same_key(bus: Bus, app: App, settings: Settings) -> None:
    async with site(reply(503, retry_after="0"), reply(429, retry_after="0"), json_reply({"id": 7})) as target:
        await make_task(bus, "http", url=target.url, method="POST", retry={"attempts": 3, "backoff": 3600})
        async with worker(bus, app, settings):
            await publish_command(bus, "r1")
            document = await ended(bus, "r1")
    assert (document.run.attempt, document.run.result["body"]) == (3, {"id": 7})
    assert [request.headers["idempotency-key"] for request in target.requests] == ["r1"] * 3


async def test_a_cancel_closes_the_connection(bus: Bus, app: App, settings: Settings) -> None:
    async with site(silence) as target, adapter(settings) as http:
        await make_task(bus, "http", url=target.url)
        async with worker(bus, app, settings):
            await publish_command(bus, "r1")
            await eventually(lambda: target.requests, what="the server was asked")
            assert (await http.post("/tasks/1/cancel")).status_code == 200
            await eventually(lambda: not target.open, within=1, what="the connection is closed")
            assert (await ended(bus, "r1")).run.error.code == "cancelled"


async def orders(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """An ASGI app that repeats what it is sent."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 201, "headers": headers})
    for part in (b'{"data": {"order": ', body, b"}}"):
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body"})


@asynccontextmanager
async def real_server() -> AsyncIterator[str]:
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(orders, port=port, lifespan="off", log_config=None))
    serving = asyncio.create_task(server.serve())
    await eventually(lambda: server.started, what="the server started")
    yield f"http://127.0.0.1:{port}/orders"
    server.should_exit = True
    await serving


async def test_a_post_to_a_real_server_from_task_to_result(bus: Bus, app: App, settings: Settings) -> None:
    async with real_server() as url, adapter(settings) as http, worker(bus, app, settings):
        target = {"action": "http", "method": "POST", "url": url, "body": {"item": "tea"},
                  "extract": {"item": "/data/order/item"}}  # fmt: skip
        await http.post("/tasks", json={"id": 7, "chain": CHAIN, "desc": "Order", "target": target, "trigger": {}})
        answer = await http.post("/tasks/7/execute", headers=HEADERS)
        assert answer.json()["code"] == "DONE"
        result = (await http.get("/tasks/7")).json()["result"]
        assert result == {"status": 201, "headers": {"content-type": "application/json"}, "values": {"item": "tea"}}


async def test_what_is_no_request_is_refused_when_the_task_is_made(bus: Bus, settings: Settings) -> None:
    announcer = Announcer(bus, builtin_actions(bus), clock=lifecycle_now)
    await announcer.start()
    try:
        await eventually(lambda: _is_listed(bus, "http"), what="the action is listed")
        async with adapter(settings) as http:
            target = {"action": "http", "url": "http://user:canary@example.com/", "method": "CONNECT", "proxy": "x",
                      "extract": {"a": "b"}, "expect": [99], "max_bytes": 4_000_001}  # fmt: skip
            answer = await http.post("/tasks", json={"chain": CHAIN, "desc": "", "target": target, "trigger": {}})
    finally:
        await announcer.stop()
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_fields")
    assert {error["pointer"] for error in answer.json()["errors"]} == {
        "/target/url", "/target/method", "/target/proxy", "/target/extract/a", "/target/expect/0", "/target/max_bytes"
    }  # fmt: skip
    assert "canary" not in answer.text


async def _is_listed(bus: Bus, name: str) -> bool:
    return name in [entry.name for entry in await actions.listed(bus)]


async def test_a_forbidden_address_ends_the_run_without_another_try(bus: Bus, app: App, settings: Settings) -> None:
    async with site(host="127.0.0.2") as forbidden:
        await make_task(bus, "http", url=forbidden.url, retry={"attempts": 3, "backoff": 0})
        async with worker(bus, app, settings):
            await publish_command(bus, "r1")
            run = (await ended(bus, "r1")).run
        assert (run.attempt, run.error.code, forbidden.connections) == (1, "forbidden_address", 0)
        first = codec.decode_log((await bus.js.get_msg("LOGS", 1)).data)
        assert (first.level, first.message) == (LogLevel.ERROR, "forbidden_address: 127.0.0.2 may not be called.")
