"""Compressed request bodies: accepted within the limits, refused by name, and never unpacked beyond the limit."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from collections.abc import Callable

import orjson
import pytest

from gateway.api.decompression import Decompressor, decompressor_for
from gateway.errors import InvalidRequest, RequestTooLarge, UnsupportedContentEncoding
from tests.gateway.api.conftest import chat_body
from tests.serving import Serve

JSON = {"content-type": "application/json"}
BODY = orjson.dumps(chat_body())
PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "identity": bytes,
}


@pytest.mark.parametrize("encoding", [*PACK, "GZIP", "identity, gzip", ""])
async def test_a_compressed_body_is_read(serve: Serve, encoding: str) -> None:
    served = await serve()
    pack = PACK.get(encoding.rpartition(", ")[2].lower(), bytes)
    answer = await served.http.post(
        "/v1/chat/completions", content=pack(BODY), headers={**JSON, "content-encoding": encoding}
    )
    assert 200 == answer.status_code, answer.text


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, gzip", "gzip, br", "nonsense"])
async def test_any_other_encoding_is_a_415_that_names_the_supported_ones(serve: Serve, encoding: str) -> None:
    served = await serve()
    answer = await served.http.post(
        "/v1/chat/completions", content=b"abc", headers={**JSON, "content-encoding": encoding}
    )
    assert (415, "unsupported_content_encoding") == (answer.status_code, answer.json()["error"]["code"])
    assert "gzip or deflate" in answer.json()["error"]["message"]
    assert "gzip, deflate" == answer.headers["accept-encoding"]


@pytest.mark.parametrize(
    "sent",
    [
        BODY,
        b"",
        gzip.compress(BODY)[:-1],
        gzip.compress(BODY)[:20],
        gzip.compress(BODY) + b"x",
        gzip.compress(BODY) * 2,
        gzip.compress(BODY)[:-6] + b"xxxxxx",
    ],
    ids=["plain", "nothing", "one byte short", "cut", "one byte more", "two of them", "a wrong checksum"],
)
async def test_a_body_that_cannot_be_decompressed_is_a_400(serve: Serve, sent: bytes) -> None:
    served = await serve()
    answer = await served.http.post("/v1/chat/completions", content=sent, headers={**JSON, "content-encoding": "gzip"})
    assert (400, "invalid_value") == (answer.status_code, answer.json()["error"]["code"])
    assert "compress" in answer.json()["error"]["message"]


@pytest.mark.parametrize(("surplus", "status"), [(-1, 200), (0, 200), (1, 413)])
async def test_the_limit_holds_for_the_decompressed_body(serve: Serve, surplus: int, status: int) -> None:
    served = await serve(api={"max_body_bytes": 5_000})
    body = BODY + b" " * (5_000 + surplus - len(BODY))
    for path in ("/v1/chat/completions", "/v1/feedback"):
        answer = await served.http.post(path, content=gzip.compress(body), headers={**JSON, "content-encoding": "gzip"})
        expected = 400 if status == 200 and path == "/v1/feedback" else status
        assert expected == answer.status_code, answer.text


def test_a_bomb_is_never_unpacked() -> None:
    bomb = gzip.compress(b"\0" * 100_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(RequestTooLarge):
            Decompressor(1_000_000).feed(bomb)
        assert 5_000_000 > tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_body_in_single_bytes_is_the_same_body() -> None:
    found = decompressor_for(["gzip"], limit_bytes=len(BODY))
    assert found is not None
    assert BODY == b"".join(found.feed(bytes([byte])) for byte in gzip.compress(BODY))
    found.finish()
    with pytest.raises(InvalidRequest, match="after its end"):
        found.feed(b"x")


def test_encodings_are_read_from_every_header() -> None:
    assert decompressor_for([], limit_bytes=1) is None
    assert decompressor_for(["", "identity , identity"], limit_bytes=1) is None
    with pytest.raises(UnsupportedContentEncoding):
        decompressor_for(["gzip", "gzip"], limit_bytes=1)
