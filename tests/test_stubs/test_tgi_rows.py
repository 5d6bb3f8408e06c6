"""The stub against text-generation-inference's protocol, row by row: the fields of a chat request, and its limits."""

from __future__ import annotations

import json
import re
from typing import Any

import aiohttp
import pytest

from tests.stubs.tgi import TgiStub
from tests.test_stubs.conftest import QUESTION, Ask

TOOL = {"type": "function", "function": {"name": "turn", "parameters": {"properties": {"teeth": {"type": "integer"}}}}}
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}}


def text_of(body: dict[str, Any]) -> str:
    content: str = body["choices"][0]["message"]["content"]
    return content


async def test_a_response_has_tgis_shape_and_an_empty_id(ask: Ask) -> None:
    status, body = await ask(seed=1, max_tokens=7)
    assert 200 == status
    assert {"object", "id", "created", "model", "system_fingerprint", "choices", "usage"} == set(body)
    assert ("chat.completion", "", "stub/base") == (body["object"], body["id"], body["model"])
    choice = body["choices"][0]
    assert (0, None, "length") == (choice["index"], choice["logprobs"], choice["finish_reason"])
    assert {"role", "content"} == set(choice["message"])
    usage = body["usage"]
    assert 7 == usage["completion_tokens"]
    assert usage["prompt_tokens"] + 7 == usage["total_tokens"]


async def test_usage_counts_the_end_token_that_the_text_does_not_show(ask: Ask) -> None:
    _, body = await ask(seed=1, logprobs=True)
    tokens = body["choices"][0]["logprobs"]["content"]
    assert "stop" == body["choices"][0]["finish_reason"]
    assert len(tokens) == body["usage"]["completion_tokens"]
    assert text_of(body) == "".join(token["token"] for token in tokens[:-1])


async def test_unknown_keys_are_ignored(ask: Ask) -> None:
    assert 200 == (await ask(best_of_n=3, nonsense={"a": 1}))[0]


async def test_n_is_parsed_and_dropped(ask: Ask) -> None:
    status, body = await ask(n=4)
    assert (200, 1) == (status, len(body["choices"]))


async def test_n_is_honoured_if_a_test_plays_another_kind_of_server(stub: TgiStub, ask: Ask) -> None:
    stub.knobs.honours_n = True
    status, body = await ask(n=3, seed=5)
    assert (200, [0, 1, 2]) == (status, [choice["index"] for choice in body["choices"]])
    alone = [(await ask(seed=seed))[1] for seed in (5, 6, 7)]
    said = [choice["message"]["content"] for choice in body["choices"]]
    assert [one["choices"][0]["message"]["content"] for one in alone] == said
    tokens = sum(one["usage"]["completion_tokens"] for one in alone)
    assert (tokens, alone[0]["usage"]["prompt_tokens"]) == (
        body["usage"]["completion_tokens"],
        body["usage"]["prompt_tokens"],
    )
    assert (6, 0) == (stub.state.finished, stub.state.generating)


async def test_logit_bias_as_a_map_is_a_422_and_as_a_list_is_dropped(ask: Ask) -> None:
    assert 422 == (await ask(logit_bias={"50256": -100}))[0]
    assert 200 == (await ask(logit_bias=[0.5]))[0]


async def test_model_tgi_or_none_is_the_base_under_its_own_name(ask: Ask) -> None:
    (_, absent), (_, tgi) = await ask(seed=1), await ask(seed=1, model="tgi")
    assert "stub/base" == absent["model"] == tgi["model"]
    assert text_of(absent) == text_of(tgi)


async def test_an_unknown_adapter_is_echoed_and_silently_served_by_the_base(stub: TgiStub, ask: Ask) -> None:
    stub.knobs.adapters = ("rft-1",)
    (_, base), (_, known), (_, unknown) = [
        await ask(temperature=0, model=model) for model in ("tgi", "rft-1", "no-such")
    ]
    assert ["stub/base", "rft-1", "no-such"] == [body["model"] for body in (base, known, unknown)]
    assert text_of(base) == text_of(unknown)
    assert text_of(base) != text_of(known)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_max_tokens_goes_by_either_name(ask: Ask, name: str) -> None:
    assert 3 == (await ask(**{name: 3}))[1]["usage"]["completion_tokens"]


