from __future__ import annotations

from typing import Any

import pytest

from gateway.backend.flavours import FLAVOURS, Flavour
from gateway.backend.reading import StreamReader
from gateway.errors import (
    BackendError,
    BackendFailed,
    BackendOverloaded,
    BackendProtocolError,
    BackendRejected,
    BackendUnreachable,
)
from gateway.types import Answer, Delta, JsonObject, Sampling
from tests.gateway.backend.answers import END, PLAIN, TGI, VLLM, asked, body, chunk, read_all, read_whole

CALL = {"id": "call_7f3a9c", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}


def test_a_stop_sequence_is_cut_off_and_ends_as_stop() -> None:
    answer = read_whole(body({"content": "one END"}, "stop_sequence"), TGI, Sampling(stop=("END",)))
    assert Answer("one ", "stop", 5, 7) == answer


def test_a_stop_string_that_the_server_missed_ends_the_answer() -> None:
    answer = read_whole(body({"content": "one ENDs not"}, "length"), TGI, Sampling(stop=("END",)))
    assert Answer("one ", "stop", 5, 7) == answer


def test_text_of_a_server_that_cuts_stop_strings_is_not_cut_again() -> None:
    assert "END" == read_whole(body({"content": "END"}), VLLM, Sampling(stop=("END",))).text


def test_tool_calls_finish_as_openai_says_and_their_arguments_are_text() -> None:
    answer = read_whole(body({"content": None, "tool_calls": [CALL]}), TGI, PLAIN)
    called = {**CALL, "function": {"name": "weather", "arguments": '{"city":"Rome"}'}}
    assert Answer(None, "tool_calls", 5, 7, (called,)) == answer


@pytest.mark.parametrize(("arguments", "expected"), [(None, ""), ("{}", "{}")])
def test_missing_arguments_are_an_empty_text(arguments: str | None, expected: str) -> None:
    call = {"function": {"name": "now", "arguments": arguments}}
    (read,) = read_whole(body({"tool_calls": [call]}), TGI, PLAIN).tool_calls
    assert expected == read["function"]["arguments"]


def test_a_call_cut_short_finishes_by_length() -> None:
    assert "length" == read_whole(body({"tool_calls": [CALL]}, "length"), TGI, PLAIN).finish_reason


@pytest.mark.parametrize("content", [None, ""])
def test_an_answer_without_content_differs_from_an_empty_text(content: str | None) -> None:
    assert content == read_whole(body({"content": content}), TGI, PLAIN).text


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_reasoning_is_dropped_and_marked(field: str) -> None:
    cut = read_whole(body({"content": None, field: "Hm"}, "length"), VLLM)
    assert (None, "length", True) == (cut.text, cut.finish_reason, cut.reasoned)
    closed = read_whole(body({"content": "4", field: "Hm"}), VLLM)
    assert ("4", True) == (closed.text, closed.reasoned)
    assert not read_whole(body({"content": "4", field: None}), VLLM).reasoned
    deltas = read_all([chunk({field: "Hm"}), chunk({"content": "4"}, "stop"), *END])
    assert ("4", True) == ("".join(delta.text for delta in deltas), deltas[-1].reasoned)


def entry(token: str, *alternatives: str, **more: Any) -> JsonObject:
    tops = [{"token": alternative, "logprob": -1.0} for alternative in alternatives]
    return {"token": token, "logprob": -0.5, "top_logprobs": tops, **more}


def nested(depth: int) -> JsonObject:
    """Return lists deeper than the JSON writer accepts."""
    return {"a": nested(depth - 1)} if depth else {}


def test_logprobs_have_openais_shape_and_the_requested_number_of_alternatives() -> None:
    logprobs = {"content": [entry("é", "a", "b", id=7), entry("\ufffd", "a", bytes=[195])]}
    answer = read_whole(body({"content": "é"}, logprobs=logprobs), TGI, Sampling(logprobs=True, top_logprobs=1))
    top = {"token": "a", "logprob": -1.0, "bytes": [97]}
    first = {"token": "é", "logprob": -0.5, "bytes": [195, 169], "top_logprobs": [top]}
    second = {"token": "\ufffd", "logprob": -0.5, "bytes": [195], "top_logprobs": [top]}
    assert {"content": [first, second], "refusal": None} == answer.logprobs


