"""The processes of a measurement: a gateway, a Redis and stubs, on ports that stay the same over restarts."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import aclosing
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import aiohttp
import redis.asyncio

from gateway.embedded.redis import RedisServer
from gateway.journal.stream import stream_key
from gateway.processes.child import ChildProcess, free_port
from tests.stubs.process import StubProcess

_START_TIMEOUT_S = 180.0  # a busy machine takes a minute to import torch
_POLL_S = 0.05


class RestartableRedis(RedisServer):
    """A Redis with an append-only file, on a port that stays the same over restarts."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.folder = folder
        super().__init__(folder, port=self.port)

    async def begin(self) -> None:
        await asyncio.to_thread(self.start)

    async def kill(self) -> None:
        assert self.pid is not None
        os.kill(self.pid, signal.SIGKILL)
        await asyncio.to_thread(self.stop)

    def wipe(self) -> None:
        """Delete its data; it must not run."""
        shutil.rmtree(self.folder / "appendonlydir")

    async def command(self, *words: str) -> Any:
        """Run a Redis command."""
        async with aclosing(redis.asyncio.Redis(port=self.port)) as client:
            return await client.execute_command(*words)  # type: ignore[no-untyped-call]

    async def used_bytes(self) -> int:
        """Return the memory that its data takes."""
        return int((await self.command("INFO", "memory"))["used_memory"])

    async def length(self) -> int:
        """Return the number of records in the journal's stream."""
        return int(await self.command("XLEN", stream_key("ratchet")))


class RestartableStub(StubProcess):
    """A stub on a port that stays the same over restarts."""

    def __init__(self, module: str, **knobs: object) -> None:
        self.port = free_port()
        self._module, self._knobs = module, knobs
        super().__init__(module, port=self.port, **knobs)

    def restart(self, **changes: object) -> None:
        """Restart it with these knobs changed."""
        self.stop()
        super().__init__(self._module, port=self.port, **{**self._knobs, **changes})
        self.start()


class GatewayProcess:
    """``python -m gateway serve`` on a port that stays the same over restarts."""

    def __init__(self, folder: Path, environment: Mapping[str, str], port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._child = ChildProcess(
            "gateway",
            [sys.executable, "-m", "gateway", "serve"],
            log_path=folder / "gateway.log",
            env=environment,
            stop_timeout_s=40.0,
        )

    @property
    def pid(self) -> int:
        assert self._child.pid is not None
        return self._child.pid

    @property
    def alive(self) -> bool:
        return self._child.pid is not None and self._child.exit_status is None

    async def begin(self) -> None:
        """Start it and wait until it serves.

        Raises:
            RuntimeError: It ended, or was not ready in time; with the end of its log.
        """
        self._child.start()
        deadline = time.monotonic() + _START_TIMEOUT_S
        while await self.readiness() not in {"ready", "degraded"}:
            if self._child.exit_status is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the gateway does not serve; {self._child.log_tail()}")
            await asyncio.sleep(_POLL_S)

    async def readiness(self) -> str:
        """Return ``ready``, ``degraded``, ``not ready``, or ``away`` if nothing answers."""
        patience = aiohttp.ClientTimeout(total=3.0)
        try:
            async with (
                aiohttp.ClientSession(timeout=patience) as session,
                session.get(self.url + "/health/ready") as response,
            ):
                return str((await response.json())["status"])
        except (aiohttp.ClientError, TimeoutError, ConnectionError):
            return "away"

    async def clock_ahead_s(self) -> float:
        """Return how far its wall clock is ahead of this machine's, by the date header of its answers."""
        async with aiohttp.ClientSession() as session, session.get(self.url + "/health/live") as response:
            return parsedate_to_datetime(response.headers["date"]).timestamp() - time.time()

    async def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        await asyncio.to_thread(self._child.wait)

    async def terminate(self) -> int:
        """Send SIGTERM, wait for the end, and return the exit status."""
        os.kill(self.pid, signal.SIGTERM)
        return await asyncio.to_thread(self._child.wait)

    def stop(self) -> None:
        """Stop it. Harmless if it does not run."""
        self._child.stop()


def gateway_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment with these ``GATEWAY_`` variables in place of its own."""
    return {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")} | dict(settings)


def freeze(pid: int | None) -> None:
    """Stop a process: its connections stay open, and nothing answers."""
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)


def thaw(pid: int | None) -> None:
    assert pid is not None
    os.kill(pid, signal.SIGCONT)
