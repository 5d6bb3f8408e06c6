from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys

from huggingface_hub import AsyncInferenceClient

from gateway.backend.hub import HubClient
from gateway.backend.pool import BackendPool
from tests.gateway.backend.conftest import PoolOf, prompt
from tests.stubs.tgi import TgiStub

DRAW = """
import asyncio, sys
from gateway.backend.pool import BackendPool
from gateway.settings import BackendSettings
from gateway.types import Prompt, Sampling

async def draw():
    async with BackendPool(BackendSettings(urls=(sys.argv[1],), api_key=sys.argv[2])) as pool:
        asked = Prompt([{"role": "user", "content": "hi"}], Sampling())
        await pool.complete(asked, seed=1, replica=0)
        async for _ in pool.stream(asked, seed=1, replica=0):
            pass
        await pool.readiness()

asyncio.run(draw())
"""


async def draw_in_an_environment(url: str, api_key: str = "", **variables: str) -> None:
    """Draw in a process of its own: the hub reads its environment when it is imported."""
    environment = {**os.environ, **variables}
    command = [sys.executable, "-c", DRAW, url, api_key]
    await asyncio.to_thread(subprocess.run, command, env=environment, check=True, timeout=120)


async def test_the_environments_token_offline_mode_and_proxies_do_not_reach_a_draw(stub: TgiStub) -> None:
    proxies = {"HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    await draw_in_an_environment(stub.url, HF_TOKEN="hf_secret", HF_HUB_OFFLINE="1", **proxies)
    headers = [request.headers for request in stub.state.requests]
    assert [False, False] == ["authorization" in one for one in headers]
    assert "hf_secret" not in str([list(one.items()) for one in headers])
    assert 2 == stub.state.finished


async def test_the_backends_key_is_sent(stub: TgiStub) -> None:
    stub.knobs.update({"api_key": "backend-key"})
    await draw_in_an_environment(stub.url, "backend-key", HF_TOKEN="hf_secret")
    assert {"Bearer backend-key"} == {request.headers["authorization"] for request in stub.state.requests}


async def test_ended_streams_leave_no_client_behind(stub: TgiStub, pool_of: PoolOf) -> None:
    """The hub's client keeps an exit-stack entry for each stream until it is closed."""
    pool = pool_of(stub.url)

    async def stream() -> None:
        async for _ in pool.stream(prompt(max_tokens=2), seed=1, replica=0):
            pass

    def clients() -> int:
        gc.collect()
        return sum(isinstance(thing, HubClient) for thing in gc.get_objects())

    await stream()
    before = clients()
    for _ in range(5):
        await stream()
    assert before == clients()
    assert 0 == pool.held()


def test_the_hubs_client_still_has_the_parts_that_are_replaced() -> None:
    """A version that renames them must fail here, not in production."""
    assert callable(AsyncInferenceClient._inner_post)


async def test_pools_over_different_replicas_do_not_share_anything(
    stub: TgiStub, other_stub: TgiStub, pool_of: PoolOf
) -> None:
    first, second = pool_of(stub.url), pool_of(other_stub.url)
    await first.complete(prompt(), seed=1, replica=0)
    await first.aclose()
    await second.complete(prompt(), seed=1, replica=0)
    assert (1, 1) == (stub.state.finished, other_stub.state.finished)


async def test_a_pool_closes_as_a_context(stub: TgiStub, pool_of: PoolOf) -> None:
    async with pool_of(stub.url) as pool:
        assert isinstance(pool, BackendPool)
        assert (await pool.readiness()).ready
