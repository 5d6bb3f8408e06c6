"""Random answers are read or refused, and raise nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from gateway.backend.failures import CALL_ERRORS, translate
from gateway.backend.http import Http, split_lines
from gateway.backend.hub import HubClient
from gateway.backend.reading import StreamReader
from gateway.errors import (
    BackendError,
)
from gateway.settings import BackendSettings
from gateway.types import Sampling
from tests.gateway.backend.answers import END, TGI, USAGE, asked, chunk, read_all, read_whole

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "message", "delta", "content", "tool_calls", "function", "usage", "logprobs", "error"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_json_raises_only_backend_errors(anything: Any) -> None:
    sampling = Sampling(logprobs=True)
    for read in (lambda: read_whole(anything, TGI, sampling), lambda: read_all([anything], sampling)):
        try:
            read()
        except BackendError:
            continue


COUNTS = st.fixed_dictionaries({"prompt_tokens": JSON | st.just(5), "completion_tokens": JSON | st.just(7)})
ENTRIES = st.fixed_dictionaries(
    {"token": JSON | st.text(max_size=3), "logprob": JSON | st.floats(-9, 0)},
    optional={"bytes": JSON, "top_logprobs": JSON},
)
CALLS = st.fixed_dictionaries(
    {"function": st.fixed_dictionaries({"name": JSON | st.just("f"), "arguments": JSON})},
    optional={"id": JSON, "index": JSON},
)
MESSAGES = st.fixed_dictionaries(
    {}, optional={"content": JSON | st.text(), "tool_calls": st.lists(CALLS, max_size=3) | JSON}
)
CHOICES = st.fixed_dictionaries(
    {"message": MESSAGES, "delta": MESSAGES, "finish_reason": st.sampled_from(["stop", "length", None]) | JSON},
    optional={"logprobs": st.fixed_dictionaries({"content": st.lists(ENTRIES, max_size=3) | JSON}) | JSON},
)
ANSWERS = st.fixed_dictionaries({"choices": st.lists(CHOICES, max_size=2), "usage": COUNTS | st.just(USAGE) | JSON})


@given(st.lists(ANSWERS, max_size=4))
def test_a_nearly_valid_answer_is_refused_or_can_be_written_as_json(answers: list[Any]) -> None:
    """An accepted answer goes out to its caller as JSON, and its counts are added up."""
    sampling = Sampling(logprobs=True, top_logprobs=2)
    for read in (
        lambda: [read_whole(answer, TGI, sampling) for answer in answers],
        lambda: read_all(answers, sampling),
    ):
        try:
            understood: list[Any] = read()
        except BackendError:
            continue
        orjson.dumps([understood, sum(one.prompt_tokens or 0 for one in understood)])


FRAGMENTS = st.sampled_from(
    [
        b"data:",
        b"data: ",
        b"[DONE]",
        b"\n",
        b"\r",
        b"\n\n",
        b": ",
        b"event: x",
        b"\xff",
        b"\0",
        b"\xe2\x80\xa8",
        b"{",
        b"null",
        b'"',
    ]
    + [
        b"data: " + orjson.dumps(one) + b"\n\n"
        for one in (chunk({"content": "a"}), chunk({"content": "b"}, "stop"), *END, {"error": "x"})
    ]
)


@given(st.lists(FRAGMENTS | st.binary(max_size=6), max_size=20), st.booleans())
def test_any_bytes_of_a_stream_are_an_answer_or_a_backends_error(parts: list[bytes], end: bool) -> None:
    """Through all layers: lines, the hub's client, JSON, chunks."""
    raw = b"".join(parts) + (b"\n\ndata: [DONE]\n\n" if end else b"")

    async def draw() -> None:
        http = _Saying(raw)
        reader = StreamReader(TGI, asked())
        try:
            async for piece in HubClient(http, "http://x", timeout_s=1.0).chunks({"messages": []}, {}):
                list(reader.read(piece))
            reader.last()
        except BackendError:
            return
        except CALL_ERRORS as stumbled:
            translate(stumbled, TGI)

    asyncio.run(draw())


class _Saying(Http):
    """Answers every request with these bytes."""

    def __init__(self, raw: bytes) -> None:
        super().__init__(BackendSettings())
        self._raw = raw

    @asynccontextmanager
    async def stream(self, url: str, body: object, *, timeout_s: float) -> AsyncIterator[AsyncGenerator[str, None]]:
        async def pieces() -> AsyncIterator[bytes]:
            yield self._raw

        yield split_lines(pieces())
