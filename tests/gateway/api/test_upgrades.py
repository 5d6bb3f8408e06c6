"""Upgrade offers on real sockets: each is ignored, and its request keeps its body and its place."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import orjson
import pytest

from gateway.api.keyfile import new_key
from tests.gateway.api.conftest import chat_body
from tests.gateway.api.test_protocol import CHAT, LIVE, answer_to, error_of
from tests.serving import Serve, Served

OFFERS = {
    "java": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
    "curl": b"HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n",
    "capitals": b"CONNECTION: UPGRADE\r\nUPGRADE: H2C\r\n",
    "apart": b"connection: keep-alive\r\nconnection: upgrade\r\nupgrade: h2c\r\n",
    "twice": b"connection: upgrade\r\nupgrade: h2c\r\nupgrade: websocket\r\n",
    "websocket": b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n",
    "tls": b"connection: upgrade\r\nupgrade: TLS/1.0, HTTP/1.1\r\n",
    "unknown": b"connection: upgrade\r\nupgrade: \r\n",
}
BODY = orjson.dumps(chat_body())
LENGTH = b"content-length: %d\r\n\r\n" % len(BODY)
CHUNKED = b"transfer-encoding: chunked\r\n\r\n"
CHUNKS = b"10\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (BODY[:16], len(BODY) - 16, BODY[16:])
# A body that a server would answer if it took it for a request.
SMUGGLED = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n"
LAST = LIVE + b"connection: close\r\n\r\n"


async def answers_to(served: Served, *parts: bytes, pause_s: float = 0.02) -> list[bytes]:
    """Send each part as a segment of its own; return the answers, each with its status line first."""
    host, port = served.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    for part in parts:
        writer.write(part)
        await writer.drain()
        await asyncio.sleep(pause_s)
    async with asyncio.timeout(20):
        heard = await reader.read()
    writer.close()
    return [b"HTTP/1.1 " + answer for answer in heard.split(b"HTTP/1.1 ")[1:]]


def statuses(answers: list[bytes]) -> list[int]:
    return [int(answer.split()[1]) for answer in answers]


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS.keys())
@pytest.mark.parametrize(
    "parts",
    [
        (LENGTH + BODY,),
        (LENGTH, BODY),
        (LENGTH, BODY[:30], BODY[30:]),
        (LENGTH[:5], LENGTH[5:] + BODY[:1], BODY[1:]),
        (CHUNKED + CHUNKS,),
        (CHUNKED, CHUNKS),
        (CHUNKED, CHUNKS[:7], CHUNKS[7:60], CHUNKS[60:]),
    ],
    ids=["one segment", "body apart", "body in two", "head cut", "chunked", "chunks apart", "chunks cut"],
)
async def test_a_post_with_an_offer_is_answered_as_one_without(
    serve: Serve, offer: bytes, parts: tuple[bytes, ...]
) -> None:
    served = await serve()
    answers = await answers_to(served, CHAT + offer + parts[0], *parts[1:], LAST)
    assert [200, 200] == statuses(answers)
    assert b'"chat.completion"' in answers[0]
    assert b'{"status":"ok"}' in answers[1]
    assert 1 == len(served.tgi.state.requests)


@pytest.mark.parametrize("apart", [False, True], ids=["same segment", "own segment"])
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunks"])
async def test_a_body_after_an_offer_is_never_taken_for_a_request(serve: Serve, apart: bool, chunked: bool) -> None:
    served = await serve()
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED) if chunked else SMUGGLED
    framing = CHUNKED if chunked else b"content-length: %d\r\n\r\n" % len(SMUGGLED)
    head = CHAT + OFFERS["java"] + framing
    answers = await answers_to(served, *((head, body) if apart else (head + body,)), LAST)
    assert [400, 200] == statuses(answers)
    assert b"the body is not valid JSON" in answers[0]


async def test_offers_in_a_row_are_answered_in_their_order(serve: Serve) -> None:
    served = await serve()
    one = CHAT + OFFERS["java"] + LENGTH + BODY
    asked = one + LIVE + OFFERS["websocket"] + b"\r\n" + CHAT + LENGTH + BODY + one + LAST
    for parts in ((asked,), (asked[:50], asked[50:900], asked[900:])):
        answers = await answers_to(served, *parts)
        assert [200] * 5 == statuses(answers)
        assert [True, False, True, True, False] == [b'"chat.completion"' in answer for answer in answers]


async def test_streams_and_100_continue_work_with_an_offer(serve: Serve) -> None:
    served = await serve()
    body = orjson.dumps(chat_body(stream=True))
    length = b"content-length: %d\r\n\r\n" % len(body)
    answers = await answers_to(served, CHAT + OFFERS["curl"] + b"expect: 100-continue\r\n" + length, body, LAST)
    assert [100, 200, 200] == statuses(answers)
    assert answers[1].count(b"data: [DONE]") == 1


@pytest.mark.parametrize(
    ("framing", "body"),
    [
        (LENGTH[:-2] + CHUNKED, CHUNKS),
        (b"content-length: 5\r\ncontent-length: 6\r\n\r\n", b"hello"),
        (b"content-length: +5\r\n\r\n", b"hello"),
        (b"transfer-encoding: chunked, gzip\r\n\r\n", CHUNKS),
        (CHUNKED, b"zz\r\n"),
    ],
)
async def test_an_offer_bypasses_no_refusal(serve: Serve, framing: bytes, body: bytes) -> None:
    served = await serve()
    for parts in ((framing + body,), (framing, body)):
        answers = await answers_to(served, CHAT + OFFERS["java"] + parts[0], *parts[1:])
        assert (400, "invalid_http_request") == error_of(answers[-1]) or 400 == statuses(answers)[-1]
        assert [] == list(served.tgi.state.requests)


async def test_an_offer_counts_as_headers_and_replaces_no_key(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(new_key("one")[1])
    served = await serve(api={"keys_file": tmp_path / "keys", "max_headers": 10})
    offer = OFFERS["java"]
    many = b"".join(b"x-%d: 1\r\n" % index for index in range(6))
    assert 431 == error_of(await answer_to(served.url, CHAT + offer + many + LENGTH + BODY))[0]
    fewer = b"".join(b"x-%d: 1\r\n" % index for index in range(4))
    assert [401, 200] == statuses(await answers_to(served, CHAT + offer + fewer + LENGTH + BODY, LAST))


async def test_an_offer_in_the_trailers_is_ignored(serve: Serve) -> None:
    served = await serve()
    chunks = CHUNKS[:-2] + OFFERS["java"] + b"\r\n"
    assert [200, 200] == statuses(await answers_to(served, CHAT + CHUNKED + chunks, LAST))


async def test_connect_opens_no_tunnel(serve: Serve) -> None:
    served = await serve()
    for target in (b"evil.example:443", b"/v1/chat/completions"):
        said = await answer_to(served.url, b"CONNECT %b HTTP/1.1\r\nhost: x\r\n\r\n" % target, SMUGGLED)
        assert [b"400"] == re.findall(rb"HTTP/1.1 (\d+)", said)


async def test_many_offers_at_once_cost_no_more_than_many_requests(serve: Serve) -> None:
    """Each offer starts a new parser: it must not copy the rest, or a segment would cost its length squared."""
    served = await serve()
    one = LIVE + OFFERS["java"] + b"\r\n"
    answers = await answers_to(served, one * 1_500 + LAST)
    assert [200] * 1_501 == statuses(answers)
