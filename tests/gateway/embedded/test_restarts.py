"""The embedded stack restarts a llama.cpp server that ended by itself or hangs, and no other."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from gateway.embedded import replicas as module
from gateway.embedded.llama import LlamaServer, Progress
from gateway.embedded.replicas import Replicas


@pytest.fixture
def replicas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Replicas]:
    monkeypatch.setattr(module, "_TIMEOUT_S", 1.0)
    with Replicas(tmp_path / "adapters", slots=2, log_dir=tmp_path) as running:
        yield running


def serves(url: str) -> bool:
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    return httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=30, trust_env=False).is_success


@pytest.mark.parametrize(("kill", "checks"), [(signal.SIGKILL, 1), (signal.SIGSTOP, module._STUCK_CHECKS)])
def test_a_server_that_ended_or_hangs_is_restarted_on_its_port(replicas: Replicas, kill: int, checks: int) -> None:
    urls = replicas.urls
    server, *others = replicas._servers
    pids = [other.pid for other in others]
    assert server.pid is not None
    os.kill(server.pid, kill)
    if kill == signal.SIGKILL:
        while not server.ended:
            pass
    for check in range(checks):
        assert check == 0 or not serves_within(server, 0.2)
        replicas.restart_failed()
    assert (urls, pids) == (replicas.urls, [other.pid for other in others])
    assert all(serves(url) for url in urls)


def serves_within(server: LlamaServer, timeout_s: float) -> bool:
    return server.progress(timeout_s) is not None


class Scripted:
    """A server whose progress a test sets."""

    ended = False
    url = "http://127.0.0.1:1"
    adapters = ()

    def __init__(self, *progress: Progress | None) -> None:
        self.left = list(progress)
        self.restarts = 0

    def progress(self, timeout_s: float) -> Progress | None:
        return self.left.pop(0)

    def restart(self, adapters: object, *, drain_s: float) -> None:
        self.restarts += 1


IDLE, BUSY, AWAY = Progress(False, 5), Progress(True, 5), None


@pytest.mark.parametrize(
    ("progress", "restarts"),
    [
        ([IDLE] * 8, 0),
        ([Progress(True, count) for count in range(8)], 0),
        ([BUSY] * (module._STUCK_CHECKS + 1), 1),
        ([BUSY] * module._STUCK_CHECKS, 0),
        ([AWAY] * module._STUCK_CHECKS, 1),
        ([AWAY] * (module._STUCK_CHECKS - 1), 0),
        ([AWAY, AWAY, AWAY, IDLE, AWAY, AWAY, AWAY], 0),
    ],
)
def test_only_a_server_without_progress_in_several_checks_is_restarted(
    tmp_path: Path, progress: list[Progress | None], restarts: int
) -> None:
    """An idle server and a slow one are not."""
    replicas = Replicas(tmp_path, slots=2, log_dir=tmp_path)
    server = Scripted(*progress)
    replicas._servers = [server]  # type: ignore[list-item]
    for _ in progress:
        replicas.restart_failed()
    assert restarts == server.restarts