async def test_no_max_tokens_means_all_that_fits(stub: TgiStub, ask: Ask) -> None:
    stub.knobs.max_total_tokens = 20
    _, body = await ask()
    assert (20, "length") == (body["usage"]["total_tokens"], body["choices"][0]["finish_reason"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("top_p", 1.0),
        ("top_p", 0),
        ("presence_penalty", -2),
        ("frequency_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("stop", ["a", "b", "c", "d", "e"]),
        ("top_logprobs", 6),
    ],
)
async def test_a_value_out_of_range_is_a_422_of_type_validation(ask: Ask, field: str, value: object) -> None:
    status, body = await ask(**{field: value})
    assert (422, "validation") == (status, body["error_type"])
    assert {"error", "error_type"} == set(body)
    assert body["error"].startswith("Input validation error: ")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 2),
        ("top_p", 0.99),
        ("frequency_penalty", -2),
        ("stop", ["a", "b", "c", "d"]),
        ("top_logprobs", 5),
        ("seed", 2**64 - 1),
        ("max_tokens", None),
        ("temperature", None),
        ("stop", None),
        ("tools", None),
        ("tool_choice", None),
        ("response_format", None),
    ],
)
async def test_a_value_in_range_or_null_is_accepted(ask: Ask, field: str, value: object) -> None:
    assert 200 == (await ask(**{field: value}))[0]


@pytest.mark.parametrize(
    "body",
    [
        {"max_tokens": 5, "max_completion_tokens": 5},
        {"max_tokens": -1},
        {"max_tokens": 5.0},
        {"temperature": "1"},
        {"temperature": True},
        {"stop": "one string"},
        {"seed": -1},
        {"seed": 2**64},
        {"stream": None},
        {"stream": "yes"},
        {"stream_options": None},
        {"messages": "hello"},
        {"messages": None},
        {"messages": [{"content": "no role"}]},
        {"messages": [{"role": "assistant", "content": None}]},
        {"messages": [{"role": "user", "content": [{"type": "audio"}]}]},
        {"tools": [{"type": "function", "function": {"name": "without_parameters"}}]},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "p", "schema": SCHEMA}}},
        {"response_format": {"type": "text"}},
    ],
)
async def test_a_wrong_type_is_a_422_in_plain_text(ask: Ask, body: dict[str, object]) -> None:
    status, text = await ask(**body)
    assert 422 == status
    assert text.startswith("Failed to deserialize the JSON body into the target type: ")


async def test_temperature_0_is_greedy_with_any_seed(ask: Ask) -> None:
    texts = {text_of((await ask(temperature=0, seed=seed))[1]) for seed in range(4)}
    assert 1 == len(texts)


async def test_a_seed_decides_the_answer_and_no_seed_is_a_random_one(ask: Ask) -> None:
    seeded = [text_of((await ask(seed=seed))[1]) for seed in (1, 1, 2, 3)]
    assert (seeded[0], 3) == (seeded[1], len(set(seeded)))
    assert 2 == len({text_of((await ask())[1]) for _ in range(2)})


async def test_the_conversation_decides_the_answer_too(ask: Ask) -> None:
    other = [{"role": "user", "content": "And what does it cost?"}]
    assert text_of((await ask(seed=1))[1]) != text_of((await ask(seed=1, messages=other))[1])


async def test_presence_penalty_0_becomes_a_repetition_penalty_of_2_and_ruins_the_text(ask: Ask) -> None:
    (_, left_out), (_, harmless), (_, zero) = (
        await ask(temperature=0),
        await ask(temperature=0, presence_penalty=-1),
        await ask(temperature=0, presence_penalty=0),
    )
    assert text_of(left_out) == text_of(harmless)
    common = set(re.findall(r"\w+", text_of(left_out)))
    assert not common & set(re.findall(r"\w+", text_of(zero)))


async def test_a_matched_stop_sequence_stays_in_the_output(ask: Ask) -> None:
    _, whole = await ask(temperature=0)
    word = text_of(whole).split()[3]
    _, stopped = await ask(temperature=0, stop=["no such text", " " + word])
    assert "stop_sequence" == stopped["choices"][0]["finish_reason"]
    assert text_of(stopped).endswith(word)
    assert text_of(whole).startswith(text_of(stopped))


async def test_top_logprobs_come_with_each_token(ask: Ask) -> None:
    _, body = await ask(seed=1, max_tokens=3, logprobs=True, top_logprobs=2)
    assert [2, 2, 2] == [len(token["top_logprobs"]) for token in body["choices"][0]["logprobs"]["content"]]


@pytest.mark.parametrize("kind", ["json_object", "json"])
@pytest.mark.parametrize("value", [SCHEMA, json.dumps(SCHEMA)])
async def test_a_json_response_format_takes_the_schema_as_value(ask: Ask, kind: str, value: object) -> None:
    _, body = await ask(seed=1, response_format={"type": kind, "value": value})
    answer = json.loads(text_of(body))
    assert (str, int) == (type(answer["name"]), type(answer["age"]))


async def test_huggingface_hubs_rewritten_json_schema_is_accepted(ask: Ask) -> None:
    form = {"type": "json_schema", "value": {"name": "p", "schema": SCHEMA}}
    assert {"name", "age"} == set(json.loads(text_of((await ask(response_format=form))[1])))


