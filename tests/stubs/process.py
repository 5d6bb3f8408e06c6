"""A stub as a child process, for tests and load tests that need its CPU apart from their own."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any, Self

import aiohttp


class StubProcess:
    """``async with StubProcess("tests.stubs.tgi", latency_ms=50) as stub`` runs the module with those knobs.

    The child ends with this process, however this one ends. ``start`` and ``stop`` also serve without an event loop.
    """

    def __init__(self, module: str = "tests.stubs.tgi", **knobs: Any) -> None:
        self._command = [sys.executable, "-m", module, "--until-stdin-closes"]
        for name, value in knobs.items():
            text = ",".join(value) if isinstance(value, list | tuple) else str(value)
            self._command += ["--" + name.replace("_", "-"), text]
        self._process: subprocess.Popen[str] | None = None
        self.url = ""

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the child and wait until it listens.

        Raises:
            RuntimeError: It ended instead; its own message is on stderr.
        """
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        if not self.url:
            raise RuntimeError(f"the stub ended with status {self._process.wait()}: {' '.join(self._command)}")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    async def set_knobs(self, **changes: Any) -> None:
        async with (
            aiohttp.ClientSession(self.url, raise_for_status=True) as session,
            session.post("/_stub/knobs", json=changes),
        ):
            pass

    async def state(self) -> dict[str, Any]:
        async with aiohttp.ClientSession(self.url) as session, session.get("/_stub/state") as response:
            state: dict[str, Any] = await response.json()
            return state

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.start)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.stop)
