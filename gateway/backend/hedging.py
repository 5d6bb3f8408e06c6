"""Hedged calls: when a call is overdue a second one starts elsewhere, and the first of them to finish wins.

Source: Dean and Barroso, The Tail at Scale, 2013. The first call runs in the caller's own task, so that a call that is
not overdue costs one timer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from gateway.errors import GatewayError

T = TypeVar("T")
Call = Coroutine[Any, Any, T]

_LOOK_AGAIN_S = 1.0  # what is usual may have been learned since

_losers: set[asyncio.Task[Any]] = set()  # cancelled calls that still close their connections


async def hedged(
    first: Call[T],
    second: Callable[[], Call[T] | None],
    overdue_s: Callable[[], float],
    discard: Callable[[T], object] = lambda result: None,
) -> T:
    """Await ``first``; once it is overdue let ``second()`` compete with it, and cancel the loser.

    Args:
        first: The call.
        second: Makes the other call; None where there is to be none now. It is asked again a second later.
        overdue_s: After how many seconds the first call is overdue; asked again while it runs.
        discard: Takes a result that came too late.

    Raises:
        GatewayError: The first call's, where the second did not succeed either.
    """
    hedge = _Hedge(second, overdue_s)
    try:
        return await first
    except asyncio.CancelledError:
        if hedge.overtook():
            return hedge.take()
        raise
    except GatewayError:
        if hedge.other is None:
            raise
        await hedge.wait()
        if hedge.succeeded:
            return hedge.take()
        raise
    finally:
        hedge.close(discard)


class _Hedge(Generic[T]):
    """The timer and the second call of one hedged call."""

    def __init__(self, second: Callable[[], Call[T] | None], overdue_s: Callable[[], float]) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task: asyncio.Task[Any] | None = task
        self._second = second
        self._overdue_s = overdue_s
        self._loop = asyncio.get_running_loop()
        self._started_s = self._loop.time()
        self._first_runs = True
        self._overtook = self._taken = False
        self.other: asyncio.Task[T] | None = None
        self._timer = self._loop.call_later(min(overdue_s(), _LOOK_AGAIN_S), self._look)

    @property
    def succeeded(self) -> bool:
        """Return whether the second call has a result."""
        other = self.other
        return other is not None and other.done() and not other.cancelled() and other.exception() is None

    def overtook(self) -> bool:
        """Return whether the cancellation just caught is this hedge's own, and nobody else's beside it."""
        return self._overtook and self._task is not None and self._task.uncancel() == 0

    async def wait(self) -> None:
        """Wait for the second call, now that the first has failed."""
        assert self.other is not None
        self._first_runs = False
        await asyncio.wait([self.other])

    def take(self) -> T:
        """Return the second call's result."""
        assert self.other is not None
        self._taken = True
        return self.other.result()

    def close(self, discard: Callable[[T], object]) -> None:
        """Stop the timer, and the second call where it lost."""
        self._first_runs = False
        self._task = None  # a cancelled task knows this frame: together they would wait for the garbage collector
        self._timer.cancel()
        if self.other is None or self._taken:
            return
        if self.succeeded:
            discard(self.other.result())
        elif not self.other.done():
            _losers.add(self.other)
            self.other.add_done_callback(_losers.discard)
            self.other.cancel()

    def _look(self) -> None:
        left_s = self._started_s + self._overdue_s() - self._loop.time()
        call = self._second() if left_s <= 0 else None
        if call is None:
            self._timer = self._loop.call_later(min(left_s, _LOOK_AGAIN_S) if left_s > 0 else _LOOK_AGAIN_S, self._look)
            return
        self.other = self._loop.create_task(call)
        self.other.add_done_callback(self._other_done)

    def _other_done(self, _: asyncio.Task[T]) -> None:
        if self.succeeded and self._first_runs and self._task is not None:
            self._overtook = True
            self._task.cancel()
