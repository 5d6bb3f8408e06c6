"""Run a command that ends when its parent ends: ``python launcher.py PARENT_PID COMMAND ARGUMENT…``.

This is a program of its own, because a ``preexec_fn`` is unsafe in a process with threads. It imports only the standard
library, so that it costs a few milliseconds.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """Have Linux send SIGTERM to this process when its parent ends for any reason, SIGKILL included.

    Other systems cannot do that; there this does nothing.

    Args:
        parent_pid: The expected parent. If it has ended already, this process ends too.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent_pid:
        raise SystemExit("the parent has already ended")


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 - the command that this process was started for
