"""A vLLM server that lost its adapter gets no draws for that adapter, and is asked to load it again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from gateway.errors import AdapterMissing
from tests.gateway.backend.conftest import PoolOf, prompt
from tests.waiting import until

NAME = "rft-20260101-0123456789ab"
DIR = "/srv/adapters"


class Server:
    """A vLLM whose restart unloads its adapters."""

    def __init__(self) -> None:
        self.adapters = {NAME}
        self.draws: list[str] = []
        self.loads: list[Any] = []
        self.loads_with = 200
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._draw)
        app.router.add_post("/v1/load_lora_adapter", self._load)
        self.http = TestServer(app)

    @property
    def url(self) -> str:
        return str(self.http.make_url("")).rstrip("/")

    async def _models(self, _: web.Request) -> web.Response:
        listed = [{"id": "base", "parent": None}, *({"id": name, "parent": "base"} for name in self.adapters)]
        return web.json_response({"data": listed})

    async def _draw(self, request: web.Request) -> web.Response:
        model = (await request.json())["model"]
        self.draws.append(model)
        if model != "base" and model not in self.adapters:
            return web.json_response({"error": {"message": "gone", "type": "NotFoundError", "code": 404}}, status=404)
        choice = {"message": {"role": "assistant", "content": model}, "finish_reason": "stop"}
        return web.json_response({"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})

    async def _load(self, request: web.Request) -> web.Response:
        self.loads.append(await request.json())
        if self.loads_with == 200:
            self.adapters.add(self.loads[-1]["lora_name"])
        return web.Response(status=self.loads_with)


@pytest.fixture
async def servers() -> AsyncIterator[list[Server]]:
    async with AsyncExitStack() as stack:
        both = [Server(), Server()]
        for server in both:
            await stack.enter_async_context(server.http)
        yield both


async def test_the_replica_with_the_adapter_answers_and_the_other_serves_the_base(
    servers: list[Server], pool_of: PoolOf
) -> None:
    pool = pool_of(*(server.url for server in servers), kind="vllm")
    for _ in range(4):
        await pool.complete(prompt(adapter=NAME), seed=1, replica=pool.choose_replica())
    servers[0].adapters.clear()
    for server in servers:
        server.draws.clear()
    for _ in range(8):
        answer = await pool.complete(prompt(adapter=NAME), seed=1, replica=pool.choose_replica())
        assert NAME == answer.text
    assert servers[0].draws.count(NAME) <= 1
    assert [True, False] == [state.lacks_adapter for state in pool.states()]
    for _ in range(2):
        await pool.complete(prompt(), seed=1, replica=pool.choose_replica())
    assert ["base", "base"] == [*(draw for server in servers for draw in server.draws if draw == "base")]
    assert not any(state.fault for state in pool.states())


async def test_without_any_replica_with_the_adapter_the_error_says_so(servers: list[Server], pool_of: PoolOf) -> None:
    pool = pool_of(*(server.url for server in servers), kind="vllm")
    for server in servers:
        server.adapters.clear()
    for _ in range(3):
        with pytest.raises(AdapterMissing, match=NAME):
            await pool.complete(prompt(adapter=NAME), seed=1, replica=pool.choose_replica())


async def test_a_lost_adapter_is_loaded_again(servers: list[Server], pool_of: PoolOf) -> None:
    server = servers[0]
    pool = pool_of(server.url, kind="vllm", adapters_dir=DIR)
    server.adapters.clear()
    with pytest.raises(AdapterMissing):
        await pool.complete(prompt(adapter=NAME), seed=1, replica=0)
    await until(lambda: not any(state.lacks_adapter for state in pool.states()))
    assert [{"lora_name": NAME, "lora_path": f"{DIR}/{NAME}"}] == server.loads
    assert NAME == (await pool.complete(prompt(adapter=NAME), seed=1, replica=0)).text


@pytest.mark.parametrize(("name", "folder"), [("../etc", DIR), ("rft-1/../../etc", DIR), (NAME, "")])
async def test_only_names_of_our_adapters_are_loaded(
    servers: list[Server], pool_of: PoolOf, name: str, folder: str
) -> None:
    """A name in a policy document becomes a path there."""
    server = servers[0]
    server.adapters.clear()
    pool = pool_of(server.url, kind="vllm", adapters_dir=folder)
    with pytest.raises(AdapterMissing):
        await pool.complete(prompt(adapter=name), seed=1, replica=0)
    assert not pool._adapters._loading
    assert [] == server.loads
