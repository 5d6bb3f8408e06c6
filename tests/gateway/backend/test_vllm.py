"""vLLM's part of the protocol, from a server that knows only that."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from gateway.backend import replicas
from gateway.backend.pool import BackendPool
from gateway.errors import AdapterMissing, BackendFailed, BackendProtocolError
from tests.gateway.backend.conftest import PoolOf, prompt

SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}


@dataclass
class FakeVllm:
    """Lists its models and answers with the model's name; unknown models are a 404."""

    url: str = ""
    models: Any = field(default_factory=lambda: {"data": [{"id": "base-7b", "parent": None}]})
    listings: int = 0
    key: str = ""
    requests: list[Any] = field(default_factory=list)

    def load(self, adapter: str) -> None:
        self.models["data"].append({"id": adapter, "parent": "base-7b"})

    async def list_models(self, request: web.Request) -> web.Response:
        self.listings += 1
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        return web.json_response(self.models)

    async def health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def chat(self, request: web.Request) -> web.Response:
        asked = await request.json()
        self.requests.append(asked)
        if asked["model"] not in [model["id"] for model in self.models["data"]]:
            return web.json_response({"error": {"message": "no such model", "code": 404}}, status=404)
        choice = {"index": 0, "message": {"role": "assistant", "content": asked["model"]}, "finish_reason": "stop"}
        return web.json_response({"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})


@pytest.fixture
async def vllm() -> AsyncIterator[FakeVllm]:
    fake = FakeVllm()
    app = web.Application()
    app.router.add_get("/v1/models", fake.list_models)
    app.router.add_get("/health", fake.health)
    app.router.add_post("/v1/chat/completions", fake.chat)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield fake
    await runner.cleanup()


@pytest.fixture
def pool(vllm: FakeVllm, pool_of: PoolOf, monkeypatch: pytest.MonkeyPatch) -> BackendPool:
    """No pause between its draws counts as long enough for a restart, however slow the machine."""
    monkeypatch.setattr(replicas, "_RESTART_S", math.inf)
    return pool_of(vllm.url, kind="vllm")


async def draw(pool: BackendPool, **asked: Any) -> str | None:
    return (await pool.complete(prompt(**asked), seed=1, replica=0)).text


async def test_the_base_model_is_addressed_by_its_served_name(vllm: FakeVllm, pool: BackendPool) -> None:
    assert ["base-7b", "base-7b"] == [await draw(pool), await draw(pool)]
    assert 1 == vllm.listings


async def test_draws_that_begin_together_list_the_models_once(vllm: FakeVllm, pool: BackendPool) -> None:
    assert ["base-7b"] * 8 == await asyncio.gather(*(draw(pool) for _ in range(8)))
    assert 1 == vllm.listings


async def test_after_a_silence_the_models_are_listed_again(
    vllm: FakeVllm, pool: BackendPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restart between two draws breaks no connection that is in use."""
    await draw(pool)
    monkeypatch.setattr(replicas, "_RESTART_S", 0.0)
    vllm.models = {"data": [{"id": "base-8b", "parent": None}]}
    assert "base-8b" == await draw(pool)
    assert 2 == vllm.listings


async def test_a_failed_list_fails_all_waiting_draws_and_is_asked_for_again(vllm: FakeVllm, pool: BackendPool) -> None:
    good, vllm.models = vllm.models, {}
    failed = await asyncio.gather(*(draw(pool) for _ in range(4)), return_exceptions=True)
    assert [BackendProtocolError] * 4 == [type(error) for error in failed]
    assert 1 == vllm.listings
    vllm.models = good
    assert "base-7b" == await draw(pool)


async def test_a_cancelled_draw_does_not_cancel_the_list_for_the_others(vllm: FakeVllm, pool: BackendPool) -> None:
    first, second = (asyncio.create_task(draw(pool)) for _ in range(2))
    await asyncio.sleep(0)  # both have begun, and the first has asked
    first.cancel()
    assert "base-7b" == await second
    assert (True, 1) == (first.cancelled(), vllm.listings)


async def test_an_adapter_loaded_later_is_found(vllm: FakeVllm, pool: BackendPool) -> None:
    await draw(pool)
    vllm.load("rft-1")
    assert "rft-1" == await draw(pool, adapter="rft-1")


async def test_an_adapter_that_is_not_loaded_is_not_requested(vllm: FakeVllm, pool: BackendPool) -> None:
    with pytest.raises(BackendFailed, match="rft-9"):
        await draw(pool, adapter="rft-9")
    assert [] == vllm.requests


async def test_an_adapter_that_was_unloaded_fails_and_is_looked_up_again(vllm: FakeVllm, pool: BackendPool) -> None:
    vllm.load("rft-1")
    await draw(pool, adapter="rft-1")
    vllm.models["data"].pop()
    with pytest.raises(AdapterMissing, match="rft-1"):
        await draw(pool, adapter="rft-1")
    with pytest.raises(BackendFailed, match="not loaded"):
        await draw(pool, adapter="rft-1")


@pytest.mark.parametrize("listing", [{}, [], {"data": []}, {"data": [5]}, {"data": [{"parent": None}]}])
async def test_a_malformed_list_of_models_is_an_error(vllm: FakeVllm, pool: BackendPool, listing: Any) -> None:
    vllm.models = listing
    with pytest.raises(BackendProtocolError, match="models"):
        await draw(pool)


async def test_a_json_schema_reaches_vllm_in_openais_shape(vllm: FakeVllm, pool: BackendPool) -> None:
    """The hub's client would rewrite it for TGI, and vLLM would silently ignore that."""
    await draw(pool, response_format=SCHEMA)
    assert SCHEMA == vllm.requests[0]["response_format"]


@pytest.mark.parametrize(("key", "ready"), [("right", True), ("wrong", False)])
async def test_readiness_reports_a_wrong_key(vllm: FakeVllm, pool_of: PoolOf, key: str, ready: bool) -> None:
    """Its health check needs no key, its list of models does."""
    vllm.key = "right"
    found = await pool_of(vllm.url, kind="vllm", api_key=key).readiness()
    assert (ready, not ready) == (found.ready, "refuses the gateway's API key" in found.detail)
