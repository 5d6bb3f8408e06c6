"""Child processes and their tether, on real processes."""

import ctypes
import os
import sys
from pathlib import Path

import pytest

from gateway.processes import tether
from gateway.processes.child import ChildProcess

_SAY_READY_AND_IGNORE_SIGTERM = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(__import__("sys").argv[1], "w").close()
signal.pause()
"""


def _wait_for(path: str) -> None:
    """A FIFO opens for reading once the child has opened it for writing."""
    with open(path):
        pass


def test_output_is_kept_and_its_end_is_told(tmp_path: Path) -> None:
    child = ChildProcess(
        "speaker", [sys.executable, "-c", "for i in range(20): print('line', i)"], log_path=tmp_path / "logs" / "log"
    )
    child.start()
    assert 0 == child.wait()
    assert child.log_tail().endswith("\n".join(f"line {i}" for i in range(5, 20)))


def test_an_empty_log_is_told(tmp_path: Path) -> None:
    child = ChildProcess("silent", [sys.executable, "-c", "raise SystemExit(3)"], log_path=tmp_path / "log")
    child.start()
    assert 3 == child.wait()
    assert 3 == child.exit_status
    assert f"its log {tmp_path / 'log'} is empty" == child.log_tail()


def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    fifo = str(tmp_path / "ready")
    os.mkfifo(fifo)
    command = [sys.executable, "-c", _SAY_READY_AND_IGNORE_SIGTERM, fifo]
    child = ChildProcess("deaf", command, log_path=tmp_path / "log", stop_timeout_s=0.1)
    child.start()
    _wait_for(fifo)
    pid = child.pid
    assert pid is not None
    child.stop()
    assert child.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_ctrl_c_does_not_reach_a_child(tmp_path: Path) -> None:
    """It lives outside its parent's process group: the parent stops children in order."""
    command = [sys.executable, "-c", "import os; print(os.getpgid(0) == os.getpid())"]
    child = ChildProcess("own", command, log_path=tmp_path / "log")
    child.start()
    child.wait()
    assert "True" == (tmp_path / "log").read_text().strip()


def test_a_child_whose_parent_is_already_gone_ends() -> None:
    try:
        tether.tie(os.getppid())
        with pytest.raises(SystemExit, match="already ended"):
            tether.tie(os.getpid())
    finally:
        ctypes.CDLL(None).prctl(1, 0)


def test_elsewhere_than_on_linux_a_child_is_not_tied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    tether.tie(-1)
