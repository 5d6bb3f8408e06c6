"""What tests ask the kernel about processes."""

import os
import select
from contextlib import suppress


def wait_until_gone(pid: int, timeout_s: float = 20.0) -> None:
    """Return once the process has ended; fail when it has not after ``timeout_s``."""
    with suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            ended, _, _ = select.select([descriptor], [], [], timeout_s)
            assert [descriptor] == ended, f"process {pid} still runs"
        finally:
            os.close(descriptor)


def children_of(parent_pid: int) -> list[int]:
    """Process ids of the running children."""
    return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _parent(pid) == parent_pid]


def _parent(pid: int) -> int | None:
    with suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{pid}/stat") as stat:
        # The name, which may hold anything, ends with the last bracket; then come state and parent.
        return int(stat.read().rpartition(")")[2].split()[1])
    return None
