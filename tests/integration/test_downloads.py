"""Links to exported files, and the files behind them: real exports, real chunks, two adapters."""

from __future__ import annotations

import asyncio
import hashlib
import io
import re
import resource
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from runwire import artifacts
from runwire.app import App
from runwire.artifacts import File, Links
from runwire.domain.access import AccessLevel
from runwire.domain.errors import RangeUnsatisfiable
from runwire.http import downloads
from runwire.http.downloads import content_disposition, parse_range
from runwire.messaging import site, subjects
from runwire.messaging.broker import Bus
from runwire.settings import Settings
from runwire.worker.actions.export import file_name
from tests.integration.test_http import create, is_problem, make_token
from tests.support import CHAIN, Broker, adapter, eventually, free_port, worker

CHUNK = 128 * 1024
FILE = File(CHAIN, 12345, "run-1", "Wallet_Export-12345.csv")


@pytest.fixture
def base_settings(base_settings: Settings) -> Settings:
    """With room for large files."""
    return base_settings.model_copy(update={"store_bytes": 1 << 30})


@pytest.fixture
async def http(settings: Settings, bus: Bus) -> AsyncIterator[httpx.AsyncClient]:
    async with adapter(settings) as client:
        yield client


@pytest.fixture
async def live(http: httpx.AsyncClient, bus: Bus, app: App, settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    async with worker(bus, app, settings):
        yield http


@pytest.fixture
async def other(settings: Settings, bus: Bus, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A second adapter of the same installation."""
    second = settings.model_copy(update={"http_port": free_port(), "data_dir": tmp_path / "second"})
    async with adapter(second) as client:
        yield client


async def stored(bus: Bus, content: bytes, file: File = FILE) -> str:
    """The path of a link to a file with this content."""
    await artifacts.put(bus, file.object_name, io.BytesIO(content))
    return "/downloads/" + await Links(bus).sign(file)


def some_bytes(size: int) -> bytes:
    """The same every time, and different everywhere."""
    return b"".join(hashlib.sha256(str(block).encode()).digest() for block in range(size // 32 + 1))[:size]


async def exported(http: httpx.AsyncClient, task: int = 12345) -> str:
    assert (await http.post(f"/tasks/{task}/execute")).json()["code"] == "DONE"
    answer = await http.get(f"/tasks/{task}/download_url")
    assert answer.status_code == 200, answer.text
    assert list(answer.json()) == ["url"]
    return answer.json()["url"]


# --- the whole way ---------------------------------------------------------------------------------------


async def test_an_export_can_be_downloaded_without_a_token_through_any_adapter(
    live: httpx.AsyncClient, other: httpx.AsyncClient
) -> None:
    await live.post("/tasks/12345/execute")
    url = await exported(live)
    assert url.startswith(str(live.base_url) + "/downloads/")
    async with httpx.AsyncClient() as anonymous:
        here = await anonymous.get(url)
        there = await anonymous.get(f"{other.base_url}{urlsplit(url).path}")
        head = await anonymous.head(url)
    assert here.status_code == there.status_code == head.status_code == 200
    assert here.content == there.content
    assert here.text.splitlines()[0].startswith("id,task,chain,code")
    assert len(here.text.splitlines()) == 2
    assert here.headers["content-disposition"] == 'attachment; filename="Runs_Export-12345.csv"'
    assert here.headers["content-type"] == "text/csv; charset=utf-8"
    assert here.headers["content-length"] == str(len(here.content))
    assert here.headers["cache-control"] == "private, no-store"
    assert here.headers["x-content-type-options"] == "nosniff"
    assert here.headers["accept-ranges"] == "bytes"
    assert head.content == b""
    names = ("content-length", "content-type", "content-disposition", "etag")
    assert [head.headers[name] for name in names] == [here.headers[name] for name in names]


async def test_a_json_export_is_json(live: httpx.AsyncClient) -> None:
    task = await create(live, target={"action": "export", "export_index": "runs", "export_format": "json"})
    url = await exported(live, task)
    answer = await live.get(url)
    assert answer.json() == []
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["content-disposition"] == f'attachment; filename="Runs_Export-{task}.json"'


async def test_the_link_begins_with_the_public_url(settings: Settings, bus: Bus, app: App) -> None:
    public = settings.model_copy(update={"public_url": "https://tasks.example.com/"})
    async with adapter(public) as http, worker(bus, app, public):
        assert (await exported(http)).startswith("https://tasks.example.com/downloads/")


@pytest.mark.parametrize("host", ["", "a b", "evil.example/path", "user@host", "host:99999999", '"><script>', "[::1"])
async def test_a_host_that_is_none_does_not_get_into_a_link(live: httpx.AsyncClient, host: str) -> None:
    await live.post("/tasks/12345/execute")
    answer = await live.get("/tasks/12345/download_url", headers={"Host": host})
    assert answer.status_code == 400
    assert host == "" or host not in answer.text


async def test_the_adapter_that_has_not_seen_the_end_asks_for_it(
    live: httpx.AsyncClient, other: httpx.AsyncClient
) -> None:
    for _ in range(5):
        await live.post("/tasks/12345/execute")
        assert (await other.get("/tasks/12345/download_url")).status_code == 200


# --- no download -----------------------------------------------------------------------------------------


async def test_what_has_no_file_says_why(live: httpx.AsyncClient, app: App) -> None:
    noop = await create(live, "noop")
    await live.post(f"/tasks/{noop}/execute")
    unknown = await create(live, target={"action": "export", "export_index": "nothing"})
    problem = is_problem(await live.get(f"/tasks/{noop}/download_url"), 409, "no_download")
    assert "no export" in problem["detail"]
    problem = is_problem(await live.get("/tasks/12345/download_url"), 409, "no_download")
    assert "READY" in problem["detail"]
    await live.post(f"/tasks/{unknown}/execute")
    problem = is_problem(await live.get(f"/tasks/{unknown}/download_url"), 409, "no_download")
    assert "ERROR" in problem["detail"]


async def test_a_file_that_is_gone_is_refused_and_its_links_say_so(live: httpx.AsyncClient, bus: Bus) -> None:
    url = await exported(live)
    run = (await live.get("/tasks/12345/runs")).json()[0]["id"]
    store = await bus.js.object_store(subjects.ARTIFACTS_BUCKET)
    await store.delete(f"{CHAIN}/12345/{run}/Runs_Export-12345.csv")
    problem = is_problem(await live.get("/tasks/12345/download_url"), 409, "no_download")
    assert "no longer kept" in problem["detail"]
    is_problem(await live.get(url), 410, "file_gone")


async def test_a_foreign_task_and_a_missing_one_look_the_same(http: httpx.AsyncClient, bus: Bus) -> None:
    stranger = await make_token(bus, "stranger", {99: AccessLevel.MANAGER})
    foreign = await http.get("/tasks/12345/download_url", headers=stranger)
    missing = await http.get("/tasks/54321/download_url", headers=stranger)
    is_problem(foreign, 404, "task_not_found")
    assert foreign.text.replace("12345", "54321") == missing.text


async def test_a_viewer_may_download_and_nobody_without_a_token_gets_a_link(live: httpx.AsyncClient, bus: Bus) -> None:
    await live.post("/tasks/12345/execute")
    viewer = await make_token(bus, "viewer", {CHAIN: AccessLevel.VIEWER})
    assert (await live.get("/tasks/12345/download_url", headers=viewer)).status_code == 200
    is_problem(await live.get("/tasks/12345/download_url", headers={"Authorization": ""}), 401, "unauthenticated")


# --- the signature ---------------------------------------------------------------------------------------


async def test_a_link_with_any_character_changed_is_refused(http: httpx.AsyncClient, bus: Bus) -> None:
    path = await stored(bus, b"secret")
    link = path.rpartition("/")[2]
    assert (await http.get(path)).content == b"secret"
    answers = set()
    for position in range(len(link)):
        other = chr(ord(link[position]) ^ 1)
        changed = link[:position] + (other if re.match(r"[\w.-]", other) else "A") + link[position + 1 :]
        if changed != link:
            answer = await http.get(f"/downloads/{changed}")
            assert answer.status_code == 403, changed
            answers.add(answer.json()["detail"])
    for changed in (link + "A", link + "=", link + "!", link[:-1], link[1:], "A" + link, link.upper()):
        answers.add((await http.get(f"/downloads/{changed}")).json()["detail"])
    assert answers == {"This link is not valid."}


@pytest.mark.parametrize(
    "link",
    [
        "..",
        "%2e%2e",
        "%00",
        "x%00y",
        "..%2f..%2fetc%2fpasswd",
        "%ff",
        "a.b.c",
        ".",
        "a" * 2000,
        "%F0%9F%8D%8E",
        "*",
        ">",
    ],
)
async def test_what_was_never_signed_leads_nowhere(settings: Settings, http: httpx.AsyncClient, link: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", settings.http_port)
    writer.write(f"GET /downloads/{link} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    assert re.match(rb"HTTP/1.1 40[34] ", answer), answer
    assert b"root:" not in answer


async def test_a_link_of_another_secret_is_refused(http: httpx.AsyncClient, bus: Bus) -> None:
    await stored(bus, b"content")
    forger = Links(bus)
    forger._keys = [site.SigningKey(secret="guessed", created=datetime.now(UTC))]
    forger._looked = float("inf")
    is_problem(await http.get("/downloads/" + await forger.sign(FILE)), 403, "link_invalid")


async def test_a_link_is_good_for_an_hour(http: httpx.AsyncClient, bus: Bus) -> None:
    path = await stored(bus, b"content")
    links: Links = http.services.links
    assert (await http.get(path)).status_code == 200
    links._clock = lambda: datetime.now(UTC) + timedelta(seconds=3595)
    assert (await http.get(path)).status_code == 200
    links._clock = lambda: datetime.now(UTC) - timedelta(seconds=30)  # this adapter's clock is slow
    assert (await http.get(path)).status_code == 200
    links._clock = lambda: datetime.now(UTC) + timedelta(seconds=3605)
    is_problem(await http.get(path), 410, "link_expired")


# --- the keys --------------------------------------------------------------------------------------------


async def test_adapters_that_start_at_the_same_time_share_one_key(bus: Bus) -> None:
    now = datetime.now(UTC)
    found = await asyncio.gather(*(site.signing_keys(bus, now) for _ in range(10)))
    assert len(found[0]) == 1
    assert all(keys == found[0] for keys in found)


async def test_a_key_is_replaced_after_thirty_days_and_forgotten_a_day_later(bus: Bus) -> None:
    now = datetime.now(UTC)
    (first,) = await site.signing_keys(bus, now)
    assert await site.signing_keys(bus, now + timedelta(days=29)) == [first]
    rotated = await asyncio.gather(*(site.signing_keys(bus, now + timedelta(days=30)) for _ in range(10)))
    assert all(keys == rotated[0] for keys in rotated)
    assert [key == first for key in rotated[0]] == [False, True]
    assert await site.signing_keys(bus, now + timedelta(days=30, hours=23)) == rotated[0]
    assert await site.signing_keys(bus, now + timedelta(days=31, seconds=1)) == rotated[0][:1]


async def test_links_outlive_the_change_of_the_key(http: httpx.AsyncClient, bus: Bus) -> None:
    before = await stored(bus, b"content")
    assert (await http.get(before)).status_code == 200
    await site.signing_keys(bus, datetime.now(UTC) + timedelta(days=30))  # another adapter rotates
    after = "/downloads/" + await Links(bus).sign(FILE)  # and signs with the newer key
    assert (await http.get(after)).status_code == 200
    assert (await http.get(before)).status_code == 200


async def test_a_link_of_a_newer_key_opens_for_all_who_come_at_once(bus: Bus) -> None:
    """As a client does that fetches several ranges at the same time."""
    links = Links(bus)
    await links.open(await links.sign(FILE))
    await site.signing_keys(bus, datetime.now(UTC) + timedelta(days=30))  # another adapter rotates
    newer = await Links(bus).sign(FILE)
    assert await asyncio.gather(*(links.open(newer) for _ in range(10))) == [FILE] * 10


async def test_links_signed_elsewhere_do_not_depend_on_having_signed_here(http: httpx.AsyncClient, bus: Bus) -> None:
    assert http.services.links._keys == []
    assert (await http.get(await stored(bus, b"content"))).status_code == 200


async def test_bad_links_do_not_become_reads_of_the_bucket(
    http: httpx.AsyncClient, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []
    real = site.signing_keys

    async def counted(*arguments: object) -> object:
        looks.append(arguments)
        return await real(*arguments)

    monkeypatch.setattr(site, "signing_keys", counted)
    monkeypatch.setattr(artifacts, "KEYS_AGAIN", 3600.0)
    await http.get("/downloads/bad")
    await asyncio.gather(*(http.get(f"/downloads/bad{number}") for number in range(50)))
    assert len(looks) <= 2


# --- ranges ----------------------------------------------------------------------------------------------


SIZE = 3 * CHUNK + 777
POSITIONS = st.one_of(
    st.integers(0, SIZE + 10),
    st.sampled_from([0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, SIZE - 1, SIZE, SIZE + 1, 10**30]),
)
RANGES = st.one_of(
    st.tuples(POSITIONS, POSITIONS).map(lambda pair: f"bytes={pair[0]}-{pair[1]}"),
    POSITIONS.map(lambda first: f"bytes={first}-"),
    POSITIONS.map(lambda length: f"bytes=-{length}"),
)


async def test_every_range_is_the_slice_of_the_file(http: httpx.AsyncClient, bus: Bus) -> None:
    """Against slicing: the bytes and the headers that RFC 9110 section 14 asks for."""
    content = some_bytes(SIZE)
    # Files that are written at the same time: their chunks are mixed in the stream.
    neighbours = [File(CHAIN, number, "run", "f") for number in range(3)]
    path, *_ = await asyncio.gather(
        stored(bus, content), *(stored(bus, some_bytes(SIZE), file=file) for file in neighbours)
    )
    loop = asyncio.get_running_loop()

    async def check(header: str) -> None:
        answer = await http.get(path, headers={"Range": header})
        first, _, last = header.removeprefix("bytes=").partition("-")
        if first and last and int(last) < int(first):
            assert (answer.status_code, answer.content) == (200, content)
            return
        start = int(first) if first else max(0, SIZE - int(last))
        stop = min(int(last) + 1, SIZE) if first and last else SIZE
        if start >= stop:
            assert answer.status_code == 416
            assert answer.headers["content-range"] == f"bytes */{SIZE}"
            return
        assert answer.status_code == 206
        assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{SIZE}"
        assert answer.headers["content-length"] == str(stop - start)
        assert answer.content == content[start:stop]

    @given(header=RANGES)
    @hypothesis_settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
    def run(header: str) -> None:
        asyncio.run_coroutine_threadsafe(check(header), loop).result(30)

    await asyncio.to_thread(run)


@given(header=st.text(alphabet="bytes=-,0123456789 \t", max_size=30), size=st.integers(0, 5))
@hypothesis_settings(max_examples=500)
def test_no_range_header_can_break_it(header: str, size: int) -> None:
    try:
        found = parse_range(header, size)
    except RangeUnsatisfiable:
        return
    assert found is None or 0 <= found[0] < found[1] <= size


async def test_several_ranges_and_nonsense_get_the_whole_file(http: httpx.AsyncClient, bus: Bus) -> None:
    path = await stored(bus, b"0123456789")
    for header in ("bytes=0-1,4-5", "bytes=5-2", "bytes=-", "lines=1-2", "bytes", "bytes=a-b", "bytes=1-2;q=1"):
        answer = await http.get(path, headers={"Range": header})
        assert (answer.status_code, answer.content) == (200, b"0123456789"), header
    answer = await http.get(path, headers=[("Range", "bytes=0-1"), ("Range", "bytes=3-4")])
    assert answer.status_code == 200


async def test_a_range_is_only_given_of_the_file_it_is_meant_for(http: httpx.AsyncClient, bus: Bus) -> None:
    path = await stored(bus, b"0123456789")
    etag = (await http.head(path)).headers["etag"]
    same = await http.get(path, headers={"Range": "bytes=3-", "If-Range": etag})
    assert (same.status_code, same.content) == (206, b"3456789")
    for changed in ('"another"', f"W/{etag}", "Tue, 24 Nov 2026 10:00:00 GMT"):
        answer = await http.get(path, headers={"Range": "bytes=3-", "If-Range": changed})
        assert (answer.status_code, answer.content) == (200, b"0123456789")
    head = await http.head(path, headers={"Range": "bytes=3-"})
    assert (head.status_code, head.headers["content-length"]) == (200, "10")  # ranges are for GET


async def test_an_empty_file_is_a_file(http: httpx.AsyncClient, bus: Bus) -> None:
    path = await stored(bus, b"")
    answer = await http.get(path)
    assert (answer.status_code, answer.content, answer.headers["content-length"]) == (200, b"", "0")
    assert (await http.get(path, headers={"Range": "bytes=0-"})).status_code == 416


# --- size, slowness, faults ------------------------------------------------------------------------------


async def test_a_range_reads_no_more_than_it_needs(http: httpx.AsyncClient, bus: Bus, monkeypatch) -> None:
    content = some_bytes(40 * CHUNK)
    path, _ = await asyncio.gather(stored(bus, content), stored(bus, content, File(CHAIN, 1, "r", "f")))
    fetched = count_chunks(monkeypatch)
    answer = await http.get(path, headers={"Range": f"bytes={30 * CHUNK + 5}-{30 * CHUNK + 9}"})
    assert answer.content == content[30 * CHUNK + 5 : 30 * CHUNK + 10]
    assert len(fetched) <= 14


async def test_a_large_file_needs_little_memory(http: httpx.AsyncClient, bus: Bus, tmp_path: Path) -> None:
    size = 50 << 20
    piece = some_bytes(1 << 20)
    with (tmp_path / "large").open("wb") as file:
        for _ in range(size >> 20):
            file.write(piece)
    with (tmp_path / "large").open("rb") as file:
        await artifacts.put(bus, FILE.object_name, file)
    path = "/downloads/" + await Links(bus).sign(FILE)
    before = resident()
    peak, received, digest = 0, 0, hashlib.sha256()
    async with http.stream("GET", path) as answer:
        async for part in answer.aiter_raw():
            received += len(part)
            digest.update(part)
            peak = max(peak, resident())
    assert received == size
    assert digest.digest() == hashlib.sha256(piece * 50).digest()
    assert peak - before < 16 << 20


async def test_a_caller_that_does_not_read_is_waited_for(
    settings: Settings, http: httpx.AsyncClient, bus: Bus, monkeypatch
) -> None:
    content = some_bytes(200 * CHUNK)
    path = await stored(bus, content)
    fetched = count_chunks(monkeypatch)
    with await slow_connection(settings, path) as connection:
        await eventually(lambda: len(fetched) > 1, what="the download began")
        await quiet(fetched)
        assert len(fetched) < 100  # what fits into the buffers of two sockets
        loop = asyncio.get_running_loop()
        received = b""
        while len(received) < len(content):
            part = await asyncio.wait_for(loop.sock_recv(connection, 1 << 20), 20)
            assert part
            received += part
    assert received.partition(b"\r\n\r\n")[2][:1000] == content[:1000]


async def test_a_caller_that_hangs_up_leaves_nothing_behind(
    settings: Settings, http: httpx.AsyncClient, bus: Bus, monkeypatch
) -> None:
    path = await stored(bus, some_bytes(200 * CHUNK))
    fetched = count_chunks(monkeypatch)
    with await slow_connection(settings, path):
        await eventually(lambda: len(fetched) > 1, what="the download began")
        await quiet(fetched)
    await quiet(fetched)
    assert len(fetched) < 150
    info = await bus.js.stream_info(artifacts.STREAM)
    assert info.state.consumer_count == 0


async def test_more_downloads_than_an_adapter_serves_are_refused(
    settings: Settings, http: httpx.AsyncClient, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As each holds a piece of its file: a link that is opened a thousand times must not fill the memory."""
    monkeypatch.setattr(downloads, "MOST_DOWNLOADS", 3)
    path, small = (
        await stored(bus, some_bytes(200 * CHUNK)),
        await stored(bus, b"small", replace(FILE, name="Small_Export-12345.csv")),
    )
    slow = [await slow_connection(settings, path) for _ in range(3)]
    await eventually(lambda: http.services.downloads == 3, what="three downloads go on")
    refused = await http.get(small)
    is_problem(refused, 503, "too_many_downloads")
    assert "retry-after" in refused.headers
    assert (await http.head(small)).status_code == 200
    for connection in slow:
        connection.close()
    await eventually(lambda: http.services.downloads == 0, what="they have ended")
    at_once = await asyncio.gather(*(http.get(small) for _ in range(20)))
    assert {answer.status_code for answer in at_once} <= {200, 503}
    assert http.services.downloads == 0


async def test_a_damaged_file_is_cut_off_instead_of_passed_off(http: httpx.AsyncClient, bus: Bus) -> None:
    content = some_bytes(6 * CHUNK)
    path = await stored(bus, content)
    artifact = await artifacts.find(bus, FILE.object_name)
    await swap_chunk(bus, artifact.subject)
    with pytest.raises(httpx.RemoteProtocolError):
        await http.get(path)
    is_problem(await http.get("/tasks/12345/download_url"), 409, "no_download")


async def test_a_file_that_vanishes_in_the_middle_is_cut_off(
    settings: Settings, http: httpx.AsyncClient, bus: Bus, monkeypatch
) -> None:
    path = await stored(bus, some_bytes(400 * CHUNK))
    fetched = count_chunks(monkeypatch)
    with await slow_connection(settings, path) as connection:
        await eventually(lambda: len(fetched) > 1, what="the download began")
        await quiet(fetched)
        store = await bus.js.object_store(subjects.ARTIFACTS_BUCKET)
        await store.delete(FILE.object_name)
        assert await drained(connection) < 400 * CHUNK


async def test_a_broker_that_goes_away_in_the_middle_is_waited_for(
    settings: Settings, http: httpx.AsyncClient, bus: Bus, broker: Broker, monkeypatch
) -> None:
    content = some_bytes(200 * CHUNK)
    path = await stored(bus, content)
    fetched = count_chunks(monkeypatch)
    with await slow_connection(settings, path) as connection:
        await eventually(lambda: len(fetched) > 1, what="the download began")
        await quiet(fetched)
        broker.restart()
        assert await drained(connection) > len(content)  # with the headers


async def test_a_broker_that_stays_away_ends_the_download(
    settings: Settings, http: httpx.AsyncClient, bus: Bus, broker: Broker, monkeypatch
) -> None:
    monkeypatch.setattr(artifacts, "CHUNK_PATIENCE", 1.0)
    monkeypatch.setattr(artifacts, "GET_TIMEOUT", 0.3)
    path = await stored(bus, some_bytes(400 * CHUNK))
    fetched = count_chunks(monkeypatch)
    with await slow_connection(settings, path) as connection:
        await eventually(lambda: len(fetched) > 1, what="the download began")
        await quiet(fetched)
        broker.kill()
        assert await drained(connection) < 400 * CHUNK


# --- names -----------------------------------------------------------------------------------------------


def test_the_file_bears_the_name_of_the_index() -> None:
    assert file_name("wallet", 12345, "csv") == "Wallet_Export-12345.csv"
    assert file_name("VOUCHER", 12347, "json") == "Voucher_Export-12347.json"
    assert file_name("../../etc/passwd", 1, "csv") == "etc_passwd_Export-1.csv"
    assert file_name("größe 大", 1, "csv") == "Größe_大_Export-1.csv"
    assert file_name("...", 1, "csv") == "Data_Export-1.csv"


@given(index=st.text(max_size=200))
@hypothesis_settings(max_examples=300)
def test_every_index_makes_a_name_that_is_safe_on_disk_and_in_a_header(index: str) -> None:
    name = file_name(index, 12345, "csv")
    assert name.endswith("_Export-12345.csv")
    assert len(name.encode()) < 255
    assert not re.search(r'[\x00-\x1f\x7f/\\:*?"<>|\s]', name)
    assert not name.startswith((".", "-", "~"))
    header = content_disposition(name)
    assert header.isascii()
    assert header.isprintable()
    if "filename*" in header:
        assert unquote(header.partition("filename*=UTF-8''")[2]) == name


@given(name=st.text(max_size=60))
def test_no_name_breaks_out_of_the_header(name: str) -> None:
    header = content_disposition(name)
    assert re.fullmatch(r"attachment; filename=\"[^\"\\]*\"(; filename\*=UTF-8''[A-Za-z0-9%._~-]*)?", header)


# --- what the tests do with files and sockets ------------------------------------------------------------


def count_chunks(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every chunk that is fetched from now on."""
    fetched: list[object] = []
    real = artifacts._chunk

    async def counted(*arguments: object) -> object:
        fetched.append(None)
        return await real(*arguments)

    monkeypatch.setattr(artifacts, "_chunk", counted)
    return fetched


async def quiet(things: list[object]) -> None:
    """Until the list has not grown for half a second."""
    seen = -1
    while seen != len(things):
        seen = len(things)
        await asyncio.sleep(0.5)


async def slow_connection(settings: Settings, path: str) -> socket.socket:
    """A socket that has asked for the path and reads nothing yet, with a small receive buffer."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    connection.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(connection, ("127.0.0.1", settings.http_port))
    await loop.sock_sendall(connection, f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
    return connection


async def drained(connection: socket.socket) -> int:
    """How many bytes come until the other side closes."""
    loop, received = asyncio.get_running_loop(), 0
    while True:
        try:
            part = await asyncio.wait_for(loop.sock_recv(connection, 1 << 20), 30)
        except ConnectionError:
            return received
        if not part:
            return received
        received += len(part)


async def swap_chunk(bus: Bus, subject: str) -> None:
    """Replace the chunks by ones of the same sizes, one of which has other content."""
    info = await bus.js.stream_info(artifacts.STREAM, subjects_filter=subject)
    chunks = []
    for sequence in range(1, info.state.last_seq + 1):
        message = await bus.js.get_msg(artifacts.STREAM, sequence)
        if message.subject == subject:
            chunks.append(message.data)
    await bus.js.purge_stream(artifacts.STREAM, subject=subject)
    chunks[3] = bytes(len(chunks[3]))
    for chunk in chunks:
        await bus.js.publish(subject, chunk)


def resident() -> int:
    """Bytes of memory this process has in use."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
