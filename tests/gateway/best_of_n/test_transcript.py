"""Transcripts: the pieces of a stream become one answer."""

from typing import Any

import pytest

from gateway.best_of_n.transcript import Transcript
from gateway.errors import BackendProtocolError
from gateway.types import Answer, Delta


def whole(*deltas: Delta) -> Answer:
    transcript = Transcript()
    for delta in deltas:
        transcript.add(delta)
    return transcript.answer()


END = Delta(finish_reason="stop", prompt_tokens=3, completion_tokens=2)


def test_text_is_joined() -> None:
    assert whole(Delta("a "), Delta("b"), END) == Answer("a b", "stop", 3, 2)


def test_an_empty_answer_is_an_empty_text() -> None:
    assert whole(END).text == ""


def test_pieces_of_tool_calls_are_joined_by_their_index() -> None:
    def piece(index: int, **function: str) -> dict[str, Any]:
        return {"index": index, "id": f"call-{index}", "function": function}

    answer = whole(
        Delta(tool_calls=(piece(0, name="look", arguments='{"a"'),)),
        Delta(tool_calls=(piece(1, name="go", arguments="{}"), piece(0, arguments=": 1}"))),
        Delta(finish_reason="tool_calls"),
    )
    assert answer.text is None
    assert [call["function"] for call in answer.tool_calls] == [
        {"name": "look", "arguments": '{"a": 1}'},
        {"name": "go", "arguments": "{}"},
    ]
    assert [call["id"] for call in answer.tool_calls] == ["call-0", "call-1"]


def test_logprobs_are_joined() -> None:
    one, two = {"token": "a", "logprob": -1.0}, {"token": "b", "logprob": -2.0}
    answer = whole(Delta("a", logprobs={"content": [one]}), Delta("b", logprobs={"content": [two]}), END)
    assert answer.logprobs == {"content": [one, two]}


def test_a_stream_that_stops_in_the_middle_gives_no_answer() -> None:
    with pytest.raises(BackendProtocolError):
        whole(Delta("half"))


@pytest.mark.parametrize(("reasoned", "text"), [(False, ""), (True, None)])
def test_an_answer_that_only_reasoned_has_no_text(reasoned: bool, text: str | None) -> None:
    found = whole(Delta(finish_reason="length", prompt_tokens=3, completion_tokens=2, reasoned=reasoned))
    assert Answer(text, "length", 3, 2, reasoned=reasoned) == found


def test_tokens_that_were_not_counted_are_none_and_logprobs_may_be_empty() -> None:
    assert Answer("a", "stop", 0, 0) == whole(Delta("a", logprobs={"content": None}), Delta(finish_reason="stop"))


def test_a_tool_call_opens_with_its_id_and_type() -> None:
    piece = {"index": 0, "id": "call-0", "function": {"name": "look", "arguments": "{}"}}
    [call] = whole(Delta(tool_calls=(piece,)), END).tool_calls
    assert {"id": "call-0", "type": "function", "function": {"name": "look", "arguments": "{}"}} == call
