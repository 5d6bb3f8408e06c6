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
