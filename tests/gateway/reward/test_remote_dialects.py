"""Dialects of reward servers: requests in each, and servers or tokenizers that are refused."""

from __future__ import annotations

import sys
import threading
from typing import Any

import orjson
import pytest

from gateway.errors import RewardError
from gateway.reward import remote, wire
from gateway.reward.remote import RemoteScorer
from gateway.settings import RewardSettings
from tests.gateway.reward.conftest import Connect
from tests.gateway.reward.texts import ask
from tests.stubs.reward import Dialect, RewardStub, reward_of


def classify_calls(stub: RewardStub) -> list[dict[str, Any]]:
    return [orjson.loads(request.body) for request in stub.state.requests if request.path == "/classify"]


async def test_our_own_server_gets_the_conversation_and_gives_raw_rewards(stub: RewardStub, connect: Connect) -> None:
    scorer = await connect(stub.url)
    score = await scorer.score(ask("hi"), "hello there")
    assert pytest.approx(reward_of("hello there")) == score.reward
    assert not score.prompt_truncated
    assert "stub/reward" == scorer.name
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello there"}]
    assert [{"model": "stub/reward", "input": [{"messages": turns}], "use_activation": False}] == classify_calls(stub)


@pytest.mark.parametrize("dialect", [Dialect.VLLM, Dialect.SGLANG, Dialect.RATCHET])
async def test_with_a_tokenizer_each_dialect_gets_rendered_text(
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


async def test_without_transformers_readiness_names_the_missing_extra_and_its_cause(
    stub: RewardStub, connect: Connect, decoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gateway.reward.rendering", None)
    scorer = await connect(stub.url, tokenizer=decoder)
    assert "needs ratchet[reward]: import of gateway.reward.rendering halted" in (await scorer.readiness()).detail


async def test_until_the_tokenizer_is_loaded_there_is_no_reward(
    stub: RewardStub, decoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    monkeypatch.setattr(remote, "_load_renderer", lambda _settings: released.wait(30))
    scorer = RemoteScorer(RewardSettings(url=stub.url, tokenizer=decoder))
    assert "the reward tokenizer is loading" == (await scorer.readiness()).detail
    with pytest.raises(RewardError, match="is loading"):
        await scorer.score(ask("hi"), "hello")
    released.set()
    await scorer.aclose()


async def test_a_server_that_squashes_its_rewards_is_refused(stub: RewardStub, connect: Connect, decoder: str) -> None:
    """A probability orders answers like a reward, but its margins are wrong."""
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


def test_probes_that_differ_or_leave_the_unit_interval_are_raw() -> None:
    assert wire.is_squashed([0.4, 0.9], [0.4, 0.9])
    assert not wire.is_squashed([0.4, 0.9], [0.6, 0.7])
    assert not wire.is_squashed([-2.0, 0.9], [-2.0, 0.9])
