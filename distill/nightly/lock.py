"""Two nights never overlap."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from distill.errors import AnotherNight


@contextmanager
def only_night(runs_dir: Path) -> Iterator[None]:
    """Hold the lock of the folder of runs. The kernel drops it with its holder, so it is never stale.

    Raises:
        AnotherNight: Another process holds it.
    """
    runs_dir.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(runs_dir / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise AnotherNight(f"another night runs in {runs_dir}") from error
