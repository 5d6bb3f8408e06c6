"""How a command ends: exit codes that an operator can alert on, the same for all of them, and one line of words."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

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
PART_AWAY = 75  # sysexits' EX_TEMPFAIL
INTERRUPTED = 130
TERMINATED = 143

TABLE = {
    FINISHED: "the night came to its end, or to the step of --until; the verdict is in the report",
    FAILED: "a step failed for a reason of its own (training broke, an adapter does not behave): read the message",
    BAD_INPUT: "settings, a file of data or the disk need a person; then `run` goes on where it stopped",
    ANOTHER_NIGHT: "another night runs (or, for `watch`, another guard)",
    ROLLED_BACK: "of `watch --once`: it took a new policy back",
    LOST: "of `collect`: records had left Redis before they were archived",
    PART_AWAY: "Redis, the backend or the reward model is away: `run` again later, it goes on where it stopped",
    INTERRUPTED: "stopped by Ctrl-C: `run` goes on where it stopped",
    TERMINATED: "stopped by SIGTERM: `run` goes on where it stopped",
}

# The first that fits; whatever else is raised on purpose is FAILED.
_CODES: tuple[tuple[type[Exception], int], ...] = (
    (AnotherNight, ANOTHER_NIGHT),
    (RunMismatch, BAD_INPUT),
    (SettingsError, BAD_INPUT),
    (GatewaySettingsError, BAD_INPUT),
    (DataError, BAD_INPUT),
    (OSError, BAD_INPUT),
    (NightError, PART_AWAY),
    (EvaluationError, PART_AWAY),
    (GatewayError, PART_AWAY),
)

ERRORS = (DistillError, GatewayError, OSError)
"""What ends a command in words; anything else is a defect and shows its trace."""


def code_of(error: Exception) -> int:
    """The exit code that an error deserves."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), FAILED)


def words_of(error: Exception) -> str:
    """The error in one line."""
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror or type(error).__name__}"
    return " ".join(str(error).split())


def tell(error: Exception) -> int:
    """Print the error's one line to stderr; returns its exit code."""
    # Not as markup: a message may hold brackets. Not wrapped: it is grepped for.
    Console(stderr=True).print(words_of(error), style="red", markup=False, highlight=False, soft_wrap=True)
    return code_of(error)


@contextlib.contextmanager
def errors_in_words() -> Iterator[None]:
    """End the command by the error's one line and its exit code, where the block raises one on purpose."""
    try:
        yield
    except ERRORS as error:
        raise typer.Exit(tell(error)) from error


def ended_by_sigterm() -> contextlib.AbstractContextManager[None]:
    """Let SIGTERM end the block as an exception does, so that files and servers are left in order."""
    return raise_on_signals(SystemExit(TERMINATED), signal.SIGTERM)
