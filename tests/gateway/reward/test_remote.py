"""Rewards from a server: on the stub, in each dialect, well and ill."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import orjson
import pytest
from aiohttp import web

from gateway.errors import RewardError, RewardTimeout
from gateway.reward import client, remote, wire
from gateway.reward.batcher import BatchStats
from gateway.reward.remote import CALLS_IN_FLIGHT, RemoteScorer
from gateway.settings import RewardSettings
from tests.gateway.reward.texts import ask
from tests.stubs.reward import Dialect, RewardFault, RewardKnobs, RewardStub, reward_of

Connect = Callable[..., Awaitable[RemoteScorer]]


@pytest.fixture
async def stub() -> AsyncIterator[RewardStub]:
    async with RewardStub() as running:
        yield running


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """What makes scorers for a URL, and closes them again."""
    async with AsyncExitStack() as stack:

        async def make(url: str, observe: Callable[[BatchStats], None] | None = None, **settings: Any) -> RemoteScorer:
            scorer = RemoteScorer(RewardSettings.model_validate({"url": url, **settings}), observe=observe)
            stack.push_async_callback(scorer.aclose)
            if settings.get("tokenizer"):
                async with asyncio.timeout(60):
                    while (await scorer.readiness()).detail == "the reward tokenizer is loading":
                        await asyncio.sleep(0.01)
            return scorer

        yield make


def classify_calls(stub: RewardStub) -> list[dict[str, Any]]:
    return [orjson.loads(request.body) for request in stub.state.requests if request.path == "/classify"]


async def test_our_own_server_is_sent_the_conversation_and_gives_raw_rewards(
    stub: RewardStub, connect: Connect
) -> None:
    scorer = await connect(stub.url)
    score = await scorer.score(ask("hi"), "hello there")
    assert pytest.approx(reward_of("hello there")) == score.reward
    assert not score.prompt_truncated
    assert "stub/reward" == scorer.name
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello there"}]
    assert [{"model": "stub/reward", "input": [{"messages": turns}], "use_activation": False}] == classify_calls(stub)


async def test_answers_that_finish_together_travel_together_and_each_gets_its_own_reward(
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


async def test_several_calls_are_under_way_at_once_and_no_more_than_that(stub: RewardStub, connect: Connect) -> None:
    scorer = await connect(stub.url)
    await scorer.score(ask("hi"), "first")
    stub.knobs.fault, stub.knobs.fault_next = RewardFault.HANG, 100
    tasks = []
    for n in range(CALLS_IN_FLIGHT):
        tasks.append(asyncio.create_task(scorer.score(ask("hi"), f"answer {n}")))
        await stub.state.until(lambda state, calls=n + 1: state.scoring == calls)  # type: ignore[misc]
    tasks += [asyncio.create_task(scorer.score(ask("hi"), "one too many")) for _ in range(3)]
    await asyncio.sleep(0)
    assert (3, CALLS_IN_FLIGHT) == (scorer.waiting, stub.state.scoring)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_call_that_nobody_waits_for_is_broken_off(stub: RewardStub, connect: Connect) -> None:
    scorer = await connect(stub.url)
    stub.knobs.fault, stub.knobs.fault_next = RewardFault.HANG, 1
    task = asyncio.create_task(scorer.score(ask("hi"), "hello"))
    await stub.state.until(lambda state: state.scoring == 1)
    task.cancel()
    await stub.state.until(lambda state: state.cancelled == 1)
    assert 0 == stub.state.scoring


@pytest.mark.parametrize("dialect", [Dialect.VLLM, Dialect.SGLANG, Dialect.RATCHET])
async def test_with_a_tokenizer_each_dialect_is_sent_rendered_text(
    stub: RewardStub, connect: Connect, decoder: str, dialect: Dialect
) -> None:
    stub.knobs.dialect = dialect
    scorer = await connect(stub.url, tokenizer=decoder, max_length_tokens=64)
    score = await scorer.score(ask("hi"), "hello there")
    text = "<|user|>hi<|end|><|assistant|>hello there<|end|>"
    assert pytest.approx(reward_of(text)) == score.reward
    assert [text] == classify_calls(stub)[-1]["text" if dialect is Dialect.SGLANG else "input"]
    assert (await scorer.score(ask("zebra " * 300), "hello")).prompt_truncated
    readiness = await scorer.readiness()
    assert (True, dialect.value) == (readiness.ready, readiness.facts["protocol"])


@pytest.mark.parametrize("dialect", [Dialect.VLLM, Dialect.SGLANG])
async def test_a_server_that_reads_only_text_needs_a_tokenizer(
    stub: RewardStub, connect: Connect, dialect: Dialect
) -> None:
    stub.knobs.dialect = dialect
    scorer = await connect(stub.url)
    with pytest.raises(RewardError, match="set GATEWAY_REWARD__TOKENIZER"):
        await scorer.score(ask("hi"), "hello")


async def test_a_tokenizer_that_cannot_be_loaded_is_named_by_readiness(
    stub: RewardStub, connect: Connect, minilm: str
) -> None:
    scorer = await connect(stub.url, tokenizer=minilm)
    readiness = await scorer.readiness()
    assert not readiness.ready
    assert "no chat template" in readiness.detail
    with pytest.raises(RewardError, match="could not be loaded"):
        await scorer.score(ask("hi"), "hello")


async def test_until_the_tokenizer_is_loaded_there_is_no_reward(
    stub: RewardStub, decoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    monkeypatch.setattr(remote, "_load_renderer", lambda _settings: released.wait(30))
    scorer = RemoteScorer(RewardSettings(url=stub.url, tokenizer=decoder))
    assert "the reward tokenizer is loading" == (await scorer.readiness()).detail
    with pytest.raises(RewardError, match="still loading"):
        await scorer.score(ask("hi"), "hello")
    released.set()
    await scorer.aclose()


async def test_a_server_that_squashes_its_rewards_is_refused(stub: RewardStub, connect: Connect, decoder: str) -> None:
    """A probability looks like a reward and orders like one, but its margins lie."""
    stub.knobs.dialect, stub.knobs.always_activate = Dialect.VLLM, True
    scorer = await connect(stub.url, tokenizer=decoder)
    with pytest.raises(RewardError, match="ignores use_activation"):
        await scorer.score(ask("hi"), "hello")
    readiness = await scorer.readiness()
    assert (False, True) == (readiness.ready, "ignores use_activation" in readiness.detail)


async def test_a_model_that_is_not_served_is_refused(stub: RewardStub, connect: Connect) -> None:
    scorer = await connect(stub.url, url_model="another")
    with pytest.raises(RewardError, match="does not serve another"):
        await scorer.score(ask("hi"), "hello")
    assert "another" == scorer.name


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
async def test_an_answer_that_makes_no_sense_is_no_reward_and_the_next_one_is(
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


async def test_one_null_among_rewards_costs_its_own_answer(stub: RewardStub, connect: Connect) -> None:
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


async def test_a_connection_that_breaks_once_is_tried_once_more_and_no_more_than_that(
    stub: RewardStub, connect: Connect
) -> None:
    scorer = await connect(stub.url)
    stub.knobs.fault, stub.knobs.fault_next = RewardFault.DISCONNECT, 1
    assert pytest.approx(reward_of("hello")) == (await scorer.score(ask("hi"), "hello")).reward
    stub.knobs.fault_next = 2
    with pytest.raises(RewardError, match="cannot be reached"):
        await scorer.score(ask("hi"), "hello")
    assert 0 == stub.knobs.fault_next


async def test_a_server_that_went_away_is_met_again_when_it_is_back_with_another_model(
    stub: RewardStub, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "INTRODUCTION_PAUSE_S", 0)
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


async def test_a_server_that_refuses_its_models_name_is_met_anew(connect: Connect) -> None:
    """Also where it says 400 to that and not 404, and its connections stand."""
    async with RewardStub(RewardKnobs(model_id="stub/old")) as stub:
        scorer = await connect(stub.url)
        await scorer.score(ask("hi"), "hello")
        stub.knobs.model_id = "stub/newer"
        with pytest.raises(RewardError, match="status 400"):
            await scorer.score(ask("hi"), "hello")
        await scorer.score(ask("hi"), "hello")
        assert "stub/newer" == scorer.name


async def test_a_server_that_cannot_be_met_is_not_asked_by_every_answer(connect: Connect) -> None:
    calls = 0

    async def handle(_request: web.BaseRequest) -> web.StreamResponse:
        nonlocal calls
        calls += 1
        return web.Response(status=404)

    async with Fake(handle) as url:
        scorer = await connect(url)
        for _ in range(3):
            with pytest.raises(RewardError, match="status 404"):
                await scorer.score(ask("hi"), "hello")
    assert 1 == calls


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html>proxy</html>", "no sense"),
        (b"[]", "no sense"),
        (b'{"data": [{"owned_by": "ratchet"}]}', "no sense"),
        (b'{"data": []}', "does not serve any model"),
    ],
)
async def test_a_list_of_models_that_makes_no_sense_is_refused(connect: Connect, body: bytes, message: str) -> None:
    async def handle(_request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=body)

    async with Fake(handle) as url:
        scorer = await connect(url)
        with pytest.raises(RewardError, match=message):
            await scorer.score(ask("hi"), "hello")


async def test_an_answer_without_end_is_cut_off(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_ANSWER_BYTES", 1000)

    async def handle(_request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=b" " * 2000)

    async with Fake(handle) as url:
        with pytest.raises(RewardError, match="too large"):
            await (await connect(url)).score(ask("hi"), "hello")


async def test_an_answer_that_breaks_off_is_no_reward(connect: Connect) -> None:
    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b'{"data": [')
        assert request.transport is not None
        request.transport.close()
        return response

    async with Fake(handle) as url:
        with pytest.raises(RewardError, match="broke off"):
            await (await connect(url)).score(ask("hi"), "hello")


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


async def test_text_that_json_cannot_carry_does_not_spoil_its_neighbours(stub: RewardStub, connect: Connect) -> None:
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


async def test_a_scorer_that_is_closed_gives_no_reward_and_lets_nobody_hang(stub: RewardStub) -> None:
    scorer = RemoteScorer(RewardSettings(url=stub.url))
    stub.knobs.fault, stub.knobs.fault_next = RewardFault.HANG, 1
    running = asyncio.create_task(scorer.score(ask("hi"), "hello"))
    await stub.state.until(lambda state: state.scoring == 1)
    await scorer.aclose()
    with pytest.raises(RewardError, match="stopped"):
        await running
    with pytest.raises(RewardError, match="stopped"):
        await scorer.score(ask("hi"), "hello")


async def test_closing_while_the_server_is_being_met_lets_nobody_hang() -> None:
    asked = asyncio.Event()

    async def handle(_request: web.BaseRequest) -> web.StreamResponse:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with Fake(handle) as url:
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


def test_probes_that_differ_or_leave_the_unit_interval_are_raw() -> None:
    assert wire.is_squashed([0.4, 0.9], [0.4, 0.9])
    assert not wire.is_squashed([0.4, 0.9], [0.6, 0.7])
    assert not wire.is_squashed([-2.0, 0.9], [-2.0, 0.9])


class Fake:
    """A server of one handler."""

    def __init__(self, handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]) -> None:
        self._server = web.Server(handle, handler_cancellation=True, access_log=None)

    async def __aenter__(self) -> str:
        self._listener = await asyncio.get_running_loop().create_server(self._server, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        await self._server.shutdown(1.0)
