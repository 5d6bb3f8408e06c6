"""Reward servers that answer nonsense, answer late, break off, or go away and come back."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from gateway.errors import RewardError, RewardTimeout
from gateway.reward import client
from tests.gateway.reward.conftest import Connect
from tests.gateway.reward.fake_server import FakeServer
from tests.gateway.reward.texts import ask
from tests.stubs.reward import RewardFault, RewardKnobs, RewardStub, reward_of


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (RewardFault.STATUS, "status 500"),
        (RewardFault.NULL, "gave no number"),
        (RewardFault.NAN, "not JSON"),
        (RewardFault.WRONG_LENGTH, "0 rewards for 1 answers"),
        (RewardFault.TWO_LABELS, "one label"),
        (RewardFault.GARBAGE, "not JSON"),
    ],
)
async def test_a_malformed_answer_gives_no_reward_and_the_next_one_does(
    stub: RewardStub, connect: Connect, fault: RewardFault, message: str
) -> None:
    scorer = await connect(stub.url)
    stub.knobs.fault, stub.knobs.fault_next = fault, 1
    with pytest.raises(RewardError, match=message):
        await scorer.score(ask("hi"), "hello")
    assert pytest.approx(reward_of("hello")) == (await scorer.score(ask("hi"), "hello")).reward


async def test_rewards_in_another_order_are_refused(stub: RewardStub, connect: Connect) -> None:
    scorer = await connect(stub.url)
    await scorer.score(ask("hi"), "first")
    stub.knobs.fault, stub.knobs.fault_next = RewardFault.WRONG_ORDER, 1
    results = await asyncio.gather(
        *(scorer.score(ask("hi"), answer) for answer in ("one", "two")), return_exceptions=True
    )
    assert ["the reward server's rewards are out of order"] * 2 == [str(result) for result in results]


async def test_one_null_among_rewards_fails_its_own_answer_only(stub: RewardStub, connect: Connect) -> None:
    scorer = await connect(stub.url)
    await scorer.score(ask("hi"), "first")
    stub.knobs.fault, stub.knobs.fault_next, stub.knobs.fault_texts = RewardFault.NULL, 1, 1
    bad, good = await asyncio.gather(
        *(scorer.score(ask("hi"), answer) for answer in ("one", "two")), return_exceptions=True
    )
    assert "the reward server gave no number" == str(bad)
    assert not isinstance(good, BaseException)
    assert pytest.approx(reward_of("two")) == good.reward


async def test_a_slow_server_is_a_timeout(stub: RewardStub, connect: Connect) -> None:
    scorer = await connect(stub.url, timeout_s=0.2)
    stub.knobs.fault, stub.knobs.fault_next = RewardFault.HANG, 1
    with pytest.raises(RewardTimeout):
        await scorer.score(ask("hi"), "hello")


async def test_a_kept_connection_that_the_server_closed_is_opened_again(stub: RewardStub, connect: Connect) -> None:
    scorer = await connect(stub.url)
    await scorer.score(ask("hi"), "hello")
    await stub.stop()
    await stub.start()
    assert pytest.approx(reward_of("hello")) == (await scorer.score(ask("hi"), "hello")).reward


async def test_a_broken_connection_is_retried_exactly_once(stub: RewardStub, connect: Connect) -> None:
    scorer = await connect(stub.url)
    stub.knobs.fault, stub.knobs.fault_next = RewardFault.DISCONNECT, 1
    assert pytest.approx(reward_of("hello")) == (await scorer.score(ask("hi"), "hello")).reward
    stub.knobs.fault_next = 2
    with pytest.raises(RewardError, match="cannot be reached"):
        await scorer.score(ask("hi"), "hello")
    assert 0 == stub.knobs.fault_next


async def test_a_server_that_returns_with_another_model_is_identified_again(
    stub: RewardStub, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "IDENTIFY_PAUSE_S", 0)
    scorer = await connect(stub.url)
    await scorer.score(ask("hi"), "hello")
    await stub.stop()
    with pytest.raises(RewardError, match="cannot be reached"):
        await scorer.score(ask("hi"), "hello")
    assert not (await scorer.readiness()).ready
    await stub.start()
    stub.knobs.model_id = "stub/newer"
    await scorer.score(ask("hi"), "hello")
    assert "stub/newer" == scorer.name


async def test_a_server_that_refuses_its_models_name_is_identified_and_asked_again(connect: Connect) -> None:
    """Also if it answers 400 instead of 404 and keeps its connections."""
    async with RewardStub(RewardKnobs(model_id="stub/old")) as stub:
        scorer = await connect(stub.url)
        await scorer.score(ask("hi"), "hello")
        stub.knobs.model_id = "stub/newer"
        assert pytest.approx(reward_of("hello")) == (await scorer.score(ask("hi"), "hello")).reward
        assert "stub/newer" == scorer.name


async def test_a_server_that_cannot_be_identified_is_not_asked_for_every_answer(connect: Connect) -> None:
    calls = 0

    async def handle(_request: web.BaseRequest) -> web.StreamResponse:
        nonlocal calls
        calls += 1
        return web.Response(status=404)

    async with FakeServer(handle) as url:
        scorer = await connect(url)
        for _ in range(3):
            with pytest.raises(RewardError, match="status 404"):
                await scorer.score(ask("hi"), "hello")
    assert 1 == calls


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html>proxy</html>", "not a list of models"),
        (b"[]", "not a list of models"),
        (b'{"data": [{"owned_by": "ratchet"}]}', "not a list of models"),
        (b'{"data": []}', "does not serve any model"),
    ],
)
async def test_a_list_of_models_that_cannot_be_parsed_is_refused(connect: Connect, body: bytes, message: str) -> None:
    async def handle(_request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=body)

    async with FakeServer(handle) as url:
        scorer = await connect(url)
        with pytest.raises(RewardError, match=message):
            await scorer.score(ask("hi"), "hello")


async def test_an_endless_answer_is_cut_off(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_ANSWER_BYTES", 1000)

    async def handle(_request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=b" " * 2000)

    async with FakeServer(handle) as url:
        with pytest.raises(RewardError, match="too large"):
            await (await connect(url)).score(ask("hi"), "hello")


async def test_an_answer_that_breaks_off_gives_no_reward(connect: Connect) -> None:
    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b'{"data": [')
        assert request.transport is not None
        request.transport.close()
        return response

    async with FakeServer(handle) as url:
        with pytest.raises(RewardError, match="broke off"):
            await (await connect(url)).score(ask("hi"), "hello")
