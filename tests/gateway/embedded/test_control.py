"""``python -m gateway restart-backend``: its output and exit codes, with and without a running stack."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from gateway.__main__ import cli
from gateway.embedded.control import Control
from gateway.errors import NotReady

SERVED = "2 replicas serve " + ", ".join(f"rft-20261122-0123456789a{i}" for i in range(4))


def restart_backend(folder: Path, *options: str) -> Result:
    return CliRunner().invoke(cli, ["restart-backend", "--data-dir", str(folder), *options])


def failing(error: Exception) -> Callable[[], str]:
    def restart() -> str:
        raise error

    return restart


def test_without_a_stack_the_command_tells_how_to_start_one(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gateway", "restart-backend", "--data-dir", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (2, "") == (ended.returncode, ended.stdout)
    assert [f"NotReady: no embedded stack runs in {tmp_path}: start one with `make serve`"] == ended.stderr.splitlines()


def test_the_socket_of_a_killed_stack_is_replaced(tmp_path: Path) -> None:
    """Until then nothing listens there."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "control.sock"))
    ended = restart_backend(tmp_path)
    assert (2, True) == (ended.exit_code, "no embedded stack runs" in ended.stderr)
    with Control(tmp_path, lambda: SERVED) as control:
        control.open()
        assert 0 == restart_backend(tmp_path).exit_code
    assert not (tmp_path / "control.sock").exists()


def test_it_prints_the_adapters_in_one_line_each_time(tmp_path: Path) -> None:
    with Control(tmp_path, lambda: SERVED) as control:
        control.open()
        ended = [restart_backend(tmp_path) for _ in range(2)]
        assert 0o600 == (tmp_path / "control.sock").stat().st_mode & 0o777
    assert [(0, f"{SERVED}\n")] * 2 == [(one.exit_code, one.stdout) for one in ended]


def test_it_checks_the_backend_between_requests_while_it_is_open(tmp_path: Path) -> None:
    checked = threading.Event()
    with Control(tmp_path, lambda: SERVED, checked.set, check_every_s=0.01) as control:
        assert not checked.wait(0.1)
        control.open()
        assert checked.wait(10)
        assert 0 == restart_backend(tmp_path).exit_code
        control.close()
        checked.clear()
        assert not checked.wait(0.1)


@pytest.mark.parametrize(
    "error", [NotReady("It serves what it served before."), OSError(28, "No space left on device")]
)
def test_a_failed_restart_is_reported_and_the_next_request_is_served(tmp_path: Path, error: Exception) -> None:
    with Control(tmp_path, failing(error)) as control:
        control.open()
        ended = [restart_backend(tmp_path) for _ in range(2)]
    assert [2, 2] == [one.exit_code for one in ended]
    assert all(str(error) in one.stderr and not one.stdout for one in ended)


def test_a_stack_that_starts_or_stops_refuses_requests(tmp_path: Path) -> None:
    with Control(tmp_path, failing(AssertionError("restarted"))) as control:
        starting = restart_backend(tmp_path)
        control.open()
        control.close()
        stopping = restart_backend(tmp_path)
    for ended in (starting, stopping):
        assert (2, True) == (ended.exit_code, "the stack is starting or stopping" in ended.stderr)


def test_a_restart_that_takes_too_long_is_an_error(tmp_path: Path) -> None:
    done = threading.Event()

    def restart() -> str:
        done.wait()
        return SERVED

    with Control(tmp_path, restart) as control:
        control.open()
        ended = restart_backend(tmp_path, "--timeout-s", "1")
        done.set()
    assert (2, True) == (ended.exit_code, "the restart did not end within 1 s" in ended.stderr)


def test_a_stack_that_ends_during_the_restart_is_an_error(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "control.sock"))
        listener.listen()
        ending = threading.Thread(target=lambda: listener.accept()[0].close())
        ending.start()
        ended = restart_backend(tmp_path)
        ending.join()
    assert (2, True) == (ended.exit_code, "the stack ended during the restart" in ended.stderr)
