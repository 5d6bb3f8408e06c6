"""A race pays for every token drawn, whatever ends it; and a stream that was cut has its record."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from redis.asyncio import Redis

from gateway.api.keyfile import new_key
from gateway.best_of_n.cost import most_prompt_tokens
from gateway.journal.record import CompletionRecord
from gateway.metering import tokens_at_most
from gateway.policy import PolicyStore
from gateway.types import Prompt, Sampling, Selection
from tests.redis_server import RedisServer
from tests.serving import MESSAGES, Serve, Served
from tests.stubs.knobs import Fault, Knobs
from tests.stubs.tgi import TgiStub

# A bucket of 60 refills by one token a second: what was paid can be read off before it is refilled.
LIMIT = 60
SLACK = 8


async def with_key(serve: Serve, folder: Path, tgi: Knobs | None = None, **groups: Any) -> tuple[Served, Any]:
    key, line = new_key("app", limits={"tokens_per_minute": LIMIT})
    (folder / "keys").write_text(line)
    api = {"keys_file": folder / "keys", "keep_alive_s": 20.0, **groups.pop("api", {})}
    return await serve(tgi, api=api, **groups), {"Authorization": f"Bearer {key}"}


async def paid(served: Served) -> float:
    """Tokens that the key owes to its bucket, once something has been paid."""
    async with Redis.from_url(served.settings.redis.url) as redis, asyncio.timeout(20):
        while not (keys := [key async for key in redis.scan_iter("ratchet:limits:*:buckets")]):
            await asyncio.sleep(0.01)
        full_at = int(await redis.hget(keys[0], "tokens_per_minute") or 0)
        seconds, microseconds = await redis.time()
    return (full_at - seconds * 1_000_000 - microseconds) * LIMIT / 60e6


def drawn(served: Served) -> int:
    """Tokens that the stub drew, those of cancelled draws included."""
    return served.tgi.state.tokens_generated


@pytest.mark.parametrize("fields", [{"best_of": 1}, {"best_of": 3}, {"best_of": 3, "n": 2}, {"n": 2, "seed": 7}])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_costs_its_prompt_once_and_every_draw(
    serve: Serve, redis_server: RedisServer, tmp_path: Path, fields: dict[str, Any], stream: bool
) -> None:
    served, bearer = await with_key(serve, tmp_path, Knobs(answer_tokens_min=60))
    options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    answer = await served.chat(**fields, **options, headers=bearer)
    assert 200 == answer.status_code
    chunks = [json.loads(line[6:]) for line in answer.text.split("\n") if line.startswith("data: {")]
    prompt = (chunks[-1] if stream else answer.json())["usage"]["prompt_tokens"]
    assert prompt > 0
    cost = prompt + drawn(served)
    assert cost - SLACK < await paid(served) <= cost
    assert 429 == (await served.chat(**fields, headers=bearer)).status_code


async def hang_up(served: Served, bearer: Any, *, after_events: int, **fields: Any) -> None:
    """Ask for a stream, read some of it, and close the connection."""
    body = {"model": "ratchet", "messages": [{"role": "user", "content": "hi"}], "stream": True, **fields}
    async with served.http.stream("POST", "/v1/chat/completions", json=body, headers=bearer) as response:
        assert 200 == response.status_code
        events = 0
        async for line in response.aiter_lines():
            events += line.startswith("data: ")
            if events == after_events:
                break


async def test_a_stream_whose_reader_hangs_up_pays_for_what_was_drawn(
    serve: Serve, redis_server: RedisServer, tmp_path: Path
) -> None:
    served, bearer = await with_key(serve, tmp_path, Knobs(tokens_per_s=50, answer_tokens_min=90))
    await hang_up(served, bearer, after_events=20, best_of=1)
    await served.tgi.state.until(lambda state: state.cancelled == 1)
    await served.tgi.state.until(lambda state: state.generating == 0)
    found = await paid(served)
    assert drawn(served) - SLACK <= found
    assert found < drawn(served) + 250  # the prompt, at its bytes
    [record] = await served.records(1)
    assert isinstance(record, CompletionRecord)
    assert ("cut", [], Selection.SINGLE) == (record.ending, record.winners, record.selection)
    assert 15 < record.usage.generated_tokens == record.candidates[0].cut_at_tokens
    assert record.candidates[0].text is None
    assert 0 == record.usage.returned_tokens
    metrics = (await served.http.get("/metrics")).text
    assert 'ratchet_errors_total{kind="ClientGone"} 1.0' in metrics


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("max_tokens", [None, 20])
async def test_a_race_whose_caller_hangs_up_pays_for_what_may_have_been_drawn(
    serve: Serve, redis_server: RedisServer, tmp_path: Path, stream: bool, max_tokens: int | None
) -> None:
    served, bearer = await with_key(serve, tmp_path, Knobs(tokens_per_s=50, answer_tokens_min=90))
    asking = asyncio.create_task(served.chat(best_of=4, stream=stream, max_tokens=max_tokens, headers=bearer))
    await served.tgi.state.until(lambda state: state.generating == 4)
    await asyncio.sleep(0.2)
    asking.cancel()
    await served.tgi.state.until(lambda state: state.cancelled == 4)
    found = await paid(served)
    assert drawn(served) - SLACK <= found
    if max_tokens is not None:
        assert found <= 4 * max_tokens + 300


@pytest.mark.parametrize("fields", [{"best_of": 2}, {"best_of": 1, "stream": True}])
async def test_a_race_without_an_answer_before_its_deadline_pays(
    serve: Serve, redis_server: RedisServer, tmp_path: Path, fields: dict[str, Any]
) -> None:
    knobs = Knobs(tokens_per_s=50, answer_tokens_min=90)
    served, bearer = await with_key(serve, tmp_path, knobs, race={"deadline_s": 0.5})
    answer = await served.chat(**fields, headers=bearer)
    assert "deadline_exceeded" in answer.text
    await served.tgi.state.until(lambda state: state.cancelled == fields["best_of"])
    assert drawn(served) > 10
    assert drawn(served) - SLACK <= await paid(served)


async def test_draws_that_a_quorum_cuts_are_paid(serve: Serve, redis_server: RedisServer, tmp_path: Path) -> None:
    knobs = Knobs(tokens_per_s=100, answer_tokens_min=20, answer_tokens_max=90)
    served, bearer = await with_key(serve, tmp_path, knobs, race={"quorum": 0.25, "quorum_after_s": 0.1})
    report = (await served.chat(best_of=4, headers=bearer)).json()["best_of_n"]
    assert report["deadline_hit"]
    await served.tgi.state.until(lambda state: state.generating == 0)
    assert drawn(served) > report["generated_tokens"]
    assert drawn(served) - SLACK <= await paid(served)


@pytest.mark.parametrize("fault", [Fault.ERROR_FRAME, Fault.DISCONNECT])
async def test_a_stream_that_fails_in_its_middle_pays_and_is_recorded(
    serve: Serve, redis_server: RedisServer, tmp_path: Path, fault: Fault
) -> None:
    knobs = Knobs(fault=fault, fault_next=1, fault_after_tokens=30, tokens_per_s=200, answer_tokens_min=90)
    served, bearer = await with_key(serve, tmp_path, knobs)
    answer = await served.chat(best_of=1, stream=True, headers=bearer)
    assert (200, True) == (answer.status_code, '"error"' in answer.text)
    assert 30 - SLACK <= await paid(served) < 30 + 250
    [record] = await served.records(1)
    assert isinstance(record, CompletionRecord)
    assert ("failed", []) == (record.ending, record.winners)
    assert record.candidates[0].error in {"BackendFailed", "BackendUnreachable"}
    assert 29 <= record.usage.generated_tokens <= 60


async def test_a_replica_that_breaks_and_the_one_that_takes_over_are_both_paid(
    serve: Serve, redis_server: RedisServer, tmp_path: Path
) -> None:
    breaks = Knobs(fault=Fault.DISCONNECT, fault_probability=1.0, fault_after_tokens=40, tokens_per_s=200)
    async with TgiStub(breaks) as broken, TgiStub(Knobs(tokens_per_s=200)) as other:
        served, bearer = await with_key(serve, tmp_path, backend={"urls": (broken.url, other.url)})
        answer = await served.chat(best_of=1, max_tokens=90, headers=bearer)
        assert 200 == answer.status_code
        both = broken.state.tokens_generated + other.state.tokens_generated
        assert both > answer.json()["usage"]["completion_tokens"] == other.state.tokens_generated
        assert both - SLACK <= await paid(served) <= both + 90


@pytest.mark.parametrize("stream", [False, True])
async def test_the_draws_of_a_failed_arm_are_paid_beside_those_that_answer(
    serve: Serve, redis_server: RedisServer, tmp_path: Path, stream: bool
) -> None:
    breaks = Knobs(fault=Fault.ERROR_FRAME, fault_probability=1.0, fault_after_tokens=40, tokens_per_s=200)
    async with TgiStub(breaks) as canary:
        served, bearer = await with_key(serve, tmp_path, policy={"n": 3, "refresh_s": 0.05})
        await publish(served, canary={"n": 2, "urls": (canary.url,), "share": 0.999})
        answer = await served.chat(stream=stream, max_tokens=90, headers=bearer)
        assert '"arm_failed":"canary"' in answer.text
        both = canary.state.tokens_generated + drawn(served)
        assert canary.state.tokens_generated > 40
        assert both - SLACK <= await paid(served) <= both + 2 * 90


async def publish(served: Served, **changes: Any) -> None:
    """Publish a policy and wait until it holds, without a request that the key would pay for."""
    settings = served.settings
    store = PolicyStore(settings.policy, settings.redis, folder=settings.journal.spool_dir, n_limit=16)
    async with aclosing(store):
        await store.refresh()
        await store.publish(store.current.successor(reason="test", **changes))
        version = f"ratchet_policy_version {float(store.current.version)}"
    async with asyncio.timeout(20):
        while version not in (await served.http.get("/metrics")).text:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("fields", [{"best_of": 1}, {"best_of": 4}, {"best_of": 1, "stream": True}])
async def test_what_was_never_drawn_is_not_paid(
    serve: Serve, redis_server: RedisServer, tmp_path: Path, fields: dict[str, Any]
) -> None:
    served, bearer = await with_key(serve, tmp_path, Knobs(fault=Fault.STATUS, fault_status=429, fault_probability=1.0))
    for changed in ({}, {"temperature": 9}, {"model": "unknown"}):
        assert 400 <= (await served.chat(**{**fields, **changed}, headers=bearer)).status_code < 500
    await served.tgi.stop()
    assert 502 == (await served.chat(**fields, headers=bearer)).status_code
    served.tgi.knobs.update({"fault": "none"})
    await served.tgi.start()
    await asyncio.sleep(0.1)
    assert await paid_by_now(served) <= 1


async def paid_by_now(served: Served) -> float:
    async with Redis.from_url(served.settings.redis.url) as redis:
        return await paid(served) if await redis.keys("ratchet:limits:*:buckets") else 0.0


PROMPT_BYTES = most_prompt_tokens(Prompt([{"role": "user", "content": MESSAGES[0]["content"]}], Sampling()))
SAID = "naïve 🐝 words " * 5


def event(**fields: Any) -> str:
    return f"data: {json.dumps(fields)}\n\n"


def piece(delta: dict[str, Any], finish_reason: str | None = None, **fields: Any) -> str:
    return event(choices=[{"index": 0, "delta": delta, "finish_reason": finish_reason}], **fields)


CALL = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": "' + "x" * 80 + '"}'}}
RUNNING = {"prompt_tokens": 30, "completion_tokens": 41, "total_tokens": 71}
# What a server without a usage chunk says, and what that costs beside the prompt: as many tokens as bytes, and one for
# a piece without text.
STREAMS: dict[str, tuple[list[str], int]] = {
    "words": ([*[piece({"content": "word "})] * 80, piece({}, "stop")], 401),
    "one piece": ([piece({"content": SAID}), piece({}, "stop")], len(SAID.encode()) + 1),
    "reasoning": ([*[piece({"reasoning": "hm "})] * 80, piece({"content": "no"}, "stop")], 242),
    "a call": ([piece({"tool_calls": [CALL]}), piece({}, "tool_calls")], tokens_at_most([[CALL]]) + 1),
    "breaks": ([*[piece({"content": "word "})] * 80], 400),
    "an error": ([*[piece({"content": "word "})] * 80, event(error={"message": "broke", "code": 500})], 400),
    "running counts": ([piece({"content": "a" * 500}, usage=RUNNING)], 71 - PROMPT_BYTES),
}


@asynccontextmanager
async def server_that_says(events: Sequence[str] | dict[str, Any]) -> AsyncIterator[str]:
    """A server of vLLM's kind that answers each chat with these events, or this body."""

    async def chat(request: web.Request) -> web.StreamResponse:
        if isinstance(events, dict):
            return web.json_response(events)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for one in events:
            await response.write(one.encode())
        return response

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "base", "parent": None}]})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_get("/v1/models", models)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("name", STREAMS)
async def test_a_stream_without_a_usage_chunk_pays(
    serve: Serve, redis_server: RedisServer, tmp_path: Path, name: str
) -> None:
    events, cost = STREAMS[name]
    async with server_that_says(events) as url:
        served, bearer = await with_key(serve, tmp_path, backend={"kind": "vllm", "urls": (url,)})
        assert 200 == (await served.chat(best_of=1, stream=True, headers=bearer)).status_code
        assert cost + PROMPT_BYTES - SLACK < await paid(served) <= cost + PROMPT_BYTES
        await asyncio.sleep(0.05)
        assert 429 == (await served.chat(best_of=1, stream=True, headers=bearer)).status_code


