"""Bounds of one connection, on real sockets: headers, time, and answers that are not read."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
import uvicorn
from structlog.testing import capture_logs

from gateway.api.connection import ClientGone, cancel_on_disconnect
from gateway.api.keyfile import new_key
from gateway.api.protocol import server_options
from gateway.settings import Settings
from tests.gateway.api.conftest import chat_body
from tests.serving import Serve, Served

CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
LIVE = b"GET /health/live HTTP/1.1\r\nhost: x\r\n"


async def answer_to(url: str, *parts: bytes) -> bytes:
    """Send the parts, and return all that the server answers until it closes."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        async with asyncio.timeout(20):
            return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


def error_of(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), orjson.loads(body)["error"]["code"]


async def assert_serves(served: Served) -> None:
    assert 200 == (await served.http.get("/health/live")).status_code


@pytest.mark.parametrize(
    "headers",
    [
        b"".join(b"x-%d: 1\r\n" % index for index in range(101)),
        b"x: " + b"a" * 2_000 + b"\r\n",
        b"".join(b"x-%d: %s\r\n" % (index, b"a" * 500) for index in range(5)),
    ],
    ids=["many", "one that is large", "large together"],
)
async def test_too_many_or_too_large_headers_are_a_431(serve: Serve, headers: bytes) -> None:
    served = await serve(api={"max_header_bytes": 2_000})
    answer = await answer_to(served.url, LIVE + headers + b"\r\n")
    assert (431, "invalid_http_request") == error_of(answer)
    await assert_serves(served)


async def test_as_many_headers_as_allowed_are_served(serve: Serve) -> None:
    served = await serve()
    headers = b"".join(b"x-%d: 1\r\n" % index for index in range(98))
    answer = await answer_to(served.url, LIVE + headers + b"connection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK")


async def test_an_endless_header_is_not_buffered(serve: Serve) -> None:
    served = await serve(api={"max_header_bytes": 2_000})
    answer = await answer_to(served.url, LIVE + b"x: ", *[b"a" * 500] * 6)
    assert (431, "invalid_http_request") == error_of(answer)
    await assert_serves(served)


async def test_an_endless_url_is_not_buffered(serve: Serve) -> None:
    served = await serve(api={"max_header_bytes": 2_000})
    answer = await answer_to(served.url, b"GET /", *[b"a" * 500] * 6)
    assert (431, "invalid_http_request") == error_of(answer)


CHUNKED = CHAT + b"transfer-encoding: chunked\r\n\r\n"
BODY = orjson.dumps(chat_body())
ONE_CHUNK = b"%x\r\n%b\r\n0\r\n" % (len(BODY), BODY)


def _closing(head: bytes, *headers: bytes) -> bytes:
    return b"".join((head[:-2], b"connection: close\r\n", *headers, b"\r\n"))


async def test_a_trailer_is_not_taken_for_a_header(serve: Serve, tmp_path: Path) -> None:
    """A balancer that removes a header from a request does not look at trailers."""
    key, line = new_key("one")
    (tmp_path / "keys").write_text(line)
    served = await serve(api={"keys_file": tmp_path / "keys"})
    sent = f"authorization: Bearer {key}\r\n".encode()
    assert (401, "invalid_api_key") == error_of(
        await answer_to(served.url, _closing(CHUNKED) + ONE_CHUNK + sent + b"\r\n")
    )
    assert b" 200 OK" in await answer_to(served.url, _closing(CHUNKED, sent) + ONE_CHUNK + sent + b"\r\n")


@pytest.mark.parametrize("trailer", [b"a" * 500, b"x-a: b\r\n" * 60], ids=["one", "many"])
async def test_endless_trailers_are_not_buffered(serve: Serve, trailer: bytes) -> None:
    served = await serve(api={"max_header_bytes": 2_000})
    answer = await answer_to(served.url, CHUNKED, ONE_CHUNK, *[trailer] * 6)
    assert (431, "invalid_http_request") == error_of(answer)
    await assert_serves(served)


async def test_large_chunks_are_not_taken_for_trailers(serve: Serve) -> None:
    """Also if a packet ends just after a chunk's size, or is larger than headers may be."""
    served = await serve(api={"max_header_bytes": 2_000})
    blanks = b"fa0\r\n" + b" " * 4_000 + b"\r\n"
    answer = await answer_to(
        served.url, _closing(CHUNKED) + blanks + b"fa0\r\n", blanks[5:], blanks, ONE_CHUNK + b"\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 200 OK")


async def test_an_extra_slash_is_not_redirected_to_a_host_that_the_caller_named(serve: Serve) -> None:
    served = await serve()
    answer = await answer_to(
        served.url, b"GET /v1/feedback/ HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n"
    )
    assert (404, "not_found") == error_of(answer)
    assert b"evil" not in answer


@pytest.mark.parametrize(
    "begin",
    [(), (LIVE,), (LIVE + b"x: a",), (LIVE + b"\r\n", b"\r\n"), (LIVE + b"\r\n", LIVE)],
    ids=["nothing", "a line", "half a header", "a blank line after a request", "half of a second request"],
)
async def test_a_connection_without_headers_is_closed(serve: Serve, begin: tuple[bytes, ...]) -> None:
    served = await serve(api={"header_timeout_s": 0.1, "idle_timeout_s": 0.1 if begin[1:] == (b"\r\n",) else 60})
    answer = await answer_to(served.url, *begin)
    assert answer.count(b"HTTP/1.1") == sum(part.endswith(b"\r\n\r\n") for part in begin)
    await assert_serves(served)


