"""The gateway in front of vLLM's real HTTP, rendering, validation and parsers; only the tokens are scripted."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest

from distill.errors import PromotionError
from distill.promotion.adapter import Adapter, BaseFacts, Manifest
from distill.promotion.load import load, unload
from distill.settings import PromotionSettings
from gateway.backend.flavours import FLAVOURS
from gateway.backend.pool import BackendPool
from gateway.errors import ContextLengthExceeded
from gateway.reward.remote import RemoteScorer
from gateway.settings import BackendSettings, RewardSettings
from gateway.types import Delta, JsonObject, Message, Prompt, Sampling, Score
from tests.vllm_front.conftest import AskVllm
from tests.vllm_front.front import Front, script

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
JSON = {"content-type": "application/json"}
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


async def test_a_prompt_that_is_too_long_is_refused_with_numbers(front: Front, ask_vllm: AskVllm) -> None:
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


async def test_a_replica_that_stops_fails_no_race(front: Front, ask_vllm: AskVllm, tmp_path: Path) -> None:
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
    """Every piece of vLLM's stream has its counts: neither prompt nor answer must be estimated."""
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
    """Return the first pieces of a stream, this many."""
    async for delta in deltas:
        yield delta
        count -= 1
        if not count:
            return


async def test_tools_without_a_parser_are_the_operators_mistake(plain: Front, ask_vllm: AskVllm) -> None:
    gateway = await ask_vllm(plain, backend={"api_key": "secret"})
    response = await gateway.chat(messages=says("ok"), tools=[WEATHER])
    assert 502 == response.status_code
    assert "--tool-call-parser" in response.json()["error"]["message"]


async def test_a_key_that_vllm_refuses_makes_the_gateway_not_ready(plain: Front, ask_vllm: AskVllm) -> None:
    gateway = await ask_vllm(plain, backend={"api_key": "wrong"})
    ready = (await gateway.http.get("/health/ready")).json()
    assert not ready["parts"]["backend"]["ready"]
    assert "key" in ready["parts"]["backend"]["detail"]


async def test_a_missing_adapter_differs_from_a_missing_route(front: Front, tmp_path: Path) -> None:
    folder = tmp_path / "rft-20261122-0123456789ab"
    base = BaseFacts("base", "llama", layers=2, heads=4, kv_heads=2)
    adapter = Adapter(folder, Manifest(folder.name, base, "run", 4, "2026-11-22T00:00:00+00:00", {}, 8))
    backend = BackendSettings(kind="vllm", urls=(front.url,))
    with pytest.raises(PromotionError, match="does not see an adapter in"):
        await load(adapter, backend, PromotionSettings())
    folder.mkdir()
    await load(adapter, backend, PromotionSettings())
    await unload(folder.name, backend, drain_s=0)


async def test_one_text_that_is_too_long_costs_only_its_own_reward(tmp_path: Path) -> None:
    """The setting allows more than the server's 2,048 tokens; the server refuses a whole batch for one long text."""
    with Front(tmp_path / "reward", classifier=True) as server:
        model = str(tmp_path / "reward" / "model")
        scorer = RemoteScorer(RewardSettings(url=server.url, tokenizer=model, max_length_tokens=4096))
        question: list[Message] = [{"role": "user", "content": "hi"}]
        try:
            async with asyncio.timeout(60):
                while not (await scorer.readiness()).ready:
                    await asyncio.sleep(0.1)
            texts = ["short", "word " * 3_000, "longer text"]
            scores = await asyncio.gather(*(scorer.score(question, text) for text in texts), return_exceptions=True)
        finally:
            await scorer.aclose()
    assert isinstance(scores[0], Score)
    assert isinstance(scores[2], Score)
    assert scores[0].reward < scores[2].reward


async def test_a_missing_server_option_is_reported_as_the_operators_mistake(ask_vllm: AskVllm, tmp_path: Path) -> None:
    """No tool parser, and a key that the gateway does not know: /health is green all the same."""
    with Front(tmp_path / "bare", ("--api-key", "right")) as bare:
        gateway = await ask_vllm(bare, backend={"api_key": "right"})
        for choice in ("auto", "required"):
            response = await gateway.chat(messages=says("ok"), tools=[WEATHER], tool_choice=choice)
            assert (502, "backend_misconfigured") == (response.status_code, response.json()["error"]["code"])
        assert 200 == (await gateway.chat(messages=says("ok"))).status_code
        async with BackendPool(BackendSettings(kind="vllm", urls=(bare.url,), api_key="wrong")) as pool:
            found = await pool.readiness()
    assert (False, True) == (found.ready, "refuses the gateway's API key" in found.detail)


async def test_a_prompt_that_is_too_long_by_vllms_count_is_refused_before_it_is_drawn(front: Front) -> None:
    """With vLLM's numbers, and in the words that the gateway has for them."""
    words: list[Message] = [{"role": "user", "content": "word " * 3_000}]
    long = Prompt(words, Sampling())
    async with BackendPool(BackendSettings(kind="vllm", urls=(front.url,))) as pool:
        await pool.readiness()
        route = pool.choose_replica()
        race = [pool.complete(long, seed=seed, replica=route) for seed in range(4)]
        errors = await asyncio.gather(*race, return_exceptions=True)
    assert {ContextLengthExceeded} == {type(error) for error in errors}
    assert re.search(r"is 2048 tokens\. However, your messages have 3\d{3} tokens", str(errors[0]))


async def test_vllm_counts_messages_and_tools_as_it_counts_a_draw(front: Front) -> None:
    async def post(path: str, body: JsonObject) -> JsonObject:
        async with httpx2.AsyncClient() as http:
            response = await http.post(front.url + path, content=orjson.dumps(body), headers=JSON)
        assert 200 == response.status_code
        told: JsonObject = response.json()
        return told

    async with BackendPool(BackendSettings(kind="vllm", urls=(front.url,))) as pool:
        for tools in ((), (WEATHER,)):
            asked = Prompt([{"role": "user", "content": script("ok")}], Sampling(tools=tools))
            answer = await pool.complete(asked, seed=1, replica=0)
            assert answer.prompt_tokens == await FLAVOURS["vllm"].count(asked, post)
