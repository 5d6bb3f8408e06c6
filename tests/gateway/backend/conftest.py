"""A stub of TGI in this process, and a pool over it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from gateway.backend.pool import BackendPool
from gateway.settings import BackendSettings
from gateway.types import Prompt, Sampling
from tests.stubs.knobs import Knobs
from tests.stubs.tgi import TgiStub

PoolOf = Callable[..., BackendPool]


@pytest.fixture
async def stub() -> AsyncIterator[TgiStub]:
    async with TgiStub(Knobs()) as running:
        yield running


@pytest.fixture
async def other_stub() -> AsyncIterator[TgiStub]:
    async with TgiStub(Knobs()) as running:
        yield running


@pytest.fixture
async def pool_of() -> AsyncIterator[PoolOf]:
    """Make pools over URLs, and close them."""
    async with AsyncExitStack() as stack:

        def make(*urls: str, **settings: Any) -> BackendPool:
            pool = BackendPool(BackendSettings(urls=urls, **settings))
            stack.push_async_callback(pool.aclose)
            return pool

        yield make


@pytest.fixture
def pool(stub: TgiStub, pool_of: PoolOf) -> BackendPool:
    return pool_of(stub.url)


def prompt(text: str = "What floats on the harbour?", *, adapter: str | None = None, **sampling: Any) -> Prompt:
    return Prompt([{"role": "user", "content": text}], Sampling(**sampling), adapter)
