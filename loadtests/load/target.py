"""The target of the load: the gateway before a stub that needs no GPU, or the embedded stack with its real model."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from gateway.embedded.stack import EmbeddedStack
from loadtests.stack import stack


@dataclass(frozen=True, slots=True)
class Target:
    """A running gateway, and the Redis behind it."""

    url: str
    redis_url: str


@asynccontextmanager
async def on_stub(latency_ms: float, workers: int, settings: Mapping[str, str]) -> AsyncIterator[Target]:
    """Start the gateway before the TGI stub, until the block ends."""
    async with stack(latency_ms=latency_ms, workers=workers, **settings) as running:
        yield Target(running.gateway, running.redis)


@asynccontextmanager
async def on_embedded(settings: Mapping[str, str]) -> AsyncIterator[Target]:
    """Start the embedded stack in a folder of its own, until the block ends."""
    with tempfile.TemporaryDirectory(prefix="ratchet-load-") as folder:
        embedded = EmbeddedStack(Path(folder), settings=settings)
        await asyncio.to_thread(embedded.start)
        try:
            yield Target(embedded.url, embedded.redis_url)
        finally:
            await asyncio.to_thread(embedded.stop)
