"""A program that is part of a night and ends with it."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence


def run_child(command: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
    """Run a command to its end and return its exit code.

    Whatever ends this process first (SIGTERM, Ctrl-C) ends the command before, so that it leaves its work in order.
    """
    with subprocess.Popen(command, env=environment) as child:
        try:
            return child.wait()
        except BaseException:
            child.terminate()
            child.wait()
            raise
