"""Child processes: one with its log in a file, and a command that runs to its end."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import structlog

from gateway.errors import NotReady
from gateway.processes import launcher

_TAIL_LINES = 15
_TAIL_BYTES = 16_384
_OWN_PORTS = range(20_000, 32_000)  # below Linux's ip_local_port_range, and below what other systems choose from

log = structlog.get_logger()


class ChildProcess:
    """A child process that ends with its parent and writes its output to a log file.

    It has a session of its own, so that Ctrl-C reaches only the parent, which then stops its children in order.
    Linux ends it with SIGTERM when the thread that started it ends: start it from the main thread, or from one that
    outlives it.

    Args:
        name: Its name in logs and messages.
        command: Program and arguments; the program as an absolute path.
        log_path: File for its stdout and stderr; emptied at each start.
        env: Its whole environment; None is this process's own.
        stop_timeout_s: Time from SIGTERM to SIGKILL.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log_path: Path,
        env: Mapping[str, str] | None = None,
        stop_timeout_s: float = 10.0,
    ) -> None:
        self.name = name
        self.log_path = log_path
        self._command = command
        self._env = env
        self._stop_timeout_s = stop_timeout_s
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def exit_status(self) -> int | None:
        """Exit status, or minus the number of the signal that ended it; None while it runs."""
        return None if self._process is None else self._process.poll()

    def start(self, *, keep_open: Sequence[int] = ()) -> None:
        """Start the process; it inherits the file descriptors ``keep_open``."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("wb") as sink:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", launcher.__file__, str(os.getpid()), *self._command],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=self._env,
                pass_fds=keep_open,
                start_new_session=True,
            )
        log.debug("child_started", child=self.name, pid=self._process.pid)

    def wait(self) -> int:
        assert self._process is not None
        return self._process.wait()

    def signal_and_wait(self, number: signal.Signals, timeout_s: float) -> None:
        """Send a signal and wait until the process ends, at most ``timeout_s``; it may still run then."""
        if self._process is not None:
            self._process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout_s)

    def stop(self) -> None:
        """End the process and wait until it has ended. Does nothing when it is not running."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(self._stop_timeout_s)
        except subprocess.TimeoutExpired:
            log.warning("child_killed", child=self.name, pid=process.pid, waited_s=self._stop_timeout_s)
            process.kill()
            process.wait()

    def log_tail(self) -> str:
        """Return the last lines of the log, as the end of an error message."""
        with self.log_path.open("rb") as source:
            source.seek(max(0, self.log_path.stat().st_size - _TAIL_BYTES))
            lines = source.read().decode(errors="replace").splitlines()[-_TAIL_LINES:]
        if not lines:
            return f"its log {self.log_path} is empty"
        return f"the end of its log {self.log_path}:\n" + "\n".join(lines)


def run_child(command: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
    """Run a command to its end; return its exit status.

    An exception here (Ctrl-C, SIGTERM) sends SIGTERM to the command and waits for its end, so that it saves its work.
    """
    with subprocess.Popen(command, env=environment) as child:
        try:
            return child.wait()
        except BaseException:
            child.terminate()
            child.wait()
            raise


def free_port() -> int:
    """Return a TCP port on 127.0.0.1 that is free now. Another process may take it first: check who answers there.

    Not one that the system would choose: it gives those to outgoing connections too, until our server binds it.
    """
    for port in random.sample(_OWN_PORTS, 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise NotReady(f"100 ports between {_OWN_PORTS.start} and {_OWN_PORTS.stop} were tried, and none is free")
