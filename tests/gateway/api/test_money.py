"""A key pays over HTTP for every token drawn, however its request ends (see best_of_n/test_billing.py)."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from gateway.api.keyfile import new_key
from gateway.journal.record import CompletionRecord
from gateway.types import Selection
from tests.redis_server import RedisServer
from tests.serving import Serve, Served
from tests.stubs.knobs import Fault, Knobs

# A bucket of 60 refills by one token a second: slowly enough to read what was paid.
LIMIT = 60
SLACK = 8


async def with_key(serve: Serve, folder: Path, tgi: Knobs | None = None, **groups: Any) -> tuple[Served, Any]:
    key, line = new_key("app", limits={"tokens_per_minute": LIMIT})
    (folder / "keys").write_text(line)
    api = {"keys_file": folder / "keys", "keep_alive_s": 20.0, **groups.pop("api", {})}
    return await serve(tgi, api=api, **groups), {"Authorization": f"Bearer {key}"}


async def paid(served: Served) -> float:
    """Return the tokens that are missing from the key's bucket, once something has been paid."""
    async with Redis.from_url(served.settings.redis.url) as redis, asyncio.timeout(20):
        while not (keys := [key async for key in redis.scan_iter("ratchet:limits:*:buckets")]):
            await asyncio.sleep(0.01)
        full_at = int(await redis.hget(keys[0], "tokens_per_minute") or 0)
        seconds, microseconds = await redis.time()
    return (full_at - seconds * 1_000_000 - microseconds) * LIMIT / 60e6


def drawn(served: Served) -> int:
    """Return the tokens that the stub drew, those of cancelled calls included."""
    return served.tgi.state.tokens_generated


@pytest.mark.parametrize("fields", [{"best_of": 1}, {"best_of": 3}, {"best_of": 3, "n": 2}, {"n": 2, "seed": 7}])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_costs_its_prompt_once_and_every_candidate(
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
    """Request a stream, read some of it, and close the connection."""
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
async def test_a_request_that_ends_with_an_error_pays_for_what_was_drawn(
    serve: Serve, redis_server: RedisServer, tmp_path: Path, fields: dict[str, Any]
) -> None:
    knobs = Knobs(tokens_per_s=50, answer_tokens_min=90)
    served, bearer = await with_key(serve, tmp_path, knobs, race={"deadline_s": 0.5})
    answer = await served.chat(**fields, headers=bearer)
    assert "deadline_exceeded" in answer.text
    await served.tgi.state.until(lambda state: state.cancelled == fields["best_of"])
    assert drawn(served) > 10
    assert drawn(served) - SLACK <= await paid(served)


@pytest.mark.parametrize("fields", [{"best_of": 1}, {"best_of": 4}, {"best_of": 1, "stream": True}])
async def test_tokens_that_were_never_drawn_are_not_paid(
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
