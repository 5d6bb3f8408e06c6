"""The serving processes: one, or several workers that share a port."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import socket
import sys
import tempfile
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.supervisors import Multiprocess

from gateway.api.protocol import server_options
from gateway.app import from_environment
from gateway.best_of_n.ledger import FOLDER_VARIABLE
from gateway.processes.launcher import die_with_parent
from gateway.settings import Settings
from gateway.telemetry import MULTIPROCESS_DIR

APP = "gateway.workers:worker"

# Full collections are rare, and frequent enough for the cycles that libraries leave. Bodies of failed calls need none:
# our code no longer keeps them in cycles (tests/gateway/api/test_failed_calls.py).
_GC_THRESHOLDS = (10_000, 4, 4)

# glibc's M_MMAP_THRESHOLD, and the size from which a freed block goes back to the system at once.
_MMAP_THRESHOLD, _LARGE_BYTES = -3, 1 << 20


def serve(settings: Settings) -> None:
    """Serve until a signal arrives; then finish the running races."""
    address: dict[str, Any] = {"host": settings.host, "port": settings.port}
    if settings.workers == 1:
        uvicorn.run(APP, factory=True, **address, **server_options(settings))
        return
    with tempfile.TemporaryDirectory(prefix="ratchet-metrics-") as folder:
        os.environ[MULTIPROCESS_DIR] = folder  # before any worker makes a metric
        os.environ[FOLDER_VARIABLE] = folder
        config = uvicorn.Config(APP, factory=True, workers=settings.workers, **address, **server_options(settings))
        with _bind_port(config) as port:
            Multiprocess(config, sockets=[port]).run()


class SharedPort(socket.socket):
    """A bound port. Each process that receives it opens a socket of its own there; the kernel spreads connections.

    When workers listen on one socket, the first to wake takes all waiting connections: with 64 callers one of two did
    mostly 98 % of the work. With a socket each, Linux chooses by a hash of the addresses. The cost: connections that
    wait in the queue of a worker that ends are refused; with one common socket another worker would take them.
    """

    @classmethod
    def at(cls, family: int, address: Any) -> SharedPort:
        """Bind the port of an address (as ``getsockname`` gives it); only sockets of this class can share it."""
        port = cls(family)
        port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        port.bind(address)
        return port

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the address: this is how the supervisor hands the port to a worker it spawns."""
        return SharedPort.at, (int(self.family), self.getsockname())


def _bind_port(config: uvicorn.Config) -> socket.socket:
    """Bind the port that the workers share.

    uvicorn binds it first, exclusively: otherwise two gateways could share one port. Its own error messages then also
    cover a wrong address.
    """
    exclusive = config.bind_socket()
    if sys.platform != "linux":  # other systems do not spread the connections of a shared port
        return exclusive
    with exclusive:
        family, address = exclusive.family, exclusive.getsockname()
    return SharedPort.at(family, address)


def worker() -> FastAPI:
    """Build the app of this process. A worker ends when its supervisor ends, even if that was killed.

    Otherwise the workers of a killed supervisor would hold the port and go on answering.
    """
    supervisor = multiprocessing.parent_process()
    if supervisor is not None and supervisor.pid is not None:
        die_with_parent(supervisor.pid)
    _return_large_blocks()
    app = from_environment()
    # All that is loaded by now stays for good. Each full collection would walk its 130,000 objects: a sixth of the CPU
    # of every request, in pauses that delay all others.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    return app


def _return_large_blocks() -> None:
    """Have glibc return freed blocks of a megabyte or more to the system; other C libraries are left as they are.

    glibc's threshold starts at 128 kB and rises with each larger block that is freed, up to 32 MB. Then large buffers
    are allocated on the heap, which fragments and is not returned.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
