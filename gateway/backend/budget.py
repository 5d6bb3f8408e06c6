"""A budget that bounds extra work to a share of the ordinary work, so that an outage is not multiplied by retries."""

from __future__ import annotations

import time
from collections.abc import Callable


class Budget:
    """A token bucket that every ordinary unit of work fills by a fraction, and time by a small floor.

    Source: Finagle's RetryBudget.

    Args:
        share: Extra work for each unit of ordinary work.
        floor_per_s: Extra work allowed each second, however little ordinary work there is.
        burst: Most extra work at once; the bucket begins full.
        clock: Seconds that only move forward.
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
        """Take one unit of extra work; False when the budget is used up."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._filled_at_s) * self._floor_per_s)
        self._filled_at_s = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
