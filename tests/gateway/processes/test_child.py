"""Child processes, on real processes."""

import ctypes
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from gateway.processes.child import ChildProcess, free_port, run_child
from gateway.processes.launcher import die_with_parent
from gateway.processes.signals import raise_on_signals

_SAY_READY_AND_IGNORE_SIGTERM = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(__import__("sys").argv[1], "w").close()
signal.pause()
"""


def _wait_for(path: str) -> None:
    """Wait until the child opens the FIFO for writing."""
    with open(path):
        pass


def test_the_end_of_the_output_is_returned(tmp_path: Path) -> None:
    child = ChildProcess(
        "speaker", [sys.executable, "-c", "for i in range(20): print('line', i)"], log_path=tmp_path / "logs" / "log"
    )
    child.start()
    assert 0 == child.wait()
    assert child.log_tail().endswith("\n".join(f"line {i}" for i in range(5, 20)))


def test_an_empty_log_is_named(tmp_path: Path) -> None:
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
    """It has a process group of its own: the parent stops its children in order."""
    command = [sys.executable, "-c", "import os; print(os.getpgid(0) == os.getpid())"]
    child = ChildProcess("own", command, log_path=tmp_path / "log")
    child.start()
    child.wait()
    assert "True" == (tmp_path / "log").read_text().strip()


def test_a_child_whose_parent_is_already_gone_ends() -> None:
    try:
        die_with_parent(os.getppid())
        with pytest.raises(SystemExit, match="already ended"):
            die_with_parent(os.getpid())
    finally:
        ctypes.CDLL(None).prctl(1, 0)


def test_other_systems_than_linux_do_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    die_with_parent(-1)


def test_a_command_gets_its_environment_and_returns_its_exit_status() -> None:
    program = "import os; raise SystemExit(int(os.environ['CODE']))"
    assert 7 == run_child([sys.executable, "-c", program], {"CODE": "7"})


def test_an_exception_during_a_command_ends_the_command_first(tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    program = (
        "import os, pathlib, signal, sys\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(ended)!r}).touch(), sys.exit()))\n"
        "os.kill(os.getppid(), signal.SIGUSR1)\n"
        "signal.pause()"
    )
    with pytest.raises(KeyboardInterrupt), raise_on_signals(KeyboardInterrupt(), signal.SIGUSR1):
        run_child([sys.executable, "-c", program], dict(os.environ))
    assert ended.exists()


def test_signals_end_a_block_as_an_exception_and_get_their_handlers_back() -> None:
    numbers = (signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in numbers]
    for number in numbers:
        with pytest.raises(SystemExit, match="143"), raise_on_signals(SystemExit(143), *numbers):
            signal.raise_signal(number)
        assert before == [signal.getsignal(number) for number in numbers]


def test_a_free_port_is_none_that_the_system_gives_to_outgoing_connections() -> None:
    first, _ = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    for port in (free_port() for _ in range(20)):
        assert 1024 < port < first
        with socket.socket() as server:
            server.bind(("127.0.0.1", port))
