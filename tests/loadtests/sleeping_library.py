"""A library that takes ten milliseconds for every answer, to test the measuring of libraries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from loadtests.closed_loop import Call
from loadtests.peers.library import main


@asynccontextmanager
async def library(backend: str, n: int) -> AsyncIterator[Call]:
    async def call() -> None:
        await asyncio.sleep(0.01)

    yield call


if __name__ == "__main__":
    main(library)
