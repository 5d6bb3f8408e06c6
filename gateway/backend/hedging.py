"""Hedged draws: once a draw is overdue a second one starts at another replica, and the first of them to finish wins.

Source: Dean and Barroso, The Tail at Scale, 2013. The first draw runs in the caller's own task, so that a draw that is
not overdue costs one timer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import structlog

from gateway.backend.budget import Budget
from gateway.backend.containment import Containment
from gateway.backend.draws import Draws, Opened
from gateway.backend.health import Fault
from gateway.backend.prober import Prober
from gateway.backend.replicas import Replica, Replicas
from gateway.backend.route import Draw
from gateway.errors import GatewayError
from gateway.types import Answer

T = TypeVar("T")
Call = Coroutine[Any, Any, T]

_LOOK_AGAIN_S = 1.0  # the usual time may have been learned since

_losers: set[asyncio.Task[Any]] = set()  # cancelled calls that still close their connections

log = structlog.get_logger()


@dataclass(eq=False)
class Hedging:
    """Makes draws, each with a competitor once it is overdue.

    A budget bounds hedged races to a twentieth of the races. A hedge goes to a less loaded replica only: in a fleet
    that is slow because all of it is busy, a second draw would only lengthen the queue. With one replica there is none.
    """

    draws: Draws
    replicas: Replicas
    containment: Containment
    prober: Prober
    on_move: Callable[[str], None]
    _budget: Budget = field(default_factory=lambda: Budget(0.05, floor_per_s=0.1, burst=20.0))
    _hedged_races: int = 0

    async def complete(self, draw: Draw, replica: Replica) -> Answer:
        max_tokens = draw.prompt.sampling.max_tokens
        return await self._hedged(
            draw, replica, self.draws.complete, lambda: self.draws.usual.overdue_s(max_tokens), lambda answer: None
        )

    async def first(self, draw: Draw, replica: Replica) -> Opened:
        """Return a stream's first piece and the rest of it."""
        return await self._hedged(
            draw,
            replica,
            self.draws.first,
            lambda: self.draws.usual_first.overdue_s(None),
            lambda opened: asyncio.ensure_future(opened[1].aclose()),
        )

    async def _hedged(
        self,
        draw: Draw,
        replica: Replica,
        make: Callable[[Draw, Replica], Call[T]],
        overdue_s: Callable[[], float],
        discard: Callable[[T], object],
    ) -> T:
        def second() -> Call[T] | None:
            other = self._competitor(draw, replica, overdue_s())
            return None if other is None else self._compete(make, draw, replica, other)

        if not draw.route.begun:
            draw.route.begun = True
            self._budget.deposit()
        return await hedged(make(draw, replica), second, overdue_s, discard)

    def _competitor(self, draw: Draw, slow: Replica, limit_s: float) -> Replica | None:
        """Return the replica that competes with an overdue draw; None where there is to be no hedge now."""
        route, health = draw.route, slow.health
        if health.answered_at_s is None or self.replicas.clock() - health.answered_at_s > limit_s:
            self.prober.suspect(slow, draw.fingerprint(self.containment))
        elif route.answered:
            return None  # the replica answers: this answer is only longer than the race's others
        if not self.containment.idle and self.containment.suspects(draw.fingerprint(self.containment)):
            return None  # it broke one server and may have hung this one: it must not reach a third
        if route.hedge is None:
            other = self.replicas.choose(adapter=draw.prompt.adapter, without=[slow, *draw.tried], panic=False)
            if other is None or not (self._hangs(slow) or (self._less_loaded(other, slow) and self._budget.withdraw())):
                return None
            route.hedge = other
            self._hedged_races += 1
            self.on_move("hedge")
            log.info(
                "backend_draw_hedged",
                slow=slow.name,
                by=other.name,
                after_s=round(limit_s, 2),
                hedged_races=self._hedged_races,
            )
        return None if route.hedge is slow or route.hedge in draw.tried else route.hedge

    def _hangs(self, replica: Replica) -> bool:
        return replica.health.ejection is not None and replica.health.ejection.fault is Fault.HUNG

    def _less_loaded(self, other: Replica, slow: Replica) -> bool:
        return self.replicas.relative_load(other) < self.replicas.relative_load(slow)

    async def _compete(self, make: Callable[[Draw, Replica], Call[T]], draw: Draw, slow: Replica, other: Replica) -> T:
        """Make the second draw. Its success is a failure of the slow replica; its silence is probed as well."""
        request = draw.fingerprint(self.containment)
        limit_s = self.draws.usual.overdue_s(draw.prompt.sampling.max_tokens)
        timer = asyncio.get_running_loop().call_later(limit_s, self.prober.suspect, other, request)
        try:
            result = await make(draw, other)
        finally:
            timer.cancel()
        self.replicas.failed(slow, Fault.TIMEOUT, "its draws take far longer than usual", draw.route)
        return result


async def hedged(
    first: Call[T],
    second: Callable[[], Call[T] | None],
    overdue_s: Callable[[], float],
    discard: Callable[[T], object] = lambda result: None,
) -> T:
    """Await ``first``; once it is overdue let ``second()`` compete with it, and cancel the loser.

    Args:
        first: The call.
        second: Makes the other call; None makes none now, and it is called again a second later.
        overdue_s: Returns after how many seconds the first call is overdue; called again while it runs.
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
        other = self.other
        return other is not None and other.done() and not other.cancelled() and other.exception() is None

    def overtook(self) -> bool:
        """Return whether only this hedge, and nobody else, has cancelled the first call."""
        return self._overtook and self._task is not None and self._task.uncancel() == 0

    async def wait(self) -> None:
        assert self.other is not None
        self._first_runs = False
        await asyncio.wait([self.other])

    def take(self) -> T:
        assert self.other is not None
        self._taken = True
        return self.other.result()

    def close(self, discard: Callable[[T], object]) -> None:
        """Stop the timer, and the second call if it lost."""
        self._first_runs = False
        self._task = None  # otherwise task -> frame -> this hedge -> task is a reference cycle
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