@pytest.mark.parametrize("max_tokens", [79, 80, 81])
async def test_without_a_count_no_stream_pays_more_than_its_max_tokens(
    serve: Serve, redis_server: RedisServer, tmp_path: Path, max_tokens: int
) -> None:
    async with server_that_says(STREAMS["words"][0]) as url:
        served, bearer = await with_key(serve, tmp_path, backend={"kind": "vllm", "urls": (url,)})
        await served.chat(best_of=1, stream=True, max_tokens=max_tokens, headers=bearer)
        assert max_tokens + PROMPT_BYTES - SLACK < await paid(served) <= max_tokens + PROMPT_BYTES
        [record] = await served.records(1)
        assert isinstance(record, CompletionRecord)
        assert max_tokens == record.usage.generated_tokens


@pytest.mark.parametrize("best_of", [1, 3])
@pytest.mark.parametrize("finish_reason", ["stop", "abort", "error", "nonsense"])
async def test_whole_answers_without_a_count_pay_for_their_size(
    serve: Serve, redis_server: RedisServer, tmp_path: Path, best_of: int, finish_reason: str
) -> None:
    message = {"role": "assistant", "content": "word " * 80}
    body = {"choices": [{"index": 0, "message": message, "finish_reason": finish_reason}]}
    async with server_that_says(body) as url:
        served, bearer = await with_key(serve, tmp_path, backend={"kind": "vllm", "urls": (url,)})
        assert 502 == (await served.chat(best_of=best_of, headers=bearer)).status_code
        assert best_of * 400 + PROMPT_BYTES - SLACK <= await paid(served)
        assert 429 == (await served.chat(best_of=best_of, headers=bearer)).status_code
