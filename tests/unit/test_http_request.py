"""What a task may say about an HTTP request, and JSON Pointers into the answer."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from runwire.outgoing.exchange import BadRedirect, Request, redirected
from runwire.worker.actions.http_request import HttpRequest, limited
from runwire.worker.actions.pointer import Nowhere, pointed_at

URL = "http://example.com/"


def complaints(**fields: Any) -> str:
    with pytest.raises(ValidationError) as refused:
        HttpRequest.model_validate({"url": URL, **fields})
    return str([(".".join(map(str, error["loc"])), error["msg"]) for error in refused.value.errors()])


@pytest.mark.parametrize(
    "url",
    ["http://example.com", "https://example.com:8443/a%20b?c=d&e=f", "http://example.com./", "http://a_b.example/",
     "http://[::1]:8080/", "http://127.0.0.1", "http://h?q", "https://xn--bcher-kva.example/", "http://h/\\@[]{}"],
)  # fmt: skip
def test_a_url_that_may_be_asked_for(url: str) -> None:
    assert HttpRequest(url=url).url == url


@pytest.mark.parametrize(
    "url",
    [
        "", "example.com", "//example.com/", "/path", "ftp://example.com/", "file:///etc/passwd", "gopher://h/", "HTTP://h/",
        "http:/example.com", "http://", "http:///x", "http://:80/", "http://?x", "http://#x", "unix:///run/x.sock",
        "http://user:secret@example.com/", "http://user@example.com/", "http://@example.com/", "http://:@example.com/",
        "http://example.com\\@127.0.0.1/", "http://127.0.0.1#@example.com/", "http://example.com%2f@127.0.0.1/",
        "http://example.com:0/", "http://example.com:99999/", "http://example.com:/", "http://example.com:x/",
        "http://example.com:-1/", "http://example.com:800000/",
        "http://[fe80::1%25eth0]/", "http://[fe80::1%eth0]/", "http://[::1/", "http://::1/", "http://[:::]/", "http://[]/",
        "http://[v1.x]/", "http://[::ffff:999.0.0.1]/", "http://256.1.1.1/", "http://0177.0.0.1/",
        "http://exa mple.com/", "http://example.com/a b", "http://example.com/\n", "http://example.com\r\nX: y/",
        "http://example.com/\x00", "http://example.com/\t", " http://example.com/", "http://example.com/é",
        "http://①②⑦.⓪.⓪.①/", "http://127。0。0。1/", "http://ｌocalhost/", "http://%31%32%37.0.0.1/",
        "http://a..b/", "http://.example.com/", "http://./", "http://..", f"http://{'a' * 64}.example/",
        f"http://{'a.' * 127}abc/", f"http://h/{'x' * 4000}",
    ],
)  # fmt: skip
def test_a_url_that_may_not(url: str) -> None:
    assert "'url'" in complaints(url=url)


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ({"Host": "internal"}, "Host is not yours to set"),
        ({"content-length": "0"}, "content-length is not yours"),
        ({"Transfer-Encoding": "chunked"}, "Transfer-Encoding is not yours"),
        ({"CONNECTION": "keep-alive"}, "CONNECTION is not yours"),
        ({"Upgrade": "h2c"}, "not yours"),
        ({"TE": "trailers"}, "not yours"),
        ({"Expect": "100-continue"}, "not yours"),
        ({"Accept-Encoding": "gzip"}, "not yours"),
        ({"Proxy-Authorization": "x"}, "not yours"),
        ({"X-A": "1", "x-a": "2"}, "x-a is there twice"),
        ({"X A": "1"}, "a name must be"),
        ({"X-A:": "1"}, "a name must be"),
        ({"": "1"}, "a name must be"),
        ({"X-A\r\nHost": "1"}, "a name must be"),
        ({"X-Ä": "1"}, "a name must be"),
        ({"X-A": "1\r\nHost: internal"}, "X-A must be one line of ASCII"),
        ({"X-A": "1\n"}, "one line"),
        ({"X-A": "\x00"}, "one line"),
        ({"X-A": "\x7f"}, "one line"),
        ({"X-A": " 1"}, "one line"),
        ({"X-A": "é"}, "one line"),
        ({"X-A": "1" * 8001}, "of 8000 at most"),
        ({"X-A": 1}, "valid string"),
        ({f"X-{number}": "" for number in range(51)}, "at most 50"),
    ],
)
def test_a_header_that_may_not_be_sent(headers: dict[str, Any], says: str) -> None:
    assert says in complaints(headers=headers)


def test_headers_that_may() -> None:
    headers = {"Authorization": "Bearer a.b-c==", "X-Empty": "", "accept": "text/html;q=0.9, */*", "X-Tab": "a\tb"}
    assert HttpRequest(url=URL, headers=headers).headers == headers


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"method": "CONNECT"}, "'method'"),
        ({"method": "TRACE"}, "'method'"),
        ({"method": "get"}, "'method'"),
        ({"body": "\ud800"}, "lone surrogates"),
        ({"expect": []}, "'expect'"),
        ({"expect": ["1xx"]}, "'expect.0"),
        ({"expect": [199]}, "'expect.0"),
        ({"expect": [600]}, "'expect.0"),
        ({"extract": {}}, "'extract'"),
        ({"extract": {"a": "b"}}, "'extract.a'"),
        ({"extract": {"a": "/~2"}}, "'extract.a'"),
        ({"redirects": 4}, "'redirects'"),
        ({"redirects": -1}, "'redirects'"),
        ({"seconds": 0}, "'seconds'"),
        ({"seconds": 3601}, "'seconds'"),
        ({"max_bytes": 0}, "'max_bytes'"),
        ({"verify": False}, "'verify'"),
    ],
)
def test_what_else_is_refused(fields: dict[str, Any], says: str) -> None:
    assert says in complaints(**fields)


@pytest.mark.parametrize(
    ("expect", "status", "expected"),
    [
        (["2xx"], 204, True),
        (["2xx"], 302, False),
        ([200, 404], 404, True),
        ([200, 404], 201, False),
        (["5xx"], 503, True),
    ],
)
def test_what_counts_as_a_success(expect: list[int | str], status: int, expected: bool) -> None:
    assert HttpRequest(url=URL, expect=expect).expects(status) is expected


def test_the_operators_limit_is_a_limit_of_the_parameter() -> None:
    assert limited(5_000_000)(url=URL).max_bytes == 1_000_000
    assert limited(2000)(url=URL).max_bytes == 2000
    with pytest.raises(ValidationError, match="less than or equal to 2000"):
        limited(2000)(url=URL, max_bytes=2001)


RFC_6901 = {"foo": ["bar", "baz"], "": 0, "a/b": 1, "c%d": 2, "e^f": 3, "g|h": 4, "i\\j": 5, 'k"l': 6, " ": 7, "m~n": 8}


@pytest.mark.parametrize(
    ("pointer", "value"),
    [("", RFC_6901), ("/foo", ["bar", "baz"]), ("/foo/0", "bar"), ("/", 0), ("/a~1b", 1), ("/c%d", 2), ("/e^f", 3),
     ("/g|h", 4), ("/i\\j", 5), ('/k"l', 6), ("/ ", 7), ("/m~0n", 8)],
)  # fmt: skip
def test_the_examples_of_rfc_6901(pointer: str, value: Any) -> None:
    assert pointed_at(RFC_6901, pointer) == value


@pytest.mark.parametrize(
    "pointer",
    ["/foo/2", "/foo/-", "/foo/00", "/foo/-1", "/foo/٠", "/foo/length", "/nothing", "/foo/0/0", "//", "/foo/"],
)
def test_a_pointer_to_nothing(pointer: str) -> None:
    with pytest.raises(Nowhere, match=pointer):
        pointed_at(RFC_6901, pointer)


def request(method: str = "POST", url: str = "https://a.example/x/y", content: bytes | None = b"{}") -> Request:
    headers = {
        "Authorization": "secret",
        "Content-Type": "application/json",
        "User-Agent": "u",
        "Idempotency-Key": "r1",
    }
    return Request(method=method, url=httpx.URL(url), headers=tuple(headers.items()), content=content)


@pytest.mark.parametrize(
    ("status", "method", "becomes"),
    [
        (301, "POST", "GET"), (302, "POST", "GET"), (303, "POST", "GET"), (307, "POST", "POST"), (308, "POST", "POST"),
        (301, "PUT", "PUT"), (302, "DELETE", "DELETE"), (303, "PUT", "GET"), (303, "DELETE", "GET"),
        (303, "HEAD", "HEAD"), (302, "HEAD", "HEAD"), (307, "GET", "GET"),
    ],
)  # fmt: skip
def test_the_method_after_a_redirect(status: int, method: str, becomes: str) -> None:
    following = redirected(request(method), status, "z?q#fragment")
    assert (following.method, str(following.url)) == (becomes, "https://a.example/x/z?q")
    names = {name for name, _ in following.headers}
    assert "Authorization" in names
    assert (following.content is None) is (becomes != method)
    assert ("Content-Type" in names) is (becomes == method)


@pytest.mark.parametrize("location", ["https://b.example/", "https://a.example:8443/", "//b.example/z"])
def test_another_origin_gets_no_credentials(location: str) -> None:
    following = redirected(request("GET", content=None), 302, location)
    assert {name for name, _ in following.headers} == {"Content-Type", "User-Agent", "Idempotency-Key"}


def test_the_same_origin_may_be_spelled_otherwise() -> None:
    following = redirected(request("GET", content=None), 302, "HTTPS://A.example:443/z")
    assert "Authorization" in dict(following.headers)


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("http://a.example/x", "from https to http"),
        ("https://b.example/x", "body to another origin"),
        ("https://user:secret@a.example/", "may not be asked for"),
        ("ftp://a.example/", "may not be asked for"),
        ("file:///etc/passwd", "may not be asked for"),
        ("https://a.example:99999/", "may not be asked for"),
        ("https://[fe80::1%25eth0]/", "may not be asked for"),
        ("https://①②⑦.⓪.⓪.①/", "may not be asked for"),
        ("https://[", "may not be asked for"),
        ("https://a.example:x/", "may not be asked for"),
        ("https:///x\x00", "may not be asked for"),
    ],
)
def test_a_redirect_that_is_not_followed(location: str, says: str) -> None:
    with pytest.raises(BadRedirect, match=says):
        redirected(request(), 307, location)
