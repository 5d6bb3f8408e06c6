"""The stub's chat streams against TGI's."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from tests.stubs.knobs import Knobs
from tests.stubs.tgi import TgiStub
from tests.test_stubs.conftest import QUESTION, Ask
from tests.test_stubs.test_tgi_rows import TOOL, text_of


def events_of(text: str) -> list[dict[str, Any]]:
    """The JSON events before [DONE]."""
    *events, done, rest = text.split("\n\n")
    assert ("data: [DONE]", "") == (done, rest)
    return [json.loads(event.removeprefix("data: ")) for event in events if event != ":"]


async def test_a_stream_gives_the_same_text_as_the_plain_answer(ask: Ask) -> None:
    (_, plain), (_, stream) = await ask(seed=3), await ask(seed=3, stream=True)
    deltas = [event["choices"][0]["delta"] for event in events_of(stream)]
    assert text_of(plain) == "".join(delta["content"] for delta in deltas)


async def test_every_delta_carries_a_role_and_the_end_token_is_empty(ask: Ask) -> None:
    events = events_of((await ask(seed=3, stream=True))[1])
    assert {"assistant"} == {event["choices"][0]["delta"]["role"] for event in events}
    assert "" == events[-1]["choices"][0]["delta"]["content"]
    reasons = [event["choices"][0]["finish_reason"] for event in events]
    assert [None] * (len(events) - 1) + ["stop"] == reasons
    assert {""} == {event["id"] for event in events}


async def test_usage_is_null_on_each_chunk_and_comes_last_on_request(ask: Ask) -> None:
    without = events_of((await ask(seed=3, stream=True))[1])
    with_usage = events_of((await ask(seed=3, stream=True, stream_options={"include_usage": True}))[1])
    assert {None} == {event["usage"] for event in without}
    assert without == with_usage[:-1]
    assert [] == with_usage[-1]["choices"]
    assert len(without) == with_usage[-1]["usage"]["completion_tokens"]


async def test_logprobs_come_with_each_chunk(ask: Ask) -> None:
    events = events_of((await ask(stream=True, logprobs=True, top_logprobs=1, max_tokens=2))[1])
    assert [1, 1] == [len(event["choices"][0]["logprobs"]["content"]) for event in events]


async def test_a_validation_error_in_a_stream_is_a_200_and_a_frame_with_422(ask: Ask) -> None:
    status, text = await ask(stream=True, top_p=1.0)
    assert 200 == status
    message = "Input validation error: `top_p` must be > 0.0 and < 1.0"
    assert [{"error": {"message": message, "http_status_code": 422}}] == events_of(text)


async def test_a_streamed_tool_call_has_its_name_first_then_arguments_and_no_finish_reason(ask: Ask) -> None:
    (_, plain), (_, text) = [
        await ask(seed=1, tools=[TOOL], tool_choice="required", stream=stream) for stream in (False, True)
    ]
    events = events_of(text)
    functions = [event["choices"][0]["delta"]["tool_calls"][0]["function"] for event in events]
    expected = plain["choices"][0]["message"]["tool_calls"][0]["function"]
    assert [expected["name"]] + [None] * (len(functions) - 1) == [function["name"] for function in functions]
    assert expected["arguments"] == "".join(function["arguments"] for function in functions)
    assert {None} == {event["choices"][0]["finish_reason"] for event in events}


async def test_a_streamed_tool_call_that_is_cut_short_ends_with_length(ask: Ask) -> None:
    _, text = await ask(seed=1, tools=[TOOL], tool_choice="required", stream=True, max_tokens=8)
    assert "length" == events_of(text)[-1]["choices"][0]["finish_reason"]


async def test_a_tool_without_arguments_is_streamed_as_an_empty_object(ask: Ask) -> None:
    tool = {"type": "function", "function": {"name": "stop", "parameters": {}}}
    _, text = await ask(tools=[tool], tool_choice="required", stream=True)
    arguments = [event["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"] for event in events_of(text)]
    assert "{}" == "".join(arguments)


async def test_an_idle_stream_gets_keep_alive_comments(stub: TgiStub, ask: Ask) -> None:
    stub.knobs.update({"keep_alive_s": 0.01, "time_to_first_token_ms": 100})
    _, text = await ask(stream=True, max_tokens=1)
    assert text.startswith(":\n\n:\n\n")
    assert 1 == len(events_of(text))


async def test_tokens_come_one_by_one_at_their_pace() -> None:
    knobs = Knobs(tokens_per_s=200, answer_tokens_min=10, answer_tokens_max=10)
    async with TgiStub(knobs) as stub, aiohttp.ClientSession(stub.url) as http:
        async with http.post("/v1/chat/completions", json={"messages": QUESTION, "stream": True}) as response:
            reads = [chunk async for chunk in response.content.iter_any()]
        assert len(reads) > 5
        assert (11, 1) == (stub.state.tokens_generated, stub.state.finished)


async def test_closing_a_stream_ends_its_generation(stub: TgiStub, http: aiohttp.ClientSession) -> None:
    stub.knobs.update({"tokens_per_s": 50.0, "answer_tokens_min": 500, "answer_tokens_max": 500})
    response = await http.post("/v1/chat/completions", json={"messages": QUESTION, "stream": True})
    await response.content.readuntil(b"\n\n")
    assert 1 == stub.state.generating
    response.close()
    await stub.state.until(lambda state: state.generating == 0)
    assert (1, 0) == (stub.state.cancelled, stub.state.finished)
    assert 0 < stub.state.tokens_generated < 500


@pytest.mark.parametrize("stream", [False, True])
async def test_the_fixed_latency_is_the_whole_answers(stub: TgiStub, ask: Ask, stream: bool) -> None:
    stub.knobs.latency_ms = 50.0
    loop = asyncio.get_running_loop()
    begun = loop.time()
    assert 200 == (await ask(stream=stream))[0]
    assert loop.time() - begun >= 0.045


async def test_stub_answers_differ_in_length_and_wording(ask: Ask) -> None:
    texts = [text_of((await ask(seed=seed))[1]) for seed in range(32)]
    assert 32 == len(set(texts))
    words = sorted(len(set(text.split())) for text in texts)
    assert words[-1] > 4 * words[0]
