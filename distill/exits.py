"""Exit codes, the same for every command, so that an operator can alert on them; errors become one line on stderr."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator

import typer
from rich.console import Console

from distill.errors import (
    AnotherNight,
    DataError,
    DistillError,
    EvaluationError,
    NightError,
    RunMismatch,
    SettingsError,
)
from gateway.errors import GatewayError
from gateway.errors import SettingsError as GatewaySettingsError
from gateway.processes.signals import raise_on_signals

FINISHED = 0
FAILED = 1
BAD_INPUT = 2
ANOTHER_NIGHT = 3
ROLLED_BACK = 4
LOST = 5
UNAVAILABLE = 75  # sysexits' EX_TEMPFAIL
INTERRUPTED = 130
TERMINATED = 143

TABLE = {
    FINISHED: "the night finished, or reached the step of --until; the verdict is in the report",
    FAILED: "a step failed for a reason of its own (training broke, an adapter does not behave): read the message",
    BAD_INPUT: "settings, a data file or the disk need a person; then `run` continues",
    ANOTHER_NIGHT: "another night runs (`watch`: another guard)",
    ROLLED_BACK: "`watch --once` rolled a new policy back",
    LOST: "`collect`: records had left Redis before they were archived",
    UNAVAILABLE: "Redis, the backend or the reward model is away: `run` later continues",
    INTERRUPTED: "stopped by Ctrl-C: `run` continues",
    TERMINATED: "stopped by SIGTERM: `run` continues",
}

# The first match counts; every other error that is raised on purpose is FAILED.
_CODES: tuple[tuple[type[Exception], int], ...] = (
    (AnotherNight, ANOTHER_NIGHT),
    (RunMismatch, BAD_INPUT),
    (SettingsError, BAD_INPUT),
    (GatewaySettingsError, BAD_INPUT),
    (DataError, BAD_INPUT),
    (OSError, BAD_INPUT),
    (NightError, UNAVAILABLE),
    (EvaluationError, UNAVAILABLE),
    (GatewayError, UNAVAILABLE),
)

ERRORS = (DistillError, GatewayError, OSError)
"""Errors that end a command with one line; any other is a defect and shows its traceback."""


def code_of(error: Exception) -> int:
    """Return the exit code for an error."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), FAILED)


def one_line(error: Exception) -> str:
    """Return the error's message on one line."""
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror or type(error).__name__}"
    return " ".join(str(error).split())


def run_to_code(action: Callable[[], int | None]) -> int:
    """Run a command that an operator may stop; return its exit code, after one line on stderr if it did not finish.

    Args:
        action: The command; returns its exit code, or None for ``FINISHED``.
    """
    stderr = Console(stderr=True)
    try:
        with exit_on_sigterm():
            return action() or FINISHED
    except ERRORS as error:
        return _print_error(error)
    except KeyboardInterrupt:
        stderr.print(TABLE[INTERRUPTED])
        return INTERRUPTED
    except SystemExit:  # by SIGTERM, or by training once its checkpoint is written
        stderr.print(TABLE[TERMINATED])
        return TERMINATED


@contextlib.contextmanager
def exit_on_error() -> Iterator[None]:
    """End the command with the error's line and exit code, if the block raises one of ``ERRORS``."""
    try:
        yield
    except ERRORS as error:
        raise typer.Exit(_print_error(error)) from error


def exit_on_sigterm() -> contextlib.AbstractContextManager[None]:
    """Raise SystemExit on SIGTERM, so that the block cleans up its files and servers."""
    return raise_on_signals(SystemExit(TERMINATED), signal.SIGTERM)


def _print_error(error: Exception) -> int:
    # No markup: a message may contain brackets. No wrapping: operators grep for it.
    Console(stderr=True).print(one_line(error), style="red", markup=False, highlight=False, soft_wrap=True)
    return code_of(error)
