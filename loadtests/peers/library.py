"""Closed loops on a library, run by a peer's own interpreter; results are printed as lines of JSON.

``python -m loadtests.peers.…_client BACKEND_URL N SECONDS CONCURRENCY…``. Callers and library are one process, so that
no HTTP lies between them.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict

from loadtests.closed_loop import Call, closed_loop


def main(library: Callable[[str, int], AbstractAsyncContextManager[Call]]) -> None:
    """Measure the calls of ``library(backend_url, n)``: one call is one best-of-N answer."""
    _, backend, n, seconds, *concurrencies = sys.argv
    asyncio.run(_measure(library(backend, int(n)), float(seconds), [int(concurrency) for concurrency in concurrencies]))


async def _measure(opening: AbstractAsyncContextManager[Call], seconds: float, concurrencies: list[int]) -> None:
    async with opening as call:
        for concurrency in concurrencies:
            n_answered = 0

            async def counted() -> None:
                nonlocal n_answered
                await call()
                n_answered += 1

            before_s = time.process_time()
            measured = await closed_loop(counted, concurrency=concurrency, seconds=seconds)
            cpu_ms = (time.process_time() - before_s) * 1e3 / n_answered
            print(json.dumps({"measured": asdict(measured), "cpu_ms": cpu_ms}), flush=True)
