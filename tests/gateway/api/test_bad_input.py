"""Each bad input has its error and costs nothing: the next good request has all permits and the only record."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from gateway.api.schemas import ChatCompletionRequest
from tests.gateway.api.conftest import Shared, chat_body
from tests.serving import MESSAGES

pytestmark = pytest.mark.asyncio(loop_scope="module")

INVALID, UNSUPPORTED = "invalid_value", "unsupported_parameter"
NOT_JSON = (400, INVALID, None, "the body is not valid JSON")
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
FORMAT = {"type": "json_object"}

Expected = tuple[int, str, str | None, str]


def error_of(response: httpx2.Response) -> Expected:
    """Return status, code, param and message of an error, after checking that it has OpenAI's envelope."""
    error = response.json()["error"]
    assert {"message", "type", "param", "code"} == set(error)
    assert error["type"] == "invalid_request_error"
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    return response.status_code, error["code"], error["param"], error["message"]


def nested(depth: int, opening: bytes, closing: bytes) -> bytes:
    schema = opening * depth + b"1" + closing * depth
    tool = b'{"type":"function","function":{"name":"look","parameters":{"a":' + schema + b"}}}"
    return json.dumps(chat_body()).encode()[:-1] + b',"tools":[' + tool + b"]}"


BODIES: dict[str, tuple[bytes, Expected]] = {
    "cut off": (b'{"model":"ratchet","messages":[', NOT_JSON),
    "empty": (b"", NOT_JSON),
    "text": (b"What floats?", NOT_JSON),
    "two documents": (json.dumps(chat_body()).encode() * 2, NOT_JSON),
    "byte order mark": (b"\xef\xbb\xbf" + json.dumps(chat_body()).encode(), NOT_JSON),
    "utf-16": (json.dumps(chat_body()).encode("utf-16"), NOT_JSON),
    "invalid utf-8": (b'{"model":"ratchet","messages":[{"role":"user","content":"\xff\xfe"}]}', NOT_JSON),
    "raw NUL": (b'{"model":"ratchet","messages":[{"role":"user","content":"\x00"}]}', NOT_JSON),
    "lone surrogate": (b'{"model":"ratchet","messages":[{"role":"user","content":"\\ud83d"}]}', NOT_JSON),
    "surrogates reversed": (b'{"model":"ratchet","messages":[{"role":"user","content":"\\ude00\\ud83d"}]}', NOT_JSON),
    "nesting of 100,000 lists": (nested(100_000, b"[", b"]"), NOT_JSON),
    "nesting of 100,000 objects": (nested(100_000, b'{"a":', b"}"), NOT_JSON),
    "an array": (b"[]", (400, INVALID, None, "the body: Input should be an object")),
    "null": (b"null", (400, INVALID, None, "the body: Input should be an object")),
    "NaN": (json.dumps(chat_body(temperature=float("nan"))).encode(),
            (400, INVALID, "temperature", "temperature: Input should be a finite number")),
    "NaN, deep": (nested(0, b"", b"").replace(b'{"a":1}', b'{"a":[{"b":NaN}]}'),
                  (400, INVALID, "tools[0].function.parameters", "tools[0].function.parameters: "
                   "Numbers should be finite, and whole ones have at most 64 bits")),
    "Infinity": (json.dumps(chat_body(top_p=float("inf"))).encode(),
                 (400, INVALID, "top_p", "top_p: Input should be a finite number")),
    "-Infinity": (json.dumps(chat_body(frequency_penalty=float("-inf"))).encode(),
                  (400, INVALID, "frequency_penalty", "frequency_penalty: Input should be a finite number")),
    "1e999": (b'{"temperature":1e999,' + json.dumps(chat_body()).encode()[1:],
              (400, INVALID, "temperature", "temperature: Input should be a finite number")),
    "a megabyte": (json.dumps(chat_body(messages=[{"role": "user", "content": "a" * 1_000_000}])).encode(),
                   (413, "request_too_large", None, "the request body is over this server's limit of 1000000 bytes")),
    "100,000 unknown fields": (json.dumps(chat_body(**{f"x{i}": 0 for i in range(70_000)})).encode(),
                               (400, INVALID, "x0", "unknown field: x0")),
    "400,000 bad messages": (json.dumps(chat_body(messages=[1] * 300_000)).encode(),
                             (400, INVALID, "messages[0]", "messages[0]: Input should be an object")),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
async def test_a_body_that_is_not_a_request_is_refused(gateway: Shared, name: str) -> None:
    body, expected = BODIES[name]
    assert expected == error_of(await gateway.post(body))
    await gateway.assert_unharmed()


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
async def test_a_body_that_is_not_declared_as_json_is_refused(gateway: Shared, kind: str) -> None:
    response = await gateway.post(json.dumps(chat_body()).encode(), {"content-type": kind})
    message = "the body must be JSON, sent with content-type: application/json"
    assert (415, "unsupported_content_type", None, message) == error_of(response)
    await gateway.assert_unharmed()


OBJECT, ARRAY, STRING = "Input should be an object", "Input should be a valid array", "Input should be a valid string"
NUMBER, INTEGER, BOOLEAN = (f"Input should be a valid {kind}" for kind in ("number", "integer", "boolean"))
CHOICE = "Input should be 'none', 'auto' or 'required'"
WRONG_TYPES: dict[str, tuple[object, str]] = {
    "model": (5, STRING), "messages": ("hello", ARRAY), "best_of": ("x", INTEGER), "n": (1.5, INTEGER),
    "temperature": ("hot", NUMBER), "top_p": (True, NUMBER), "max_tokens": ("5", INTEGER),
    "max_completion_tokens": (5.5, INTEGER), "stop": (5, STRING), "seed": ("x", INTEGER),
    "frequency_penalty": ([], NUMBER), "presence_penalty": ({}, NUMBER), "logit_bias": ([], OBJECT),
    "logprobs": (1, BOOLEAN), "top_logprobs": ("5", INTEGER), "tools": ({}, ARRAY), "tool_choice": (5, CHOICE),
    "parallel_tool_calls": ("yes", BOOLEAN), "response_format": ("json", OBJECT), "stream": ("true", BOOLEAN),
    "stream_options": (True, OBJECT), "user": (5, STRING), "metadata": ([], OBJECT), "store": (0, BOOLEAN),
    "prompt_cache_key": (5, STRING), "prompt_cache_options": (5, OBJECT), "prompt_cache_retention": (5, STRING),
    "safety_identifier": (5, STRING), "audio": (5, OBJECT), "function_call": (5, STRING), "functions": ({}, ARRAY),
    "modalities": ("text", ARRAY), "moderation": (5, OBJECT), "prediction": ("x", OBJECT),
    "reasoning_effort": (5, STRING), "service_tier": (5, STRING), "verbosity": (5, STRING),
    "web_search_options": ([], OBJECT),
}  # fmt: skip


async def test_every_field_is_tried_with_a_wrong_type() -> None:
    assert set(ChatCompletionRequest.model_fields) == set(WRONG_TYPES)


@pytest.mark.parametrize("field", WRONG_TYPES)
async def test_a_wrong_type_names_its_field(gateway: Shared, field: str) -> None:
    value, complaint = WRONG_TYPES[field]
    assert (400, INVALID, field, f"{field}: {complaint}") == error_of(await gateway.chat(**{field: value}))
    await gateway.assert_unharmed()


ROLES = "Input should be one of 'system', 'developer', 'user', 'assistant', 'tool'"
FORMATS = "Input should be one of 'text', 'json_object', 'json_schema'"
JSON_NUMBER = "Numbers should be finite, and whole ones have at most 64 bits"
PLACES: list[tuple[dict[str, Any], str, str]] = [
    ({"messages": []}, "messages", "List should have at least 1 item after validation, not 0"),
    ({"messages": [5]}, "messages[0]", OBJECT),
    ({"messages": [{}]}, "messages[0].role", "Field required"),
    ({"messages": [*MESSAGES, {"role": "a secret plan", "content": "x"}]}, "messages[1].role", ROLES),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "Field required"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", STRING),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "messages[0].content[0].text", STRING),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id", "Field required"),
    ({"stop": ["a", 5]}, "stop[1]", STRING),
    ({"stop": ["a", ""]}, "stop[1]", "String should have at least 1 character"),
    ({"stop": "a" * 1_001}, "stop", "String should have at most 1000 characters"),
    ({"stop": ""}, "stop", "String should have at least 1 character"),
    ({"metadata": {"user": 5}}, "metadata.user", STRING),
    ({"metadata": {"k" * 65: "v"}}, "metadata." + "k" * 64, "String should have at most 64 characters"),
    ({"logit_bias": {"42": 101}}, "logit_bias.42", "Input should be less than or equal to 100"),
    ({"tools": [TOOL, {"type": "custom"}]}, "tools[1].type", "Input should be 'function'"),
    ({"tools": [{"type": "function", "function": {"name": "look", "parameters": {"maximum": 2**64}}}]},
     "tools[0].function.parameters", JSON_NUMBER),
    ({"tools": [{"type": "function", "function": {"name": "look", "parameters": {"a": [{"b": 10**400}]}}}]},
     "tools[0].function.parameters", JSON_NUMBER),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"a": [-1.5, 2**64]}}}},
     "response_format.json_schema.schema", JSON_NUMBER),
    ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.type", "Input should be 'function'"),
    ({"response_format": {"type": "a secret plan"}}, "response_format.type", FORMATS),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "Field required"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": 5}}},
     "response_format.json_schema.schema", OBJECT),
    ({"seed": 2**63}, "seed", "Input should be less than 9223372036854775808"),
    ({"temperature": 2.1}, "temperature", "Input should be less than or equal to 2"),
    ({"max_tokens": 0}, "max_tokens", "Input should be greater than or equal to 1"),
    ({"max_tokens": 10**18}, "max_tokens", "Input should be less than or equal to 10000000"),
    ({"max_tokens": 1e300}, "max_tokens", "Input should be less than or equal to 10000000"),
    ({"best_of": 0}, "best_of", "Input should be greater than or equal to 1"),
    ({"best_of": -1}, "best_of", "Input should be greater than or equal to 1"),
    ({"n": 0}, "n", "Input should be greater than or equal to 1"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "complaint"), PLACES, ids=[f"{row[1]}-{row[2][:30]}" for row in PLACES])
