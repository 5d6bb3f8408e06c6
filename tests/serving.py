"""A whole gateway on real HTTP, in this process: the app under uvicorn, the TGI stub, the reward stub, a real Redis.

The fixture ``serve``, imported by the conftest of each room that needs it, starts one with a test's settings and knobs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn

from gateway.api.protocol import server_options
from gateway.app import create_app
from gateway.journal.record import Record
from gateway.journal.stream import START, StreamEntry, StreamTail
from gateway.settings import RedisSettings, Settings
from tests.stubs.knobs import Knobs
from tests.stubs.reward import RewardKnobs, RewardStub
from tests.stubs.tgi import TgiStub

MESSAGES = [{"role": "user", "content": "What floats on the harbour?"}]


@dataclass(slots=True)
class Served:
    """A running gateway, and the stubs behind it."""

    url: str
    http: httpx2.AsyncClient
    tgi: TgiStub
    rewards: RewardStub
    settings: Settings

    async def chat(self, **fields: Any) -> httpx2.Response:
        """POST a chat completion; ``headers`` is separate, the other fields are the body."""
        headers = fields.pop("headers", None)
        body = {"model": "ratchet", "messages": MESSAGES, **fields}
        return await self.http.post("/v1/chat/completions", json=body, headers=headers)

    async def records(self, count: int, timeout_s: float = 10.0) -> list[Record]:
        """Return the first ``count`` records of the journal's stream, once Redis has them."""
        async with asyncio.timeout(timeout_s), aclosing(StreamTail(self.settings.redis)) as tail:
            found: list[StreamEntry] = []
            while len(found) < count:
                found += await tail.read(found[-1].entry_id if found else START)
                await asyncio.sleep(0.01)
            return [entry.record() for entry in found]


Serve = Callable[..., Awaitable[Served]]


@pytest.fixture
async def serve(tmp_path: Path, redis_settings: RedisSettings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Serve]:
    """Return a function that starts gateways, with the knobs of both stubs and settings of any group."""
    # On a busy machine a slow Redis is not away.
    monkeypatch.setattr("gateway.api.limits.REDIS_TIMEOUT_S", 5.0)
    async with AsyncExitStack() as stack:

        async def start(
            tgi: Knobs | None = None, rewards: RewardKnobs | None = None, **groups: dict[str, Any]
        ) -> Served:
            tgi_stub = await stack.enter_async_context(TgiStub(tgi))
            reward_stub = await stack.enter_async_context(RewardStub(rewards))
            settings = Settings.model_validate(
                {
                    "redis": redis_settings.model_dump(),
                    **groups,
                    "backend": {"urls": (tgi_stub.url,), **groups.get("backend", {})},
                    "reward": {"url": reward_stub.url, **groups.get("reward", {})},
                    "journal": {"spool_dir": tmp_path / "spool", **groups.get("journal", {})},
                    "policy": {"exploration": 0.0, **groups.get("policy", {})},
                }
            )
            url = await stack.enter_async_context(running(settings))
            http = await stack.enter_async_context(httpx2.AsyncClient(base_url=url, timeout=30, trust_env=False))
            return Served(url, http, tgi_stub, reward_stub, settings)

        yield start


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[str]:
    """Run the gateway under uvicorn on a free port, in this event loop; yield its URL."""
    config = uvicorn.Config(create_app(settings), host="127.0.0.1", port=0, lifespan="on", **server_options(settings))
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        if serving.done():
            serving.result()
            raise RuntimeError("the gateway ended before it served")
        await asyncio.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await serving
