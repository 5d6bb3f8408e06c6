"""The reward server on real HTTP: vLLM's protocol, our conversations, bad callers, and a process of its own."""

from __future__ import annotations

import asyncio
import math
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn

from gateway.errors import SettingsError
from gateway.reward import server, wire
from gateway.reward.local import LocalScorer, Model
from gateway.reward.model import RewardModel
from gateway.reward.remote import RemoteScorer
from gateway.reward.server import create_app
from gateway.reward.server_metrics import ServerMetrics
from gateway.settings import RewardSettings, Settings
from tests.gateway.reward.fake_model import FakeModel
from tests.gateway.reward.texts import TEXTS, ask

START = """
from gateway.reward.server import serve
from gateway.settings import load
serve(load())
"""


@dataclass
class Served:
    """A running reward server."""

    url: str
    http: httpx2.AsyncClient
    scorer: LocalScorer
    metrics: ServerMetrics
    uvicorn: uvicorn.Server

    async def classify(self, body: object = None, **fields: Any) -> httpx2.Response:
        """POST /classify, asking for raw rewards unless told otherwise."""
        return await self.http.post("/classify", json=body or {"use_activation": False, **fields})

    async def rewards(self, **fields: Any) -> list[float | None]:
        """The rewards of a call that must succeed."""
        response = await self.classify(**fields)
        assert 200 == response.status_code, response.text
        return [item["probs"][0] for item in response.json()["data"]]


