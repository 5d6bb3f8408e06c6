"""Permits: a bounded number of candidates in flight, shared evenly, and a bounded fair queue of waiting requests.

TGI has no queue (over its limit it answers 429), so the gateway has one. Under load N falls before requests are
refused, and it falls for every race: each gets its even share of all permits (``water_level``) even while more are
free, because the races that run now are followed by others that want as many.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from gateway.best_of_n.fair_queue import FairQueue
from gateway.best_of_n.ledger import Ledger, Neighbours
from gateway.best_of_n.water_level import Demand, WholeShares, merged, water_level
from gateway.errors import Overloaded

_HOLD_WEIGHT = 0.1
_POLL_S = 0.005
_CAPACITY_S = 0.01
_ALONE = Neighbours()


@dataclass(slots=True, eq=False)
class _Waiter:
    want: int
    floor: int
    key: str | None
    granted: asyncio.Future[Grant]
    patient: bool = True
    patience: asyncio.TimerHandle | None = None
    """Runs from the moment when its floor is free and its even share is not."""


class Grant:
    """The permits of one race, given back by ``release``."""

    __slots__ = ("_permits", "count", "granted_at_s", "held", "want")

    def __init__(self, permits: Permits, want: int, count: int, granted_at_s: float) -> None:
        self._permits = permits
        self.want = want
        self.count = count
        self.held = count
        self.granted_at_s = granted_at_s

    def release(self, count: int = 1) -> None:
        """Give permits back and serve waiting requests."""
        self._permits._release(self, count)


class Permits:
    """Permits for candidates.

    Args:
        limit: Candidates that may be in flight at once.
        max_waiting: Requests that may wait. With one more, the newest request of the key with most is refused at once.
        queue_timeout_s: Longest wait, in seconds.
        capacity: Returns the candidates that the backend's servers take now from this worker.
        total_capacity: Returns the candidates that they take from all workers together.
        ledger: The permits that the other workers hold and want; None if there are no others.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        limit: int,
        *,
        max_waiting: int,
        queue_timeout_s: float,
        capacity: Callable[[], float] = lambda: math.inf,
        total_capacity: Callable[[], float] = lambda: math.inf,
        ledger: Ledger | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._limit = limit
        self._max_waiting = max_waiting
        self._queue_timeout_s = queue_timeout_s
        self._backend_capacity = capacity
        self._backend_total = total_capacity
        self.capacity = limit
        """Permits that may be given out now; refreshed from the backend once in ten milliseconds."""
        self._total_capacity = math.inf
        self._refreshed_at_s = -math.inf
        self._ledger = ledger
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self.in_flight = 0
        """Permits given out now."""
        self._queue: FairQueue[_Waiter] = FairQueue()
        self._waiting: Counter[int] = Counter()
        self._running: dict[int, float] = {}
        self._n_running = 0
        self._shares = WholeShares()
        self._recent = _RecentPeak(longest_s=queue_timeout_s)
        self._poll: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """Requests waiting for their first permit."""
        return len(self._queue)

    def demand(self) -> Demand:
        """Return the permits that the running and the waiting races of this worker want."""
        return merged(self._running, self._waiting)

    def try_acquire(self, count: int) -> Grant | None:
        """Take exactly ``count`` permits now, or none; never ahead of waiting requests."""
        self._refresh_capacity()
        neighbours = self._neighbours()
        if self._queue or neighbours.waiting or count > self._free(neighbours) or not self._take(count):
            return None
        return self._grant(count, count)

    async def acquire(self, want: int, *, floor: int = 1, key: str | None = None) -> Grant:
        """Take an even share of the permits, at most ``want`` and at least ``floor``; wait for it if necessary.

        A request that could have begun with ``floor`` for as long as a race takes accepts the permits that are free.

        Args:
            want: Permits that the race can use.
            floor: Permits without which the race is useless.
            key: The request's API key: keys take turns.

        Raises:
            Overloaded: The queue is full, or the wait took too long.
        """
        loop = asyncio.get_running_loop()
        waiter = _Waiter(want, min(floor, want, self._limit), key, loop.create_future())
        if not self._queue:
            self._waiting[want] += 1
            count = self._offer(waiter)
            self._forget_wait(want)
            if count:
                return self._grant(want, count)
        self._enqueue(waiter)
        try:
            async with asyncio.timeout(self._queue_timeout_s):
                return await waiter.granted
        except TimeoutError:
            self._give_up(waiter)
        except asyncio.CancelledError:
            self._give_up(waiter)
            raise
        finally:
            if waiter.patience is not None:
                waiter.patience.cancel()
        # Raised outside "except": otherwise timeout, task, error and traceback form a reference cycle.
        raise self._overloaded()

    def serve(self) -> None:
        """Give permits to waiting requests. Call this when the capacity has grown, and once in a while."""
        self._refreshed_at_s = -math.inf
        self._serve()

    def _serve(self) -> None:
        while (waiter := self._queue.head()) is not None:
            if waiter.granted.done():  # cancelled, and about to give up
                self._queue.pop(0)
                self._forget_wait(waiter.want)
                continue
            count = self._offer(waiter)
            if not count:
                break
            self._queue.pop(count)
            self._forget_wait(waiter.want)
            waiter.granted.set_result(self._grant(waiter.want, count))
        self._publish()

    def _offer(self, waiter: _Waiter) -> int:
        """Take the permits that this waiter gets now, and return their number; 0 while it has to wait."""
        self._refresh_capacity()
        neighbours = self._neighbours()
        free = self._free(neighbours)
        level, entitled = self._share(neighbours)
        if neighbours.waiting:
            part = min(entitled, self._total(neighbours) - neighbours.waiting)
            free = min(free, max(waiter.floor, int(part)) - self.in_flight)
        level = min(waiter.want, level)
        fair = max(waiter.floor, self._shares.least(level))
        needed = fair if waiter.patient else waiter.floor
        if free < needed and self.in_flight + neighbours.held > 0:
            if free >= waiter.floor and waiter.patience is None:
                patience_s = min(self._recent.hold_s or math.inf, self._queue_timeout_s / 2)
                waiter.patience = asyncio.get_running_loop().call_later(patience_s, self._lose_patience, waiter)
            return 0
        if level > fair and self._shares.one_more(level):
            fair += 1
        count = max(waiter.floor, min(fair, free))
        return count if self._take(count) else 0

    def _share(self, neighbours: Neighbours) -> tuple[float, float]:
        """Return the level over all races, and the permits that the races of this worker get at that level.

        The number of races is their recent peak, within the time that a race takes. Callers that send in step leave a
        moment in which few races run; without the peak, the first of the next wave would take all permits.
        """
        own = self.demand()
        demand = merged(own, neighbours.demand)
        races = sum(demand.values())
        scale = self._recent.peak(races, self._clock()) / races
        level = water_level(self._total(neighbours) / scale, demand)
        return level, scale * sum(number * min(want, level) for want, number in own.items())

    def _refresh_capacity(self) -> None:
        now_s = self._clock()
        if now_s - self._refreshed_at_s >= _CAPACITY_S:
            self._refreshed_at_s = now_s
            self.capacity = max(1, int(min(self._limit, self._backend_capacity())))
            self._total_capacity = self._backend_total()

    def _total(self, neighbours: Neighbours) -> float:
        return max(1.0, min(self.capacity + neighbours.capacity, self._total_capacity))

    def _free(self, neighbours: Neighbours) -> int:
        left = self._total(neighbours) - neighbours.held if self._ledger is not None else math.inf
        return int(min(self.capacity, left)) - self.in_flight

    def _take(self, count: int) -> bool:
        """Take permits; return False if another worker took them in the same instant."""
        self.in_flight += count
        if self._ledger is None:
            return True
        self._publish()  # before reading: of two workers that take the last permits, at least one sees the other
        neighbours = self._ledger.neighbours()
        if neighbours.held and self.in_flight + neighbours.held > self._total(neighbours):
            self.in_flight -= count
            self._publish()
            return False
        return True

    def _grant(self, want: int, count: int) -> Grant:
        self._n_running += 1
        self._running[want] = self._running.get(want, 0.0) + 1.0
        self._publish()
        return Grant(self, want, count, self._clock())

    def _neighbours(self) -> Neighbours:
        return _ALONE if self._ledger is None else self._ledger.neighbours()

    def _publish(self) -> None:
        """Publish this worker's numbers. While requests wait, poll: other workers do not announce that they release."""
        if self._ledger is None:
            return
        demand, head = self.demand(), self._queue.head()
        self._ledger.write(
            capacity=self.capacity,
            held=self.in_flight,
            waiting=0 if head is None else head.floor,
            races=sum(demand.values()),
            wanted=sum(want * number for want, number in demand.items()),
        )
        if self._queue and self._poll is None:
            self._poll = asyncio.get_running_loop().call_later(_POLL_S, self._look_again)

    def _look_again(self) -> None:
        self._poll = None
        self._serve()

    def _release(self, grant: Grant, count: int) -> None:
        if not count:
            return
        now_s = self._clock()
        if grant.held == grant.count:  # the race counts less from here on
            self._recent.peak(sum(merged(self.demand(), self._neighbours().demand).values()), now_s)
        self.in_flight -= count
        grant.held -= count
        self._running[grant.want] -= count / grant.count
        if not grant.held:
            self._n_running -= 1
            self._recent.held(now_s - grant.granted_at_s)
            if not self._n_running:
                self._running.clear()  # removes the rest that rounding has left
        if self._queue or self._ledger is not None:
            self._serve()

    def _enqueue(self, waiter: _Waiter) -> None:
        """Add a waiter to the queue. If it is full, the newest waiter of the key with most waiters is refused.

        Raises:
            Overloaded: No key has more waiters than this one's would have.
        """
        if len(self._queue) >= self._max_waiting:
            newest = self._queue.newest_of_longest()
            if newest is None or self._queue.waiting(newest.key) <= self._queue.waiting(waiter.key) + 1:
                raise self._overloaded()
            self._drop(newest)
            if not newest.granted.done():
                newest.granted.set_exception(self._overloaded())
        self._queue.push(waiter)
        self._waiting[waiter.want] += 1
        self._publish()

    def _drop(self, waiter: _Waiter) -> bool:
        dropped = self._queue.remove(waiter)
        if dropped:
            self._forget_wait(waiter.want)
        return dropped

    def _forget_wait(self, want: int) -> None:
        self._waiting[want] -= 1
        if not self._waiting[want]:
            del self._waiting[want]

    def _lose_patience(self, waiter: _Waiter) -> None:
        waiter.patient = False
        self._serve()

    def _give_up(self, waiter: _Waiter) -> None:
        """Remove a waiter. One that was granted in the instant when it gave up returns its permits."""
        if self._drop(waiter):
            self._serve()  # it may have been the head of the queue and blocked smaller requests
        elif waiter.granted.done() and not waiter.granted.cancelled() and not waiter.granted.exception():
            grant = waiter.granted.result()
            grant.release(grant.held)

    def _overloaded(self) -> Overloaded:
        return Overloaded(
            "the gateway has no capacity left for this request; try again shortly",
            retry_after_s=max(1.0, self._queue_timeout_s),
        )


class _RecentPeak:
    """The recent peak of the number of races; it decays within the time that a race takes.

    Args:
        longest_s: Upper limit of the time that a race is counted to hold permits, in seconds: a hung server is no
            measure of a race.
    """

    def __init__(self, *, longest_s: float) -> None:
        self.hold_s = 0.0
        """The time that a race holds permits, a moving average."""
        self._longest_s = longest_s
        self._peak = 0.0
        self._at_s = 0.0

    def held(self, seconds: float) -> None:
        """Learn from a race that has given back its last permit."""
        seconds = min(seconds, self._longest_s)
        self.hold_s += _HOLD_WEIGHT * (seconds - self.hold_s) if self.hold_s else seconds

    def peak(self, races: float, now_s: float) -> float:
        """Return the number of races now, or what is left of an earlier peak."""
        decay = math.exp((self._at_s - now_s) / self.hold_s) if self.hold_s > 0 else 0.0
        self._peak = max(races, races + (self._peak - races) * decay)
        self._at_s = now_s
        return self._peak