async def test_a_regex_response_format_is_obeyed(ask: Ask) -> None:
    pattern = r"(yes|no): [0-9]{2,4}[a-c]?"
    for seed in range(8):
        _, body = await ask(seed=seed, response_format={"type": "regex", "value": pattern})
        assert re.fullmatch(pattern, text_of(body))


@pytest.mark.parametrize(
    "form",
    [{"type": "json", "value": {"type": "object"}}, {"type": "json", "value": 3}],
)
async def test_a_grammar_that_cannot_be_compiled_is_a_422_of_type_validation(ask: Ask, form: dict[str, Any]) -> None:
    status, body = await ask(response_format=form)
    assert (422, "validation") == (status, body["error_type"])


@pytest.mark.parametrize("stream", [False, True])
async def test_tools_with_a_response_format_are_a_422_tool_error_even_in_a_stream(ask: Ask, stream: bool) -> None:
    form = {"type": "json", "value": SCHEMA}
    status, body = await ask(tools=[TOOL], response_format=form, stream=stream)
    assert (422, "tool_error") == (status, body["error_type"])


@pytest.mark.parametrize("choice", ["required", "turn", {"type": "function", "function": {"name": "turn"}}])
async def test_a_tool_call_has_arguments_as_text_and_ends_with_stop(ask: Ask, choice: object) -> None:
    _, body = await ask(seed=1, tools=[TOOL], tool_choice=choice)
    answer = body["choices"][0]
    call = answer["message"]["tool_calls"][0]
    assert ("stop", False) == (answer["finish_reason"], "content" in answer["message"])
    assert ("0", "function", "turn") == (call["id"], call["type"], call["function"]["name"])
    assert int is type(json.loads(call["function"]["arguments"])["teeth"])


async def test_tool_choice_auto_calls_the_tool_that_the_prompt_mentions(ask: Ask) -> None:
    mention = [{"role": "user", "content": "Please turn the wheel."}]
    assert "tool_calls" in (await ask(messages=mention, tools=[TOOL]))[1]["choices"][0]["message"]
    assert "content" in (await ask(tools=[TOOL]))[1]["choices"][0]["message"]
    assert "content" in (await ask(messages=mention, tools=[TOOL], tool_choice="none"))[1]["choices"][0]["message"]


async def test_tool_call_ids_count_up_through_the_conversation(ask: Ask) -> None:
    call = {"id": "4", "type": "function", "function": {"name": "turn", "arguments": {"teeth": 3}}}
    messages = [*QUESTION, {"role": "assistant", "content": None, "tool_calls": [call]}]
    _, body = await ask(messages=messages, tools=[TOOL], tool_choice="required")
    assert "5" == body["choices"][0]["message"]["tool_calls"][0]["id"]


@pytest.mark.parametrize("body", [{"tool_choice": "absent"}, {"tool_choice": "required", "max_tokens": 4}])
async def test_a_missing_tool_or_a_call_cut_short_is_a_422_tool_error(ask: Ask, body: dict[str, Any]) -> None:
    status, answer = await ask(tools=[TOOL], **body)
    assert (422, "tool_error") == (status, answer["error_type"])


async def test_text_chunks_are_joined(ask: Ask) -> None:
    chunks = [{"type": "text", "text": "one two "}, {"type": "image_url", "image_url": {"url": "x"}}]
    assert 200 == (await ask(messages=[{"role": "user", "content": chunks}]))[0]


@pytest.mark.parametrize(
    ("data", "content_type", "status"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 422),
        (b"{}", "application/json", 422),
        (b"{}", "text/plain", 415),
        (b'{"messages": "' + b"x" * 2_000_000, "application/json", 413),
    ],
)
async def test_body_parsing_failures_are_plain_text(
    http: aiohttp.ClientSession, data: bytes, content_type: str, status: int
) -> None:
    async with http.post("/v1/chat/completions", data=data, headers={"Content-Type": content_type}) as response:
        assert (status, "text/plain") == (response.status, response.content_type)


async def test_a_body_of_exactly_the_limit_is_read_and_a_chunked_one_over_it_is_not(
    http: aiohttp.ClientSession,
) -> None:
    whole = json.dumps({"messages": QUESTION, "padding": ""}).encode()
    padded = whole.replace(b'""', b'"' + b"x" * (2_000_000 - len(whole)) + b'"')
    headers = {"Content-Type": "application/json"}
    async with http.post("/v1/chat/completions", data=padded, headers=headers) as response:
        assert (2_000_000, 200) == (len(padded), response.status)

    async def chunks() -> Any:
        for begin in range(0, len(padded), 100_000):
            yield padded[begin : begin + 100_000]
        yield b" "

    async with http.post("/v1/chat/completions", data=chunks(), headers=headers) as response:
        assert 413 == response.status
