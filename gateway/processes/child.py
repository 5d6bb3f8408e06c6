"""A child process that ends with its parent, keeps its log in a file, and can say why it did not start."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import structlog

from gateway.processes import tether

_TAIL_LINES = 15
_TAIL_BYTES = 16_384

log = structlog.get_logger()


class ChildProcess:
    """One child of this process.

    It lives in a session of its own, so that Ctrl-C reaches only the parent, which then stops its children in order.
    Linux ends it with SIGTERM when the thread that started it ends: start it from the main thread, or from one that
    outlives it.

    Args:
        name: What logs and messages call it.
        command: Program and arguments; the program as an absolute path.
        log_path: Where its stdout and stderr go; begun anew at each start.
        env: Its whole environment; None is this process's own.
        stop_timeout_s: How long it may take to end after SIGTERM before SIGKILL.
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
        """Process id, None before the start and after the stop."""
        return None if self._process is None else self._process.pid

    @property
    def exit_status(self) -> int | None:
        """How it ended (minus the signal's number if by one), None while it runs."""
        return None if self._process is None else self._process.poll()

    def start(self, *, keep_open: Sequence[int] = ()) -> None:
        """Start it.

        Args:
            keep_open: File descriptors the child inherits.
        """
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        launcher = [sys.executable, "-I", "-S", tether.__file__, str(os.getpid())]
        with self.log_path.open("wb") as sink:
            self._process = subprocess.Popen(
                [*launcher, *self._command],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=self._env,
                pass_fds=keep_open,
                start_new_session=True,
            )
        log.debug("child_started", child=self.name, pid=self._process.pid)

    def wait(self) -> int:
        """Wait for its end and return its exit status."""
        assert self._process is not None
        return self._process.wait()

    def ask_to_end(self, number: signal.Signals, timeout_s: float) -> None:
        """Send it a signal and wait for its end, but not longer; ``stop`` ends what then still runs."""
        if self._process is not None:
            self._process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout_s)

    def stop(self) -> None:
        """End it and wait for its end. Harmless when it is not running."""
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
        """The end of its log, in the words of an error message's last part."""
        with self.log_path.open("rb") as source:
            source.seek(max(0, self.log_path.stat().st_size - _TAIL_BYTES))
            lines = source.read().decode(errors="replace").splitlines()[-_TAIL_LINES:]
        if not lines:
            return f"its log {self.log_path} is empty"
        return f"the end of its log {self.log_path}:\n" + "\n".join(lines)


def free_port() -> int:
    """A TCP port on 127.0.0.1 that was free just now. Another process may take it first: check who answers there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
