from __future__ import annotations

import asyncio
import gzip
import socket
from collections.abc import AsyncIterator
from contextlib import aclosing
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.backend.http import Http, StatusError, split_lines
from gateway.errors import BackendError, BackendProtocolError, BackendTimeout, BackendUnreachable, InvalidRequest
from gateway.settings import BackendSettings
from tests.gateway.backend.rawserver import Talk, listening, ok, saying


@pytest.fixture
async def http() -> AsyncIterator[Http]:
    async with aclosing(Http(BackendSettings(), max_response_bytes=1000)) as http:
        yield http


async def test_a_response_comes_whole_with_its_headers(http: Http) -> None:
    async with listening(saying(ok(b"hello", b"X-Thing: 1"))) as url:
        response = await http.call(url + "/path", {"a": 1}, timeout_s=10)
    assert (200, b"hello", "1") == (response.status, response.content, response.headers["x-thing"])


@pytest.mark.parametrize("key", ["", "secret"])
async def test_a_request_arrives_with_our_headers_and_no_others(key: str) -> None:
    heard: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        heard.append(head + (await reader.readexactly(7) if head.startswith(b"POST") else b""))
        writer.write(ok(b"", b"Connection: close"))

    authorization = f"authorization: Bearer {key}\r\n" if key else ""
    common = f"accept: */*\r\naccept-encoding: identity\r\n{authorization}"
    body = 'content-type: application/json\r\n%sContent-Length: 7\r\n\r\n{"a":1}'
    connection = "connection: close\r\n"
    async with listening(talk) as url, aclosing(Http(BackendSettings(api_key=key))) as http:
        await http.call(url + "/a?b=c%20d", {"a": 1}, timeout_s=10)
        async with http.stream(url + "/b", {"a": 1}, timeout_s=10):
            pass
        await http.call(url + "/c", timeout_s=10)
    host = f"Host: {url.removeprefix('http://')}\r\n"
    assert [
        f"POST /a?b=c%20d HTTP/1.1\r\n{host}{common}{body % ''}".lower(),
        f"POST /b HTTP/1.1\r\n{host}{common}{body % connection}".lower(),
        f"GET /c HTTP/1.1\r\n{host}{common}\r\n".lower(),
    ] == [one.decode().lower() for one in heard]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"", BackendUnreachable),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", BackendUnreachable),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe", BackendUnreachable),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", BackendProtocolError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", BackendProtocolError),
        (ok(b"x" * 1001), BackendProtocolError),
        (ok(gzip.compress(bytes(100_000)), b"Content-Encoding: gzip"), BackendProtocolError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_broken_response_is_the_backends_error(
    http: Http, answer: bytes, expected: type[BackendError], stream: bool
) -> None:
    async def read(url: str) -> None:
        if stream:
            async with http.stream(url, {}, timeout_s=10) as lines:
                _ = [line async for line in lines]
        else:
            await http.call(url, timeout_s=10)

    async with listening(saying(answer)) as url:
        with pytest.raises(expected) as raised:
            await read(url)
    assert expected is not BackendUnreachable or raised.value.broke  # type: ignore[attr-defined]


async def test_a_response_at_the_limit_is_read(http: Http) -> None:
    async with listening(saying(ok(b"x" * 1000))) as url:
        assert 1000 == len((await http.call(url, timeout_s=10)).content)


@pytest.mark.parametrize("status", [400, 422, 500, 599])
async def test_a_stream_with_an_error_status_is_an_error_with_its_body(http: Http, status: int) -> None:
    async with listening(saying(ok(b"reason").replace(b" 200 ", b" %d " % status, 1))) as url:
        with pytest.raises(StatusError) as raised:
            await http.stream(url, {}, timeout_s=2).__aenter__()
    assert (status, b"reason") == (raised.value.status, raised.value.content)


async def test_a_server_that_is_gone_was_not_sent_the_request(http: Http) -> None:
    async with listening(saying(b"")) as url:
        pass
    with pytest.raises(BackendUnreachable) as raised:
        await http.call(url, timeout_s=10)
    assert (False, False) == (raised.value.was_sent, raised.value.broke)


async def test_a_slow_answer_is_a_timeout(http: Http) -> None:
    released = asyncio.Event()
    async with listening(_silent_until(released)) as url:
        with pytest.raises(BackendTimeout):
            await http.call(url, timeout_s=0.05)
        released.set()


async def test_a_connection_that_does_not_open_is_unreachable() -> None:
    """192.0.2.0/24 does not exist (RFC 5737): packets to it are dropped, or there is no route."""
    async with aclosing(Http(BackendSettings(connect_timeout_s=0.05))) as http:
        with pytest.raises(BackendUnreachable) as raised:
            await http.call("http://192.0.2.1", timeout_s=10)
    assert (False, False) == (raised.value.was_sent, raised.value.broke)


async def test_a_connection_that_opens_too_slowly_is_unreachable_in_time() -> None:
    """A listener whose backlog is full leaves connections half open."""
    with socket.socket() as listener, socket.socket() as filler, socket.socket() as filler_2:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for one in (filler, filler_2):
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        async with aclosing(Http(BackendSettings(connect_timeout_s=0.05))) as http:
            with pytest.raises(BackendUnreachable, match="in time"):
                await http.call(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_s=10)


@pytest.mark.parametrize("url", ["http://[::1", "http://"])
async def test_a_url_that_is_not_valid_reaches_nobody(http: Http, url: str) -> None:
    with pytest.raises(BackendUnreachable, match="URL is not valid") as raised:
        await http.call(url, timeout_s=1)
    assert (False, False) == (raised.value.was_sent, raised.value.broke)


async def test_text_that_is_not_unicode_is_the_callers_fault(http: Http) -> None:
    with pytest.raises(InvalidRequest, match="Unicode"):
        await http.call("http://127.0.0.1:1", {"messages": "\ud800"}, timeout_s=1)


async def test_a_cancelled_request_closes_its_connection(http: Http) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def talk(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        begun.set()
        assert b"" == await reader.read()
        ended.set()

    async with listening(talk) as url:
        task = asyncio.create_task(http.call(url, timeout_s=10))
        await asyncio.wait_for(begun.wait(), 10)
        task.cancel()
        await asyncio.wait_for(ended.wait(), 10)
        assert (await asyncio.gather(task, return_exceptions=True))[0].__class__ is asyncio.CancelledError


async def test_a_stream_closed_early_closes_its_connection(http: Http) -> None:
    ended = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(2)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nhello\n\r\n")
        assert b"" == await reader.read()
        ended.set()

    async with listening(talk) as url:
        async with http.stream(url, {}, timeout_s=10) as lines:
            assert "hello" == await anext(lines)
        await asyncio.wait_for(ended.wait(), 10)


async def test_a_connection_is_used_again(http: Http) -> None:
    connections = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        for _ in range(2):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(ok(b"hello"))

    async with listening(talk) as url:
        for _ in range(2):
            await http.call(url, timeout_s=10)
    assert 1 == connections


async def test_connections_never_opened_close() -> None:
    await Http(BackendSettings()).aclose()


def _silent_until(released: asyncio.Event) -> Talk:
    async def talk(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await released.wait()

    return talk


LINES = st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=20), max_size=8)


@given(
    lines=LINES,
    ends=st.lists(st.sampled_from(["\n", "\r", "\r\n"]), min_size=8, max_size=8),
    cuts=st.sets(st.integers(1, 300)),
)
def test_lines_end_as_an_event_streams_do_however_they_arrive(
    lines: list[str], ends: list[str], cuts: set[int]
) -> None:
    """CR, LF or both end a line; Unicode's other line ends may stand in the middle of JSON."""
    whole = "".join(line + end for line, end in zip(lines, ends, strict=False)).encode()
    edges = [0, *sorted(cut for cut in cuts if cut < len(whole)), len(whole)]
    pieces = [whole[a:b] for a, b in pairwise(edges)]

    async def received() -> AsyncIterator[bytes]:
        for piece in filter(None, pieces):
            yield piece

    async def read() -> list[str]:
        return [line async for line in split_lines(received())]

    assert whole.decode().replace("\r\n", "\n").replace("\r", "\n").split("\n")[:-1] == asyncio.run(read())
