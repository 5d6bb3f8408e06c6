"""The tokens that a stream has drawn so far: the server's count, or at least what its pieces may be."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.backend.flavours import FLAVOURS
from gateway.backend.reading import StreamReader
from gateway.errors import BackendProtocolError
from gateway.types import JsonObject, Prompt, Sampling
from tests.gateway.backend.answers import chunk

CALL = {"index": 0, "id": "c", "function": {"name": "f", "arguments": '{"a":'}}
CALL_BYTES = len('[[{"index":0,"id":"c","function":{"name":"f","arguments":"{\\"a\\":"}}]]')


def drawn(kind: str, chunks: list[Any], **sampling: Any) -> tuple[int | None, int]:
    reader = StreamReader(FLAVOURS[kind], Prompt((), Sampling(**sampling)))
    for one in chunks:
        list(reader.read(one))
    return reader.drawn()


def counted(delta: JsonObject, prompt_tokens: int, completion_tokens: int) -> JsonObject:
    return {**chunk(delta), "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}}


@pytest.mark.parametrize(
    ("kind", "delta", "expected"),
    [
        ("tgi", {"content": "word "}, 1),
        ("llamacpp", {"content": "word "}, 1),
        ("vllm", {"content": "word "}, 5),  # it may put several tokens into one piece
        ("tgi", {"content": ""}, 1),
        ("vllm", {"role": "assistant"}, 1),
        ("tgi", {"content": "é"}, 2),  # a character may be several tokens
        ("tgi", {"content": "🐝"}, 4),
        ("tgi", {"content": "x" * 32}, 1),
        ("tgi", {"content": "x" * 33}, 33),  # too long for one token: it was held back
        ("vllm", {"reasoning": "hm", "content": "a"}, 3),
        ("vllm", {"reasoning_content": "hm"}, 2),
        ("tgi", {"tool_calls": [CALL]}, CALL_BYTES),
        ("vllm", {"tool_calls": [CALL]}, CALL_BYTES),
        ("vllm", {"content": "\ud800"}, 1),
    ],
)
def test_a_piece_counts_as_the_most_tokens_that_it_can_be(kind: str, delta: JsonObject, expected: int) -> None:
    assert (None, expected) == drawn(kind, [chunk(delta)])
    assert (None, 3 * expected) == drawn(kind, [chunk(delta)] * 3)


@pytest.mark.parametrize(("max_tokens", "expected"), [(9, 9), (10, 10), (11, 10), (None, 10)])
def test_no_stream_draws_more_than_its_max_tokens(max_tokens: int | None, expected: int) -> None:
    assert (None, expected) == drawn("vllm", [chunk({"content": "word "})] * 2, max_tokens=max_tokens)


def test_the_servers_count_replaces_ours_once_it_comes() -> None:
    chunks = [chunk({"content": "word "}), counted({"content": "word "}, 30, 2), counted({"content": "word "}, 30, 3)]
    assert [(None, 5), (30, 2), (30, 3)] == [drawn("vllm", chunks[:count]) for count in (1, 2, 3)]


@pytest.mark.parametrize("kind", ["tgi", "vllm"])
def test_a_count_in_the_middle_of_a_stream_does_not_end_it(kind: str) -> None:
    reader = StreamReader(FLAVOURS[kind], Prompt((), Sampling()))
    list(reader.read(counted({"tool_calls": [CALL]}, 5, 7)))
    with pytest.raises(BackendProtocolError):
        reader.last()
