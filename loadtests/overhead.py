"""The gateway's overhead over its backend, by stage: a part of ``make bench``.

The TGI stub answers every call after a fixed time, the reward stub at once. The stub is called directly (N calls side
by side, the slowest counts), then through the gateway at the same N and concurrency. Client, stubs, Redis and gateway
share the machine's cores, so this is the cost of all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from statistics import median

import aiohttp
import orjson

from loadtests.closed_loop import QUESTION, Measured, closed_loop
from loadtests.stack import Stack, cpu_s

JSON = {"content-type": "application/json"}
MAX_TOKENS = 64
TIMEOUT_S = 60.0

Row = dict[str, object]


@dataclass(frozen=True, slots=True)
class Load:
    """A load: N, callers at once, seconds, prompt; ``key`` is the API key, if one is needed."""

    n: int
    concurrency: int
    seconds: float
    prompt: str = QUESTION
    key: str = ""

    def body(self, model: str, **fields: object) -> bytes:
        """Return the request's body."""
        messages = [{"role": "user", "content": self.prompt}]
        return orjson.dumps({"model": model, "messages": messages, "max_tokens": MAX_TOKENS, **fields})


@dataclass(frozen=True, slots=True)
class Served:
    """The gateway under a load: CPU and reward calls for each request, medians of its own stages' times."""

    measured: Measured
    cpu_ms: float
    reward_calls: float
    stages_ms: Mapping[str, float]


@asynccontextmanager
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    """Open the HTTP client that all measurements use."""
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        yield session


async def direct(url: str, load: Load) -> Measured:
    """Measure N calls to the stub side by side, without a gateway."""
    body = load.body("tgi")
    async with client() as session:

        async def one() -> None:
            async with session.post(url + "/v1/chat/completions", data=body, headers=JSON) as response:
                await response.read()
                assert response.status == 200, response.status

        async def call() -> None:
            await asyncio.gather(*(one() for _ in range(load.n))) if load.n > 1 else await one()

        return await closed_loop(call, concurrency=load.concurrency, seconds=load.seconds)


async def through_gateway(running: Stack, load: Load) -> Served:
    """Measure the same load through the gateway."""
    body = load.body("ratchet", best_of=load.n)
    headers = {**JSON, "authorization": f"Bearer {load.key}"} if load.key else JSON
    races: list[dict[str, float]] = []
    async with client() as session:

        async def call() -> None:
            async with session.post(running.gateway + "/v1/chat/completions", data=body, headers=headers) as response:
                answer = orjson.loads(await response.read())
            assert response.status == 200, answer
            race = answer["best_of_n"]
            assert (load.n, load.n if load.n > 1 else 0) == (race["n"], race["scored"]), race
            races.append(race["timings"])

        calls, cpu = await _reward_calls(session, running), cpu_s(running.gateway_pid)
        measured = await closed_loop(call, concurrency=load.concurrency, seconds=load.seconds)
        calls, cpu = await _reward_calls(session, running) - calls, cpu_s(running.gateway_pid) - cpu
    stages_ms = {stage: median(timings[stage] for timings in races) for stage in races[0]}
    return Served(measured, cpu * 1e3 / len(races), calls / len(races), stages_ms)


async def _reward_calls(session: aiohttp.ClientSession, running: Stack) -> int:
    async with session.get(running.reward + "/_stub/state") as response:
        return int(orjson.loads(await response.read())["started"])


async def compare(running: Stack, load: Load) -> Row:
    """Measure one load directly and through the gateway, and return the differences."""
    alone = await direct(running.backend, load)
    served = await through_gateway(running, load)
    stages_ms = served.stages_ms
    return {
        "n": load.n,
        **asdict(served.measured),
        "stub_p50_ms": alone.p50_ms,
        "stub_requests_per_s": alone.requests_per_s,
        "added_ms": served.measured.p50_ms - alone.p50_ms,
        "draws_ms": stages_ms["generate_ms"] - alone.p50_ms,
        "rewards_ms": stages_ms["score_ms"],
        "journal_ms": stages_ms["journal_ms"],
        "own_ms": stages_ms["overhead_ms"],
        "http_ms": served.measured.p50_ms - stages_ms["total_ms"],
        "cpu_ms": served.cpu_ms,
        "reward_calls": served.reward_calls,
    }


async def run(running: Stack, ns: Sequence[int], concurrencies: Sequence[int], seconds: float) -> AsyncIterator[Row]:
    """Measure every combination, directly and through the gateway in turn."""
    for concurrency in concurrencies:
        for n in ns:
            yield await compare(running, Load(n, concurrency, seconds))
