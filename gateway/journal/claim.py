"""Who owns which folder of the spool. Several worker processes share one spool; each writes to a folder of its own.

A folder belongs to the process that holds its ``lock`` (flock), which the kernel lets go when that process ends,
however it ends. A folder whose lock is free is an orphan: whoever claims it ships what it still holds.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from gateway.files import sync_folder

_LOCK = "lock"
_PREFIX = "worker-"


class Claim:
    """One folder, held by this process until it is released or removed."""

    def __init__(self, folder: Path, fd: int) -> None:
        self.folder = folder
        self._fd = fd

    @classmethod
    def new(cls, spool_dir: Path) -> Self:
        """Make a folder of this process's own.

        Raises:
            OSError: The spool cannot be written.
        """
        spool_dir.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(spool_dir):
            folder = spool_dir / f"{_PREFIX}{uuid.uuid4().hex}"
            folder.mkdir(mode=0o700)
            fd = _open_lock(folder)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            sync_folder(folder)
            sync_folder(spool_dir)
        return cls(folder, fd)

    @classmethod
    def orphans(cls, spool_dir: Path) -> list[Self]:
        """Claim every folder whose process has ended.

        Raises:
            OSError: The spool cannot be read.
        """
        claims = []
        with _one_at_a_time(spool_dir):
            for folder in worker_folders(spool_dir):
                fd = _open_lock(folder)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(fd)
                else:
                    claims.append(cls(folder, fd))
        return claims

    def remove(self) -> None:
        """Delete the folder: Redis has all of it."""
        with _one_at_a_time(self.folder.parent):  # or another process could claim what is being deleted
            shutil.rmtree(self.folder)
            self.release()

    def release(self) -> None:
        """Let go of the folder as it is; another process, or a later one, will ship it."""
        os.close(self._fd)


def worker_folders(spool_dir: Path) -> list[Path]:
    """Every folder of the spool, whoever holds it."""
    return sorted(spool_dir.glob(f"{_PREFIX}*"))


def _open_lock(folder: Path) -> int:
    return os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)


@contextlib.contextmanager
def _one_at_a_time(spool_dir: Path) -> Iterator[None]:
    """Hold the spool's own lock, for moments: between a folder's making and its lock nobody may look."""
    fd = os.open(spool_dir / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
