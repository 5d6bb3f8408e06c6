"""Forced tool calls on llama.cpp: the request for JSON, and the call read from it."""

from __future__ import annotations

import itertools
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema_rs import is_valid

from gateway.backend.flavours import FLAVOURS, Catalogue
from gateway.backend.flavours.llamacpp_tools import ForcedCall, call_schema
from gateway.backend.reading import StreamReader, read_answer
from gateway.types import JsonObject
from tests.gateway.backend.conftest import prompt

LLAMACPP = FLAVOURS["llamacpp"]
USAGE = {"prompt_tokens": 5, "completion_tokens": 7}


def tool(name: str, **parameters: Any) -> JsonObject:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", **parameters}}}


NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}
TOOLS = (
    tool("weather", properties={"city": {"type": "string"}}, required=["city"]),
    tool("walk", properties={"from": {"$ref": "#/$defs/node"}}, **{"$defs": {"node": NODE}}),
    tool("nest", properties={"inner": {"$ref": "#"}}, additionalProperties=False),
)
NAMED = {"type": "function", "function": {"name": "weather"}}


def sent(**sampling: Any) -> tuple[list[str], str | None, JsonObject | None]:
    """Return the names of the tools, the choice, and the schema that the answer must follow."""
    arguments: JsonObject = orjson.loads(
        orjson.dumps(LLAMACPP.arguments(prompt(**sampling), 1, Catalogue("default")) | {"messages": None})
    )
    names = [tool["function"]["name"] for tool in arguments["tools"]]
    return names, arguments["tool_choice"], (arguments["response_format"] or {}).get("schema")


NAMES = ["weather", "walk", "nest"]


@pytest.mark.parametrize("choice", [None, "auto", "none"])
def test_tools_that_are_not_forced_are_sent_unchanged(choice: str | None) -> None:
    assert (NAMES, choice, None) == sent(tools=TOOLS, tool_choice=choice)


@pytest.mark.parametrize(
    ("choice", "call", "valid"),
    [
        ("required", {"name": "weather", "arguments": {"city": "Rome"}}, True),
        ("required", {"name": "weather", "arguments": {}}, False),
        ("required", {"name": "other", "arguments": {"city": "Rome"}}, False),
        ("required", {"name": "walk", "arguments": {"from": {"next": {"next": {}}}}}, True),
        ("required", {"name": "walk", "arguments": {"from": {"next": 5}}}, False),
        ("required", {"name": "nest", "arguments": {"inner": {"inner": {}}}}, True),
        ("required", {"name": "nest", "arguments": {"inner": {"other": 1}}}, False),
        (NAMED, {"name": "weather", "arguments": {"city": "Rome"}}, True),
        (NAMED, {"name": "walk", "arguments": {}}, False),
    ],
)
def test_a_forced_call_is_requested_as_json(choice: Any, call: JsonObject, valid: bool) -> None:
    names, told, schema = sent(tools=TOOLS, tool_choice=choice)
    assert (NAMES, "none") == (names, told)  # the prompt shows all of them
    assert schema is not None
    assert valid == is_valid(schema, call)


def test_parameters_are_lowered_for_the_server() -> None:
    schema = call_schema(TOOLS[:1], lambda parameters: {**parameters, "lowered": True})
    assert schema["$defs"]["tool_0"]["lowered"]


