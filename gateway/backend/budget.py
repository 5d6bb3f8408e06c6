"""A budget that bounds extra work to a share of the ordinary work, so that retries do not multiply an outage."""

from __future__ import annotations

import time
from collections.abc import Callable


class Budget:
    """A token bucket: each unit of ordinary work adds a fraction of a token, time adds a few, and extra work takes one.

    Source: Finagle's RetryBudget.

    Args:
        share: Extra work for each unit of ordinary work.
        floor_per_s: Extra work allowed each second without any ordinary work.
        burst: Most extra work at once; the bucket begins full.
        clock: A monotonic clock, in seconds.
    """

    def __init__(
        self, share: float, *, floor_per_s: float, burst: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._share = share
        self._floor_per_s = floor_per_s
        self._burst = burst
        self._clock = clock
        self._tokens = burst
        self._filled_at_s = clock()

    def deposit(self) -> None:
        """Count one unit of ordinary work."""
        self._tokens = min(self._burst, self._tokens + self._share)

    def withdraw(self) -> bool:
        """Take one unit of extra work; return False when the budget is used up."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._filled_at_s) * self._floor_per_s)
        self._filled_at_s = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
