"""Several reward servers: which one is asked, which one is away, and how it comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import orjson
import pytest
from transformers import AutoTokenizer

from gateway.errors import RewardError, RewardRefused, RewardTimeout, RewardUnavailable
from gateway.reward import availability, client
from gateway.reward.availability import FAILURES_IN_A_ROW
from gateway.reward.remote import RemoteScorer
from tests.gateway.reward.conftest import Connect
from tests.gateway.reward.texts import ask
from tests.stubs.reward import Dialect, RewardFault, RewardKnobs, RewardStub, reward_of
from tests.waiting import until


@pytest.fixture
async def stubs() -> AsyncIterator[list[RewardStub]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(RewardStub()) for _ in range(2)]


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(availability, "PROBE_PAUSE_S", 0.05)
    monkeypatch.setattr(client, "IDENTIFY_PAUSE_S", 0.01)


def both(stubs: list[RewardStub]) -> str:
    return f"{stubs[0].url}, {stubs[1].url}/"


async def score(scorer: RemoteScorer, answer: str = "hello") -> float:
    return (await scorer.score(ask("hi"), answer)).reward


@pytest.mark.parametrize("fault", [RewardFault.STATUS, RewardFault.NULL, RewardFault.DISCONNECT, RewardFault.GARBAGE])
async def test_a_server_that_fails_costs_no_reward_and_is_not_asked(
    stubs: list[RewardStub], connect: Connect, fault: RewardFault
) -> None:
    scorer = await connect(both(stubs))
    sick, healthy = stubs
    sick.knobs.fault, sick.knobs.fault_probability = fault, 1.0
    for n in range(20):
        assert pytest.approx(reward_of(f"answer {n}")) == await score(scorer, f"answer {n}")
    assert (1, True) == (scorer.n_away, scorer.available)
    readiness = await scorer.readiness()
    assert (True, True) == (readiness.ready, "gives no rewards" in readiness.detail)
    asked = sick.state.started
    await score(scorer)
    assert sick.state.started - asked <= 1, "at most a probe"
    sick.knobs.fault_probability = 0.0
    await until(lambda: scorer.n_away == 0)
    scored = sick.state.texts_scored, healthy.state.texts_scored
    for n in range(4):
        await score(scorer, f"another {n}")
    assert (scored[0] + 2, scored[1] + 2) == (sick.state.texts_scored, healthy.state.texts_scored)


async def test_after_a_server_that_hangs_there_is_time_for_another(stubs: list[RewardStub], connect: Connect) -> None:
    scorer = await connect(both(stubs), timeout_s=1.0)
    await score(scorer)
    stubs[0].knobs.fault, stubs[0].knobs.fault_probability = RewardFault.HANG, 1.0
    async with asyncio.timeout(8):
        for n in range(FAILURES_IN_A_ROW + 2):
            answers = [f"answer {n} {m}" for m in range(2)]
            rewards = await asyncio.gather(*(score(scorer, answer) for answer in answers))
            assert [reward_of(answer) for answer in answers] == pytest.approx(rewards)


async def test_while_all_are_away_answers_are_refused_at_once_until_a_probe_succeeds(
    stub: RewardStub, connect: Connect
) -> None:
    scorer = await connect(stub.url, timeout_s=0.3)
    await score(scorer)
    stub.knobs.fault, stub.knobs.fault_probability = RewardFault.HANG, 1.0
    for _ in range(FAILURES_IN_A_ROW):
        assert scorer.available
        with pytest.raises(RewardTimeout):
            await score(scorer)
    assert not scorer.available
    assert not (await scorer.readiness()).ready
    with pytest.raises(RewardUnavailable):
        await score(scorer)
    stub.knobs.fault_probability = 0.0
    await until(lambda: scorer.available)
    assert pytest.approx(reward_of("hello")) == await score(scorer)
    assert (await scorer.readiness()).ready


async def test_a_server_that_never_answered_is_away_and_is_found_later(connect: Connect) -> None:
    stub = RewardStub()
    await stub.start()
    await stub.stop()
    scorer = await connect(stub.url)
    for _ in range(FAILURES_IN_A_ROW):
        with pytest.raises(RewardError):
            await score(scorer)
    assert not scorer.available
    await stub.start()
    await until(lambda: scorer.available)
    assert pytest.approx(reward_of("hello")) == await score(scorer)
    await stub.stop()


async def test_a_server_of_another_model_gives_no_rewards_beside_the_first(connect: Connect) -> None:
    async with RewardStub() as first, RewardStub(RewardKnobs(model_id="stub/other")) as other:
        scorer = await connect(f"{first.url},{other.url}")
        for n in range(2 * FAILURES_IN_A_ROW):
            await score(scorer, f"answer {n}")
        assert ("stub/reward", 1) == (scorer.name, scorer.n_away)
        assert "serves stub/other, another one stub/reward" in (await scorer.readiness()).detail
        assert 0 == other.state.texts_scored


@pytest.mark.parametrize("status", [400, 413, 422])
@pytest.mark.parametrize("count", [1, 2, 7, 8])
async def test_an_answer_that_the_server_refuses_loses_its_own_reward_only(
    stub: RewardStub, connect: Connect, status: int, count: int
) -> None:
    scorer = await connect(stub.url)
    await score(scorer)
    stub.knobs.refused, stub.knobs.refused_status = "too long", status
    answers = ["too long", *(f"answer {n}" for n in range(1, count))]
    bad, *good = await asyncio.gather(*(score(scorer, answer) for answer in answers), return_exceptions=True)
    assert isinstance(bad, RewardRefused)
    assert [reward_of(answer) for answer in answers[1:]] == pytest.approx(good)
    assert (True, 0) == (scorer.available, scorer.n_away)


async def test_refused_answers_do_not_make_a_server_count_as_away(stub: RewardStub, connect: Connect) -> None:
    scorer = await connect(stub.url)
    stub.knobs.refused = "too long"
    for _ in range(2 * FAILURES_IN_A_ROW):
        with pytest.raises(RewardRefused):
            await score(scorer, "too long")
    assert scorer.available


async def test_a_server_that_refuses_everything_is_away(stub: RewardStub, connect: Connect) -> None:
    scorer = await connect(stub.url)
    stub.knobs.fault, stub.knobs.fault_status, stub.knobs.fault_probability = RewardFault.STATUS, 400, 1.0
    for _ in range(FAILURES_IN_A_ROW):
        with pytest.raises(RewardError):
            await score(scorer)
    assert not scorer.available


async def test_the_search_for_refused_answers_is_bounded(stub: RewardStub, connect: Connect) -> None:
    scorer = await connect(stub.url)
    await score(scorer)
    stub.knobs.refused = "too long"
    results = await asyncio.gather(
        *(score(scorer, f"too long {n}") for n in range(200)), score(scorer), return_exceptions=True
    )
    assert all(isinstance(result, RewardRefused) for result in results[:-1])
    # More than one batch where the queue is longer than a batch's tokens; here it is one.
    assert client.MAX_PARTS / 2 < stub.state.rejected <= client.MAX_PARTS + 1


@pytest.mark.parametrize(("served", "setting", "limit"), [(32, 64, 32), (64, 64, 64), (65, 64, 64), (0, 64, 64)])
async def test_a_text_is_cut_to_the_servers_limit(
    stub: RewardStub, connect: Connect, decoder: str, served: int, setting: int, limit: int
) -> None:
    stub.knobs.dialect, stub.knobs.max_model_len = Dialect.VLLM, served
    scorer = await connect(stub.url, tokenizer=decoder, max_length_tokens=setting)
    long = await scorer.score(ask("zebra " * 200), "an answer")
    assert long.prompt_truncated
    assert not (await scorer.score(ask("hi"), "an answer")).prompt_truncated
    tokenizer = AutoTokenizer.from_pretrained(decoder)
    sent = [
        text
        for request in stub.state.requests
        for text in orjson.loads(request.body).get("input", [])
        if "zebra" in text
    ]
    assert limit == len(tokenizer(sent[0])["input_ids"])
