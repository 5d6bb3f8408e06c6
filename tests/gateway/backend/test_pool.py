from __future__ import annotations

import asyncio
from contextlib import aclosing
from functools import partial
from typing import Any

import orjson
import pytest

from gateway.backend.limit import ServerLimit, ServerLimits
from gateway.backend.pool import BackendPool
from gateway.errors import (
    BackendError,
    BackendFailed,
    BackendKeyRefused,
    BackendOverloaded,
    BackendProtocolError,
    BackendRejected,
    BackendTimeout,
    BackendUnreachable,
    ContextLengthExceeded,
    GatewayError,
    InvalidRequest,
    UnsupportedField,
)
from gateway.settings import BackendSettings
from gateway.types import Backend, Prompt, Readiness, Sampling
from tests.gateway.backend.conftest import PoolOf, prompt
from tests.gateway.backend.rawserver import listening, ok, saying
from tests.stubs.knobs import Fault
from tests.stubs.tgi import TgiStub

WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


async def streamed(pool: BackendPool, asked: Prompt, seed: int = 1) -> str:
    return "".join([delta.text async for delta in pool.stream(asked, seed=seed, replica=0)])


async def test_the_pool_is_a_backend(stub: TgiStub, pool: BackendPool) -> None:
    backend: Backend = pool
    await backend.complete(prompt(), seed=1, replica=backend.choose_replica())
    assert 1 == stub.state.finished


async def test_the_same_seed_gives_the_same_answer_and_another_seed_another(pool: BackendPool) -> None:
    first, again, other = [await pool.complete(prompt(), seed=seed, replica=0) for seed in (1, 1, 2)]
    assert first == again
    assert first.text != other.text


async def test_a_stream_gives_the_same_answer_as_a_plain_draw(pool: BackendPool) -> None:
    answer = await pool.complete(prompt(), seed=1, replica=0)
    deltas = [delta async for delta in pool.stream(prompt(), seed=1, replica=0)]
    assert answer.text == "".join(delta.text for delta in deltas)
    last = deltas[-1]
    counts = (last.finish_reason, last.prompt_tokens, last.completion_tokens)
    assert (answer.finish_reason, answer.prompt_tokens, answer.completion_tokens) == counts


