"""What the gateway adds: ``python -m loadtests.overhead``.

One run, one machine: the TGI stub answers every call after a fixed time, the reward stub at once. The stub is called
directly (one call; N calls side by side, of which the slowest counts), then through the gateway at the same N and
concurrency. Client, stub, Redis and gateway share the machine's cores, so this is the whole cost, not the gateway's
alone. Then TensorZero's embedded gateway, best of 4, on the same stub.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

import aiohttp
import orjson
from rich.console import Console
from rich.table import Table

from loadtests.peers import tensorzero
from loadtests.stack import Measured, Stack, closed_loop, cpu_s, machine, stack

MESSAGES = [{"role": "user", "content": "Describe a quiet harbour in the early morning, in a few sentences."}]
PEERS_N = 4
JSON = {"content-type": "application/json"}


async def direct(stub: str, n: int, concurrency: int, seconds: float) -> Measured:
    """N calls to the stub side by side, without a gateway."""
    body = orjson.dumps({"model": "tgi", "messages": MESSAGES, "max_tokens": 64})
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def one() -> None:
            async with session.post(stub + "/v1/chat/completions", data=body, headers=JSON) as response:
                await response.read()
                assert response.status == 200, response.status

        async def call() -> None:
            await asyncio.gather(*(one() for _ in range(n))) if n > 1 else await one()

        return await closed_loop(call, concurrency=concurrency, seconds=seconds)


async def through_gateway(url: str, n: int, concurrency: int, seconds: float) -> tuple[Measured, float, int]:
    """The same through the gateway; the median of its own overhead header, in milliseconds; all requests served."""
    body = orjson.dumps({"model": "ratchet", "messages": MESSAGES, "max_tokens": 64, "best_of": n})
    overheads_ms: list[float] = []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def call() -> None:
            async with session.post(url + "/v1/chat/completions", data=body, headers=JSON) as response:
                await response.read()
                assert response.status == 200, response.status
                assert response.headers["x-bon-scored"] == str(n if n > 1 else 0), response.headers
                overheads_ms.append(float(response.headers["x-bon-overhead-ms"]))

        measured = await closed_loop(call, concurrency=concurrency, seconds=seconds)
        return measured, median(overheads_ms), len(overheads_ms)


async def run(
    running: Stack, ns: Sequence[int], concurrencies: Sequence[int], seconds: float
) -> list[dict[str, object]]:
    """Every combination, direct and through the gateway next to each other."""
    rows: list[dict[str, object]] = []
    for concurrency in concurrencies:
        once = await direct(running.backend, 1, concurrency, seconds)
        rows.append({"path": "stub, one call", "n": 1, **asdict(once)})
        for n in ns:
            fanned = await direct(running.backend, n, concurrency, seconds)
            rows.append({"path": "stub, N calls side by side", "n": n, **asdict(fanned)})
            before_s = cpu_s(running.gateway_pid)
            measured, own_ms, served = await through_gateway(running.gateway, n, concurrency, seconds)
            cpu_ms = (cpu_s(running.gateway_pid) - before_s) * 1e3 / served
            added = {
                "over_one_call_ms": measured.p50_ms - once.p50_ms,
                "over_slowest_ms": measured.p50_ms - fanned.p50_ms,
            }
            rows.append(
                {
                    "path": "gateway",
                    "n": n,
                    **asdict(measured),
                    **added,
                    "own_overhead_ms": own_ms,
                    "gateway_cpu_ms": cpu_ms,
                }
            )
    return rows


async def peers(running: Stack, concurrencies: Sequence[int], seconds: float) -> list[dict[str, object]]:
    """Other best-of-N gateways at N = 4, on the same stub; one that cannot be had is told of and left out."""
    rows: list[dict[str, object]] = []
    try:
        for concurrency in concurrencies:
            measured = await tensorzero.measure(running.backend, PEERS_N, concurrency, seconds)
            rows.append({"path": f"{tensorzero.NAME} ({tensorzero.REQUIREMENT})", "n": PEERS_N, **asdict(measured)})
    except RuntimeError as error:
        Console(stderr=True).print(f"not measured: {error}", style="yellow", markup=False)
    return rows


def show(rows: list[dict[str, object]], about: dict[str, str]) -> None:
    """The rows as a table."""
    names = ["concurrency", "n", "path", "p50_ms", "p99_ms", "requests_per_s", "over_one_call_ms", "over_slowest_ms"]
    names += ["own_overhead_ms", "gateway_cpu_ms"]
    table = Table(*names, title=", ".join(f"{key} {value}" for key, value in about.items()))
    for row in rows:
        cells = [row.get(name, "") for name in names]
        table.add_row(*(f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in cells))
    Console(width=150).print(table)


async def main() -> None:
    """Measure, show, and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--latency-ms", type=float, default=50.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--no-peers", action="store_true", help="do not install other gateways and measure them")
    parser.add_argument("--out", type=Path, help="write the result here as JSON")
    options = parser.parse_args()
    async with stack(latency_ms=options.latency_ms, workers=options.workers) as running:
        rows = await run(running, options.n, options.concurrency, options.seconds)
        if not options.no_peers:
            rows += await peers(running, options.concurrency, options.seconds)
    about = {**machine(), "latency_ms": str(options.latency_ms), "workers": str(options.workers)}
    show(rows, about)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
