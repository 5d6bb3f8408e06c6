"""Run as a program: ties itself to its parent's life, then becomes the command it was given.

``python tether.py PARENT_PID COMMAND ARGUMENT…``. Linux sends the signal when the parent is gone for any reason,
SIGKILL included. It is a program and not a ``preexec_fn``, because that is unsafe in a process with threads.
It imports the standard library only, so that it costs a few milliseconds.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def tie(parent_pid: int) -> None:
    """Have the kernel send SIGTERM to this process when its parent ends; elsewhere than on Linux do nothing.

    Args:
        parent_pid: The parent that was meant. Should it have ended before the tie held, this process ends too.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent_pid:
        raise SystemExit("the parent has already ended")


if __name__ == "__main__":
    tie(int(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 - the very command that started this process
