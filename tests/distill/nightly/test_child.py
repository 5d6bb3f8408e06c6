"""A child's exit code is the night's to judge, and no child outlives what ends the night."""

import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from distill.nightly.child import run_child


def test_the_exit_code_is_returned_and_the_environment_handed_on() -> None:
    program = "import os; raise SystemExit(int(os.environ['CODE']))"
    assert 7 == run_child([sys.executable, "-c", program], {"CODE": "7"})


def test_what_ends_the_night_ends_the_child_first(tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    program = (
        "import os, pathlib, signal, sys\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(ended)!r}).touch(), sys.exit()))\n"
        "os.kill(os.getppid(), signal.SIGUSR1)\n"
        "signal.pause()"
    )

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    assert threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_child([sys.executable, "-c", program], dict(os.environ))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert ended.exists()