def test_a_logprob_of_minus_infinity_is_null_as_tgi_writes_it() -> None:
    logprobs = {"content": [entry("a", logprob=None)]}
    answer = read_whole(body({"content": "a"}, logprobs=logprobs), TGI, Sampling(logprobs=True))
    assert answer.logprobs is not None
    assert None is answer.logprobs["content"][0]["logprob"]


def test_logprobs_that_nobody_asked_for_are_not_passed_on() -> None:
    assert None is read_whole(body({"content": "a"}, logprobs={"content": [entry("a")]}), TGI, PLAIN).logprobs


@pytest.mark.parametrize(
    "nonsense",
    [
        None,
        [],
        "text",
        {},
        {"choices": []},
        {"choices": "x"},
        {"choices": [5]},
        {"choices": [{}]},
        {"choices": [{"message": "x"}]},
        body({"content": 5}),
        body({"content": "a"}, "eos_token"),
        body({"content": "a"}, None),
        body({"content": "a"}, usage=None),
        body({"content": "a"}, usage={"prompt_tokens": 1}),
        body({"content": "a"}, usage={"prompt_tokens": 1, "completion_tokens": -1}),
        body({"content": "a"}, usage={"prompt_tokens": 1, "completion_tokens": "7"}),
        body({"content": "a"}, usage={"prompt_tokens": 1, "completion_tokens": True}),
        body({"content": "a"}, usage={"prompt_tokens": 1, "completion_tokens": 10_000_001}),
        body({"tool_calls": 5}),
        body({"tool_calls": [5]}),
        body({"tool_calls": [{}]}),
        body({"tool_calls": [{"function": {}}]}),
        body({"content": "a"}, logprobs=5),
        body({"content": "a"}, logprobs={"content": [5]}),
        body({"content": "a"}, logprobs={"content": [{"token": "a"}]}),
        body({"content": "a"}, logprobs={"content": [entry("a", bytes="a")]}),
        body({"content": "a"}, logprobs={"content": [entry("a", bytes=[256])]}),
        body({"content": "a"}, logprobs={"content": [entry("a", bytes=[[1]])]}),
        body({"content": "a"}, logprobs={"content": [entry("a", logprob="-0.5")]}),
        body({"content": "a"}, logprobs={"content": [entry("a", logprob=nested(300))]}),
        body({"tool_calls": [{"function": {"name": "f", "arguments": nested(300)}}]}),
    ],
)
def test_an_answer_that_makes_no_sense_is_refused(nonsense: Any) -> None:
    with pytest.raises(BackendProtocolError):
        read_whole(nonsense, TGI, Sampling(logprobs=True))


@pytest.mark.parametrize(
    ("flavour", "error", "expected"),
    [
        (TGI, {"message": "Model is overloaded", "http_status_code": 422}, BackendOverloaded),
        (TGI, {"message": "Input validation error: too long", "http_status_code": 422}, BackendRejected),
        (TGI, {"message": "Request failed during generation: CUDA", "http_status_code": 422}, BackendFailed),
        (VLLM, {"message": "x", "code": 400}, BackendRejected),
        (VLLM, {"message": "x", "code": "x"}, BackendFailed),
        (VLLM, "x", BackendFailed),
    ],
)
def test_an_error_under_status_200_is_classified_by_its_words(flavour: Any, error: Any, expected: type) -> None:
    with pytest.raises(expected):
        read_whole({"error": error}, flavour, PLAIN)


def test_a_stream_ends_with_reason_and_counts() -> None:
    deltas = read_all([chunk({"content": "a"}), chunk({"content": "b"}, "length"), *END])
    assert [Delta("a"), Delta("b"), Delta("", finish_reason="length", prompt_tokens=5, completion_tokens=7)] == deltas


def test_a_stream_holds_back_what_may_become_a_stop_string() -> None:
    chunks = [chunk({"content": "a E"}), chunk({"content": "N"}), chunk({"content": "D"}, "stop_sequence"), *END]
    last = Delta("", finish_reason="stop", prompt_tokens=5, completion_tokens=7)
    assert [Delta("a "), last] == read_all(chunks, Sampling(stop=("END",)))