@pytest.mark.parametrize("seed", range(5))
async def test_stop_strings_are_cut_off_whole_or_streamed(pool: BackendPool, seed: int) -> None:
    whole = (await pool.complete(prompt(), seed=seed, replica=0)).text or ""
    stop = whole[len(whole) // 2 :][:3]
    asked = prompt(stop=(stop,))
    answer = await pool.complete(asked, seed=seed, replica=0)
    assert (whole[: whole.index(stop)], "stop") == (answer.text, answer.finish_reason)
    assert answer.text == await streamed(pool, asked, seed)


async def test_a_stream_that_runs_past_a_stop_string_is_closed(stub: TgiStub, pool: BackendPool) -> None:
    """TGI looks for stop strings at the end of a token only; one within a token would cost tokens up to max_tokens."""
    stub.knobs.update({"answer_tokens_min": 90, "tokens_per_s": 200})
    pieces = [delta.text async for delta in pool.stream(prompt(max_tokens=12), seed=1, replica=0)]
    within = next(piece for piece in pieces[1:] if len(piece.strip()) > 2).strip()[0]
    asked = prompt(stop=(within,))
    assert within not in await streamed(pool, asked)
    await stub.state.until(lambda state: state.generating == 0)
    assert stub.state.tokens_generated < 90


async def test_tool_calls_come_in_openais_terms_whole_and_streamed(pool: BackendPool) -> None:
    asked = prompt(tools=(WEATHER,), tool_choice="required", max_tokens=200)
    answer = await pool.complete(asked, seed=1, replica=0)
    assert ("tool_calls", None) == (answer.finish_reason, answer.text)
    called = answer.tool_calls[0]["function"]
    deltas = [delta async for delta in pool.stream(asked, seed=1, replica=0)]
    pieces = [piece["function"] for delta in deltas for piece in delta.tool_calls]
    assert "tool_calls" == deltas[-1].finish_reason
    assert called["name"] == "".join(piece.get("name", "") for piece in pieces)
    arguments = "".join(piece["arguments"] for piece in pieces)
    assert orjson.loads(called["arguments"]) == orjson.loads(arguments)


@pytest.mark.parametrize(("max_tokens", "named"), [(3, False), (7, True)])
async def test_a_tool_call_cut_short_is_an_answer_of_finish_reason_length(
    pool: BackendPool, max_tokens: int, named: bool
) -> None:
    """TGI answers 422, or ends its stream silently; nobody is at fault."""
    asked = prompt(tools=(WEATHER,), tool_choice="required", max_tokens=max_tokens)
    answer = await pool.complete(asked, seed=1, replica=0)
    assert (None, "length", max_tokens) == (answer.text, answer.finish_reason, answer.completion_tokens)
    assert ["weather"] * named == [call["function"]["name"] for call in answer.tool_calls]
    deltas = [delta async for delta in pool.stream(asked, seed=1, replica=0)]
    assert ("length", max_tokens) == (deltas[-1].finish_reason, deltas[-1].completion_tokens)
    assert named == any(delta.tool_calls for delta in deltas)


@pytest.mark.parametrize(("max_tokens", "finish"), [(4, "length"), (400, "stop")])
async def test_a_text_in_place_of_a_call_has_its_own_finish_reason_and_usage(
    pool: BackendPool, max_tokens: int, finish: str
) -> None:
    """TGI reports the hidden draw in which the model chose no tool."""
    plain = prompt(max_tokens=max_tokens, logprobs=True)
    asked = prompt(max_tokens=max_tokens, logprobs=True, tools=(WEATHER,))
    alone = await pool.complete(plain, seed=1, replica=0)
    answer = await pool.complete(asked, seed=1, replica=0)
    assert (alone.text, finish, None) == (answer.text, answer.finish_reason, answer.logprobs)
    assert alone.completion_tokens < answer.completion_tokens  # both draws are paid
    streamed = [delta async for delta in pool.stream(asked, seed=1, replica=0)][-1]
    assert (finish, alone.completion_tokens) == (streamed.finish_reason, streamed.completion_tokens)


async def test_logprobs_are_one_entry_a_token(pool: BackendPool) -> None:
    answer = await pool.complete(prompt(logprobs=True, top_logprobs=2, max_tokens=5), seed=1, replica=0)
    assert answer.logprobs is not None
    assert [2] * 5 == [len(entry["top_logprobs"]) for entry in answer.logprobs["content"]]


async def test_a_field_that_the_backend_cannot_serve_is_refused_by_name(pool: BackendPool) -> None:
    with pytest.raises(UnsupportedField):
        pool.check(Sampling(logit_bias={"5": 1.0}))


FAULTS = [
    ({"fault": Fault.STATUS, "fault_status": 500}, BackendFailed),
    ({"fault": Fault.STATUS, "fault_status": 424}, BackendFailed),
    ({"fault": Fault.STATUS, "fault_status": 404}, BackendFailed),
    ({"fault": Fault.STATUS, "fault_status": 422}, BackendRejected),
    ({"fault": Fault.STATUS, "fault_status": 413}, BackendRejected),
    ({"fault": Fault.HTML, "fault_status": 504}, BackendTimeout),
    ({"fault": Fault.HTML, "fault_status": 401}, BackendKeyRefused),
    ({"fault": Fault.HTML, "fault_status": 302}, BackendProtocolError),
    ({"fault": Fault.HTML, "fault_status": 200}, BackendProtocolError),
    ({"fault": Fault.HALF_JSON}, BackendProtocolError),
    ({"fault": Fault.EMPTY}, BackendProtocolError),
    ({"fault": Fault.GARBAGE}, BackendProtocolError),
    ({"fault": Fault.ERROR_FRAME, "fault_after_tokens": 3}, BackendFailed),
    ({"fault": Fault.HANG}, BackendTimeout),
    ({"fault": Fault.DISCONNECT, "fault_after_tokens": 3}, BackendUnreachable),
]


@pytest.mark.parametrize("mode", ["plain", "streamed"])
@pytest.mark.parametrize(("knobs", "expected"), FAULTS)
async def test_every_failure_has_its_error_and_the_next_draw_is_unharmed(
    stub: TgiStub, pool_of: PoolOf, knobs: dict[str, Any], expected: type[GatewayError], mode: str
) -> None:
    pool = pool_of(stub.url, request_timeout_s=1.0 if knobs["fault"] is Fault.HANG else 60)
    secret = prompt("a secret question")
    stub.knobs.update({**knobs, "fault_next": 1})
    with pytest.raises(BackendError) as failed:
        await (pool.complete(secret, seed=1, replica=0) if mode == "plain" else streamed(pool, secret))
    assert expected is type(failed.value)
    assert "secret" not in failed.value.message
    assert await streamed(pool, secret) == (await pool.complete(secret, seed=1, replica=0)).text


async def test_a_request_that_is_too_long_is_refused_with_numbers(stub: TgiStub, pool: BackendPool) -> None:
    stub.knobs.update({"max_input_tokens": 3})
    for draw in (pool.complete(prompt("one two three four"), seed=1, replica=0), streamed(pool, prompt("a b c d"))):
        with pytest.raises(ContextLengthExceeded, match="maximum context length is 3 tokens"):
            await draw


async def test_overload_is_raised_once_the_queue_time_is_over(stub: TgiStub) -> None:
    """TGI reports it in a stream as 200 and an error frame that calls itself 422."""
    stub.knobs.update({"max_concurrent_requests": 0})
    limits = ServerLimits(partial(ServerLimit, queue_timeout_s=0.2))
    async with BackendPool(BackendSettings(urls=(stub.url,)), limits=limits) as pool:
        for draw in (pool.complete(prompt(), seed=1, replica=0), streamed(pool, prompt())):
            with pytest.raises(BackendOverloaded):
                await draw
    assert stub.state.overloaded >= 4


@pytest.mark.parametrize("status", [429, 503])
async def test_a_refused_draw_is_sent_again_and_served(stub: TgiStub, pool: BackendPool, status: int) -> None:
    expected = await pool.complete(prompt(), seed=1, replica=0)
    stub.knobs.update({"fault": Fault.HTML, "fault_status": status, "fault_next": 2})
    assert expected == await pool.complete(prompt(), seed=1, replica=0)
    stub.knobs.update({"fault": Fault.HTML, "fault_status": status, "fault_next": 2})
    assert expected.text == await streamed(pool, prompt())


async def test_draws_beyond_the_servers_capacity_wait_and_none_is_refused(stub: TgiStub, pool: BackendPool) -> None:
    """The server says at /info how many it takes."""
    stub.knobs.update({"max_concurrent_requests": 3, "latency_ms": 20})
    await asyncio.gather(*(pool.complete(prompt(), seed=seed, replica=0) for seed in range(20)))
    assert (20, 0) == (stub.state.finished, stub.state.overloaded)


async def test_all_draws_are_served_although_another_client_uses_the_capacity(stub: TgiStub, pool: BackendPool) -> None:
    """Another client of the same server has taken the rest."""
    stub.knobs.update({"max_concurrent_requests": 64, "latency_ms": 20})
    await pool.complete(prompt(), seed=1, replica=0)
    stub.knobs.update({"max_concurrent_requests": 3})
    await asyncio.gather(*(pool.complete(prompt(), seed=seed, replica=0) for seed in range(40)))
    assert 41 == stub.state.finished


async def test_an_answer_that_comes_in_small_pieces_is_read_whole(stub: TgiStub, pool: BackendPool) -> None:
    expected = await pool.complete(prompt(), seed=1, replica=0)
    stub.knobs.update({"fault": Fault.DRIP, "fault_next": 1, "drip_interval_ms": 0})
    assert expected == await pool.complete(prompt(), seed=1, replica=0)


@pytest.mark.parametrize(
    "answer",
    [
        ok(b'{"error": "x"}').replace(b"200 OK", b"500 Oops"),
        ok(b'["x"]').replace(b"200 OK", b"500 Oops"),
        ok(b'"\xff"').replace(b"200 OK", b"500 Oops"),
        ok(b"[" * 100_000),
        ok(b"{}", b"Content-Encoding: gzip"),
        b"not HTTP\r\n\r\n",
    ],
)
async def test_any_bytes_of_an_answer_give_an_answer_or_a_backends_error(pool_of: PoolOf, answer: bytes) -> None:
    async with listening(saying(answer)) as url:
        for draw in (pool_of(url).complete(prompt(), seed=1, replica=0), streamed(pool_of(url), prompt())):
            with pytest.raises((BackendFailed, BackendProtocolError)):
                await draw


@pytest.mark.parametrize("answer", [b"{}", b"[]", b'{"choices": []}', b'{"choices": [{"message": {}}]}', b'"x"'])
async def test_a_malformed_answer_to_a_request_with_tools_is_the_backends_error(pool_of: PoolOf, answer: bytes) -> None:
    """TGI's usage and finish reason are corrected there before the answer is read."""
    async with listening(saying(ok(answer))) as url:
        with pytest.raises(BackendProtocolError):
            await pool_of(url, kind="tgi").complete(prompt(tools=(WEATHER,)), seed=1, replica=0)


async def test_an_invalid_url_of_a_policy_is_an_unreachable_backend(pool_of: PoolOf) -> None:
    pool = pool_of("http://127.0.0.1:port")
    for draw in (pool.complete(prompt(), seed=1, replica=0), streamed(pool, prompt())):
        with pytest.raises(BackendUnreachable):
            await draw
    assert not (await pool.readiness()).ready


async def test_text_that_is_not_unicode_is_the_callers_mistake(pool: BackendPool) -> None:
    with pytest.raises(InvalidRequest, match="messages"):
        await pool.complete(prompt("\ud800"), seed=1, replica=0)


async def test_a_cancelled_draw_stops_generation(stub: TgiStub, pool: BackendPool) -> None:
    stub.knobs.update({"latency_ms": 60_000})
    task = asyncio.create_task(pool.complete(prompt(), seed=1, replica=0))
    await stub.state.until(lambda state: state.generating == 1)
    task.cancel()
    await stub.state.until(lambda state: state.cancelled == 1)
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()


async def test_a_stream_closed_early_stops_generation(stub: TgiStub, pool: BackendPool) -> None:
    stub.knobs.update({"tokens_per_s": 20, "answer_tokens_min": 96})
    async with aclosing(pool.stream(prompt(), seed=1, replica=0)) as deltas:
        await anext(deltas)
    await stub.state.until(lambda state: state.cancelled == 1)
    assert stub.state.tokens_generated < 90


async def test_a_draw_moves_to_another_replica_if_its_own_is_gone(
    stub: TgiStub, other_stub: TgiStub, pool_of: PoolOf
) -> None:
    """The same seed gives the same answer there."""
    pool = pool_of(stub.url, other_stub.url, request_timeout_s=60)
    expected = await pool.complete(prompt(), seed=1, replica=0)
    await stub.stop()
    assert expected == await pool.complete(prompt(), seed=1, replica=0)
    assert expected.text == await streamed(pool, prompt())
    assert expected == await pool.complete(prompt(), seed=1, replica=pool.choose_replica())
    assert 3 == other_stub.state.finished


async def test_a_draw_moves_when_the_connection_breaks_half_way(
    stub: TgiStub, other_stub: TgiStub, pool_of: PoolOf
) -> None:
    pool = pool_of(stub.url, other_stub.url)
    stub.knobs.update({"fault": Fault.DISCONNECT, "fault_next": 1, "fault_after_tokens": 3})
    await pool.complete(prompt(), seed=1, replica=0)
    assert (1, 1) == (stub.state.failed, other_stub.state.finished)


async def test_a_stream_that_has_begun_is_not_retried(stub: TgiStub, other_stub: TgiStub, pool_of: PoolOf) -> None:
    pool = pool_of(stub.url, other_stub.url)
    stub.knobs.update({"fault": Fault.DISCONNECT, "fault_next": 1, "fault_after_tokens": 3})
    with pytest.raises(BackendUnreachable):
        await streamed(pool, prompt())
    assert 0 == other_stub.state.started


async def test_with_every_replica_gone_the_draw_is_unreachable(
    stub: TgiStub, other_stub: TgiStub, pool_of: PoolOf
) -> None:
    pool = pool_of(stub.url, other_stub.url)
    await stub.stop()
    await other_stub.stop()
    for draw in (pool.complete(prompt(), seed=1, replica=0), streamed(pool, prompt())):
        with pytest.raises(BackendUnreachable):
            await draw


async def test_readiness_names_the_replicas_with_a_problem(stub: TgiStub, other_stub: TgiStub, pool_of: PoolOf) -> None:
    pool = pool_of(stub.url, other_stub.url + "/v1")
    names = [url.removeprefix("http://") for url in (stub.url, other_stub.url)]
    limits = {name: {"max_tokens": 4096, "max_input_tokens": 4095, "max_draws": 128} for name in names}
    facts = {"replicas": dict.fromkeys(names, "ok"), "limits": limits}
    assert Readiness(True, "", facts) == await pool.readiness()
    other_stub.knobs.update({"healthy": False})
    sick = await pool.readiness()
    assert (True, f"{names[1]}: its health check answers with status 503") == (sick.ready, sick.detail)
    await stub.stop()
    assert not (await pool.readiness()).ready


async def test_a_replica_whose_health_check_succeeds_is_chosen_again(
    stub: TgiStub, other_stub: TgiStub, pool_of: PoolOf
) -> None:
    pool = pool_of(stub.url, other_stub.url, unhealthy_s=1000)
    await stub.stop()
    await pool.readiness()
    for _ in range(2):
        await pool.complete(prompt(), seed=1, replica=pool.choose_replica())
    assert 2 == other_stub.state.finished
    await stub.start()
    await pool.readiness()
    await pool.complete(prompt(), seed=1, replica=pool.choose_replica())
    assert 1 == stub.state.finished


async def test_an_adapter_is_addressed_as_a_model(stub: TgiStub, pool: BackendPool) -> None:
    stub.knobs.update({"adapters": ["rft-1"]})
    base, tuned = [await pool.complete(prompt(adapter=name), seed=1, replica=0) for name in (None, "rft-1")]
    assert base.text != tuned.text
    assert ["tgi", "rft-1"] == [orjson.loads(request.body)["model"] for request in stub.state.requests]


@pytest.mark.parametrize(("key", "ready"), [("right", True), ("wrong", False), ("", False)])
async def test_readiness_reports_a_wrong_key(stub: TgiStub, pool_of: PoolOf, key: str, ready: bool) -> None:
    """TGI's health check needs no key."""
    stub.knobs.update({"api_key": "right"})
    found = await pool_of(stub.url, api_key=key).readiness()
    assert ready == found.ready
    assert ("refuses the gateway's API key" in found.detail) == (not ready)