async def test_a_slow_body_is_a_408_and_costs_the_backend_nothing(serve: Serve) -> None:
    served = await serve(api={"body_timeout_s": 0.2})
    answer = await answer_to(served.url, CHAT + b"content-length: 1000\r\n\r\n", b'{"model"')
    assert (408, "request_too_slow") == error_of(answer)
    assert [] == list(served.tgi.state.requests)
    await assert_serves(served)


async def test_an_answer_to_bytes_that_are_not_http_has_the_same_envelope(serve: Serve) -> None:
    served = await serve()
    assert (400, "invalid_http_request") == error_of(await answer_to(served.url, b"\x16\x03\x01 hello\r\n\r\n"))
    assert (400, "invalid_http_request") == error_of(await answer_to(served.url, LIVE + b"content-length: x\r\n\r\n"))


@pytest.mark.parametrize(("pause_s", "answers"), [(0.2, 2), (0.9, 1)], ids=["just below", "above"])
async def test_an_idle_connection_is_kept_for_the_time_of_the_setting(
    serve: Serve, pause_s: float, answers: int
) -> None:
    served = await serve(api={"idle_timeout_s": 0.5, "header_timeout_s": 20})
    host, port = served.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    heard = b""
    for _ in range(2):
        writer.write(LIVE + b"\r\n")
        await asyncio.sleep(pause_s)
    async with asyncio.timeout(20):
        heard = await reader.read()
    writer.close()
    assert answers == heard.count(b"HTTP/1.1 200 OK")


def test_an_idle_connection_outlives_the_idle_time_of_common_balancers() -> None:
    assert 60 < server_options(Settings())["timeout_keep_alive"]


@pytest.mark.parametrize("best_of", [1, 2])
async def test_a_stream_under_http_1_0_ends_with_the_connection_and_has_no_chunks(serve: Serve, best_of: int) -> None:
    served = await serve()
    body = orjson.dumps(chat_body(stream=True, best_of=best_of))
    head = CHAT.replace(b"HTTP/1.1", b"HTTP/1.0") + b"content-length: %d\r\n\r\n" % len(body)
    head, _, streamed = (await answer_to(served.url, head + body)).partition(b"\r\n\r\n")
    assert b" 200 OK" in head
    assert b"connection: close" in head
    assert b"transfer-encoding" not in head
    events = streamed.split(b"\n\n")
    assert [b"data: [DONE]", b""] == events[-2:]
    assert all(event.startswith((b"data: ", b": ")) for event in events[:-1])


@pytest.mark.parametrize("request_line", [b"GET /health/live", b"HEAD /health/live", b"GET /nowhere", b"HEAD /docs"])
async def test_whole_answers_under_http_1_0_keep_their_length(serve: Serve, request_line: bytes) -> None:
    served = await serve()
    head, _, body = (await answer_to(served.url, request_line + b" HTTP/1.0\r\n\r\n")).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    if request_line.startswith(b"GET"):
        assert b"content-length: %d" % len(body) in head
    else:
        assert b"" == body


@asynccontextmanager
async def large_answer(*, at_once: bool, write_timeout_s: float) -> AsyncIterator[tuple[uvicorn.Server, asyncio.Event]]:
    """Run a server whose answers are 20 MB each; the event is set when one has ended on its side."""
    piece, ended = b"a" * 100_000, asyncio.Event()

    async def app(_: Any, receive: Any, send: Any) -> None:
        async def answer() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
            for _ in range(0 if at_once else 200):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": piece * 200 if at_once else b""})

        with contextlib.suppress(ClientGone):
            await cancel_on_disconnect(receive, answer())
        ended.set()

    options = server_options(Settings.model_validate({"api": {"write_timeout_s": write_timeout_s}}))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, lifespan="off", **options))
    running = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.005)
    try:
        yield server, ended
    finally:
        server.should_exit = True
        await running


def address_of(server: uvicorn.Server) -> tuple[str, int]:
    host, port = server.servers[0].sockets[0].getsockname()
    return host, port


@pytest.mark.parametrize("at_once", [False, True], ids=["in pieces", "all at once"])
async def test_a_caller_who_does_not_read_is_cut_off_and_the_answer_is_freed(at_once: bool) -> None:
    async with large_answer(at_once=at_once, write_timeout_s=0.2) as (server, ended):
        with capture_logs() as logs, socket.socket() as caller:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            caller.connect(address_of(server))
            caller.sendall(LIVE + b"\r\n")
            async with asyncio.timeout(20):
                await ended.wait()
                while server.server_state.connections:
                    await asyncio.sleep(0.01)
        assert ["reader_too_slow"] == [line["reason"] for line in logs if line["event"] == "connection_cut"]


@pytest.mark.parametrize("at_once", [False, True], ids=["in pieces", "all at once"])
async def test_a_caller_who_reads_gets_all_of_it(at_once: bool) -> None:
    async with large_answer(at_once=at_once, write_timeout_s=20) as (server, _):
        host, port = address_of(server)
        answer = await answer_to(f"http://{host}:{port}", LIVE + b"\r\n")
        assert 20_000_000 == answer.count(b"a" * 1000) * 1000


def test_the_options_reach_worker_processes() -> None:
    options = server_options(Settings.model_validate({"api": {"max_headers": 11}}))
    assert 11 == pickle.loads(pickle.dumps(options))["http"].keywords["limits"].max_headers
