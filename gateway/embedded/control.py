"""A socket in the stack's folder through which another process has the backend restarted, and learns how it went.

The same thread looks after the backend every now and then, because child processes end with the thread that started
them. A signal could not answer; and the signal for it, SIGHUP, is what a closed terminal sends to end the stack.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from gateway.errors import NotReady

LOOK_EVERY_S = 5.0
_FILE = "control.sock"
_LONGEST_PATH_BYTES = 100  # Linux takes 107, others fewer
_DONE = b"done "
_FAILED = b"failed "


class Control:
    """Answers one request at a time, between ``open`` and ``close``; a context manager.

    Enter it before what it restarts and leave it after: child processes end with the thread that started them.

    Args:
        folder: Where the socket lies.
        restart: What a request asks for; returns what to answer, or raises ``NotReady``.
        look_after: Called every ``look_every_s`` in which no request came.
        look_every_s: How often.
    """

    def __init__(
        self,
        folder: Path,
        restart: Callable[[], str],
        look_after: Callable[[], None] = lambda: None,
        *,
        look_every_s: float = LOOK_EVERY_S,
    ) -> None:
        self._folder = folder
        self._restart = restart
        self._look_after = look_after
        self._listener = socket.socket(socket.AF_UNIX)
        self._look_every_s = look_every_s
        self._ending, self._end = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="embedded-control", daemon=True)
        self._busy = threading.Lock()
        self._open = False

    def __enter__(self) -> Self:
        path = _socket_path(self._folder)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # left by a stack that was killed; two live ones cannot share a folder (Redis)
        self._listener.bind(path)
        os.chmod(path, 0o600)
        self._listener.listen()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end.close()
        self._thread.join()
        self._ending.close()
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_socket_path(self._folder))

    def open(self) -> None:
        """Restart on request from now on."""
        self._open = True

    def close(self) -> None:
        """Restart no more; returns when a restart under way has ended."""
        with self._busy:
            self._open = False

    def _serve(self) -> None:
        while True:
            readable, _, _ = select.select([self._listener, self._ending], [], [], self._look_every_s)
            if self._ending in readable:
                return
            if not readable:
                with self._busy:
                    if self._open:
                        self._look_after()
                continue
            connection, _ = self._listener.accept()
            with connection, self._busy, contextlib.suppress(OSError):  # the asker may be gone; that is his affair
                connection.sendall(self._answer() if self._open else _FAILED + b"the stack is starting or stopping")

    def _answer(self) -> bytes:
        try:
            return _DONE + self._restart().encode()
        except NotReady as error:
            return _FAILED + error.message.encode()
        except OSError as error:  # an adapter's file is gone, the disk is full
            return _FAILED + str(error).encode()


def restart_backend(folder: Path, *, timeout_s: float) -> str:
    """Have the stack that lives in the folder restart its backend's replicas one after the other.

    Returns:
        What they serve now, in words.

    Raises:
        NotReady: No stack runs there, or the restart failed; in its words.
    """
    with socket.socket(socket.AF_UNIX) as asker:
        asker.settimeout(timeout_s)
        try:
            asker.connect(_socket_path(folder))
            answer = b"".join(iter(lambda: asker.recv(4096), b""))
        except TimeoutError as error:
            raise NotReady(f"the restart did not end within {timeout_s:g} s") from error
        except OSError as error:
            raise NotReady(f"no embedded stack runs in {folder}: start one with `make serve`") from error
    if answer.startswith(_DONE):
        return answer.removeprefix(_DONE).decode()
    raise NotReady(answer.removeprefix(_FAILED).decode() or "the stack ended during the restart")


def _socket_path(folder: Path) -> str:
    """The socket's path, relative to here where that is shorter: the system allows about a hundred bytes.

    Raises:
        NotReady: It is too long either way.
    """
    absolute = str(folder.absolute() / _FILE)
    path = min(absolute, os.path.relpath(absolute), key=len)
    if len(os.fsencode(path)) > _LONGEST_PATH_BYTES:
        raise NotReady(f"the path of {folder} is too long for a socket: use a shorter one")
    return path
