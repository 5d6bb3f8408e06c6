"""Streamed answers as chunks: together they are the answer, whatever its text."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.api import errors, render, sse
from gateway.errors import BackendFailed
from gateway.types import Answer, Arm, Candidate, Delta, Outcome, Plan, Selection, Timings

# Text that JSON can hold: without lone surrogates.
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def outcome_of(*answers: Answer, reward_model: str | None = "judge") -> Outcome:
    candidates = [Candidate(index, seed=index, answer=answer, reward=1.5) for index, answer in enumerate(answers)]
    plan = Plan(n_asked=len(answers), n_ordinary=len(answers), seed=1, arm=Arm("stable", None, 4), policy_version=3)
    return Outcome(plan, len(answers), candidates, candidates, Selection.SCORED, Timings(), reward_model=reward_model)


def chunks_of(outcome: Outcome, *, include_usage: bool = False) -> list[dict[str, Any]]:
    chunks = sse.Chunks(completion_id="chatcmpl-1", created=7, model="m", include_usage=include_usage)
    stream = b"".join([*chunks.winners(outcome), *chunks.end(outcome)])
    frames = stream.split(b"\n\n")
    assert [b"data: [DONE]", b""] == frames[-2:]
    return [orjson.loads(frame.removeprefix(b"data: ")) for frame in frames[:-2]]


def deltas(chunks: list[dict[str, Any]], rank: int = 0) -> list[dict[str, Any]]:
    return [choice["delta"] for chunk in chunks for choice in chunk["choices"] if choice["index"] == rank]


@settings(max_examples=100, deadline=None)
@given(TEXT)
def test_the_chunks_together_are_the_answer(text: str) -> None:
    chunks = chunks_of(outcome_of(Answer(text, "stop", 1, 1)))
    assert text == "".join(delta.get("content") or "" for delta in deltas(chunks))
    assert "assistant" == deltas(chunks)[0]["role"]
    assert [None] * (len(chunks) - 1) + ["stop"] == [chunk["choices"][0]["finish_reason"] for chunk in chunks]


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_a_tool_calls_pieces_together_are_the_call(arguments: str) -> None:
    call = {"id": "call_0", "type": "function", "function": {"name": "look", "arguments": arguments}}
    pieces = [
        piece
        for delta in deltas(chunks_of(outcome_of(Answer(None, "tool_calls", 1, 1, tool_calls=(call,)))))
        for piece in delta.get("tool_calls", [])
    ]
    assert ("call_0", "function", "look") == (pieces[0]["id"], pieces[0]["type"], pieces[0]["function"]["name"])
    assert {0} == {piece["index"] for piece in pieces}
    assert arguments == "".join(piece["function"]["arguments"] for piece in pieces)


def test_with_logprobs_each_chunk_is_one_token_with_its_logprob() -> None:
    tokens: list[Any] = [
        {"token": token, "logprob": -0.5, "bytes": None, "top_logprobs": []} for token in ("A", " b", "oat")
    ]
    answer = Answer("A boat", "stop", 1, 3, logprobs={"content": tokens, "refusal": None})
    pieces = [chunk["choices"][0] for chunk in chunks_of(outcome_of(answer))[1:-1]]
    assert ["A", " b", "oat"] == [piece["delta"]["content"] for piece in pieces]
    assert [[token] for token in tokens] == [piece["logprobs"]["content"] for piece in pieces]


def test_logprobs_that_do_not_spell_the_text_are_sent_whole_with_the_first_piece() -> None:
    logprobs: Any = {"content": [{"token": "A", "logprob": 0.0, "bytes": None, "top_logprobs": []}], "refusal": None}
    pieces = [chunk["choices"][0] for chunk in chunks_of(outcome_of(Answer("A b", "stop", 1, 2, logprobs=logprobs)))]
    assert [None, logprobs, None, None] == [piece["logprobs"] for piece in pieces]


def test_requested_usage_is_the_last_chunk_and_null_before() -> None:
    chunks = chunks_of(outcome_of(Answer("a", "stop", 4, 1), Answer("b", "length", 4, 2)), include_usage=True)
    usage = {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7}
    assert ([], usage) == (chunks[-1]["choices"], chunks[-1]["usage"])
    assert {None} == {chunk["usage"] for chunk in chunks[:-1]}
    assert "best_of_n" in chunks[-2]
    assert "best_of_n" not in chunks[-3]


def test_a_reward_model_of_any_name_fits_a_header() -> None:
    for name, sent in (("org/Judge-V2:1", "org/Judge-V2:1"), ("裁判\r\nx: y", "%E8%A3%81%E5%88%A4%0D%0Ax: y")):
        headers = render.headers(outcome_of(Answer("a", "stop", 1, 1), reward_model=name))
        assert sent == headers["x-bon-reward-model"]
    assert "x-bon-reward-model" not in render.headers(outcome_of(Answer("a", "stop", 1, 1), reward_model=None))


def test_an_outcome_without_winners_has_neither_usage_nor_reward() -> None:
    outcome = outcome_of()
    assert {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0} == render.usage(outcome)
    assert "x-bon-reward" not in render.headers(outcome)


def test_a_whole_answer_has_tool_calls_where_there_are_any() -> None:
    call = {"id": "call_0", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    called = render.choice(0, Answer(None, "tool_calls", 1, 1, tool_calls=(call,)))
    assert {"role": "assistant", "content": None, "refusal": None, "tool_calls": (call,)} == called["message"]
    assert "tool_calls" not in render.choice(0, Answer("a", "stop", 1, 1))["message"]


def test_a_stream_has_every_field_under_its_name() -> None:
    outcome = outcome_of(Answer("Oak and ash.", "stop", 4, 3))
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "m"}

    def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**head, "choices": [choice], "usage": None}

    *pieces, last, usage = chunks_of(outcome, include_usage=True)
    assert [
        chunk({"role": "assistant", "content": "", "refusal": None}),
        *(chunk({"content": text}) for text in ("Oak", " and", " ash.")),
    ] == pieces
    assert {**chunk({}, "stop"), "best_of_n": render.report(outcome)} == last
    assert {**head, "choices": [], "usage": render.usage(outcome)} == usage
    assert "usage" not in chunks_of(outcome)[0]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", []),
        ("123456", ["123456"]),
        ("1234567", ["123456", "7"]),
        (" \n 123456", [" \n 123456"]),
        ("a  ", ["a", "  "]),
    ],
)
def test_an_answer_is_cut_into_pieces_of_six_characters(text: str, pieces: list[str]) -> None:
    assert pieces == [delta["content"] for delta in deltas(chunks_of(outcome_of(Answer(text, "stop", 1, 1))))[1:-1]]


def test_tool_calls_are_opened_by_name_and_numbered() -> None:
    def call(name: str, arguments: str) -> dict[str, Any]:
        return {"id": f"call_{name}", "type": "function", "function": {"name": name, "arguments": arguments}}

    answer = Answer(None, "tool_calls", 1, 1, tool_calls=(call("look", "12345678"), call("see", "{}")))
    assert [
        [{**call("look", ""), "index": 0}],
        [{"index": 0, "function": {"arguments": "123456"}}],
        [{"index": 0, "function": {"arguments": "78"}}],
        [{**call("see", ""), "index": 1}],
        [{"index": 1, "function": {"arguments": "{}"}}],
    ] == [delta["tool_calls"] for delta in deltas(chunks_of(outcome_of(answer)))[1:-1]]


def test_text_and_calls_of_a_live_piece_are_in_one_chunk() -> None:
    chunks = sse.Chunks(completion_id="chatcmpl-1", created=7, model="m", include_usage=False)
    call = {"index": 0, "function": {"arguments": "{}"}}
    for delta, content in (
        (Delta("a"), {"content": "a"}),
        (Delta(), {"content": ""}),
        (Delta("a", tool_calls=(call,)), {"content": "a", "tool_calls": [call]}),
        (Delta(tool_calls=(call,)), {"tool_calls": [call]}),
    ):
        [choice] = orjson.loads(chunks.piece(delta).removeprefix(b"data: "))["choices"]
        assert (0, content) == (choice["index"], choice["delta"])


async def test_only_the_first_event_of_a_stream_opens_the_answer() -> None:
    async def pieces() -> AsyncGenerator[Delta | Outcome]:
        for text in ("one", "two", "three"):
            yield Delta(text)

    chunks = sse.Chunks(completion_id="c", created=1, model="m", include_usage=False)
    one, two, three = [event async for event in chunks.events(pieces())]
    assert chunks.first() + chunks.piece(Delta("one")) == one
    assert [chunks.piece(Delta("two")), chunks.piece(Delta("three"))] == [two, three]
    assert {"x-bon-n": "1", "x-bon-selection": "single"} == chunks.headers


def test_an_error_in_a_stream_has_its_envelope_and_is_the_end() -> None:
    error = BackendFailed("it broke")
    assert sse.frame(errors.describe(error)[1]) + b"data: [DONE]\n\n" == sse.error_event(error)
