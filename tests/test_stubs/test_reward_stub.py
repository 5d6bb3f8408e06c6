"""The reward stub answers /classify as the servers that it plays do, and fails as its knobs say."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from tests.stubs.process import StubProcess
from tests.stubs.reward import RewardStub, reward_of

TEXTS = ["one two three", "a a a a a a", "one two three four five six seven"]


@pytest.fixture
async def stub() -> AsyncIterator[RewardStub]:
    async with RewardStub() as running:
        yield running


@pytest.fixture
async def http(stub: RewardStub) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(stub.url) as session:
        yield session


async def classify(http: aiohttp.ClientSession, **body: Any) -> Any:
    body = {"model": "stub/reward", "input": TEXTS, "use_activation": False, **body}
    async with http.post("/classify", json=body) as response:
        assert 200 == response.status
        return await response.json()


def probs(body: Any) -> list[Any]:
    return [row["probs"][0] for row in body["data"]]


async def test_raw_rewards_come_in_vllms_shape(http: aiohttp.ClientSession) -> None:
    body = await classify(http)
    assert {"id", "object", "created", "model", "data", "usage"} == set(body)
    assert ("list", "stub/reward") == (body["object"], body["model"])
    assert [0, 1, 2] == [row["index"] for row in body["data"]]
    assert {("LABEL_0", 1)} == {(row["label"], row["num_classes"]) for row in body["data"]}
    assert [reward_of(text) for text in TEXTS] == probs(body)
    assert 16 == body["usage"]["prompt_tokens"]


async def test_without_use_activation_false_a_sigmoid_squashes_them(http: aiohttp.ClientSession) -> None:
    squashed = [1 / (1 + math.exp(-reward_of(text))) for text in TEXTS]
    for activation in (True, None):
        assert squashed == probs(await classify(http, use_activation=activation))


async def test_a_server_can_ignore_use_activation(stub: RewardStub, http: aiohttp.ClientSession) -> None:
    stub.knobs.always_activate = True
    assert all(0 < reward < 1 for reward in probs(await classify(http)))


async def test_conversations_are_judged_by_their_last_turn(http: aiohttp.ClientSession) -> None:
    turns = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": TEXTS[0]}]
    assert [reward_of(TEXTS[0])] * 2 == probs(await classify(http, input=[turns, {"messages": turns}]))
    assert [reward_of(TEXTS[0])] == probs(await classify(http, input=TEXTS[0]))


async def test_vllm_reads_only_texts(stub: RewardStub, http: aiohttp.ClientSession) -> None:
    stub.knobs.update({"dialect": "vllm"})
    async with http.post("/classify", json={"input": [{"messages": [{"content": "a"}]}]}) as response:
        assert 400 == response.status


async def test_sglang_reads_text_and_answers_embeddings(stub: RewardStub, http: aiohttp.ClientSession) -> None:
    stub.knobs.update({"dialect": "sglang"})
    async with http.post("/classify", json={"text": TEXTS}) as response:
        assert [[reward_of(text)] for text in TEXTS] == [row["embedding"] for row in await response.json()]


@pytest.mark.parametrize("dialect", ["ratchet", "vllm", "sglang"])
async def test_the_list_of_models_names_the_servers_kind(
    stub: RewardStub, http: aiohttp.ClientSession, dialect: str
) -> None:
    stub.knobs.update({"dialect": dialect})
    async with http.get("/v1/models") as response:
        assert [dialect] == [card["owned_by"] for card in (await response.json())["data"]]


async def test_health_and_key(stub: RewardStub, http: aiohttp.ClientSession) -> None:
    stub.knobs.update({"healthy": False, "api_key": "k"})
    async with http.get("/health") as health, http.post("/classify", json={"input": TEXTS}) as refused:
        assert (503, 401) == (health.status, refused.status)


@pytest.mark.parametrize("body", [[], {}, {"input": []}, {"input": [3]}, {"input": "a", "model": "another"}])
async def test_a_bad_call_is_a_400(stub: RewardStub, http: aiohttp.ClientSession, body: Any) -> None:
    async with http.post("/classify", json=body) as response:
        assert (400, 1) == (response.status, stub.state.rejected)


async def test_null_and_bare_nan_rewards(stub: RewardStub, http: aiohttp.ClientSession) -> None:
    stub.knobs.update({"fault": "null", "fault_next": 2, "fault_texts": 1})
    assert [None, reward_of(TEXTS[1])] == probs(await classify(http))[:2]
    stub.knobs.update({"fault": "nan", "fault_texts": 0})
    async with http.post("/classify", json={"input": TEXTS}) as response:
        text = await response.text()
    assert 3 == text.count('"probs":[NaN]')
    assert math.isnan(json.loads(text)["data"][0]["probs"][0])


async def test_too_few_rewards_another_order_or_two_labels(stub: RewardStub, http: aiohttp.ClientSession) -> None:
    stub.knobs.update({"fault": "wrong_length", "fault_probability": 1})
    assert 2 == len((await classify(http))["data"])
    stub.knobs.update({"fault": "wrong_order"})
    assert [2, 1, 0] == [row["index"] for row in (await classify(http))["data"]]
    stub.knobs.update({"fault": "two_labels"})
    assert {2} == {row["num_classes"] for row in (await classify(http))["data"]}
    assert 3 == stub.state.failed


async def test_a_status_garbage_or_a_broken_connection(stub: RewardStub, http: aiohttp.ClientSession) -> None:
    stub.knobs.update({"fault": "status", "fault_status": 503, "fault_next": 3})
    async with http.post("/classify", json={"input": TEXTS}) as response:
        assert 503 == response.status
    stub.knobs.update({"fault": "garbage"})
    async with http.post("/classify", json={"input": TEXTS}) as response:
        with pytest.raises(UnicodeDecodeError):
            (await response.read()).decode()
    stub.knobs.update({"fault": "disconnect"})
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await http.post("/classify", json={"input": TEXTS})


async def test_a_hanging_call_ends_when_its_client_leaves(stub: RewardStub, http: aiohttp.ClientSession) -> None:
    stub.knobs.update({"fault": "hang", "fault_next": 1})
    call = asyncio.create_task(http.post("/classify", json={"input": TEXTS}))
    await stub.state.until(lambda state: state.scoring == 1)
    call.cancel()
    await stub.state.until(lambda state: state.scoring == 0)
    assert (1, 3, 0) == (stub.state.cancelled, stub.state.largest_batch, stub.state.texts_scored)


async def test_it_runs_as_a_child_process() -> None:
    async with (
        StubProcess("tests.stubs.reward", latency_ms=1, latency_per_text_ms=0.1) as stub,
        aiohttp.ClientSession(stub.url) as http,
    ):
        assert [reward_of(text) for text in TEXTS] == probs(await classify(http))
        assert 3 == (await stub.state())["texts_scored"]
