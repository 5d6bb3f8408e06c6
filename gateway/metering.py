"""Counts what backends draw for a request, however each of its calls ends: its key pays for every token.

A call that ends well says how many tokens it drew. One that is cut or fails does not: of a stream the pieces that came
are counted, of a plain call only its time is known. What is counted then is an upper bound that no caller can get
below by hanging up: the time, at twice the fastest speed at which any answer was drawn, but no more than max_tokens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Self

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


class Call:
    """A call to a backend, as a context manager from the moment it is sent to its end, whichever that is.

    Attributes:
        tokens: Drawn by now, as the server counts them or as an upper bound.
        prompt_tokens: Of the prompt, once the server has said.
    """

    __slots__ = ("_is_counted", "_max_tokens", "_meter", "_started_s", "prompt_tokens", "tokens")

    def __init__(self, meter: Meter, max_tokens: int | None) -> None:
        self._meter = meter
        self._max_tokens = max_tokens
        self._is_counted = False
        self._started_s = 0.0
        self.tokens = 0
        self.prompt_tokens: int | None = None

    def count(self, prompt_tokens: int | None, tokens: int) -> None:
        """Take a count: the server's, or that of a stream's pieces by now. Otherwise the call's time is taken."""
        self.prompt_tokens, self.tokens, self._is_counted = prompt_tokens, tokens, True

    def __enter__(self) -> Self:
        self._started_s = self._meter.clock()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        seconds, seen = self._meter.clock() - self._started_s, self.tokens > 0
        if error is None:
            self._meter.pace.saw(self.tokens, seconds)
        elif not seen and _was_never_begun(error):
            return
        if not self._is_counted:
            self.tokens = max(self.tokens, self._meter.pace.most_tokens(seconds))
            self.tokens = self.tokens if self._max_tokens is None else min(self.tokens, self._max_tokens)
        refused = not seen and isinstance(error, (BackendRejected, BackendFailed))
        self._meter.take(self.prompt_tokens, self.tokens, read_prompt=not refused)


class Meter:
    """What the calls of one race have drawn.

    Args:
        pace: Shared by all meters of a process.
        clock: Monotonic seconds.

    Attributes:
        tokens: Of all answers, finished or not.
        prompt_tokens: Of the prompt, as a server counted it; 0 where none did.
        prompt_is_uncounted: A server may have read the prompt and has not said how long it is.
    """

    __slots__ = ("clock", "pace", "prompt_is_uncounted", "prompt_tokens", "tokens")

    def __init__(self, pace: Pace | None = None, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.pace = pace or Pace()
        self.clock = clock
        self.tokens = 0
        self.prompt_tokens = 0
        self.prompt_is_uncounted = False

    def call(self, *, max_tokens: int | None) -> Call:
        """Count a call that may draw this many tokens."""
        return Call(self, max_tokens)

    def take(self, prompt_tokens: int | None, tokens: int, *, read_prompt: bool) -> None:
        """Add what one call has drawn; ``read_prompt``: its server may have read the prompt too."""
        self.tokens += tokens
        self.prompt_tokens = max(self.prompt_tokens, prompt_tokens or 0)
        self.prompt_is_uncounted |= read_prompt and prompt_tokens is None


def _was_never_begun(error: BaseException) -> bool:
    """Whether the server drew nothing: it had no place, was not reached, or was not asked."""
    if isinstance(error, BackendUnreachable):
        return not error.was_sent
    return isinstance(error, (BackendOverloaded, CallerError))
