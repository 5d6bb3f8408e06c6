"""A closed loop of callers, on the standard library alone: interpreters of other gateways' environments run it too."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from statistics import mean, quantiles

QUESTION = "Describe a quiet harbour in the early morning, in a few sentences."

Call = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Measured:
    """Latencies of one closed loop, in milliseconds, and its throughput."""

    concurrency: int
    requests: int
    mean_ms: float
    p50_ms: float
    p99_ms: float
    requests_per_s: float


async def closed_loop(call: Call, *, concurrency: int, seconds: float, warm_up_s: float = 1.0) -> Measured:
    """Keep ``concurrency`` callers busy; each sends its next request when the last one is answered.

    On a slow machine the loop lasts longer: until each caller has had two answers after the warm-up.
    """
    latencies_ms: list[float] = []
    begin = time.perf_counter() + warm_up_s
    end = begin + seconds

    async def caller() -> None:
        n_measured = 0
        while (started := time.perf_counter()) < end or n_measured < 2:
            await call()
            if started >= begin:
                latencies_ms.append((time.perf_counter() - started) * 1e3)
                n_measured += 1

    await asyncio.gather(*(caller() for _ in range(concurrency)))
    elapsed_s = time.perf_counter() - begin
    cuts = quantiles(latencies_ms, n=100, method="inclusive")
    return Measured(
        concurrency, len(latencies_ms), mean(latencies_ms), cuts[49], cuts[98], len(latencies_ms) / elapsed_s
    )
