"""Every error that the project raises on purpose has an exit code and one line of words."""

import errno
import os

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
        (errors.NightError("x"), exits.PART_AWAY),
        (errors.EvaluationError("x"), exits.PART_AWAY),
        (gateway_errors.JournalError("x"), exits.PART_AWAY),
        (gateway_errors.NotReady("x"), exits.PART_AWAY),
        (errors.TrainingError("x"), exits.FAILED),
        (errors.PromotionError("x"), exits.FAILED),
    ],
)
def test_the_code_of_an_error(error: Exception, code: int) -> None:
    assert code == exits.code_of(error)
    assert code in exits.TABLE
    assert isinstance(error, exits.ERRORS)


def test_the_words_of_an_error_are_one_line() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "draws.jsonl")
    assert "draws.jsonl: No space left on device" == exits.words_of(full)
    assert "one two" == exits.words_of(errors.DataError("one\n  two"))
