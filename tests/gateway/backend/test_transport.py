from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from itertools import pairwise

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.backend.transport import AiohttpTransport, EventResponse
from tests.gateway.backend.rawserver import Talk, listening, ok, saying


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    """httpx2's own client over the transport: the transport serves any."""
    transport = AiohttpTransport(max_connections=1, max_response_bytes=1000)
    async with httpx2.AsyncClient(transport=transport, timeout=10, trust_env=False) as client:
        yield client


async def test_a_response_comes_whole_with_its_headers(client: httpx2.AsyncClient) -> None:
    async with listening(saying(ok(b"hello", b"X-Thing: 1"))) as url:
        response = await client.post(url + "/path", content=b"question", headers={"X-Other": "2"})
    assert (200, b"hello", "1") == (response.status_code, response.content, response.headers["x-thing"])


async def test_a_request_arrives_with_its_own_headers_and_no_others(client: httpx2.AsyncClient) -> None:
    heard: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n") + await reader.readexactly(2))
        writer.write(ok(b""))

    async with listening(talk) as url:
        request = httpx2.Request("POST", url + "/a?b=c%20d", headers={"x-one": "1"}, stream=httpx2.ByteStream(b"hi"))
        await client.send(request)
        host = url.removeprefix("http://").encode()
    lines = b"POST /a?b=c%20d HTTP/1.1\r\nHost: " + host + b"\r\nx-one: 1\r\nContent-Length: 2\r\n\r\nhi"
    assert lines.lower() == heard[0].lower()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"", httpx2.ReadError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", httpx2.ReadError),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe", httpx2.ReadError),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", httpx2.RemoteProtocolError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", httpx2.RemoteProtocolError),
        (ok(b"x" * 1001), httpx2.RemoteProtocolError),
        (ok(gzip.compress(bytes(100_000)), b"Content-Encoding: gzip"), httpx2.RemoteProtocolError),
    ],
)
async def test_a_broken_response_raises_what_httpx2_would(
    client: httpx2.AsyncClient, answer: bytes, expected: type[Exception]
) -> None:
    async with listening(saying(answer)) as url:
        with pytest.raises(expected):
            await client.get(url)


async def test_no_server_is_a_connect_error(client: httpx2.AsyncClient) -> None:
    async with listening(saying(b"")) as url:
        pass
    with pytest.raises(httpx2.ConnectError):
        await client.get(url)


async def test_a_slow_answer_is_a_read_timeout(client: httpx2.AsyncClient) -> None:
    released = asyncio.Event()
    async with listening(_silent_until(released)) as url:
        with pytest.raises(httpx2.ReadTimeout):
            await client.get(url, timeout=httpx2.Timeout(0.05))
        released.set()


async def test_a_connection_that_does_not_open_is_a_connect_timeout(client: httpx2.AsyncClient) -> None:
    """192.0.2.0/24 is nowhere (RFC 5737): where packets to it are dropped this times out, else there is no route."""
    with pytest.raises((httpx2.ConnectTimeout, httpx2.ConnectError)):
        await client.get("http://192.0.2.1", timeout=httpx2.Timeout(10, connect=0.05))


async def test_an_aiohttp_connect_timeout_is_httpx2s(client: httpx2.AsyncClient) -> None:
    """A listener whose backlog is full leaves connections half open."""
    import socket

    with socket.socket() as listener, socket.socket() as filler, socket.socket() as filler_2:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for one in (filler, filler_2):
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        with pytest.raises(httpx2.ConnectTimeout):
            await client.get(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=httpx2.Timeout(10, connect=0.05))


async def test_a_cancelled_request_closes_its_connection(client: httpx2.AsyncClient) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def talk(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        begun.set()
        assert b"" == await reader.read()
        ended.set()

    async with listening(talk) as url:
        task = asyncio.create_task(client.get(url))
        await asyncio.wait_for(begun.wait(), 10)
        task.cancel()
        await asyncio.wait_for(ended.wait(), 10)
        assert (await asyncio.gather(task, return_exceptions=True))[0].__class__ is asyncio.CancelledError


async def test_a_stream_closed_early_closes_its_connection(client: httpx2.AsyncClient) -> None:
    ended = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        assert b"" == await reader.read()
        ended.set()

    async with listening(talk) as url:
        async with client.stream("GET", url) as response:
            assert b"hello" == await anext(response.aiter_bytes())
        await asyncio.wait_for(ended.wait(), 10)


async def test_a_connection_is_used_again(client: httpx2.AsyncClient) -> None:
    connections = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        for _ in range(2):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(ok(b"hello"))

    async with listening(talk) as url:
        for _ in range(2):
            await client.get(url)
    assert 1 == connections


async def test_a_transport_never_used_closes() -> None:
    await AiohttpTransport(max_connections=1).aclose()


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
    """CR, LF or both; what Unicode takes for a line's end besides may stand in the middle of JSON."""
    whole = "".join(line + end for line, end in zip(lines, ends, strict=False)).encode()
    edges = [0, *sorted(cut for cut in cuts if cut < len(whole)), len(whole)]
    pieces = [whole[a:b] for a, b in pairwise(edges)]

    async def read() -> list[str]:
        return [line async for line in EventResponse(200, stream=_Pieces(pieces)).aiter_lines()]

    assert whole.decode().replace("\r\n", "\n").replace("\r", "\n").split("\n")[:-1] == asyncio.run(read())


class _Pieces(httpx2.AsyncByteStream):
    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece
