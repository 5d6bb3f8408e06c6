"""The stack that every measurement needs: the gateway, its stubs and a Redis as processes of their own."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import re
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import structlog

from gateway.embedded.redis import RedisServer
from gateway.processes.child import free_port
from loadtests.processes import GatewayProcess, gateway_environment
from tests.listeners import until_all_listen
from tests.stubs.process import StubProcess

# Longer prompts than any measurement sends.
_PROMPT_TOKENS = 1_000_000


@dataclass(frozen=True, slots=True)
class Stack:
    """Addresses of a running stack."""

    gateway: str
    backend: str
    reward: str
    gateway_pid: int
    redis: str


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Addresses of everything that a gateway needs, running."""

    backend: str
    reward: str
    redis: str
    folder: str


@asynccontextmanager
async def stack(*, latency_ms: float, workers: int = 1, **settings: str) -> AsyncIterator[Stack]:
    """Start the TGI stub, the reward stub, Redis and ``python -m gateway serve``, until the block ends."""
    async with surroundings(latency_ms=latency_ms) as around, gateway(around, workers=workers, **settings) as running:
        yield running


@asynccontextmanager
async def surroundings(*, latency_ms: float) -> AsyncIterator[Surroundings]:
    """Start the TGI stub, the reward stub and Redis, until the block ends.

    The stub also accepts requests that other gateways send: several answers in one call, and long prompts.
    """
    backend = StubProcess(
        "tests.stubs.tgi",
        latency_ms=latency_ms,
        max_concurrent_requests=4096,
        max_input_tokens=_PROMPT_TOKENS,
        max_total_tokens=_PROMPT_TOKENS,
        honours_n=True,
    )
    with tempfile.TemporaryDirectory(prefix="ratchet-load-") as folder, RedisServer(Path(folder) / "redis") as redis:
        async with backend, StubProcess("tests.stubs.reward") as reward:
            yield Surroundings(backend.url, reward.url, redis.url, folder)


@asynccontextmanager
async def gateway(around: Surroundings, *, workers: int, **settings: str) -> AsyncIterator[Stack]:
    """Start ``python -m gateway serve``, until the block ends; its log is ``gateway.log`` in the surroundings' folder.

    Raises:
        RuntimeError: It ended, or was not ready in time.
    """
    port = free_port()
    variables = {
        "GATEWAY_PORT": str(port),
        "GATEWAY_WORKERS": str(workers),
        "GATEWAY_LOG_LEVEL": "warning",
        "GATEWAY_BACKEND__URLS": around.backend,
        "GATEWAY_REWARD__URL": around.reward,
        "GATEWAY_REDIS__URL": around.redis,
        "GATEWAY_JOURNAL__SPOOL_DIR": f"{around.folder}/spool",
        "GATEWAY_RACE__MAX_IN_FLIGHT": "4096",
        "GATEWAY_POLICY__EXPLORATION": "0",
        **settings,
    }
    process = GatewayProcess(Path(around.folder), gateway_environment(variables), port)
    try:
        await process.begin()
        if workers > 1:
            await until_all_listen(port, workers)
        yield Stack(process.url, around.backend, around.reward, process.pid, around.redis)
    finally:
        await asyncio.to_thread(process.stop)


class Assembled(ABC):
    """Parts that start and end together: ``async with`` starts all; if one fails, those before it are ended."""

    def __init__(self) -> None:
        self._running = AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._running.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._running.__aexit__(kind, error, at)

    @abstractmethod
    async def _start(self) -> None:
        """Enter every part on ``_running``."""


def quiet_logs(level: int = logging.WARNING) -> None:
    """Drop log lines below a level: a measurement's own output is its tables."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(level))


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process and its children have used."""
    process = psutil.Process(pid)
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return sum(one.user + one.system for one in times)


def machine() -> dict[str, str]:
    """Return date, machine and commit of a measurement."""
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
