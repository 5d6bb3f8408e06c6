"""The clock knows when the next night begins, runs one to its end, and stops the one that runs."""

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
def test_a_night_runs_to_its_end_in_a_process_of_its_own(code: int) -> None:
    with Schedule("03:30", [sys.executable, "-c", f"raise SystemExit({code})"]) as schedule:
        assert code == schedule.run_night()


async def test_the_night_that_runs_is_stopped_with_the_clock(tmp_path: Path) -> None:
    """SIGTERM, so that it can leave its step in order."""
    began = tmp_path / "began"
    program = f"import pathlib, signal\npathlib.Path({str(began)!r}).touch()\nsignal.pause()"
    codes: list[int] = []
    with Schedule("03:30", [sys.executable, "-c", program]) as schedule:
        thread = threading.Thread(target=lambda: codes.append(schedule.run_night()))
        thread.start()
        await until(began.exists)
    thread.join()
    assert [-signal.SIGTERM] == codes