async def test_a_bad_value_names_its_place(gateway: Shared, fields: dict[str, Any], param: str, complaint: str) -> None:
    assert (400, INVALID, param, f"{param}: {complaint}") == error_of(await gateway.chat(**fields))
    await gateway.assert_unharmed()


@pytest.mark.parametrize("name", ["unknown", "User", "text", "a[b]", "x" * 70])
async def test_an_unknown_field_is_refused_by_name(gateway: Shared, name: str) -> None:
    assert (400, INVALID, name[:64], f"unknown field: {name[:64]}") == error_of(await gateway.chat(**{name: 1}))
    response = await gateway.chat(messages=[{**MESSAGES[0], name: 1}])
    assert f"messages[0].{name[:64]}" == error_of(response)[2]
    await gateway.assert_unharmed()


LAST = "messages[-1]: the last message must not be the assistant's; answers are not continued here"
IMAGE = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": "https://a.example/b"}}]
RULES: list[tuple[dict[str, Any], Expected]] = [
    ({"model": "gpt-9"}, (404, "model_not_found", None,
                          "the model 'gpt-9' does not exist here; GET /v1/models lists what does")),
    ({"messages": MESSAGES * 10_000}, (400, INVALID, "messages",
                                       "10000 messages are over this server's limit of 1000")),
    ({"messages": [*MESSAGES, {"role": "assistant", "content": "x"}]}, (400, UNSUPPORTED, "messages[-1]", LAST)),
    ({"messages": [{"role": "assistant"}]}, (400, UNSUPPORTED, "messages[-1]", LAST)),
    ({"messages": [{"role": "assistant", "content": "x", "audio": {"id": "y"}}, *MESSAGES]},
     (400, UNSUPPORTED, "messages[0].audio", "messages[0].audio is not supported here")),
    ({"messages": [{"role": "assistant", "function_call": {"name": "f", "arguments": ""}}, *MESSAGES]},
     (400, UNSUPPORTED, "messages[0].function_call", "messages[0].function_call is not supported here")),
    ({"messages": [{"role": "assistant", "content": "x", "y" * 500_000: 1}, *MESSAGES]},
     (400, INVALID, "messages[0]." + "y" * 64, "unknown field: messages[0]." + "y" * 64)),
    ({"messages": [{"role": "assistant", "content": [{"type": "refusal"}]}, *MESSAGES]},
     (400, INVALID, "messages[0].content[0].refusal", "a refusal part needs refusal")),
    ({"messages": [{"role": "user", "content": IMAGE}]}, (400, UNSUPPORTED, "messages[0].content[1].type",
                                                          "only text content is supported here")),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, (400, INVALID, "messages[0].content[0].text",
                                                                       "a text part needs text")),
    ({"best_of": 10_000}, (400, INVALID, "best_of", "best_of must be between 1 and 16")),
    ({"best_of": 2, "n": 3}, (400, INVALID, "n", "n must not be larger than best_of")),
    ({"best_of": None, "n": 17}, (400, INVALID, "n", "n must not be larger than the largest best_of here, 16")),
    ({"stop": ["x"] * 50}, (400, INVALID, "stop", "stop takes at most 4 strings")),
    ({"messages": [{"role": "user", "content": "a " * 3_500}], "max_tokens": 1_000},
     (400, "context_length_exceeded", "max_tokens",
      "This model's maximum context length is 4096 tokens. However, your messages have 3505 tokens and max_tokens asks "
      "for 1000 more. Please reduce max_tokens or the messages.")),
    ({"messages": [{"role": "user", "content": "a " * 5_000}]},
     (400, "context_length_exceeded", "messages",
      "This model's maximum context length is 4095 tokens. However, your messages have 5005 tokens. Please reduce "
      "their length.")),
    ({"max_tokens": 5, "max_completion_tokens": 6},
     (400, INVALID, "max_tokens", "max_tokens and max_completion_tokens contradict each other")),
    ({"top_logprobs": 2}, (400, INVALID, "top_logprobs", "top_logprobs needs logprobs: true")),
    ({"tool_choice": "auto"}, (400, INVALID, "tool_choice", "tool_choice needs tools")),
    ({"tools": [], "tool_choice": "required"}, (400, INVALID, "tool_choice", "tool_choice needs tools")),
    ({"logprobs": True, "top_logprobs": 6}, (400, UNSUPPORTED, "top_logprobs",
                                             "top_logprobs: TGI gives at most 5")),
    ({"logit_bias": {"42": 1}}, (400, UNSUPPORTED, "logit_bias", "logit_bias: TGI does not apply it")),
    ({"presence_penalty": 1}, (400, UNSUPPORTED, "presence_penalty",
                               "presence_penalty: TGI has none; frequency_penalty is the nearest")),
    ({"tools": [TOOL], "response_format": FORMAT}, (400, UNSUPPORTED, "response_format",
                                                    "response_format: TGI cannot combine it with tools")),
    *(({field: value}, (400, UNSUPPORTED, field, f"{field} is not supported here{instead}"))
      for field, value, instead in (
          ("audio", {"voice": "alloy", "format": "mp3"}, ""), ("modalities", ["text", "audio"], ""),
          ("function_call", {"name": "look"}, "; use tool_choice"), ("functions", [{"name": "look"}], "; use tools"),
          ("prediction", {"type": "content", "content": "x"}, ""), ("moderation", {"model": "x"}, ""),
          ("reasoning_effort", "high", ""), ("service_tier", "flex", ""), ("verbosity", "low", ""),
          ("web_search_options", {}, ""))),
]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "expected"), RULES, ids=[f"{expected[2]}-{expected[3][:30]}" for _, expected in RULES]
)
async def test_contradictory_or_unsupported_fields_are_refused(
    gateway: Shared, fields: dict[str, Any], expected: Expected
) -> None:
    assert expected == error_of(await gateway.chat(**fields))
    await gateway.assert_unharmed()


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("0", "between 1 and 16"),
        ("10000", "between 1 and 16"),
        *((value, "a whole number") for value in ("-1", "x", "", "1.5", "٣", "4, 4", "9" * 7, "true")),
    ],
)
async def test_n_in_the_header_is_validated(gateway: Shared, value: str, complaint: str) -> None:
    response = await gateway.post(json.dumps(chat_body()).encode(), {"X-Best-Of": value.encode()})
    assert (400, INVALID, "X-Best-Of", f"X-Best-Of must be {complaint}") == error_of(response)
    await gateway.assert_unharmed()


