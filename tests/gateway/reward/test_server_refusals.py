"""Refusals of the reward server: their status, message and envelope."""

from __future__ import annotations

import asyncio
import re

import pytest

from gateway.reward import batcher, local, server, wire
from gateway.reward.remote import RemoteScorer
from gateway.settings import RewardSettings
from tests.gateway.reward.fake_model import FakeModel
from tests.gateway.reward.served import Start, status_and_message
from tests.gateway.reward.texts import ask
from tests.waiting import until


async def test_a_call_without_any_reward_is_an_error(start: Start) -> None:
    served = await start(FakeModel())
    response = await served.classify(input=["a" * 99])
    assert (500, "the reward model failed on cuda:0: OutOfMemoryError") == status_and_message(response)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "the body is not JSON"),
        (b'{"input": NaN}', "the body is not JSON"),
        (b"[]", "the body must be a JSON object"),
        (b"{}", "not empty"),
        (b'{"input": []}', "not empty"),
        (b'{"input": 5}', "not empty"),
        (b'{"input": [5]}', r"input\[0\] must be a string or an object with messages"),
        (b'{"input": [[1, 2]]}', r"input\[0\] must be a string"),
        (b'{"input": ["a", " "]}', r"input\[1\] is empty"),
        (b'{"input": {"messages": []}}', "object with messages"),
        (b'{"input": {"messages": ["a"]}}', "needs a role"),
        (b'{"input": {"messages": [{"role": "robot"}]}}', "needs a role"),
        (b'{"input": {"messages": [{"role": []}]}}', "needs a role"),
        (b'{"input": {"messages": [{"role": "user", "content": 5}]}}', "must be a string or null"),
        (b'{"input": {"messages": [{"role": "user", "content": "hi"}]}}', "the last message must be the assistant"),
        (b'{"input": {"messages": [{"role": "assistant"}]}}', "the last message must be the assistant"),
        (b'{"messages": "hi"}', "object with messages"),
        (b'{"input": "a", "use_activation": "no"}', "use_activation"),
    ],
)
async def test_a_bad_body_is_refused_in_vllms_envelope(start: Start, content: bytes, message: str) -> None:
    served = await start(FakeModel())
    response = await served.http.post("/classify", content=content)
    error = response.json()["error"]
    assert (400, "BadRequestError", None, 400) == (response.status_code, error["type"], error["param"], error["code"])
    assert re.search(message, error["message"])


async def test_a_text_for_a_model_that_reads_pairs_is_refused_with_advice(start: Start) -> None:
    served = await start(FakeModel(reads_text=False))
    status, message = status_and_message(await served.classify(input=["one"]))
    assert 400 == status
    assert "fake reads a prompt and its answer apart" in message
    assert '"messages"' in message


async def test_an_unknown_model_is_not_found(start: Start) -> None:
    served = await start(FakeModel())
    assert 404 == (await served.classify(model="other", input="one")).status_code


async def test_too_large_a_body_and_too_many_inputs_are_refused(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher, "MAX_QUEUE", 2)
    served = await start(FakeModel())
    assert 413 == (await served.classify(input=["one"] * 3)).status_code
    monkeypatch.setattr(server, "MAX_BODY_BYTES", 100)
    assert 413 == (await served.classify(input="a" * 200)).status_code


async def test_a_full_queue_is_429_with_retry_after(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "MAX_QUEUE", 2)
    model = FakeModel()
    model.gate.clear()
    served = await start(model)
    running = asyncio.create_task(served.classify(input="one"))
    await asyncio.to_thread(model.begun.wait, 30)
    waiting = asyncio.create_task(served.classify(input=["one", "two"]))
    await until(lambda: served.scorer.waiting == 2)
    refused = await served.classify(input="three")
    assert (429, "1") == (refused.status_code, refused.headers["retry-after"])
    model.gate.set()
    assert [200, 200] == [response.status_code for response in await asyncio.gather(running, waiting)]


async def test_unknown_routes_and_methods_have_the_same_envelope(start: Start) -> None:
    served = await start(FakeModel())
    assert (404, "Not Found") == status_and_message(await served.http.get("/nowhere"))
    assert (405, "Method Not Allowed") == status_and_message(await served.http.get("/classify"))


async def test_a_defect_is_a_500_without_its_traceback(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    served = await start(FakeModel())
    monkeypatch.setattr(wire, "parse_items", lambda _body: 1 / 0)
    assert (500, "internal error") == status_and_message(await served.classify(input="one"))


async def test_callers_need_the_key_if_one_is_set(start: Start) -> None:
    served = await start(FakeModel(), api_key="reward-key")
    assert 401 == (await served.classify(input="one")).status_code
    assert (
        401 == (await served.http.get("/v1/models", headers=[(b"Authorization", "Bearer räuber".encode())])).status_code
    )
    assert 200 == (await served.http.get("/health")).status_code
    scorer = RemoteScorer(RewardSettings(url=served.url, api_key="reward-key"))
    assert 3.0 == (await scorer.score(ask("hi"), "one")).reward
    await scorer.aclose()
