"""Rewards from a server, on the stub: batches of calls, cancellation and closing."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from gateway.errors import RewardError
from gateway.reward.remote import CALLS_IN_FLIGHT, RemoteScorer
from gateway.settings import RewardSettings
from gateway.types import BatchStats, Score
from tests.gateway.reward.conftest import Connect
from tests.gateway.reward.fake_server import FakeServer
from tests.gateway.reward.texts import ask
from tests.stubs.reward import RewardFault, RewardStub, reward_of


async def test_answers_that_finish_together_are_one_call_and_each_gets_its_own_reward(
    stub: RewardStub, connect: Connect
) -> None:
    told: list[BatchStats] = []
    scorer = await connect(stub.url, told.append)
    await scorer.score(ask("hi"), "first")
    answers = [f"answer {n} " * n for n in range(1, 9)]
    scores = await asyncio.gather(*(scorer.score(ask("hi"), answer) for answer in answers))
    assert [reward_of(answer) for answer in answers] == pytest.approx([score.reward for score in scores])
    assert 8 == stub.state.largest_batch
    assert [1, 8] == [stats.entries for stats in told]


async def test_calls_in_flight_are_bounded(stub: RewardStub, connect: Connect) -> None:
    scorer = await connect(stub.url)
    await scorer.score(ask("hi"), "first")
    stub.knobs.fault, stub.knobs.fault_next = RewardFault.HANG, 100
    tasks: list[asyncio.Task[Score]] = []
    for n in range(CALLS_IN_FLIGHT):
        tasks.append(asyncio.create_task(scorer.score(ask("hi"), f"answer {n}")))
        await stub.state.until(lambda state: state.scoring == len(tasks))
    tasks += [asyncio.create_task(scorer.score(ask("hi"), "one too many")) for _ in range(3)]
    await asyncio.sleep(0)
    assert (3, CALLS_IN_FLIGHT) == (scorer._batcher.waiting, stub.state.scoring)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_call_that_nobody_waits_for_is_cancelled(stub: RewardStub, connect: Connect) -> None:
    scorer = await connect(stub.url)
    stub.knobs.fault, stub.knobs.fault_next = RewardFault.HANG, 1
    task = asyncio.create_task(scorer.score(ask("hi"), "hello"))
    await stub.state.until(lambda state: state.scoring == 1)
    task.cancel()
    await stub.state.until(lambda state: state.cancelled == 1)
    assert 0 == stub.state.scoring


async def test_the_key_is_sent_and_the_hub_token_never(
    stub: RewardStub, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    stub.knobs.api_key = "reward-key"
    scorer = await connect(stub.url, api_key="reward-key")
    await scorer.score(ask("hi"), "hello")
    assert "Bearer reward-key" == stub.state.requests[-1].headers["Authorization"]
    assert all("hf_secret" not in str(request.headers) for request in stub.state.requests)
    stranger = await connect(stub.url, api_key="wrong")
    with pytest.raises(RewardError, match="status 401"):
        await stranger.score(ask("hi"), "hello")


async def test_readiness_needs_a_healthy_server(stub: RewardStub, connect: Connect) -> None:
    scorer = await connect(stub.url)
    assert (await scorer.readiness()).ready
    stub.knobs.healthy = False
    readiness = await scorer.readiness()
    assert (False, "the reward server answered /health with status 503") == (readiness.ready, readiness.detail)


async def test_text_that_json_cannot_carry_does_not_harm_its_neighbours(stub: RewardStub, connect: Connect) -> None:
    scorer = await connect(stub.url)
    surrogate, tools, plain = await asyncio.gather(
        scorer.score(ask("hi \ud800"), "b\udfff"),
        scorer.score([{"role": "assistant", "content": None, "tool_calls": [{"x": {1}}]}], "hello"),
        scorer.score(ask("hi"), "hello"),
        return_exceptions=True,
    )
    assert not isinstance(surrogate, BaseException)
    assert pytest.approx(reward_of("b?")) == surrogate.reward
    assert "the conversation cannot be sent to the reward server" == str(tools)
    assert not isinstance(plain, BaseException)


async def test_a_closed_scorer_gives_no_reward_and_nobody_hangs(stub: RewardStub) -> None:
    scorer = RemoteScorer(RewardSettings(url=stub.url))
    stub.knobs.fault, stub.knobs.fault_next = RewardFault.HANG, 1
    running = asyncio.create_task(scorer.score(ask("hi"), "hello"))
    await stub.state.until(lambda state: state.scoring == 1)
    await scorer.aclose()
    with pytest.raises(RewardError, match="stopped"):
        await running
    with pytest.raises(RewardError, match="stopped"):
        await scorer.score(ask("hi"), "hello")


async def test_closing_while_the_server_is_identified_leaves_nobody_hanging() -> None:
    asked = asyncio.Event()

    async def handle(_request: web.BaseRequest) -> web.StreamResponse:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with FakeServer(handle) as url:
        scorer = RemoteScorer(RewardSettings(url=url))
        waiting = asyncio.create_task(scorer.score(ask("hi"), "hello"))
        gone = asyncio.create_task(scorer.score(ask("hi"), "bye"))
        await asked.wait()
        gone.cancel()
        assert [True] == [
            isinstance(r, asyncio.CancelledError) for r in await asyncio.gather(gone, return_exceptions=True)
        ]
        await scorer.aclose()
        with pytest.raises(RewardError, match="stopped"):
            await waiting
