"""Count the tokens that backends draw for a request, however its calls end: its key pays for every token.

The server of a call that succeeds reports its tokens. A call that is cut or fails has no report: of a stream the pieces
received are counted, of a plain call only the duration is known. The count is then an upper bound, so that no caller
saves anything by hanging up: the duration at twice the fastest speed of any answer so far, at most max_tokens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Self

import orjson

from gateway.errors import BackendFailed, BackendOverloaded, BackendRejected, BackendUnreachable, CallerError

MOST_TOKENS_PER_S = 2_000.0
"""Faster than servers draw one answer. Assumed before any answer was drawn, and the upper limit of what is learned."""
_MARGIN = 2.0  # a call's mean speed includes the time for its prompt: the tokens themselves came faster
_MIN_TOKENS = 16  # a mean over fewer tokens is too noisy


def tokens_at_most(value: object) -> int:
    """Return an upper bound of a text's tokens, or of a value's as JSON: its bytes in UTF-8."""
    if isinstance(value, str):
        return len(value.encode("utf-8", "replace"))
    try:
        return len(orjson.dumps(value))
    except TypeError:  # a lone surrogate, or a number beyond 64 bits
        return len(repr(value).encode("utf-8", "replace"))


class Pace:
    """The fastest speed at which any call of this process has drawn an answer."""

    def __init__(self) -> None:
        self._tokens_per_s = 0.0

    def learn(self, tokens: int, seconds: float) -> None:
        """Learn from a call that succeeded."""
        if tokens >= _MIN_TOKENS and seconds > 0:
            self._tokens_per_s = max(self._tokens_per_s, tokens / seconds)

    def most_tokens(self, seconds: float) -> int:
        """Return an upper bound of the tokens that one call can have drawn in this time."""
        tokens_per_s = min(_MARGIN * self._tokens_per_s or MOST_TOKENS_PER_S, MOST_TOKENS_PER_S)
        return math.ceil(tokens_per_s * seconds)


class Call:
    """One call to a backend, as a context manager from the moment it is sent until it ends in any way.

    Attributes:
        tokens: Tokens drawn so far, as the server counts them or an upper bound.
        prompt_tokens: Tokens of the prompt, once the server has reported them.
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
        """Set the count, by the server's report or a stream's pieces. Without a count the call's duration is used."""
        self.prompt_tokens, self.tokens, self._is_counted = prompt_tokens, tokens, True

    def __enter__(self) -> Self:
        self._started_s = self._meter.clock()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        seconds, seen = self._meter.clock() - self._started_s, self.tokens > 0
        if error is None:
            self._meter.pace.learn(self.tokens, seconds)
        elif not seen and _drew_nothing(error):
            return
        if not self._is_counted:
            self.tokens = max(self.tokens, self._meter.pace.most_tokens(seconds))
            self.tokens = self.tokens if self._max_tokens is None else min(self.tokens, self._max_tokens)
        refused = not seen and isinstance(error, (BackendRejected, BackendFailed))
        self._meter.add(self.prompt_tokens, self.tokens, read_prompt=not refused)


class Meter:
    """Counts the tokens that the calls of one race have drawn.

    Args:
        pace: Shared by all meters of a process.
        clock: Monotonic seconds.

    Attributes:
        tokens: Tokens of all answers, finished or not.
        prompt_tokens: Tokens of the prompt, as a server counted them; 0 if none did.
        prompt_is_uncounted: A server may have read the prompt and has not reported its length.
    """

    __slots__ = ("clock", "pace", "prompt_is_uncounted", "prompt_tokens", "tokens")

    def __init__(self, pace: Pace | None = None, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.pace = pace or Pace()
        self.clock = clock
        self.tokens = 0
        self.prompt_tokens = 0
        self.prompt_is_uncounted = False

    def call(self, *, max_tokens: int | None) -> Call:
        """Return the context manager that counts one call."""
        return Call(self, max_tokens)

    def add(self, prompt_tokens: int | None, tokens: int, *, read_prompt: bool) -> None:
        """Add one call's tokens. ``read_prompt``: its server may have read the prompt."""
        self.tokens += tokens
        self.prompt_tokens = max(self.prompt_tokens, prompt_tokens or 0)
        self.prompt_is_uncounted |= read_prompt and prompt_tokens is None


def _drew_nothing(error: BaseException) -> bool:
    """Return True if the server certainly drew nothing: it had no capacity, was not reached, or was never asked."""
    if isinstance(error, BackendUnreachable):
        return not error.was_sent
    return isinstance(error, (BackendOverloaded, CallerError))
