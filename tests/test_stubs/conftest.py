from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from tests.stubs.tgi import TgiStub

Ask = Callable[..., Awaitable[tuple[int, Any]]]

QUESTION = [{"role": "user", "content": "How does a ratchet hold what it has gained?"}]


@pytest.fixture
async def stub() -> AsyncIterator[TgiStub]:
    async with TgiStub() as running:
        yield running


@pytest.fixture
async def http(stub: TgiStub) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(stub.url) as session:
        yield session


@pytest.fixture
def ask(http: aiohttp.ClientSession) -> Ask:
    """Post a chat request; return the status and the body, parsed if it is JSON."""

    async def post(**body: Any) -> tuple[int, Any]:
        async with http.post("/v1/chat/completions", json={"messages": QUESTION, **body}) as response:
            text = response.content_type == "text/plain" or response.content_type == "text/event-stream"
            return response.status, await (response.text() if text else response.json())

    return post
