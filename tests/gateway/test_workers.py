"""The worker processes and the port that they share."""

import os
import pickle
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import uvicorn

from gateway.workers import SharedPort, _bind_port

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}


def test_a_worker_freezes_loaded_objects_out_of_the_garbage_collector(tmp_path: Path) -> None:
    """Otherwise each full collection walks all of them while every request waits."""
    script = "import gc; from gateway.workers import worker; worker(); print(gc.get_freeze_count() > 10_000)"
    settings = {"GATEWAY_REWARD__URL": "http://127.0.0.1:1", "GATEWAY_JOURNAL__SPOOL_DIR": str(tmp_path)}
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, env={**ENVIRONMENT, **settings}, capture_output=True, text=True, check=True)
    assert "True" == ended.stdout.splitlines()[-1]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux spreads connections")
def test_connections_spread_over_all_processes_that_share_the_port() -> None:
    """The kernel spreads 200 by a hash: one of two gets fewer than 50 by chance in less than one of 10^12 runs."""
    with ExitStack() as open_sockets:
        port = open_sockets.enter_context(SharedPort.at(socket.AF_INET, ("127.0.0.1", 0)))
        workers = [open_sockets.enter_context(pickle.loads(pickle.dumps(port))) for _ in range(2)]
        for worker in workers:
            worker.listen(256)
            worker.setblocking(False)
        for _ in range(200):
            open_sockets.enter_context(socket.create_connection(port.getsockname()))
        waiting = [len(_accepted(worker, open_sockets)) for worker in workers]
    assert 200 == sum(waiting)
    assert min(waiting) >= 50, waiting


def _accepted(worker: socket.socket, open_sockets: ExitStack) -> list[socket.socket]:
    taken = []
    while True:
        try:
            taken.append(open_sockets.enter_context(worker.accept()[0]))
        except BlockingIOError:
            return taken


def test_a_port_that_workers_of_another_gateway_share_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    with SharedPort.at(socket.AF_INET, ("127.0.0.1", 0)) as port, pickle.loads(pickle.dumps(port)) as other:
        other.listen()
        config = uvicorn.Config("x:y", host="127.0.0.1", port=port.getsockname()[1], log_config=None)
        with pytest.raises(SystemExit):
            _bind_port(config)
    assert "already in use" in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc keeps freed blocks in this way")
def test_a_worker_returns_large_blocks_to_the_system(tmp_path: Path) -> None:
    """Forty freed bodies of 4 MB, with small objects kept between them, leave less than two of them in memory."""
    script = """
import psutil
from gateway.workers import worker
kept = [worker()]
large = bytearray(31 << 20)  # its end would move glibc's bound
del large
before = psutil.Process().memory_info().rss
bodies = []
for _ in range(40):
    bodies.append(bytearray(4 << 20))
    kept.append(bytearray(200_000))
del bodies
print((psutil.Process().memory_info().rss - before) // 1_000_000)
"""
    settings = {"GATEWAY_REWARD__URL": "http://127.0.0.1:1", "GATEWAY_JOURNAL__SPOOL_DIR": str(tmp_path)}
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, env={**ENVIRONMENT, **settings}, capture_output=True, text=True, check=True)
    assert int(ended.stdout.splitlines()[-1]) < 40 * 0.2 + 8