def test_a_stream_that_ends_within_a_stop_string_gives_the_text_held_back() -> None:
    deltas = read_all([chunk({"content": "a E"}, "length"), *END], Sampling(stop=("END",)))
    assert "a E" == "".join(delta.text for delta in deltas)


def test_a_stream_that_runs_past_a_stop_string_is_overrun_and_counts_its_pieces() -> None:
    reader = StreamReader(TGI, asked(Sampling(stop=("END",))))
    seen = [(list(reader.read(chunk({"content": text}))), reader.overrun) for text in ("a ENDs", "not")]
    assert [([Delta("a ")], False), ([], True)] == seen
    assert Delta("", finish_reason="stop", completion_tokens=2) == reader.last()


def test_a_streamed_tool_call_names_itself_once_and_needs_no_finish_reason() -> None:
    """TGI repeats id and type with each piece and gives no reason at the end."""
    pieces = [
        {"index": 0, "id": "call_7f3a9c", "type": "function", "function": {"name": n, "arguments": a}}
        for n, a in (("weather", "{"), (None, '"city":1}'))
    ]
    deltas = read_all([chunk({"tool_calls": [piece]}) for piece in pieces] + END)
    named = {"index": 0, "id": "call_7f3a9c", "type": "function", "function": {"name": "weather", "arguments": "{"}}
    rest = {"index": 0, "function": {"arguments": '"city":1}'}}
    assert [(named,), (rest,), ()] == [delta.tool_calls for delta in deltas]
    assert "tool_calls" == deltas[-1].finish_reason


@pytest.mark.parametrize("second", [',"city":1}', '"city":1}'])
def test_a_streamed_calls_arguments_do_not_begin_with_tgis_comma(second: str) -> None:
    """TGI opens the arguments with the name's token, then sends the comma behind the name where it is a token."""
    pieces = [("weather", "{"), (None, second)]
    calls = [{"index": 0, "id": "0", "function": {"name": name, "arguments": text}} for name, text in pieces]
    deltas = read_all([chunk({"tool_calls": [call]}) for call in calls] + END)
    assert '{"city":1}' == "".join(call["function"]["arguments"] for delta in deltas for call in delta.tool_calls)


def tokens_of(logprobs: JsonObject | None) -> list[str]:
    return [entry["token"] for entry in (logprobs or {"content": []})["content"]]


THOUGHT = [entry("<think>"), entry("Hi"), entry("</think>"), entry("Hi"), entry("!"), entry("<|im_end|>")]


def test_logprobs_are_those_of_the_text_not_of_the_reasoning_before_it() -> None:
    sampling = Sampling(logprobs=True)
    answer = read_whole(body({"content": "Hi!", "reasoning": "Hi"}, logprobs={"content": THOUGHT}), VLLM, sampling)
    assert ["Hi", "!", "<|im_end|>"] == tokens_of(answer.logprobs)
    other = read_whole(body({"content": "i!", "reasoning": "Hi"}, logprobs={"content": THOUGHT}), VLLM, sampling)
    assert None is other.logprobs
    cut = read_whole(
        body({"content": None, "reasoning": "Hi"}, "length", logprobs={"content": THOUGHT}), VLLM, sampling
    )
    assert None is cut.logprobs


def test_logprobs_of_a_call_are_not_given_as_those_of_a_text() -> None:
    logprobs = {"content": [entry("{"), entry("}")]}
    sampling = Sampling(logprobs=True)
    assert None is read_whole(body({"tool_calls": [CALL]}, logprobs=logprobs), VLLM, sampling).logprobs
    assert [None, None] == [
        d.logprobs for d in read_all([chunk({"tool_calls": [CALL]}, "stop", logprobs), *END], sampling)
    ]


