"""A bounded number of candidates in flight, and a bounded queue before it.

TGI has no queue to wait in (over its limit it answers 429), so the gateway holds the queue. Under load N falls
before requests do: a grant may be smaller than what was wanted, down to its floor.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from gateway.errors import Overloaded


@dataclass(slots=True)
class _Waiter:
    want: int
    floor: int
    granted: asyncio.Future[int]


class Permits:
    """Permits for candidates, granted first come, first served.

    Args:
        limit: Candidates that may be in flight at once.
        max_waiting: Requests that may wait; one more is refused at once.
        queue_timeout_s: Longest wait, in seconds.
    """

    def __init__(self, limit: int, *, max_waiting: int, queue_timeout_s: float) -> None:
        self._limit = limit
        self._free = limit
        self._max_waiting = max_waiting
        self._queue_timeout_s = queue_timeout_s
        self._waiters: deque[_Waiter] = deque()

    @property
    def in_flight(self) -> int:
        """Permits given out now."""
        return self._limit - self._free

    @property
    def waiting(self) -> int:
        """Requests waiting for their first permit."""
        return len(self._waiters)

    def try_acquire(self, count: int) -> bool:
        """Take exactly ``count`` permits now, or none; never ahead of those who wait."""
        if self._waiters or count > self._free:
            return False
        self._free -= count
        return True

    async def acquire(self, want: int, *, floor: int = 1) -> int:
        """Take up to ``want`` permits, at least ``floor``, waiting for the floor if need be.

        Returns:
            How many were granted; each is given back by ``release``.

        Raises:
            Overloaded: The queue is full, or its time ran out.
        """
        floor = min(floor, self._limit)
        if not self._waiters and self._free >= floor:
            return self._take(want)
        if len(self._waiters) >= self._max_waiting:
            raise self._overloaded()
        waiter = _Waiter(want, floor, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(self._queue_timeout_s):
                return await waiter.granted
        except TimeoutError:
            self._give_up(waiter)
        except asyncio.CancelledError:
            self._give_up(waiter)
            raise
        # Not raised out of the handler: a timeout knows its task, which would have the error, which would have it.
        raise self._overloaded()

    def release(self, count: int = 1) -> None:
        """Give permits back and serve who waits."""
        self._free += count
        while self._waiters and self._free >= self._waiters[0].floor:
            waiter = self._waiters.popleft()
            if not waiter.granted.done():
                waiter.granted.set_result(self._take(waiter.want))

    def _take(self, want: int) -> int:
        granted = min(want, self._free)
        self._free -= granted
        return granted

    def _give_up(self, waiter: _Waiter) -> None:
        """Forget a waiter; one that was granted in the instant it gave up must not keep its permits."""
        if waiter in self._waiters:
            self._waiters.remove(waiter)
            self.release(0)  # it may have stood at the head of the queue where others would have fitted
        elif waiter.granted.done() and not waiter.granted.cancelled():
            self.release(waiter.granted.result())

    def _overloaded(self) -> Overloaded:
        return Overloaded(
            "the gateway has no capacity left for this request; try again shortly",
            retry_after_s=max(1.0, self._queue_timeout_s),
        )
