"""Answers against their request: the first reason why one cannot be used, or none."""

import json
import time
from typing import Any

import pytest

from gateway.contract.check import Contract
from gateway.types import Answer, FinishReason, JsonObject, Sampling, Unusable

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
NAMED = {"type": "function", "function": {"name": "weather"}}


def tool(name: str, parameters: JsonObject | None = None) -> JsonObject:
    return {
        "type": "function",
        "function": {"name": name, **({} if parameters is None else {"parameters": parameters})},
    }


TOOLS = (tool("weather", CITY), tool("now", {"type": "object", "properties": {}}))


def form(schema: Any) -> JsonObject:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


def said(text: str | None, finish_reason: FinishReason = "stop", *calls: tuple[str, str]) -> Answer:
    made = [
        {"id": f"c{i}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for i, (name, arguments) in enumerate(calls)
    ]
    return Answer(text, finish_reason, prompt_tokens=1, completion_tokens=1, tool_calls=tuple(made))


def called(*calls: tuple[str, str], text: str | None = None) -> Answer:
    return said(text, "tool_calls", *calls)


PARIS = ("weather", '{"city": "Paris"}')


@pytest.mark.parametrize(
    ("asked", "answer", "reason"),
    [
        ({}, said("Hello"), None),
        ({}, said(""), Unusable.EMPTY),
        ({}, said(" \n"), Unusable.EMPTY),
        ({}, said(None), Unusable.EMPTY),
        ({}, said("Hel", "length"), Unusable.CUT),
        ({}, said("", "length"), Unusable.EMPTY),
        ({}, said("Hel", "content_filter"), Unusable.FILTERED),
        ({}, said("", "content_filter"), Unusable.FILTERED),
        ({}, called(PARIS), Unusable.UNKNOWN_TOOL),
        ({"tools": TOOLS}, said("Hello"), None),
        ({"tools": TOOLS}, called(PARIS), None),
        ({"tools": TOOLS}, called(PARIS, ("now", "{}")), None),
        ({"tools": TOOLS}, called(PARIS, ("rm", "{}")), Unusable.UNKNOWN_TOOL),
        ({"tools": TOOLS}, called(("weather", '{"city":')), Unusable.ARGUMENTS_NOT_JSON),
        ({"tools": TOOLS}, called(("weather", "")), Unusable.ARGUMENTS_NOT_JSON),
        ({"tools": TOOLS}, called(("weather", '["Paris"]')), Unusable.ARGUMENTS_NOT_JSON),
        ({"tools": TOOLS}, called(("weather", '{"city": 7}')), Unusable.ARGUMENTS),
        ({"tools": TOOLS}, called(("weather", "{}")), Unusable.ARGUMENTS),
        ({"tools": TOOLS}, called(PARIS, ("weather", "{}")), Unusable.ARGUMENTS),
        ({"tools": TOOLS}, said(None, "length", PARIS), Unusable.CUT),
        ({"tools": (tool("f"),)}, called(("f", '{"any": 1}')), None),
        ({"tools": TOOLS, "tool_choice": "auto"}, said("Hello"), None),
        ({"tools": TOOLS, "tool_choice": "none"}, said("Hello"), None),
        ({"tools": TOOLS, "tool_choice": "none"}, called(PARIS), Unusable.UNWANTED_CALL),
        ({"tools": TOOLS, "tool_choice": "required"}, called(PARIS), None),
        ({"tools": TOOLS, "tool_choice": "required"}, said("Hello"), Unusable.NO_CALL),
        ({"tools": TOOLS, "tool_choice": NAMED}, called(PARIS), None),
        ({"tools": TOOLS, "tool_choice": NAMED}, called(("now", "{}")), Unusable.UNKNOWN_TOOL),
        ({"tools": TOOLS, "tool_choice": NAMED}, said("Hello"), Unusable.NO_CALL),
        ({"tools": TOOLS, "response_format": form(CITY)}, said('{"city": 1}'), Unusable.SCHEMA),
        ({"tools": TOOLS, "response_format": form(CITY)}, called(PARIS), None),
        ({"response_format": {"type": "text"}}, said("Hello"), None),
        ({"response_format": {"type": "json_object"}}, said("{}"), None),
        ({"response_format": {"type": "json_object"}}, said("[]"), Unusable.SCHEMA),
        ({"response_format": {"type": "json_object"}}, said("Here: {}"), Unusable.NOT_JSON),
        ({"response_format": {"type": "json_object"}}, said('{"a": NaN}'), Unusable.NOT_JSON),
        ({"response_format": form(CITY)}, said('{"city": "Paris"}'), None),
        ({"response_format": form(CITY)}, said('{"city": "Par', "length"), Unusable.CUT),
        ({"response_format": form(CITY)}, said('{"city": "Paris"'), Unusable.NOT_JSON),
        ({"response_format": form(CITY)}, said('```json\n{"city": "Paris"}\n```'), Unusable.NOT_JSON),
        ({"response_format": form(CITY)}, said("{}"), Unusable.SCHEMA),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, said("{}"), None),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, said("3"), Unusable.SCHEMA),
    ],
)
def test_an_unusable_answer_has_its_first_reason(
    asked: dict[str, Any], answer: Answer, reason: Unusable | None
) -> None:
    assert reason is Contract(Sampling(**asked)).broken_by(answer)


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"pattern": "[0-9]{3}"}, "a123b", "abc"),
        ({"pattern": r"^(?!secret)\w+$"}, "open", "secret7"),
        ({"pattern": r"^(\w)\1$"}, "aa", "ab"),
        ({"not": {"type": "null"}}, 1, None),
        ({"type": "array", "uniqueItems": True}, [1, 2], [1, 1]),
        ({"multipleOf": 5}, 10, 11),
        ({"if": {"type": "string"}, "then": {"minLength": 2}}, "ab", "a"),
        ({"type": "object", "minProperties": 1}, {"a": 1}, {}),
        ({"format": "email"}, "a@example.com", "nobody"),
        ({"format": "uri"}, "https://example.com/ä", "no address"),
        ({"format": "date-time"}, "2026-01-02T03:04:05", "yesterday"),
        ({"format": "duration"}, "PT0.5S", "half a second"),
        ({"format": "of our own"}, "anything", None),
        ({"minimum": 1, "exclusiveMinimum": True}, 2, 1),
        ({"items": [{"type": "string"}, {"type": "integer"}]}, ["a", 1], [1, "a"]),
        ({"$schema": "https://example.com/unknown", "type": "string"}, "a", 1),
        ({"$defs": {"N": {"properties": {"n": {"$ref": "#/$defs/N"}}, "type": "object"}}, "$ref": "#/$defs/N"},
         {"n": {"n": {}}}, {"n": {"n": 1}}),
        ({"type": "integer"}, 10**30, 1.5),
    ],
)  # fmt: skip
def test_keywords_that_servers_leave_out_are_checked(schema: JsonObject, good: object, bad: object) -> None:
    contract = Contract(Sampling(response_format=form(schema)))
    assert None is contract.broken_by(said(json.dumps(good)))
    if bad is not None or "not" in schema:
        assert Unusable.SCHEMA is contract.broken_by(said(json.dumps(bad)))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        {"$ref": "http://127.0.0.1:9/never"},
        {"$ref": "#/$defs/missing"},
        {"pattern": "^(((a{0,100}){0,100}){0,100}){0,100}$"},
    ],
)
def test_a_schema_that_cannot_be_read_refuses_no_answer(schema: JsonObject) -> None:
    contract = Contract(Sampling(response_format=form(schema)))
    assert None is contract.broken_by(said('{"a": 1}'))
    assert Unusable.NOT_JSON is contract.broken_by(said("{"))


def doubled(times: int, keyword: str) -> JsonObject:
    part = {f"d{i}": {keyword: [{"$ref": f"#/$defs/d{i - 1}"}] * 2} for i in range(1, times + 1)}
    return {"items": {"$ref": f"#/$defs/d{times}"}, "$defs": {**part, "d0": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"pattern": r"^(a+)+$"}, json.dumps("a" * 5_000 + "b")),
        ({"pattern": r"^(?=a)(a+)+\1$"}, json.dumps("a" * 5_000 + "b")),
        (doubled(13, "allOf"), json.dumps(list(range(20_000)))),
        (doubled(13, "anyOf"), json.dumps(["x"] * 20_000)),
        ({}, "[" * 100_000 + "]" * 100_000),
    ],
)
def test_every_check_is_quick(schema: JsonObject, text: str) -> None:
    started = time.perf_counter()
    Contract(Sampling(response_format=form(schema))).broken_by(said(text))
    assert 1.0 > time.perf_counter() - started
