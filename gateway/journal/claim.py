"""Ownership of the spool's folders. Worker processes share one spool; each writes to a folder of its own.

A folder belongs to the process that holds its file ``lock`` (flock). The kernel frees the lock when that process ends,
even by kill -9. A folder whose lock is free is an orphan: the process that claims it ships what the folder still holds.
"""

from __future__ import annotations

import contextlib
import shutil
import uuid
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout

from gateway.files import sync_folder

_PREFIX = "worker-"


class Claim:
    """A folder that this process owns until it releases or removes it. A spool that fails raises OSError."""

    def __init__(self, folder: Path, lock: FileLock) -> None:
        self.folder = folder
        self._lock = lock

    @classmethod
    def new(cls, spool_dir: Path) -> Self:
        spool_dir.mkdir(parents=True, exist_ok=True)
        with _lock_of(spool_dir):  # no other process may see the folder before it is locked
            folder = spool_dir / f"{_PREFIX}{uuid.uuid4().hex}"
            folder.mkdir(mode=0o700)
            lock = _lock_of(folder)
            lock.acquire(timeout=0)
            sync_folder(folder)
            sync_folder(spool_dir)
        return cls(folder, lock)

    @classmethod
    def orphans(cls, spool_dir: Path) -> list[Self]:
        """Claim every folder whose process has ended."""
        claims = []
        with _lock_of(spool_dir):
            for folder in worker_folders(spool_dir):
                lock = _lock_of(folder)
                with contextlib.suppress(Timeout):
                    lock.acquire(timeout=0)
                    claims.append(cls(folder, lock))
        return claims

    def remove(self) -> None:
        """Delete the folder, once Redis has all of its records."""
        with _lock_of(self.folder.parent):  # no other process may claim a folder that is being deleted
            shutil.rmtree(self.folder)
            self.release()

    def release(self) -> None:
        """Give the folder up as it is; another process ships the rest."""
        self._lock.release()


def worker_folders(spool_dir: Path) -> list[Path]:
    return sorted(spool_dir.glob(f"{_PREFIX}*"))


def _lock_of(folder: Path) -> FileLock:
    # Different threads claim and release. filelock's fallback where flock is missing would survive kill -9.
    return FileLock(folder / "lock", mode=0o600, thread_local=False, fallback_to_soft=False)
