"""The embedded stack restarts a llama.cpp server that ended by itself or hangs, and lets the others alone."""

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


@pytest.mark.parametrize(("kill", "looks"), [(signal.SIGKILL, 1), (signal.SIGSTOP, module._STUCK_LOOKS)])
def test_a_server_that_died_or_hangs_serves_again_on_its_port(replicas: Replicas, kill: int, looks: int) -> None:
    urls = replicas.urls
    server, *others = replicas._servers
    pids = [other.pid for other in others]
    assert server.pid is not None
    os.kill(server.pid, kill)
    if kill == signal.SIGKILL:
        while not server.ended:
            pass
    for look in range(looks):
        assert look == 0 or not serves_within(server, 0.2)
        replicas.mend()
    assert (urls, pids) == (replicas.urls, [other.pid for other in others])
    assert all(serves(url) for url in urls)


def serves_within(server: LlamaServer, timeout_s: float) -> bool:
    return server.progress(timeout_s) is not None


class Scripted:
    """A server that tells what a test says of its progress."""

    ended = False
    url = "http://127.0.0.1:1"
    adapters = ()

    def __init__(self, *told: Progress | None) -> None:
        self.told = list(told)
        self.restarts = 0

    def progress(self, timeout_s: float) -> Progress | None:
        return self.told.pop(0)

    def restart(self, adapters: object, *, drain_s: float) -> None:
        self.restarts += 1


IDLE, BUSY, AWAY = Progress(False, 5), Progress(True, 5), None


@pytest.mark.parametrize(
    ("told", "restarts"),
    [
        ([IDLE] * 8, 0),
        ([Progress(True, count) for count in range(8)], 0),
        ([BUSY] * (module._STUCK_LOOKS + 1), 1),
        ([BUSY] * module._STUCK_LOOKS, 0),
        ([AWAY] * module._STUCK_LOOKS, 1),
        ([AWAY] * (module._STUCK_LOOKS - 1), 0),
        ([AWAY, AWAY, AWAY, IDLE, AWAY, AWAY, AWAY], 0),
    ],
)
def test_only_one_that_gets_nowhere_for_several_looks_is_restarted(
    tmp_path: Path, told: list[Progress | None], restarts: int
) -> None:
    """Not one that is idle, nor one that computes, however slowly."""
    replicas = Replicas(tmp_path, slots=2, log_dir=tmp_path)
    server = Scripted(*told)
    replicas._servers = [server]  # type: ignore[list-item]
    for _ in told:
        replicas.mend()
    assert restarts == server.restarts
