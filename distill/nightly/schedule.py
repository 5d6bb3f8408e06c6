"""The night's clock: every day at one time, a night in a process of its own. What cron does, for who has no cron."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import structlog
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.cron import CronTrigger
from rich.console import Console

from distill import exits

_LATE_S = 3600  # a machine that was asleep at the time still runs the night, this much later
_STOP_TIMEOUT_S = 120.0

log = structlog.get_logger()


class Clock:
    """Starts a night each day, never two at once, and stops the one that runs when it is stopped itself.

    Args:
        at: HH:MM in local time.
        command: What a night is.
    """

    def __init__(self, at: str, command: list[str] | None = None) -> None:
        hour, minute = map(int, at.split(":"))
        self._command = command or [sys.executable, "-m", "distill", "run"]
        self._trigger = CronTrigger(hour=hour, minute=minute)
        self._scheduler = BackgroundScheduler()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Clock:
        options = {"max_instances": 1, "coalesce": True, "misfire_grace_time": _LATE_S}
        self._job = self._scheduler.add_job(self.night, self._trigger, **options)
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
        """When the next night begins."""
        return f"{self._job.next_run_time:%Y-%m-%d %H:%M %Z}"

    def night(self) -> int:
        """Run one night to its end, and log how it ended."""
        self._process = subprocess.Popen(self._command)
        code = self._process.wait()
        log.info("night_ended", exit_code=code, meaning=exits.TABLE.get(code, "killed"), next=self.next)
        return code


def keep(at: str, console: Console, wait: Callable[[], object] | None = None) -> int:
    """Stay until a signal ends this.

    Args:
        at: HH:MM in local time.
        console: Where the time of the next night is told.
        wait: What to wait in; unset: for a signal.
    """
    import signal

    with Clock(at) as clock:
        console.print(f"the next night begins {clock.next}", markup=False, highlight=False)
        (wait or signal.pause)()
    return exits.FINISHED