GOOD: dict[str, bytes] = {
    "NUL, escaped": json.dumps(chat_body(messages=[{"role": "user", "content": "a\0b"}])).encode(),
    "the last of Unicode": json.dumps(chat_body(messages=[{"role": "user", "content": "\U0010ffff\u200f"}])).encode(),
    "duplicate keys: the last holds": b'{"model":"x","model":"ratchet",' + json.dumps(chat_body()).encode()[1:],
    "nesting of 100": nested(100, b'{"a":', b"}"),
    "both kinds of max_tokens, in agreement": json.dumps(chat_body(max_tokens=5, max_completion_tokens=5)).encode(),
    "whole numbers with a point": json.dumps(chat_body(n=1.0, max_tokens=5.0, seed=-3.0)).encode(),
    "a tool without parameters": json.dumps(
        chat_body(tools=[{"type": "function", "function": {"name": "look"}}])
    ).encode(),
    "every refused field at its neutral value": json.dumps(
        chat_body(
            modalities=["text"], reasoning_effort="none", service_tier="auto", verbosity="medium", audio=None,
            logit_bias={}, presence_penalty=0, response_format={"type": "text"}, tools=[], prompt_cache_key="x",
        )
    ).encode(),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
async def test_unusual_but_valid_requests_are_served(gateway: Shared, name: str) -> None:
    response = await gateway.post(GOOD[name])
    assert 200 == response.status_code, response.json()
    await gateway.assert_unharmed(response.json()["id"])


async def test_a_body_without_a_length_is_refused_at_the_limit(gateway: Shared) -> None:
    async def long() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b" " * 100_000

    response = await gateway.served.http.post(
        "/v1/chat/completions", content=long(), headers={"content-type": "application/json"}
    )
    assert (413, "request_too_large") == error_of(response)[:2]
    await gateway.assert_unharmed()


async def test_a_slow_body_delays_no_other_request(gateway: Shared) -> None:
    more = asyncio.Event()
    body = json.dumps(chat_body()).encode()

    async def slowly() -> AsyncIterator[bytes]:
        yield body[:10]
        await more.wait()
        for index in range(10, len(body)):
            yield body[index : index + 1]

    slow = asyncio.create_task(
        gateway.served.http.post("/v1/chat/completions", content=slowly(), headers={"content-type": "application/json"})
    )
    await gateway.assert_unharmed()
    more.set()
    response = await slow
    assert 200 == response.status_code
    await gateway.assert_unharmed(response.json()["id"])


@pytest.mark.parametrize("declared", [b"content-length: 500", b"transfer-encoding: chunked"])
async def test_a_caller_who_hangs_up_in_the_middle_of_the_body_leaves_nothing_behind(
    gateway: Shared, declared: bytes
) -> None:
    url = httpx2.URL(gateway.served.url)
    _, writer = await asyncio.open_connection(url.host, url.port)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n" + declared
    writer.write(head + b'\r\n\r\n5\r\n{"mod')
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    await gateway.assert_unharmed()


@pytest.mark.parametrize("best_of", [1, 4])
async def test_a_caller_who_hangs_up_before_the_first_event_leaves_nothing_behind(
    gateway: Shared, best_of: int
) -> None:
    gateway.served.tgi.knobs.update({"tokens_per_s": 30.0, "time_to_first_token_ms": 5_000.0})
    body = chat_body(best_of=best_of, stream=True)
    state = gateway.served.tgi.state
    cancelled_before = state.cancelled
    request = asyncio.create_task(gateway.served.http.post("/v1/chat/completions", json=body))
    await state.until(lambda state: state.generating == best_of)
    request.cancel()
    await state.until(lambda state: state.generating == 0)
    assert best_of == state.cancelled - cancelled_before
    gateway.restore()
    await gateway.assert_unharmed()
