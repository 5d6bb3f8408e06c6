"""What every benchmark needs: the gateway, its stubs and a Redis as processes of their own, and closed-loop load."""

from __future__ import annotations

import asyncio
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles

import aiohttp
import psutil

from gateway.embedded.process import free_port
from gateway.embedded.redis import RedisServer
from tests.stubs.process import StubProcess

Call = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Measured:
    """Latencies of one closed loop, in milliseconds, and its throughput."""

    concurrency: int
    requests: int
    p50_ms: float
    p99_ms: float
    requests_per_s: float


@dataclass(frozen=True, slots=True)
class Stack:
    """Addresses of a running stack."""

    gateway: str
    backend: str
    reward: str
    gateway_pid: int
    redis: str


async def closed_loop(call: Call, *, concurrency: int, seconds: float, warm_up_s: float = 1.0) -> Measured:
    """Keep ``concurrency`` callers busy; each sends its next request when the last one is answered."""
    latencies_ms: list[float] = []
    begin = time.perf_counter() + warm_up_s
    end = begin + seconds

    async def caller() -> None:
        while (started := time.perf_counter()) < end:
            await call()
            if started >= begin:
                latencies_ms.append((time.perf_counter() - started) * 1e3)

    await asyncio.gather(*(caller() for _ in range(concurrency)))
    elapsed_s = time.perf_counter() - begin
    cuts = quantiles(latencies_ms, n=100)
    return Measured(concurrency, len(latencies_ms), cuts[49], cuts[98], len(latencies_ms) / elapsed_s)


@asynccontextmanager
async def stack(*, latency_ms: float, workers: int = 1, **settings: str) -> AsyncIterator[Stack]:
    """The TGI stub, the reward stub, Redis and ``python -m gateway serve``, until the block ends."""
    backend = StubProcess("tests.stubs.tgi", latency_ms=latency_ms, max_concurrent_requests=4096)
    with tempfile.TemporaryDirectory(prefix="ratchet-load-") as folder, RedisServer(Path(folder) / "redis") as redis:
        async with backend, StubProcess("tests.stubs.reward") as reward:
            port = free_port()
            environment = {
                **{name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")},
                "GATEWAY_PORT": str(port),
                "GATEWAY_WORKERS": str(workers),
                "GATEWAY_LOG_LEVEL": "warning",
                "GATEWAY_BACKEND__URLS": backend.url,
                "GATEWAY_REWARD__URL": reward.url,
                "GATEWAY_REDIS__URL": redis.url,
                "GATEWAY_JOURNAL__SPOOL_DIR": f"{folder}/spool",
                "GATEWAY_RACE__MAX_IN_FLIGHT": "4096",
                "GATEWAY_POLICY__EXPLORATION": "0",
                **settings,
            }
            process = await asyncio.create_subprocess_exec(sys.executable, "-m", "gateway", "serve", env=environment)
            try:
                url = f"http://127.0.0.1:{port}"
                await _until_ready(url, process)
                yield Stack(url, backend.url, reward.url, process.pid, redis.url)
            finally:
                process.terminate()
                await process.wait()


def cpu_s(pid: int) -> float:
    """CPU seconds that a process and its children have used."""
    process = psutil.Process(pid)
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return sum(one.user + one.system for one in times)


def machine() -> dict[str, str]:
    """Where and on what code a result was measured."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False)
    models = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    cpu = models[0] if models else platform.processor()
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": f"{os.cpu_count()} x {cpu}",
        "python": platform.python_version(),
        "commit": commit.stdout.strip() + ("+" if dirty.stdout.strip() else ""),
    }


async def _until_ready(url: str, process: asyncio.subprocess.Process) -> None:
    deadline = time.monotonic() + 60
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < deadline:
            if process.returncode is not None:
                raise RuntimeError(f"the gateway ended with status {process.returncode}")
            try:
                async with session.get(url + "/health/ready") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientConnectionError:
                pass
            await asyncio.sleep(0.1)
    raise RuntimeError("the gateway was not ready in time")
