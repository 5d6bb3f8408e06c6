"""The schedule: a night every day at a fixed time, each in its own process. For machines without cron."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable

import structlog
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.cron import CronTrigger
from rich.console import Console

from distill import exits

_LATE_S = 3600  # a machine that was asleep at that time still starts the night up to this much later
_STOP_TIMEOUT_S = 120.0

log = structlog.get_logger()


class Schedule:
    """Start a night each day, never two at once; leaving the context stops the one that runs.

    Args:
        at: HH:MM in local time.
        command: The command of a night.
    """

    def __init__(self, at: str, command: list[str] | None = None) -> None:
        hour, minute = map(int, at.split(":"))
        self._command = command or [sys.executable, "-m", "distill", "run"]
        self._trigger = CronTrigger(hour=hour, minute=minute)
        self._scheduler = BackgroundScheduler()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Schedule:
        options = {"max_instances": 1, "coalesce": True, "misfire_grace_time": _LATE_S}
        self._job = self._scheduler.add_job(self.run_night, self._trigger, **options)
        self._scheduler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._scheduler.remove_all_jobs()
        if (process := self._process) is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
        self._scheduler.shutdown(wait=True)

    @property
    def next(self) -> str:
        """The start time of the next night."""
        return f"{self._job.next_run_time:%Y-%m-%d %H:%M %Z}"

    def run_night(self) -> int:
        """Run one night, log how it ended, and return its exit code."""
        self._process = subprocess.Popen(self._command)
        code = self._process.wait()
        log.info("night_ended", exit_code=code, meaning=exits.TABLE.get(code, "killed"), next=self.next)
        return code


def run_schedule(at: str, console: Console, wait: Callable[[], object] = signal.pause) -> None:
    """Start nights until ``wait`` returns or a signal ends the process.

    Args:
        at: HH:MM in local time.
        console: Where the time of the next night is printed.
        wait: Returns when the schedule should end.
    """
    with Schedule(at) as schedule:
        console.print(f"the next night begins {schedule.next}", markup=False, highlight=False)
        wait()
