"""A socket in the stack's folder: another process asks for a restart of the backend and gets the result.

The thread that serves the socket also checks the backend regularly, because child processes end with the thread that
started them. A signal instead of a socket could not return the result, and SIGHUP already means a closed terminal.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

from gateway.errors import NotReady

CHECK_EVERY_S = 5.0
_FILE = "control.sock"
_LONGEST_PATH_BYTES = 100  # Linux allows 107, other systems fewer
_DONE = b"done "
_FAILED = b"failed "


class Control:
    """The socket's server: answers one request at a time, between ``open`` and ``close``; a context manager.

    Enter it before the processes it restarts start, and leave it after they end: they end with this object's thread.

    Args:
        folder: Folder of the socket.
        restart: Restarts the backend and returns the answer, or raises ``NotReady``.
        check_backend: Called after every ``check_every_s`` without a request.
        check_every_s: Time between the checks.
    """

    def __init__(
        self,
        folder: Path,
        restart: Callable[[], str],
        check_backend: Callable[[], None] = lambda: None,
        *,
        check_every_s: float = CHECK_EVERY_S,
    ) -> None:
        self._folder = folder
        self._restart = restart
        self._check_backend = check_backend
        self._listener = socket.socket(socket.AF_UNIX)
        self._check_every_s = check_every_s
        self._ending, self._end = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="embedded-control", daemon=True)
        self._busy = threading.Lock()
        self._open = False

    def __enter__(self) -> Self:
        path = _socket_path(self._folder)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # left by a killed stack; Redis's lock keeps two live ones apart
        self._listener.bind(path)
        os.chmod(path, 0o600)
        self._listener.listen()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.close()
        self._thread.join()
        self._ending.close()
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_socket_path(self._folder))

    def open(self) -> None:
        """Accept requests from now on."""
        self._open = True

    def close(self) -> None:
        """Refuse requests from now on; wait for a running restart to end."""
        with self._busy:
            self._open = False

    def _serve(self) -> None:
        while True:
            readable, _, _ = select.select([self._listener, self._ending], [], [], self._check_every_s)
            if self._ending in readable:
                return
            if not readable:
                with self._busy:
                    if self._open:
                        self._check_backend()
                continue
            connection, _ = self._listener.accept()
            with connection, self._busy, contextlib.suppress(OSError):  # the client may be gone
                connection.sendall(self._answer() if self._open else _FAILED + b"the stack is starting or stopping")

    def _answer(self) -> bytes:
        try:
            return _DONE + self._restart().encode()
        except NotReady as error:
            return _FAILED + error.message.encode()
        except OSError as error:  # an adapter's file is missing, or the disk is full
            return _FAILED + str(error).encode()


def restart_backend(folder: Path, *, timeout_s: float) -> str:
    """Ask the stack that runs in the folder to restart its replicas one after the other.

    Returns:
        A sentence that lists the adapters they serve now.

    Raises:
        NotReady: No stack runs there, or the restart failed; with the stack's message.
    """
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(timeout_s)
        try:
            client.connect(_socket_path(folder))
            answer = b"".join(iter(lambda: client.recv(4096), b""))
        except TimeoutError as error:
            raise NotReady(f"the restart did not end within {timeout_s:g} s") from error
        except OSError as error:
            raise NotReady(f"no embedded stack runs in {folder}: start one with `make serve`") from error
    if answer.startswith(_DONE):
        return answer.removeprefix(_DONE).decode()
    raise NotReady(answer.removeprefix(_FAILED).decode() or "the stack ended during the restart")


def _socket_path(folder: Path) -> str:
    """Return the shorter of the socket's absolute and relative path; raise NotReady if it is too long."""
    absolute = str(folder.absolute() / _FILE)
    path = min(absolute, os.path.relpath(absolute), key=len)
    if len(os.fsencode(path)) > _LONGEST_PATH_BYTES:
        raise NotReady(f"the path of {folder} is too long for a socket: use a shorter one")
    return path
