"""The gateway in front of vLLM's real HTTP, rendering, validation and parsers; only the tokens are scripted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest

from gateway.backend.client import BackendPool
from gateway.settings import BackendSettings
from gateway.types import Delta, Prompt, Sampling
from tests.vllm_front.conftest import AskVllm
from tests.vllm_front.front import Front, script

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bergen"}}\n</tool_call>'


def says(text: str, **directions: object) -> list[dict[str, Any]]:
    return [{"role": "user", "content": script(text, **directions)}]


def events(response: httpx2.Response) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    return [orjson.loads(line) for line in lines if line != "[DONE]"]


async def test_a_race_draws_n_answers_and_counts_their_tokens(front: Front, ask_vllm: AskVllm) -> None:
    gateway = await ask_vllm(front, n=4)
    asked = len(front.log)
    answer = (await gateway.chat(messages=says("Two herons."))).json()
    assert "Two herons." == answer["choices"][0]["message"]["content"]
    assert "stop" == answer["choices"][0]["finish_reason"]
    assert 4 == len(front.log) - asked
    assert 4 * answer["usage"]["completion_tokens"] == answer["best_of_n"]["generated_tokens"]


async def test_a_single_draw_is_streamed_piece_by_piece(front: Front, ask_vllm: AskVllm) -> None:
    gateway = await ask_vllm(front)
    response = await gateway.chat(messages=says("Two grey herons."), stream=True)
    pieces = [event["choices"][0]["delta"].get("content") for event in events(response) if event["choices"]]
    assert "Two grey herons." == "".join(piece for piece in pieces if piece)
    assert 1 < len([piece for piece in pieces if piece])


async def test_logprobs_of_a_draw_are_those_of_its_text(front: Front, ask_vllm: AskVllm) -> None:
    gateway = await ask_vllm(front)
    choice = (await gateway.chat(messages=says("herons"), logprobs=True, top_logprobs=2)).json()["choices"][0]
    tokens = [entry["token"] for entry in choice["logprobs"]["content"]]
    assert "".join(tokens).startswith("herons")
    assert all(2 == len(entry["top_logprobs"]) for entry in choice["logprobs"]["content"])


@pytest.mark.parametrize("stream", [False, True])
async def test_a_tool_call_reaches_the_caller(front: Front, ask_vllm: AskVllm, stream: bool) -> None:
    gateway = await ask_vllm(front)
    response = await gateway.chat(messages=says(CALL), tools=[WEATHER], stream=stream)
    if stream:
        deltas = [event["choices"][0]["delta"] for event in events(response) if event["choices"]]
        calls = [call for delta in deltas for call in delta.get("tool_calls") or []]
        name = "".join(call["function"].get("name") or "" for call in calls)
        arguments = "".join(call["function"].get("arguments") or "" for call in calls)
        ends = [event["choices"][0]["finish_reason"] for event in events(response) if event["choices"]]
    else:
        [choice] = response.json()["choices"]
        [call] = choice["message"]["tool_calls"]
        name, arguments, ends = call["function"]["name"], call["function"]["arguments"], [choice["finish_reason"]]
    assert "weather" == name
    assert {"city": "Bergen"} == orjson.loads(arguments)
    assert "tool_calls" == ends[-1]


async def test_a_schema_reaches_the_engine_as_a_grammar(front: Front, ask_vllm: AskVllm) -> None:
    gateway = await ask_vllm(front)
    schema = {"type": "object", "properties": {"bird": {"type": "string"}}, "required": ["bird"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "bird", "schema": schema}}
    response = await gateway.chat(messages=says('{"bird": "heron"}'), response_format=wanted)
    assert {"bird": "heron"} == orjson.loads(response.json()["choices"][0]["message"]["content"])
    assert "bird" in front.log[-1]["structured_outputs"]


async def test_too_long_a_prompt_is_told_in_numbers(front: Front, ask_vllm: AskVllm) -> None:
    gateway = await ask_vllm(front)
    response = await gateway.chat(messages=says("word " * 3_000))
    error = response.json()["error"]
    assert (400, "context_length_exceeded") == (response.status_code, error["code"])
    assert "2048" in error["message"]


async def test_max_tokens_over_the_models_length_names_the_field(front: Front, ask_vllm: AskVllm) -> None:
    gateway = await ask_vllm(front)
    response = await gateway.chat(messages=says("ok"), max_tokens=5_000)
    error = response.json()["error"]
    assert (400, "max_tokens") == (response.status_code, error["param"])
    assert "2048" in error["message"]


async def test_a_field_that_vllm_refuses_is_named(front: Front, ask_vllm: AskVllm) -> None:
    gateway = await ask_vllm(front)
    response = await gateway.chat(messages=says("ok"), logit_bias={"49999999": 5})
    assert (400, "logit_bias") == (response.status_code, response.json()["error"]["param"])


async def test_a_caller_that_hangs_up_aborts_every_draw(front: Front, ask_vllm: AskVllm) -> None:
    gateway = await ask_vllm(front, n=3)
    before = len(front.log)
    with pytest.raises(httpx2.ReadTimeout):
        await gateway.http.post(
            "/v1/chat/completions",
            json={"model": "ratchet", "messages": says("never", hang=True)},
            timeout=httpx2.Timeout(5, read=1),
        )
    async with asyncio.timeout(10):
        while 3 != sum(entry["event"] == "abort" for entry in front.log[before:]):
            await asyncio.sleep(0.05)


async def test_an_aborted_draw_is_no_answer(front: Front, ask_vllm: AskVllm) -> None:
    gateway = await ask_vllm(front)
    response = await gateway.chat(messages=says("half an ans", finish="abort"))
    assert 502 == response.status_code
    assert "half an ans" not in response.text


async def test_a_replica_that_is_told_to_stop_fails_no_race(front: Front, ask_vllm: AskVllm, tmp_path: Path) -> None:
    """At SIGTERM vLLM answers its running requests with ``abort``; the other replica draws them again."""
    with Front(tmp_path / "second") as second:
        gateway = await ask_vllm(second, front, n=4)
        races = [asyncio.create_task(gateway.chat(messages=says("a slow heron " * 3, delay_ms=300))) for _ in range(4)]
        async with asyncio.timeout(20):
            while not second.log:
                await asyncio.sleep(0.05)
        second.terminate()
        answers = await asyncio.gather(*races)
    assert [200] * 4 == [answer.status_code for answer in answers]
    assert {("a slow heron " * 3).strip()} == {
        answer.json()["choices"][0]["message"]["content"].strip() for answer in answers
    }


async def test_a_stream_that_is_cut_has_been_counted_by_vllm_itself(front: Front) -> None:
    """VLLM tells its counts with every piece: neither prompt nor answer have to be estimated."""
    asked = Prompt([{"role": "user", "content": script("one two three four five six seven", delay_ms=50)}], Sampling())
    async with BackendPool(BackendSettings(kind="vllm", urls=(front.url,))) as pool:
        async with aclosing(pool.stream(asked, seed=1, replica=0)) as deltas:
            pieces = [delta async for delta in take(deltas, 4)]
        whole = await pool.complete(Prompt(asked.messages, Sampling()), seed=1, replica=0)
    assert 4 == len(pieces)
    assert whole.prompt_tokens == asked.meter.prompt_tokens
    assert 4 <= asked.meter.tokens < whole.completion_tokens
    assert not asked.meter.prompt_is_uncounted


async def take(deltas: AsyncGenerator[Delta], count: int) -> AsyncGenerator[Delta]:
    """The first so many pieces."""
    async for delta in deltas:
        yield delta
        count -= 1
        if not count:
            return
