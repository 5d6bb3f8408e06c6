"""The schedule knows when the next night begins, runs it, and stops it when it is stopped itself."""

import io
import signal
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console

from distill.nightly.schedule import Schedule, run_schedule
from tests.waiting import until


def test_the_next_night_begins_at_the_time_that_is_set() -> None:
    out = io.StringIO()
    run_schedule("03:30", Console(file=out), wait=lambda: None)
    assert "the next night begins 2" in out.getvalue()
    assert " 03:30 " in out.getvalue()


@pytest.mark.parametrize("code", [0, 75])
def test_a_night_runs_in_its_own_process(code: int) -> None:
    with Schedule("03:30", [sys.executable, "-c", f"raise SystemExit({code})"]) as schedule:
        assert code == schedule.run_night()


async def test_a_running_night_is_stopped_with_the_schedule(tmp_path: Path) -> None:
    """By SIGTERM, so that its step can be resumed."""
    began = tmp_path / "began"
    program = f"import pathlib, signal\npathlib.Path({str(began)!r}).touch()\nsignal.pause()"
    codes: list[int] = []
    with Schedule("03:30", [sys.executable, "-c", program]) as schedule:
        thread = threading.Thread(target=lambda: codes.append(schedule.run_night()))
        thread.start()
        await until(began.exists)
    thread.join()
    assert [-signal.SIGTERM] == codes
