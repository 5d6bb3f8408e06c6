"""Helpers for tests about processes."""

from contextlib import suppress

import psutil


def wait_until_gone(pid: int, timeout_s: float = 20.0) -> None:
    """Wait until the process has ended; raise ``psutil.TimeoutExpired`` after ``timeout_s``."""
    with suppress(psutil.NoSuchProcess):
        psutil.Process(pid).wait(timeout_s)


def children_of(parent_pid: int) -> list[int]:
    """Return the process ids of the running children."""
    return [child.pid for child in psutil.Process(parent_pid).children()]
