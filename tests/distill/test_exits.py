"""Every error that the project raises on purpose has an exit code and a message of one line."""

import errno
import os
import signal
from collections.abc import Callable

import pytest

from distill import errors, exits
from gateway import errors as gateway_errors


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.AnotherNight("x"), exits.ANOTHER_NIGHT),
        (errors.RunMismatch("x"), exits.BAD_INPUT),
        (errors.SettingsError("x"), exits.BAD_INPUT),
        (errors.DataError("x"), exits.BAD_INPUT),
        (gateway_errors.SettingsError("x"), exits.BAD_INPUT),
        (OSError(errno.ENOSPC, "No space left on device"), exits.BAD_INPUT),
        (errors.NightError("x"), exits.UNAVAILABLE),
        (errors.EvaluationError("x"), exits.UNAVAILABLE),
        (gateway_errors.JournalError("x"), exits.UNAVAILABLE),
        (gateway_errors.NotReady("x"), exits.UNAVAILABLE),
        (errors.TrainingError("x"), exits.FAILED),
        (errors.PromotionError("x"), exits.FAILED),
    ],
)
def test_the_code_of_an_error(error: Exception, code: int) -> None:
    assert code == exits.code_of(error)
    assert code in exits.TABLE
    assert isinstance(error, exits.ERRORS)


def test_the_message_of_an_error_is_one_line() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "draws.jsonl")
    assert "draws.jsonl: No space left on device" == exits.one_line(full)
    assert "one two" == exits.one_line(errors.DataError("one\n  two"))


def test_every_end_of_a_command_has_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(error: BaseException) -> int:
        raise error

    ends: list[tuple[Callable[[], int | None], int, str]] = [
        (lambda: None, 0, ""),
        (lambda: 7, 7, ""),
        (lambda: fail(errors.DataError("a [bad] line")), 2, "a [bad] line\n"),
        (lambda: fail(KeyboardInterrupt()), 130, "stopped by Ctrl-C: `run` continues\n"),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), 143, "stopped by SIGTERM: `run` continues\n"),
    ]
    for action, code, text in ends:
        assert code == exits.run_to_code(action)
        assert text == capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        exits.run_to_code(lambda: fail(ZeroDivisionError()))
