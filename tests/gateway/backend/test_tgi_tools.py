"""TGI's tool calls: the history as it is sent, and the corrections to its answers."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from gateway.backend.flavours import FLAVOURS, Catalogue
from gateway.backend.flavours.tgi_tools import cut_call, history, without_hidden_draw
from gateway.errors import UnsupportedField
from gateway.metering import tokens_at_most
from gateway.types import JsonObject, Prompt, Sampling
from tests.gateway.backend.conftest import prompt

TOOL: JsonObject = {"type": "function", "function": {"name": "f", "parameters": {"properties": {}}}}
OFFERED = prompt(tools=(TOOL,), max_tokens=15)


def call(arguments: str, name: str = "f") -> JsonObject:
    return {"id": "call_a", "type": "function", "function": {"name": name, "arguments": arguments}}


def as_sent(content: str | None, *calls: JsonObject) -> JsonObject:
    """Return an assistant's message with calls as TGI gets it."""
    message: Any = {"role": "assistant", "content": content, "tool_calls": list(calls)}
    turns = Prompt([{"role": "user", "content": "hi"}, message], Sampling())
    first, sent = FLAVOURS["tgi"].arguments(turns, 1, Catalogue("tgi"))["messages"]
    assert {"role": "user", "content": "hi"} == first
    assert content == message["content"]  # the conversation itself is left alone
    return dict(sent)


@pytest.mark.parametrize("content", [None, "", "Let me look."])
def test_earlier_calls_are_sent_to_tgi_in_a_message_without_content(content: str | None) -> None:
    sent = as_sent(content, call('{"city": "Paris"}'), call("{}", "g"))
    assert "content" not in sent
    described = {"description": content} if content else {}
    first, second = (one["function"] for one in sent["tool_calls"])
    assert {"name": "f", "arguments": {"city": "Paris"}, **described} == first
    assert {"name": "g", "arguments": {}} == second


@pytest.mark.parametrize("arguments", ["", "{", "[1]", "5", '"x"', "null", "not JSON"])
def test_arguments_that_are_no_object_stay_as_they_are(arguments: str) -> None:
    assert arguments == as_sent(None, call(arguments))["tool_calls"][0]["function"]["arguments"]


def test_other_messages_stay_as_they_are() -> None:
    turns: Any = [{"role": "assistant", "content": "a"}, {"role": "tool", "content": "18 C", "tool_call_id": "call_a"}]
    assert turns == history(turns)


def answered(content: str | None, calls: list[JsonObject] | None = None) -> JsonObject:
    message: JsonObject = {"role": "assistant", "content": content, **({"tool_calls": calls} if calls else {})}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": {"content": []}}
    return {"choices": [choice], "usage": {"prompt_tokens": 77, "completion_tokens": 14, "total_tokens": 91}}


@pytest.mark.parametrize(("generated", "finish"), [(14, "stop"), (15, "length"), (16, "length")])
def test_a_text_cut_by_max_tokens_finishes_by_length_and_counts_both_draws(generated: int, finish: str) -> None:
    corrected = without_hidden_draw(answered("one two"), {"x-generated-tokens": str(generated)}, OFFERED)
    [choice] = corrected["choices"]
    assert (finish, None, 14 + generated) == (
        choice["finish_reason"], choice["logprobs"], corrected["usage"]["completion_tokens"]
    )  # fmt: skip


@pytest.mark.parametrize("header", [{}, {"x-generated-tokens": "many"}, {"x-generated-tokens": "9" * 30}])
def test_without_the_header_the_text_counts_its_bytes(header: dict[str, str]) -> None:
    corrected = without_hidden_draw(answered("one two"), header, OFFERED)
    assert (14 + 7, "stop") == (corrected["usage"]["completion_tokens"], corrected["choices"][0]["finish_reason"])