Start = Callable[..., Awaitable[Served]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """What starts servers for a model, and stops them again."""
    async with AsyncExitStack() as stack:

        async def run(
            model: Model | None = None, *, folder: str = "fake", loaded: bool = True, **settings: Any
        ) -> Served:
            options = RewardSettings.model_validate({"model": folder, **settings})
            metrics = ServerMetrics()
            load = None if model is None else lambda: model
            scorer = LocalScorer(options, observe=metrics.batch, load=load)
            config = uvicorn.Config(create_app(scorer, options, metrics), port=0, log_config=None)
            running = uvicorn.Server(config)
            serving = asyncio.create_task(running.serve())

            async def stop() -> None:
                running.should_exit = True
                await serving

            stack.push_async_callback(stop)
            async with asyncio.timeout(60):
                if loaded:
                    await scorer.loaded()
                while not running.started:
                    await asyncio.sleep(0.01)
            url = f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
            http = await stack.enter_async_context(httpx2.AsyncClient(base_url=url, timeout=30))
            return Served(url, http, scorer, metrics, running)

        yield run


def turns(prompt: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}


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
async def test_without_being_told_otherwise_rewards_are_squashed_as_vllm_does(
    start: Start, activation: bool | None
) -> None:
    served = await start(FakeModel())
    response = await served.classify({"input": "one", "use_activation": activation})
    assert pytest.approx(1 / (1 + math.exp(-3))) == response.json()["data"][0]["probs"][0]


async def test_the_squashed_and_the_raw_reward_differ_by_a_sigmoid_on_either_side_of_zero(
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
async def test_a_text_or_a_conversation_can_be_given_in_each_form(start: Start, fields: dict[str, Any]) -> None:
    served = await start(FakeModel())
    assert [5.0] == await served.rewards(**fields)


async def test_a_cut_prompt_is_told(start: Start) -> None:
    served = await start(FakeModel())
    long = {"messages": [*turns("hi", "a")["messages"], *turns("hi", "three")["messages"]]}
    response = await served.classify(input=[long, turns("hi", "three")])
    assert [True, False] == [item["prompt_truncated"] for item in response.json()["data"]]


async def test_a_reward_that_is_no_number_is_null_and_costs_its_neighbours_nothing(start: Start) -> None:
    served = await start(FakeModel())
    items = [turns("hi", "a" * 13), turns("hi", "one"), turns("refuse me", "one")]
    assert [None, 3.0, None] == await served.rewards(input=items)


async def test_when_no_reward_can_be_had_at_all_that_is_an_error(start: Start) -> None:
    served = await start(FakeModel())
    response = await served.classify(input=["a" * 99])
    assert (500, "the reward model failed on cuda:0: OutOfMemoryError") == _status_and_message(response)


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


async def test_a_text_for_a_model_that_reads_pairs_is_refused_and_the_way_out_is_named(start: Start) -> None:
    served = await start(FakeModel(reads_text=False))
    status, message = _status_and_message(await served.classify(input=["one"]))
    assert 400 == status
    assert "fake reads a prompt and its answer apart" in message
    assert '"messages"' in message


async def test_an_unknown_model_is_not_found(start: Start) -> None:
    served = await start(FakeModel())
    assert 404 == (await served.classify(model="other", input="one")).status_code


async def test_too_large_a_body_and_too_many_inputs_are_refused(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    served = await start(FakeModel(), max_queue=2)
    assert 413 == (await served.classify(input=["one"] * 3)).status_code
    monkeypatch.setattr(server, "MAX_BODY_BYTES", 100)
    assert 413 == (await served.classify(input="a" * 200)).status_code


async def test_a_full_queue_is_429_with_retry_after(start: Start) -> None:
    model = FakeModel()
    model.gate.clear()
    served = await start(model, max_queue=2, max_wait_ms=0)
    running = asyncio.create_task(served.classify(input="one"))
    await asyncio.to_thread(model.begun.wait, 30)
    waiting = asyncio.create_task(served.classify(input=["one", "two"]))
    await _until(lambda: served.scorer.waiting == 2)
    refused = await served.classify(input="three")
    assert (429, "1") == (refused.status_code, refused.headers["retry-after"])
    model.gate.set()
    assert [200, 200] == [response.status_code for response in await asyncio.gather(running, waiting)]


async def test_a_client_that_hangs_up_takes_its_answers_along(start: Start) -> None:
    model = FakeModel()
    model.gate.clear()
    served = await start(model, max_wait_ms=0)
    running = asyncio.create_task(served.classify(input="one"))
    await asyncio.to_thread(model.begun.wait, 30)
    leaving = asyncio.create_task(served.classify(input=["two", "three"]))
    await _until(lambda: served.scorer.waiting == 2)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    await _until(lambda: served.scorer.waiting == 0)
    model.gate.set()
    assert 200 == (await running).status_code
    assert [1] == model.batches


async def test_a_client_that_hangs_up_in_the_middle_of_its_body_is_counted_and_nothing_more(start: Start) -> None:
    served = await start(FakeModel())
    host, port = served.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(b'POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{"input"')
    await writer.drain()
    writer.close()
    await _until(lambda: b'calls_total{status="499"} 1.0' in served.metrics.render(0)[0])


async def test_while_the_model_loads_everything_says_503_and_the_reason(start: Start, tmp_path: Path) -> None:
    served = await start(folder=str(tmp_path), loaded=False)
    with pytest.raises(SettingsError):
        await served.scorer.loaded()
    for response in (
        await served.http.get("/health"),
        await served.http.get("/v1/models"),
        await served.classify(input="one"),
    ):
        status, message = _status_and_message(response)
        assert 503 == status
        assert "could not be loaded" in message


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


async def test_unknown_routes_and_methods_have_the_same_envelope(start: Start) -> None:
    served = await start(FakeModel())
    assert (404, "Not Found") == _status_and_message(await served.http.get("/nowhere"))
    assert (405, "Method Not Allowed") == _status_and_message(await served.http.get("/classify"))


async def test_a_defect_is_a_500_without_its_trace(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    served = await start(FakeModel())
    monkeypatch.setattr(wire, "parse_items", lambda _body: 1 / 0)
    assert (500, "internal error") == _status_and_message(await served.classify(input="one"))


async def test_where_a_key_is_set_callers_need_it(start: Start) -> None:
    served = await start(FakeModel(), api_key="reward-key")
    assert 401 == (await served.classify(input="one")).status_code
    assert (
        401 == (await served.http.get("/v1/models", headers=[(b"Authorization", "Bearer räuber".encode())])).status_code
    )
    assert 200 == (await served.http.get("/health")).status_code
    scorer = RemoteScorer(RewardSettings(url=served.url, api_key="reward-key"))
    assert 3.0 == (await scorer.score(ask("hi"), "one")).reward
    await scorer.aclose()


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


async def test_a_server_told_to_stop_answers_what_it_began(start: Start) -> None:
    model = FakeModel()
    model.gate.clear()
    served = await start(model)
    answering = asyncio.create_task(served.classify(input="one"))
    await asyncio.to_thread(model.begun.wait, 30)
    served.uvicorn.should_exit = True
    await _until(lambda: not served.uvicorn.servers[0].is_serving())
    model.gate.set()
    assert 200 == (await answering).status_code


async def test_its_own_process_serves_until_sigterm(minilm: str, adapter: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = await _process(MODEL=minilm, ADAPTER=str(adapter), DEVICE="cpu", PORT=str(port))
    try:
        async with asyncio.timeout(120), httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
            while not await _healthy(http):
                await asyncio.sleep(0.05)
            assert 200 == (await http.post("/classify", json={"input": turns("hi", "hello")})).status_code
            process.send_signal(signal.SIGTERM)
            assert await process.wait() in {0, -signal.SIGTERM}
    finally:
        if process.returncode is None:
            process.kill()


async def test_serving_ends_with_the_reason_when_the_model_cannot_be_loaded(tmp_path: Path) -> None:
    settings = Settings(reward=RewardSettings(model=str(tmp_path), port=0))
    with pytest.raises(SettingsError, match="cannot be loaded"):
        await asyncio.to_thread(server.serve, settings)


def test_without_a_local_model_there_is_nothing_to_serve() -> None:
    with pytest.raises(SettingsError, match="GATEWAY_REWARD__MODEL"):
        server.serve(Settings())


def test_listening_beyond_loopback_needs_a_key() -> None:
    with pytest.raises(ValueError, match="GATEWAY_REWARD__API_KEY"):
        RewardSettings(model="fake", host="0.0.0.0")
    assert "0.0.0.0" == RewardSettings(model="fake", host="0.0.0.0", api_key="key").host


async def _process(**settings: str) -> asyncio.subprocess.Process:
    environment = {f"GATEWAY_REWARD__{name}": value for name, value in settings.items()}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return await asyncio.create_subprocess_exec(sys.executable, "-c", START, env=environment)


async def _healthy(http: httpx2.AsyncClient) -> bool:
    try:
        return (await http.get("/health")).status_code == 200
    except httpx2.TransportError:
        return False


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


def _status_and_message(response: httpx2.Response) -> tuple[int, str]:
    error = response.json()["error"]
    assert response.status_code == error["code"]
    return response.status_code, error["message"]
