"""Load a model or a tokenizer in a thread, and retry after a failure."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import structlog

from gateway.errors import SettingsError

Loaded = TypeVar("Loaded")

IMPORTS = threading.Lock()
"""Held while a thread imports transformers, whose module replaces itself: two threads at once raise ImportError."""

FIRST_PAUSE_S = 1.0  # after the first failure; doubles with each one after it …
LONGEST_PAUSE_S = 60.0  # … up to this

_log = structlog.get_logger()


class Loading(Generic[Loaded]):
    """One value, loaded in a thread on first use or on ``start``.

    A failed attempt is logged with its cause. The first use after a pause tries again: a folder may be mounted late, a
    hub may have been away. Only the event loop's thread calls the methods.

    Args:
        load: Return the value; runs in ``thread``.
        thread: Runs ``load``.
        what: Name of the value in log lines.
    """

    def __init__(self, load: Callable[[], Loaded], thread: ThreadPoolExecutor, *, what: str) -> None:
        self._load = load
        self._thread = thread
        self._what = what
        self._attempt: Future[Loaded] | None = None
        self._failures = 0
        self._again_at_s = 0.0

    def start(self) -> Future[Loaded]:
        """Return the running or the successful attempt; start one if there is neither."""
        if self._attempt is None or (self.error is not None and time.monotonic() >= self._again_at_s):
            self._attempt = self._thread.submit(self._load)
            self._attempt.add_done_callback(self._ended)
        return self._attempt

    @property
    def value(self) -> Loaded | None:
        attempt = self._attempt
        return attempt.result() if attempt is not None and _has_ended(attempt) and self.error is None else None

    @property
    def error(self) -> BaseException | None:
        """The error of the last attempt; None while it runs and when it succeeded."""
        attempt = self._attempt
        return attempt.exception() if attempt is not None and _has_ended(attempt) else None

    def _ended(self, attempt: Future[Loaded]) -> None:
        if attempt.cancelled() or (error := attempt.exception()) is None:
            return
        self._again_at_s = time.monotonic() + min(FIRST_PAUSE_S * 2**self._failures, LONGEST_PAUSE_S)
        self._failures += 1
        cause = error.__cause__ or error
        _log.error("not_loaded", what=self._what, error=str(error), cause=f"{type(cause).__name__}: {cause}")


def import_error(error: ImportError, what: str) -> SettingsError:
    """Return the error to raise for a failed import; it names the extra that installs a missing package."""
    if isinstance(error, ModuleNotFoundError):
        return SettingsError(f"{what} needs ratchet[reward]: {error}")
    return SettingsError(f"{what} cannot import what it needs: {error}")


def _has_ended(attempt: Future[Loaded]) -> bool:
    return attempt.done() and not attempt.cancelled()
