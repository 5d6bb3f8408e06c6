from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.backend.flavours import FLAVOURS
from gateway.backend.reading import StreamReader, read_answer
from gateway.errors import BackendError, BackendFailed, BackendOverloaded, BackendProtocolError, BackendRejected
from gateway.types import Answer, Delta, JsonObject, Sampling

TGI, VLLM = FLAVOURS["tgi"], FLAVOURS["vllm"]
USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
PLAIN = Sampling()


def body(
    message: JsonObject, finish_reason: str | None = "stop", usage: Any = USAGE, logprobs: Any = None
) -> JsonObject:
    choice = {"index": 0, "message": message, "finish_reason": finish_reason, "logprobs": logprobs}
    return {"id": "", "choices": [choice], "usage": usage}


def chunk(delta: JsonObject, finish_reason: str | None = None, logprobs: Any = None) -> JsonObject:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": logprobs}]}


def read_all(chunks: list[Any], sampling: Sampling = PLAIN) -> list[Delta]:
    reader = StreamReader(TGI, sampling)
    return [delta for one in chunks for delta in reader.read(one)] + [reader.last()]


END: list[JsonObject] = [{"choices": [], "usage": USAGE}]
CALL = {"id": "0", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}


def test_a_stop_sequence_ends_like_any_stop_and_is_cut_off() -> None:
    answer = read_answer(body({"content": "one END"}, "stop_sequence"), TGI, Sampling(stop=("END",)))
    assert Answer("one ", "stop", 5, 7) == answer


def test_a_stop_string_that_the_server_ran_past_ends_the_answer_too() -> None:
    answer = read_answer(body({"content": "one ENDs not"}, "length"), TGI, Sampling(stop=("END",)))
    assert Answer("one ", "stop", 5, 7) == answer


def test_a_server_that_cuts_stop_strings_itself_is_believed() -> None:
    assert "END" == read_answer(body({"content": "END"}), VLLM, Sampling(stop=("END",))).text


def test_tool_calls_finish_as_openai_says_and_their_arguments_are_text() -> None:
    answer = read_answer(body({"content": None, "tool_calls": [CALL]}), TGI, PLAIN)
    called = {"id": "0", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome"}'}}
    assert Answer(None, "tool_calls", 5, 7, (called,)) == answer


@pytest.mark.parametrize(("call_id", "arguments", "expected"), [("", None, ("call_0", "")), ("x", "{}", ("x", "{}"))])
def test_a_call_without_an_id_gets_one(call_id: str, arguments: str | None, expected: tuple[str, str]) -> None:
    call = {"id": call_id, "function": {"name": "now", "arguments": arguments}}
    (read,) = read_answer(body({"tool_calls": [call]}), TGI, PLAIN).tool_calls
    assert expected == (read["id"], read["function"]["arguments"])


def test_a_call_cut_short_finishes_by_length() -> None:
    assert "length" == read_answer(body({"tool_calls": [CALL]}, "length"), TGI, PLAIN).finish_reason


def test_an_answer_of_nothing_is_an_empty_text() -> None:
    assert "" == read_answer(body({"content": None}), TGI, PLAIN).text


def entry(token: str, *alternatives: str, **more: Any) -> JsonObject:
    tops = [{"token": alternative, "logprob": -1.0} for alternative in alternatives]
    return {"token": token, "logprob": -0.5, "top_logprobs": tops, **more}


def test_logprobs_have_openais_shape_and_as_many_alternatives_as_asked() -> None:
    logprobs = {"content": [entry("é", "a", "b", id=7), entry("\ufffd", "a", bytes=[195])]}
    answer = read_answer(body({"content": "é"}, logprobs=logprobs), TGI, Sampling(logprobs=True, top_logprobs=1))
    top = {"token": "a", "logprob": -1.0, "bytes": [97]}
    first = {"token": "é", "logprob": -0.5, "bytes": [195, 169], "top_logprobs": [top]}
    second = {"token": "\ufffd", "logprob": -0.5, "bytes": [195], "top_logprobs": [top]}
    assert {"content": [first, second], "refusal": None} == answer.logprobs


def test_logprobs_that_nobody_asked_for_are_not_passed_on() -> None:
    assert None is read_answer(body({"content": "a"}, logprobs={"content": [entry("a")]}), TGI, PLAIN).logprobs


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
        body({"tool_calls": 5}),
        body({"tool_calls": [5]}),
        body({"tool_calls": [{}]}),
        body({"tool_calls": [{"function": {}}]}),
        body({"content": "a"}, logprobs=5),
        body({"content": "a"}, logprobs={"content": [5]}),
        body({"content": "a"}, logprobs={"content": [{"token": "a"}]}),
    ],
)
def test_an_answer_that_makes_no_sense_is_refused(nonsense: Any) -> None:
    with pytest.raises(BackendProtocolError):
        read_answer(nonsense, TGI, Sampling(logprobs=True))


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
def test_whatever_json_comes_only_backend_errors_go_out(anything: Any) -> None:
    sampling = Sampling(logprobs=True)
    for read in (lambda: read_answer(anything, TGI, sampling), lambda: read_all([anything], sampling)):
        try:
            read()
        except BackendError:
            continue


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
def test_an_error_under_a_status_of_200_is_told_by_its_words(flavour: Any, error: Any, expected: type) -> None:
    with pytest.raises(expected):
        read_answer({"error": error}, flavour, PLAIN)


def test_a_stream_ends_with_reason_and_counts() -> None:
    deltas = read_all([chunk({"content": "a"}), chunk({"content": "b"}, "length"), *END])
    assert [Delta("a"), Delta("b"), Delta("", finish_reason="length", prompt_tokens=5, completion_tokens=7)] == deltas


def test_a_stream_holds_back_what_may_become_a_stop_string() -> None:
    chunks = [chunk({"content": "a E"}), chunk({"content": "N"}), chunk({"content": "D"}, "stop_sequence"), *END]
    last = Delta("", finish_reason="stop", prompt_tokens=5, completion_tokens=7)
    assert [Delta("a "), last] == read_all(chunks, Sampling(stop=("END",)))


def test_a_stream_that_ends_within_a_stop_string_gives_what_it_held_back() -> None:
    deltas = read_all([chunk({"content": "a E"}, "length"), *END], Sampling(stop=("END",)))
    assert "a E" == "".join(delta.text for delta in deltas)


def test_a_stream_that_runs_past_a_stop_string_is_overrun_and_counts_its_pieces() -> None:
    reader = StreamReader(TGI, Sampling(stop=("END",)))
    seen = [(list(reader.read(chunk({"content": text}))), reader.overrun) for text in ("a ENDs", "not")]
    assert [([Delta("a ")], False), ([], True)] == seen
    assert Delta("", finish_reason="stop", completion_tokens=2) == reader.last()


def test_a_streamed_tool_call_names_itself_once_and_needs_no_finish_reason() -> None:
    """TGI repeats id and type with each piece and gives no reason at the end."""
    pieces = [
        {"index": 0, "id": "0", "type": "function", "function": {"name": n, "arguments": a}}
        for n, a in (("weather", "{"), (None, '"city":1}'))
    ]
    deltas = read_all([chunk({"tool_calls": [piece]}) for piece in pieces] + END)
    named = {"index": 0, "id": "0", "type": "function", "function": {"name": "weather", "arguments": "{"}}
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