@pytest.mark.parametrize(
    ("asked", "body"),
    [
        (OFFERED, answered(None, [call("{}")])),
        (prompt(), answered("a")),
        (prompt(tools=(TOOL,), tool_choice="none"), answered("a")),
        (prompt(tools=(TOOL,), tool_choice="required"), answered("a")),
    ],
)
def test_the_usage_of_a_single_draw_is_kept(asked: Prompt, body: JsonObject) -> None:
    assert body is without_hidden_draw(body, {"x-generated-tokens": "3"}, asked)


def error(generated: str, cause: str = "EOF while parsing a string at line 1 column 47") -> str:
    """Return TGI's error, in which the text is written as Rust's debug output."""
    escaped = generated.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'Tool error: Failed to parse generated text: {cause} "{escaped}"'


@pytest.mark.parametrize(
    ("generated", "expected"),
    [
        ('{"function": {"_name": "f", "city": "Par', [("f", '{"city": "Par')]),
        ('{"function":{"_name":"f","city":"Pa\\"r\n', [("f", '{"city":"Pa\\"r\n')]),
        ('{"function": {"_name": "f", "a": 1}', [("f", '{"a": 1}')]),
        ('{"function": {"_name": "f"', [("f", "{")]),
        ('{"function": {"_name": "f', []),
        ('{"func', []),
        ("", []),
        ('{"function": {"_name": "no_tool"', []),
    ],
)
def test_a_call_cut_by_max_tokens_is_read_from_the_error(generated: str, expected: list[tuple[str, str]]) -> None:
    body = cut_call(error(generated), OFFERED)
    assert body is not None
    [choice] = body["choices"]
    calls = [one["function"] for one in choice["message"].get("tool_calls", [])]
    assert expected == [(function["name"], function["arguments"]) for function in calls]
    assert ("length", None, 15) == (
        choice["finish_reason"], choice["message"]["content"], body["usage"]["completion_tokens"]
    )  # fmt: skip


def test_without_max_tokens_a_cut_call_counts_its_bytes() -> None:
    generated = '{"function": {"_name": "f", "a": "é'
    body = cut_call(error(generated), prompt(tools=(TOOL,)))
    assert body is not None
    assert len(generated) + 1 == body["usage"]["completion_tokens"]
    assert body["usage"]["prompt_tokens"] > 20


def test_rusts_escapes_are_decoded() -> None:
    quoted = r"{\"function\": {\"_name\": \"f\", \"a\": \"\u{1f600}\t\u{ffffff}\'\\"
    body = cut_call(f'Tool error: Failed to parse generated text: EOF while parsing "{quoted}"', OFFERED)
    assert body is not None
    [called] = body["choices"][0]["message"]["tool_calls"]
    assert '{"a": "\N{GRINNING FACE}\t\N{REPLACEMENT CHARACTER}\'\\' == called["function"]["arguments"]


@pytest.mark.parametrize(
    "message", [error("{}", "trailing characters at line 1"), "Tool error: No function", "EOF", ""]
)
def test_any_other_error_holds_no_answer(message: str) -> None:
    assert None is cut_call(message, OFFERED)


@pytest.mark.parametrize(("value", "expected"), [("", 0), ("ab", 2), ("é", 2), (["é"], 6), ("\ud800", 1)])
def test_no_text_has_more_tokens_than_bytes(value: Any, expected: int) -> None:
    assert expected == tokens_at_most(value)


def test_a_tool_with_tgis_reserved_name_is_refused() -> None:
    own = {"type": "function", "function": {"name": "no_tool", "parameters": {}}}
    with pytest.raises(UnsupportedField) as refused:
        FLAVOURS["tgi"].check(Sampling(tools=(TOOL, own)))
    assert "tools[1].function.name" == refused.value.param
    for kind in ("vllm", "llamacpp"):
        FLAVOURS[kind].check(Sampling(tools=(own,)))


def test_messages_are_sent_as_json() -> None:
    assert orjson.dumps(as_sent("Let me look.", call("{}")))
