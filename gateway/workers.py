"""The processes that serve: one, or several workers behind one port."""

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
from gateway.processes.tether import tie
from gateway.settings import Settings
from gateway.telemetry import MULTIPROCESS_DIR

APP = "gateway.workers:worker"

# Full collections seldom, but often enough for what libraries leave in cycles. Bodies of failed calls need none: what
# kept them in cycles of ours is gone (tests/gateway/api/test_failed_calls.py).
_GC_THRESHOLDS = (10_000, 4, 4)

# glibc's M_MMAP_THRESHOLD, and from which size on a block is the system's again as soon as it is freed.
_MMAP_THRESHOLD, _LARGE_BYTES = -3, 1 << 20


def serve(settings: Settings) -> None:
    """Serve until a signal ends it; then let races finish."""
    where: dict[str, Any] = {"host": settings.host, "port": settings.port}
    if settings.workers == 1:
        uvicorn.run(APP, factory=True, **where, **server_options(settings))
        return
    with tempfile.TemporaryDirectory(prefix="ratchet-metrics-") as folder:
        os.environ[MULTIPROCESS_DIR] = folder  # before any worker makes a metric
        os.environ[FOLDER_VARIABLE] = folder
        config = uvicorn.Config(APP, factory=True, workers=settings.workers, **where, **server_options(settings))
        with _port(config) as port:
            Multiprocess(config, sockets=[port]).run()


class SharedPort(socket.socket):
    """A bound port. A process that it is handed to gets a socket of its own there; connections are dealt out to all.

    Of workers that listen on one socket, the first to wake takes all that wait: with 64 callers one of two mostly did
    98 % of the work. Linux deals them out by a hash of their addresses. What waits in the queue of a worker as it ends
    is refused, where another would have taken it from a common socket.
    """

    @classmethod
    def at(cls, family: int, address: Any) -> SharedPort:
        """The port at an address (``getsockname``'s); nobody else's sockets but these may be there."""
        port = cls(family)
        port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        port.bind(address)
        return port

    def __reduce__(self) -> tuple[Any, ...]:
        """How the supervisor hands it to a worker that it has spawned."""
        return SharedPort.at, (int(self.family), self.getsockname())


def _port(config: uvicorn.Config) -> socket.socket:
    """The port that workers share.

    A port that may be shared could be shared with another gateway: uvicorn's own binding, which may not, goes first,
    and tells in its way what is wrong with an address.
    """
    alone = config.bind_socket()
    if sys.platform != "linux":  # where sharing a port does not deal its connections out
        return alone
    with alone:
        family, address = alone.family, alone.getsockname()
    return SharedPort.at(family, address)


def worker() -> FastAPI:
    """The app of this process. One of several workers ends with what supervises them, however that ends.

    Otherwise workers of a supervisor that was killed would hold the port, and answer, for ever.
    """
    supervisor = multiprocessing.parent_process()
    if supervisor is not None and supervisor.pid is not None:
        tie(supervisor.pid)
    _give_back_large_blocks()
    app = from_environment()
    # What is loaded by now stays for good. The collector would walk its 130,000 objects again and again: a sixth of
    # the CPU of every request, in pauses that all others wait for.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    return app


def _give_back_large_blocks() -> None:
    """Have glibc keep no block of a megabyte or more that was freed; other C libraries are left as they are.

    By itself it does so from 128 kB on, but for each larger block that is freed it moves that bound up, to 32 MB: then
    large bodies lie in the heap among small things that stay, and what they leave behind there is not given back.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