def test_logprobs_of_streamed_reasoning_and_of_its_closing_tag_are_left_out() -> None:
    deltas: list[JsonObject] = [{"reasoning": "Hi"}, {"reasoning": None}, {"content": "Hi"}, {"content": "!"}]
    tokens = ["Hi", "</think>", "Hi", "!"]
    chunks = [chunk(d, logprobs={"content": [entry(t)]}) for d, t in zip(deltas, tokens, strict=True)]
    read = read_all([*chunks, chunk({}, "stop"), *END], Sampling(logprobs=True))
    assert ["Hi", "!"] == [token for delta in read for token in tokens_of(delta.logprobs)]


def test_logprobs_of_a_stream_come_with_their_pieces() -> None:
    chunks = [chunk({"content": "a"}, logprobs={"content": [entry("a")]}), chunk({"content": ""}, "stop"), *END]
    first = read_all(chunks, Sampling(logprobs=True))[0].logprobs
    assert {"content": [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}], "refusal": None} == first


@pytest.mark.parametrize(
    "chunks",
    [
        [],
        [chunk({"content": "a"})],
        [5],
        [{"choices": [{}]}],
        [chunk({"content": "a"}, "odd")],
        [{"choices": [], "usage": {"prompt_tokens": 1}}],
        [chunk({"tool_calls": [CALL]})],
    ],
)
def test_a_stream_that_makes_no_sense_or_ends_early_is_refused(chunks: list[Any]) -> None:
    with pytest.raises(BackendProtocolError):
        read_all(chunks)


NOTHING: list[Any] = [
    {"choices": None},
    {"choices": []},
    {},
    chunk({}),
    {"choices": [{"delta": None, "finish_reason": None}]},
]


@pytest.mark.parametrize("nothing", NOTHING)
def test_an_empty_chunk_is_ignored(nothing: Any) -> None:
    said = [chunk({"content": "a"}), chunk({}, "stop"), *END]
    plain = read_all(said)
    for place in range(len(said) + 1):
        assert plain == read_all([*said[:place], nothing, *said[place:]])


@pytest.mark.parametrize("odd", [None, 5, "x", [], {"error": "x"}, {"choices": 5}, {"usage": {"prompt_tokens": -1}},
                                 chunk({"content": 5}), chunk({"tool_calls": 5}), chunk({}, "abort")])  # fmt: skip
def test_errors_count_before_the_end_of_an_answer_and_not_after_it(odd: Any) -> None:
    whole = [chunk({"content": "a"}), chunk({}, "stop")]
    assert "a" == "".join(delta.text for delta in read_all([*whole, odd, *END]))
    assert (5, 7) == (
        read_all([*whole, odd, *END])[-1].prompt_tokens,
        read_all([*whole, *END, odd])[-1].completion_tokens,
    )
    with pytest.raises(BackendError):
        read_all([whole[0], odd, whole[1], *END])


@pytest.mark.parametrize("flavour", FLAVOURS.values())
def test_a_draw_that_a_stopping_server_aborts_is_unreachable(flavour: Flavour) -> None:
    with pytest.raises(BackendUnreachable):
        read_whole(body({"content": "half"}, "abort"), flavour)
    reader = StreamReader(flavour, asked())
    with pytest.raises(BackendUnreachable):
        list(reader.read(chunk({"content": "half"}, "abort")))


@pytest.mark.parametrize(("finish", "calls", "expected"), [("tool_calls", [], "stop"), ("stop", [CALL], "tool_calls")])
def test_the_finish_reason_agrees_with_the_calls(finish: str, calls: list[JsonObject], expected: str) -> None:
    assert expected == read_whole(body({"content": "a", "tool_calls": calls}, finish), VLLM).finish_reason


def test_tgis_stream_of_a_call_cut_before_its_name_holds_only_the_usage() -> None:
    reader = StreamReader(TGI, asked(Sampling(tools=({"type": "function", "function": {"name": "f"}},))))
    assert [] == [delta for one in END for delta in reader.read(one)]
    assert Delta("", finish_reason="length", prompt_tokens=5, completion_tokens=7) == reader.last()
    for flavour, prompt in ((TGI, asked()), (VLLM, asked(Sampling(tools=({},))))):
        silent = StreamReader(flavour, prompt)
        list(silent.read(END[0]))
        with pytest.raises(BackendProtocolError):
            silent.last()
