"""The reward server on real HTTP: vLLM's protocol, our conversations, our client."""

from __future__ import annotations

import asyncio
import math
import re
from pathlib import Path
from typing import Any

import pytest

from gateway.reward.model import RewardModel
from gateway.reward.remote import RemoteScorer
from gateway.settings import RewardSettings
from tests.gateway.reward.fake_model import FakeModel
from tests.gateway.reward.served import Start, turns
from tests.gateway.reward.texts import TEXTS, ask


async def test_the_answer_has_vllms_shape(start: Start) -> None:
    served = await start(FakeModel())
    response = await served.classify(model="fake", input=["one", "three"])
    body = response.json()
    assert body.pop("id").startswith("classify-")
    assert isinstance(body.pop("created"), int)
    common = {"label": "LABEL_0", "num_classes": 1, "prompt_truncated": False}
    assert {
        "object": "list",
        "model": "fake",
        "data": [{"index": 0, "probs": [3.0], **common}, {"index": 1, "probs": [5.0], **common}],
        "usage": {"prompt_tokens": 8, "total_tokens": 8, "completion_tokens": 0, "prompt_tokens_details": None},
    } == body


@pytest.mark.parametrize("activation", [None, True])
async def test_rewards_are_squashed_by_default_as_by_vllm(start: Start, activation: bool | None) -> None:
    served = await start(FakeModel())
    response = await served.classify({"input": "one", "use_activation": activation})
    assert pytest.approx(1 / (1 + math.exp(-3))) == response.json()["data"][0]["probs"][0]


async def test_the_squashed_reward_is_the_sigmoid_of_the_raw_one_on_both_sides_of_zero(
    start: Start, minilm: str, adapter: Path
) -> None:
    served = await start(folder=minilm, adapter=adapter, device="cpu")
    items = [turns("Where is Paris?", text) for text in TEXTS]
    raw = await served.rewards(input=items)
    squashed = await served.rewards(input=items, use_activation=True)
    assert [1 / (1 + math.exp(-reward)) for reward in raw if reward is not None] == pytest.approx(squashed)


@pytest.mark.parametrize(
    "fields",
    [
        {"input": "three"},
        {"input": ["three"]},
        {"input": turns("hi", "three")},
        {"input": [turns("hi", "three")]},
        turns("hi", "three"),
        {"input": [{"messages": [{"role": "user"}, {"role": "assistant", "content": "three"}]}]},
        {"input": "three", "model": None, "user": "someone", "priority": 0},
    ],
)
async def test_texts_and_conversations_are_accepted_in_each_form(start: Start, fields: dict[str, Any]) -> None:
    served = await start(FakeModel())
    assert [5.0] == await served.rewards(**fields)


async def test_a_cut_prompt_is_marked(start: Start) -> None:
    served = await start(FakeModel())
    long = {"messages": [*turns("hi", "a")["messages"], *turns("hi", "three")["messages"]]}
    response = await served.classify(input=[long, turns("hi", "three")])
    assert [True, False] == [item["prompt_truncated"] for item in response.json()["data"]]


async def test_a_reward_that_is_not_a_number_is_null_and_its_neighbours_are_kept(start: Start) -> None:
    served = await start(FakeModel())
    items = [turns("hi", "a" * 13), turns("hi", "one"), turns("refuse me", "one")]
    assert [None, 3.0, None] == await served.rewards(input=items)


async def test_health_models_and_metrics(start: Start) -> None:
    served = await start(FakeModel())
    health = await served.http.get("/health")
    assert (200, b"") == (health.status_code, health.content)
    (card,) = (await served.http.get("/v1/models")).json()["data"]
    assert ("fake", "ratchet", 100) == (card["id"], card["owned_by"], card["max_model_len"])
    await served.rewards(input=["one", "three"])
    await served.classify(input=["a" * 99])
    metrics = (await served.http.get("/metrics")).text
    for line in (
        'ratchet_reward_calls_total{status="200"} 1.0',
        'ratchet_reward_calls_total{status="500"} 1.0',
        'ratchet_reward_batches_total{outcome="scored"} 1.0',
        'ratchet_reward_batches_total{outcome="failed"} 1.0',
        "ratchet_reward_tokens_total 107.0",
        "ratchet_reward_waiting 0.0",
    ):
        assert line in metrics


async def test_our_client_gets_the_models_own_rewards_through_our_server(
    start: Start, minilm: str, adapter: Path
) -> None:
    served = await start(folder=minilm, adapter=adapter, device="cpu")
    model = served.scorer.model()
    assert isinstance(model, RewardModel)
    scorer = RemoteScorer(RewardSettings(url=served.url))
    prompt = ask("Where is Paris?")
    scores = await asyncio.gather(*(scorer.score(prompt, text) for text in TEXTS))
    assert [model.score([model.encode(prompt, text)])[0] for text in TEXTS] == pytest.approx(
        [score.reward for score in scores], abs=1e-4
    )
    assert (await scorer.score(ask("word " * 2000), "an answer")).prompt_truncated
    assert model.name == scorer.name
    assert (await scorer.readiness()).ready
    await scorer.aclose()


@pytest.mark.parametrize("apart", [False, True], ids=["body in the same segment", "in its own"])
async def test_an_upgrade_offer_is_ignored_and_the_body_is_read(start: Start, apart: bool) -> None:
    """``curl --http2`` and Java's HttpClient send one with every request."""
    served = await start(FakeModel())
    url = served.http.base_url
    reader, writer = await asyncio.open_connection(url.host, url.port)
    body = b'{"model":"fake","input":"three"}'
    head = b"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n" % len(body)
    offer = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n\r\n"
    writer.write(head + offer + (b"" if apart else body))
    if apart:
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(body)
    writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    async with asyncio.timeout(20):
        heard = await reader.read()
    writer.close()
    assert [b"200", b"200"] == re.findall(rb"HTTP/1.1 (\d+)", heard)
    assert b'"probs":' in heard
