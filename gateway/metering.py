"""Counts what backends draw for a request, however each of its calls ends: its key pays for every token.

A call that ends well says how many tokens it drew. One that is cut or fails does not: of a stream the pieces that came
are counted, of a plain call only its time is known. What is counted then is an upper bound that no caller can get
below by hanging up: the time, at twice the fastest speed at which any answer was drawn, but no more than max_tokens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import orjson

from gateway.errors import BackendFailed, BackendOverloaded, BackendRejected, BackendUnreachable, CallerError

MOST_TOKENS_PER_S = 2_000.0
"""Faster than servers draw one answer: what is assumed before any was drawn, and the most that is believed."""
_MARGIN = 2.0  # a call's mean speed counts the time for its prompt too: the tokens themselves came faster
_FEW_TOKENS = 16  # a mean over fewer says nothing


def tokens_at_most(value: object) -> int:
    """Return an upper bound on the tokens of a text, or of anything that is written as JSON: its bytes in UTF-8."""
    if isinstance(value, str):
        return len(value.encode("utf-8", "replace"))
    try:
        return len(orjson.dumps(value))
    except TypeError:  # a lone surrogate, or a number beyond 64 bits
        return len(repr(value).encode("utf-8", "replace"))


class Pace:
    """The fastest speed at which answers have been drawn, over all calls of this process."""

    def __init__(self) -> None:
        self._tokens_per_s = 0.0

    def saw(self, tokens: int, seconds: float) -> None:
        """Learn from a call that ended well."""
        if tokens >= _FEW_TOKENS and seconds > 0:
            self._tokens_per_s = max(self._tokens_per_s, tokens / seconds)

    def most_tokens(self, seconds: float) -> int:
        """Return how many tokens one call may have drawn in this time, at most."""
        tokens_per_s = min(_MARGIN * self._tokens_per_s or MOST_TOKENS_PER_S, MOST_TOKENS_PER_S)
        return math.ceil(tokens_per_s * seconds)


@dataclass(slots=True)
class Call:
    """One call while it runs. ``tokens``: drawn by now, as the server counts them or as an upper bound."""

    tokens: int = 0
    prompt_tokens: int | None = None
    is_counted: bool = False
    """Whether ``tokens`` is all that was drawn; otherwise the call's time may tell of more."""

    def count(self, prompt_tokens: int | None, tokens: int) -> None:
        """Take the count of a call: the server's, or that of the pieces of its stream by now."""
        self.prompt_tokens, self.tokens, self.is_counted = prompt_tokens, tokens, True


class Meter:
    """What the calls of one race have drawn.

    Attributes:
        tokens: Of all answers, finished or not.
        prompt_tokens: Of the prompt, as a server counted it; 0 where none did.
        prompt_is_uncounted: A server may have read the prompt and has not said how long it is.
    """

    def __init__(self, pace: Pace | None = None, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._pace = pace or Pace()
        self._clock = clock
        self.tokens = 0
        self.prompt_tokens = 0
        self.prompt_is_uncounted = False

    @contextmanager
    def call(self, *, max_tokens: int | None) -> Iterator[Call]:
        """Count a call, from the moment it is sent to its end: an answer, an error, or being cancelled."""
        call, started = Call(), self._clock()
        try:
            yield call
        except BaseException as error:
            if call.tokens or not _was_never_begun(error):
                self._take(call, self._clock() - started, max_tokens)
                refused = isinstance(error, (BackendRejected, BackendFailed)) and not call.tokens
                self.prompt_is_uncounted |= call.prompt_tokens is None and not refused
            raise
        seconds = self._clock() - started
        self._pace.saw(call.tokens, seconds)
        self._take(call, seconds, max_tokens)
        self.prompt_is_uncounted |= call.prompt_tokens is None

    def _take(self, call: Call, seconds: float, max_tokens: int | None) -> None:
        tokens = call.tokens
        if not call.is_counted:
            tokens = max(tokens, self._pace.most_tokens(seconds))
            tokens = tokens if max_tokens is None else min(tokens, max_tokens)
        self.tokens += tokens
        self.prompt_tokens = max(self.prompt_tokens, call.prompt_tokens or 0)


def _was_never_begun(error: BaseException) -> bool:
    """Whether the server drew nothing: it had no place, was not reached, or was not asked."""
    if isinstance(error, BackendUnreachable):
        return not error.was_sent
    return isinstance(error, (BackendOverloaded, CallerError))
