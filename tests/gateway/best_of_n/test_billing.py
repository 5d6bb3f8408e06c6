"""Each request costs its prompt and every token drawn for it, whatever ends it."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from typing import Any

import pytest

from gateway.best_of_n.cost import most_prompt_tokens
from gateway.errors import DeadlineExceeded, GatewayError
from gateway.metering import tokens_at_most
from gateway.policy import Canary, Policy
from gateway.types import Outcome, Prompt, Sampling
from tests.gateway.best_of_n.conftest import Answering, StartAnswering, server_that_sends
from tests.gateway.best_of_n.fakes import HELLO
from tests.stubs.knobs import Fault, Knobs
from tests.stubs.tgi import TgiStub

PROMPT_BYTES = most_prompt_tokens(Prompt(HELLO, Sampling()))


def cost(answering: Answering) -> int:
    """Return the cost of the last request, in tokens."""
    return answering.jobs[-1].cost_tokens()


async def finish_draws(stub: TgiStub) -> int:
    """Wait until the stub has noticed every cancelled call; return the tokens it drew."""
    await stub.state.until(lambda state: state.generating == 0)
    return stub.state.tokens_generated


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "fields", [{"best_of": 1}, {"best_of": 3}, {"best_of": 3, "n_returned": 2}, {"n_returned": 2, "seed": 7}]
)
async def test_an_answer_costs_its_prompt_once_and_every_candidate(
    start: StartAnswering, fields: dict[str, Any], stream: bool
) -> None:
    answering = await start()
    assert 0 == answering.accept(**fields).cost_tokens()
    outcome = await answering.finish(stream=stream, **fields)
    assert isinstance(outcome, Outcome)
    assert outcome.prompt_tokens > 0
    assert outcome.prompt_tokens + answering.drawn_tokens == cost(answering)


async def test_a_stream_that_its_caller_leaves_costs_what_was_drawn(start: StartAnswering) -> None:
    answering = await start(Knobs(tokens_per_s=50, answer_tokens_min=90))
    async with aclosing(answering.answerer.stream(answering.accept(best_of=1))) as stream:
        for _ in range(20):
            await anext(stream)
    drawn = await finish_draws(answering.tgi)
    # The stub counts what it drew until it noticed; the gateway what came, and the prompt at its bytes.
    assert 20 + PROMPT_BYTES <= cost(answering) <= drawn + PROMPT_BYTES


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("max_tokens", [None, 20])
async def test_a_cancelled_race_costs_what_may_have_been_drawn(
    start: StartAnswering, stream: bool, max_tokens: int | None
) -> None:
    answering = await start(Knobs(tokens_per_s=50, answer_tokens_min=90))
    racing = asyncio.create_task(answering.finish(stream=stream, best_of=4, max_tokens=max_tokens))
    await answering.tgi.state.until(lambda state: state.generating == 4)
    await asyncio.sleep(0.2)
    racing.cancel()
    await asyncio.wait([racing])
    assert await finish_draws(answering.tgi) <= cost(answering)
    if max_tokens is not None:
        assert cost(answering) <= 4 * max_tokens + PROMPT_BYTES


@pytest.mark.parametrize(("best_of", "stream"), [(2, False), (1, True)])
async def test_a_race_without_an_answer_before_its_deadline_costs_what_was_drawn(
    start: StartAnswering, best_of: int, stream: bool
) -> None:
    answering = await start(Knobs(tokens_per_s=50, answer_tokens_min=90), race={"deadline_s": 0.5})
    assert isinstance(await answering.finish(stream=stream, best_of=best_of), DeadlineExceeded)
    assert 10 < await finish_draws(answering.tgi)
    assert answering.drawn_tokens - 1 <= cost(answering)


async def test_candidates_that_a_quorum_cuts_are_paid(start: StartAnswering) -> None:
    knobs = Knobs(tokens_per_s=100, answer_tokens_min=20, answer_tokens_max=90)
    answering = await start(knobs, race={"quorum": 0.25, "quorum_after_s": 0.1})
    outcome = await answering.answer(best_of=4)
    assert outcome.deadline_hit
    assert outcome.generated_tokens < await finish_draws(answering.tgi) <= cost(answering)


@pytest.mark.parametrize("fault", [Fault.ERROR_FRAME, Fault.DISCONNECT])
async def test_a_stream_that_fails_in_its_middle_costs_what_was_drawn(start: StartAnswering, fault: Fault) -> None:
    knobs = Knobs(fault=fault, fault_next=1, fault_after_tokens=30, tokens_per_s=200, answer_tokens_min=90)
    answering = await start(knobs)
    assert isinstance(await answering.finish(stream=True, best_of=1), GatewayError)
    assert 30 + PROMPT_BYTES - 1 <= cost(answering) <= 60 + PROMPT_BYTES


async def test_a_replica_that_breaks_and_the_one_that_takes_over_are_both_paid(start: StartAnswering) -> None:
    breaks = Knobs(fault=Fault.DISCONNECT, fault_probability=1.0, fault_after_tokens=40, tokens_per_s=200)
    async with TgiStub(breaks) as broken, TgiStub(Knobs(tokens_per_s=200)) as other:
        answering = await start(backend={"urls": (broken.url, other.url)})
        outcome = await answering.answer(best_of=1, max_tokens=90)
        both = broken.state.tokens_generated + other.state.tokens_generated
        assert both > outcome.generated_tokens == other.state.tokens_generated
        assert both <= cost(answering) <= both + 90 + outcome.prompt_tokens


@pytest.mark.parametrize("stream", [False, True])
async def test_the_candidates_of_a_failed_arm_are_paid_too(start: StartAnswering, stream: bool) -> None:
    breaks = Knobs(fault=Fault.ERROR_FRAME, fault_probability=1.0, fault_after_tokens=40, tokens_per_s=200)
    async with TgiStub(breaks) as canary:
        second = Canary(n=2, urls=(canary.url,), share=0.999)
        answering = await start(document=Policy(version=1, n=3, n_max=3, canary=second))
        outcome = await answering.finish(stream=stream, max_tokens=90)
        assert isinstance(outcome, Outcome)
        assert "canary" == outcome.plan.arm_failed
        both = canary.state.tokens_generated + answering.drawn_tokens
        assert canary.state.tokens_generated > 40
        assert both < cost(answering) <= both + 2 * 90 + outcome.prompt_tokens


@pytest.mark.parametrize(("best_of", "stream"), [(1, False), (4, False), (1, True)])
async def test_tokens_that_were_never_drawn_cost_nothing(start: StartAnswering, best_of: int, stream: bool) -> None:
    answering = await start(Knobs(fault=Fault.STATUS, fault_status=429, fault_probability=1.0))
    assert isinstance(await answering.finish(stream=stream, best_of=best_of), GatewayError)
    assert 0 == cost(answering)
    await answering.tgi.stop()
    assert isinstance(await answering.finish(stream=stream, best_of=best_of), GatewayError)
    assert 0 == cost(answering)


SAID = "naïve 🐝 words " * 5


def event(**fields: Any) -> str:
    return f"data: {json.dumps(fields)}\n\n"


def piece(delta: dict[str, Any], finish_reason: str | None = None, **fields: Any) -> str:
    return event(choices=[{"index": 0, "delta": delta, "finish_reason": finish_reason}], **fields)


CALL = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": "' + "x" * 80 + '"}'}}
RUNNING = {"prompt_tokens": 30, "completion_tokens": 41, "total_tokens": 71}
# A stream without a usage chunk, and its cost without its prompt: as many tokens as bytes, and one for a piece without
# text. A running count gives the prompt's tokens too.
STREAMS: dict[str, tuple[list[str], int]] = {
    "words": ([*[piece({"content": "word "})] * 80, piece({}, "stop")], 401),
    "one piece": ([piece({"content": SAID}), piece({}, "stop")], len(SAID.encode()) + 1),
    "reasoning": ([*[piece({"reasoning": "hm "})] * 80, piece({"content": "no"}, "stop")], 242),
    "a call": ([piece({"tool_calls": [CALL]}), piece({}, "tool_calls")], tokens_at_most([[CALL]]) + 1),
    "breaks": ([*[piece({"content": "word "})] * 80], 400),
    "an error": ([*[piece({"content": "word "})] * 80, event(error={"message": "broke", "code": 500})], 400),
    "running counts": ([piece({"content": "a" * 500}, usage=RUNNING)], 71 - PROMPT_BYTES),
}


@pytest.mark.parametrize("name", STREAMS)
async def test_a_stream_without_a_usage_chunk_costs_its_bytes(start: StartAnswering, name: str) -> None:
    events, expected = STREAMS[name]
    async with server_that_sends(events) as url:
        answering = await start(backend={"kind": "vllm", "urls": (url,)})
        await answering.finish(stream=True, best_of=1)
        assert expected + PROMPT_BYTES == cost(answering)


@pytest.mark.parametrize("max_tokens", [79, 80, 81])
async def test_without_a_count_no_stream_costs_more_than_its_max_tokens(start: StartAnswering, max_tokens: int) -> None:
    async with server_that_sends(STREAMS["words"][0]) as url:
        answering = await start(backend={"kind": "vllm", "urls": (url,)})
        await answering.finish(stream=True, best_of=1, max_tokens=max_tokens)
        assert max_tokens + PROMPT_BYTES == cost(answering)
        [record] = answering.records()
        assert max_tokens == record.usage.generated_tokens


@pytest.mark.parametrize("best_of", [1, 3])
@pytest.mark.parametrize("finish_reason", ["stop", "abort", "error", "nonsense"])
async def test_whole_answers_without_a_count_cost_their_size(
    start: StartAnswering, best_of: int, finish_reason: str
) -> None:
    message = {"role": "assistant", "content": "word " * 80}
    body = {"choices": [{"index": 0, "message": message, "finish_reason": finish_reason}]}
    async with server_that_sends(body) as url:
        answering = await start(backend={"kind": "vllm", "urls": (url,)})
        assert isinstance(await answering.finish(stream=False, best_of=best_of), GatewayError)
        assert best_of * 400 + PROMPT_BYTES <= cost(answering)