def draw(pieces: list[str], finish: str = "stop", choice: Any = "required") -> tuple[Any, Any]:
    """Read the same text as a whole answer and as a stream; return finish reason, text and calls."""
    asked = prompt(tools=TOOLS, tool_choice=choice, logprobs=True)
    logprobs = {"content": [{"token": "{", "logprob": -0.5}]}
    one = {"index": 0, "message": {"role": "assistant", "content": "".join(pieces)}, "logprobs": logprobs}
    body = {"choices": [{**one, "finish_reason": finish}], "usage": USAGE}
    answer = read_answer(LLAMACPP.correct(body, {}, asked), LLAMACPP, asked)
    reader = StreamReader(LLAMACPP, asked)
    deltas = [
        delta for piece in [*pieces, None]
        for delta in reader.read({"choices": [{"delta": {"content": piece}, "logprobs": logprobs,
                                               "finish_reason": finish if piece is None else None}]})
    ]  # fmt: skip
    list(reader.read({"choices": [], "usage": USAGE}))
    deltas.append(reader.last())
    assert all(delta.logprobs is None and not delta.text for delta in deltas)
    assert (None, None) == (answer.text, answer.logprobs)
    calls: list[list[str]] = []
    for call in (call for delta in deltas for call in delta.tool_calls):
        if "id" in call:
            calls.append([call["function"]["name"], ""])
        calls[call["index"]][1] += call["function"]["arguments"]
    whole = [[call["function"]["name"], call["function"]["arguments"]] for call in answer.tool_calls]
    return (answer.finish_reason, whole), (deltas[-1].finish_reason, calls)


@pytest.mark.parametrize(
    ("pieces", "finish", "expected"),
    [
        (
            ['{"name": "weather", "arguments": {"city": "Ro', 'me"}}'],
            "stop",
            ("tool_calls", [["weather", '{"city": "Rome"}']]),
        ),
        (['{\n "name":"nest",\n "arguments":{"inner":{}}\n}\n'], "stop", ("tool_calls", [["nest", '{"inner":{}}\n']])),
        (['{"name": "nest", "arguments": {}', "}"], "stop", ("tool_calls", [["nest", "{}"]])),
        (['{"name": "nest", "arguments": {"inner": {', "}"], "length", ("length", [["nest", '{"inner": {}']])),
        (['{"name": "nest", "arguments": {', "}"], "length", ("length", [["nest", "{}"]])),
        (['{"name": "weather", "arguments": {"city": "}'], "length", ("length", [["weather", '{"city": "}']])),
        (['{"name": "weather", "argum'], "length", ("length", [])),
        (['{"name": "wea'], "length", ("length", [])),
        ([""], "length", ("length", [])),
    ],
)
def test_the_json_is_read_as_a_call(pieces: list[str], finish: str, expected: Any) -> None:
    whole, streamed = draw(pieces, finish)
    assert expected == whole
    assert expected == streamed


@given(st.lists(st.integers(0, 60), max_size=8), st.recursive(st.text(max_size=4), st.lists, max_leaves=4))
def test_the_call_does_not_depend_on_how_the_stream_is_cut(cuts: list[int], value: Any) -> None:
    arguments = orjson.dumps({"a": value, "b": {"c": {}}}).decode()
    text = f'{{"name": "walk", "arguments": {arguments}}}'
    ends = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    pieces = [text[begin:end] for begin, end in itertools.pairwise(ends)]
    assert (("tool_calls", [["walk", arguments]]),) * 2 == draw(pieces)


def test_an_answer_without_a_forced_call_is_read_unchanged() -> None:
    asked = prompt(tools=TOOLS)
    body = {
        "choices": [{"message": {"content": '{"name": "weather", "arguments": {}}'}, "finish_reason": "stop"}],
        "usage": USAGE,
    }
    assert body is LLAMACPP.correct(body, {}, asked)
    assert None is LLAMACPP.forced_call(asked)


def test_a_name_is_read_as_json() -> None:
    choice = {"message": {"content": '{"name": "a\\u0062", "arguments": {}}'}, "finish_reason": "stop"}
    assert "ab" == ForcedCall().whole(choice)["message"]["tool_calls"][0]["function"]["name"]


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        ({}, True),
        ({"chat_template_caps": None}, True),
        ({"chat_template_caps": {}}, True),
        ({"chat_template_caps": {"supports_tools": True}}, True),
        ({"chat_template_caps": {"supports_tools": False}}, False),
    ],
)
def test_a_template_without_tools_is_recognized(properties: JsonObject, expected: bool) -> None:
    assert expected == LLAMACPP.shows_tools(properties)
