"""Tool calls as real servers send them, read into OpenAI's shape."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.backend.tool_calls import MAX_CALLS, ToolCalls
from gateway.errors import BackendError, BackendProtocolError
from gateway.types import JsonObject, Message


def piece(name: str | None = None, arguments: Any = None, **more: Any) -> JsonObject:
    return {**more, "function": {"name": name, "arguments": arguments}}


def read(*pieces: JsonObject, messages: list[Message] | None = None) -> list[JsonObject]:
    """Return the pieces that are sent on, one a chunk."""
    calls = ToolCalls(messages or [])
    sent = [one for part in pieces for one in calls.read_pieces({"tool_calls": [part]})]
    calls.check_ended()
    return sent


def joined(sent: list[JsonObject]) -> list[tuple[str, str]]:
    """Return the calls as a client joins them: by index, each opened by its id and name."""
    calls: list[list[str]] = []
    for one in sent:
        if "id" in one:
            assert len(calls) == one["index"]
            calls.append([one["function"]["name"], ""])
        calls[one["index"]][1] += one["function"]["arguments"]
    return [(name, arguments) for name, arguments in calls]


F_AND_G = [("f", '{"a":1}'), ("g", "{}")]
STREAMS: dict[str, tuple[list[JsonObject], list[tuple[str, str]]]] = {
    "as OpenAI streams them": (
        [piece("f", "", index=0, id="a1"), piece(None, '{"a":1}', index=0), piece("g", "{}", index=1, id="b1")],
        F_AND_G),
    "index -1 for one call": ([piece("f", "", index=-1, id="a1"), piece(None, '{"a":1}', index=-1)], F_AND_G[:1]),
    "index -1 for both calls": (
        [piece("f", "", index=-1, id="a1"), piece(None, '{"a":1}', index=-1), piece("g", "{}", index=-1, id="b1")],
        F_AND_G),
    "indexes from 1": (
        [piece("f", '{"a":1}', index=1, id="a1"), piece("g", "{", index=2, id="b1"), piece(None, "}", index=2)],
        F_AND_G),
    "a huge index": ([piece("f", '{"a":1}', index=3_000_000), piece("g", "{}", index=2**63)], F_AND_G),
    "indexes as text": ([piece("f", '{"a":1}', index="0"), piece("g", "{}", index="1")], F_AND_G),
    "one index for two whole calls": (
        [piece("f", '{"a":1}', index=0, id="a1"), piece("g", "{}", index=0, id="b1")], F_AND_G),
    "one index, pieces told apart by id": (
        [piece("f", "", index=0, id="a1"), piece("g", "", index=0, id="b1"),
         piece(None, '{"a":1}', index=0, id="a1"), piece(None, "{}", index=0, id="b1")], F_AND_G),
    "an id that contradicts the index": (
        [piece("f", "", index=0, id="a1"), piece("g", "{", index=1, id="b1"), piece(None, '{"a":1}', index=1, id="a1"),
         piece(None, "}", index=1, id="b1")],
        F_AND_G),
    "one index and no id": ([piece("f", '{"a":1}', index=0), piece("g", "{}", index=0)], F_AND_G),
    "one index, no id, one name": (
        [piece("f", '{"a":1}', index=0), piece("f", '{"a":2}', index=0)], [("f", '{"a":1}'), ("f", '{"a":2}')]),
    "neither index nor id": ([piece("f", '{"a":'), piece(None, "1}"), piece("g", "{}")], F_AND_G),
    "ids without indexes": ([piece("f", "", id="a1"), piece(None, '{"a":1}'), piece("g", "{}", id="b1")], F_AND_G),
    "one id for two calls": ([piece("f", '{"a":1}', index=0, id="0"), piece("g", "{", index=1, id="0"),
                              piece(None, "}", index=1, id="0")], F_AND_G),
    "another id with each piece": (
        [piece("f", "", index=0, id="r1"), piece(None, '{"a":', index=0, id="r2"), piece(None, "1}", index=0, id="r3")],
        F_AND_G[:1]),
    "name and id with each piece": (
        [piece("f", '{"a"', index=0, id="a1"), piece("f", ":1}", index=0, id="a1")], F_AND_G[:1]),
    "the whole call once more at the end": (
        [piece("f", '{"a":', index=0, id="a1"), piece(None, "1}", index=0), piece("f", '{"a":1}', index=0, id="a1")],
        F_AND_G[:1]),
    "the name after the id": ([{"index": 0, "id": "a1"}, piece(None, '{"a":', index=0), piece("f", "1}", index=0)],
                              F_AND_G[:1]),
    "an object for arguments": ([piece("f", {"a": 1}, index=0)], F_AND_G[:1]),
    "an empty name in what follows": ([piece("f", "", index=0), piece("", '{"a":1}', index=0)], F_AND_G[:1]),
}  # fmt: skip


@pytest.mark.parametrize("name", STREAMS)
def test_streamed_calls_are_distinguished_by_id_and_index_and_order(name: str) -> None:
    pieces, expected = STREAMS[name]
    assert expected == joined(read(*pieces))


@pytest.mark.parametrize("name", STREAMS)
def test_pieces_in_one_chunk_give_the_same_calls(name: str) -> None:
    pieces, expected = STREAMS[name]
    assert expected == joined(list(ToolCalls([]).read_pieces({"tool_calls": pieces})))


def test_a_piece_that_adds_nothing_is_not_sent_on() -> None:
    assert 1 == len(read(piece("f", "{}", index=0), piece(None, "", index=0), piece(None, None, index=0)))


@pytest.mark.parametrize("calls", [MAX_CALLS, MAX_CALLS + 1])
def test_the_calls_of_an_answer_are_bounded(calls: int) -> None:
    pieces = [piece("f", "{}", index=index) for index in range(calls)]
    if calls <= MAX_CALLS:
        assert calls == len(joined(read(*pieces))) == len(ToolCalls([]).read_whole({"tool_calls": pieces}))
        return
    for read_them in (lambda: read(*pieces), lambda: ToolCalls([]).read_whole({"tool_calls": pieces})):
        with pytest.raises(BackendProtocolError, match="128"):
            read_them()


@pytest.mark.parametrize("pieces", [[piece(None, "{}", index=0)], [{"function": {"name": 5}}], [{"function": 5}]])
def test_a_call_that_is_never_named_is_refused(pieces: list[JsonObject]) -> None:
    with pytest.raises(BackendProtocolError):
        read(*pieces)


def test_an_opening_without_a_name_or_arguments_is_no_call() -> None:
    assert [] == read({"index": 0, "id": "a1", "type": "function"})


UNIQUE = ["call_7f3a9c21b", "chatcmpl-tool-0a1b2c3d4e5f", "functions.f:0", "D681PevKs", "x" * 250 + "0a1b2c"]
REPEATING = ["0", "", None, "call_0", "call_12", "get_weather", "call_get_weather_0", "12345678", 7, "a1" * 129]


@pytest.mark.parametrize("given", UNIQUE)
def test_a_unique_id_is_kept(given: str) -> None:
    assert given == read(piece("f", "{}", id=given))[0]["id"]


@pytest.mark.parametrize("given", REPEATING)
def test_an_id_that_would_repeat_in_the_next_turn_is_replaced(given: Any) -> None:
    called = {"tool_calls": [piece("f", "{}", id=given)]}
    ids = {ToolCalls([]).read_whole(called)[0]["id"] for _ in range(4)} | {read(*called["tool_calls"])[0]["id"]}
    assert 5 == len(ids)
    assert all(len(own) == 9 and own.isalnum() for own in ids)


def test_no_id_appears_twice_in_a_conversation() -> None:
    told: Message = {"role": "assistant", "content": None, "tool_calls": [piece("f", "{}", id=UNIQUE[0])]}
    assert UNIQUE[0] != read(piece("f", "{}", id=UNIQUE[0]), messages=[told])[0]["id"]
    twice = {"tool_calls": [piece("f", "{}", id=UNIQUE[0]), piece("g", "{}", id=UNIQUE[0])]}
    first, second = ToolCalls([]).read_whole(twice)
    assert (UNIQUE[0], True) == (first["id"], first["id"] != second["id"])


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=3), st.lists, max_leaves=3)
PIECES = st.fixed_dictionaries(
    {"function": st.fixed_dictionaries({"name": st.sampled_from([None, "f", "g", ""]) | JSON, "arguments": JSON})},
    optional={"index": st.integers(-2, 2) | JSON, "id": st.sampled_from(["0", "a", ""]) | JSON},
)


@given(st.lists(PIECES, max_size=8))
def test_any_pieces_give_a_stream_that_a_client_can_join(pieces: list[JsonObject]) -> None:
    try:
        sent = read(*pieces)
    except BackendError:
        return
    joined(sent)
