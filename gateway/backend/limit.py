"""An adaptive limit on the draws in flight at one server, learnt from its refusals.

Additive increase, multiplicative decrease (AIMD), as in TCP's congestion control and Netflix's concurrency-limits: a
refused draw halves the limit, one limit's worth of successful draws raises it by one. text-generation-inference says at
``/info`` how many draws it takes at once; the limit starts there. vLLM and llama.cpp queue draws themselves and do not
refuse, so their limit stays at the ceiling.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from gateway.backend.discovery import host_of
from gateway.errors import BackendOverloaded, BackendUnreachable
from gateway.single_flight import SingleFlight

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 0.4


@dataclass(eq=False)
class ServerLimit:
    """Places for draws at one server, first come, first served.

    Draws beyond the limit wait. A refused draw leaves its place, waits for another one ahead of those that were not
    sent yet, and is sent again.

    Attributes:
        name: The server's host and port, for metrics.
        ceiling: The limit never rises above this.
        queue_timeout_s: Longest time one draw may spend waiting and being refused.
        sharers: Gateway processes that divide the server's capacity among them.
        on_refusal: Called with the server's name whenever it refused a draw.
        capacity: Draws that the server says it takes at once, from all its clients; None if it does not say.
    """

    name: str
    ceiling: int = 1024
    queue_timeout_s: float = 5.0
    sharers: int = 1
    on_refusal: Callable[[str], None] = lambda _: None
    in_flight: int = field(default=0, init=False)
    capacity: int | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._learnt = self._share = self.ceiling
        self._successes = self._halvings = 0
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._asking: SingleFlight[int | None] = SingleFlight(self._capacity_answered)
        self._capacity_asked = False

    @property
    def limit(self) -> int:
        """The number of draws that may be in flight now."""
        return max(1, min(self._learnt, self._share))

    @property
    def has_room(self) -> bool:
        return self.in_flight < self.limit

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    def share(self, draws: int) -> None:
        """Bound the limit by this process's part of the server's capacity."""
        self._share = min(draws, self.ceiling)
        self._wake()

    def turn(self) -> Turn:
        return Turn(self, self.queue_timeout_s)

    async def acquire(self, until_s: float, *, ahead: bool = False) -> int:
        """Take a place, waiting for it until ``until_s`` on the event loop's clock.

        Args:
            until_s: When to give up.
            ahead: Wait ahead of all others: for a draw that had a place and was refused.

        Returns:
            How often the limit had been halved when the place was given; ``refused`` needs it.

        Raises:
            BackendOverloaded: No place became free in time.
        """
        if not self._waiters and self.has_room:
            self.in_flight += 1
            return self._halvings
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if ahead:
            self._waiters.appendleft(place)
        else:
            self._waiters.append(place)
        try:
            async with asyncio.timeout_at(until_s):
                await place
            return self._halvings
        except TimeoutError:
            self._give_up(place)
        except asyncio.CancelledError:
            self._give_up(place)
            raise
        # Raised outside "except": otherwise timeout, task, error and traceback form a reference cycle.
        raise BackendOverloaded("the backend is overloaded")

    def release(self) -> None:
        self.in_flight -= 1
        self._wake()

    def refused(self, halvings: int) -> None:
        """Halve the limit, unless it was halved after the refused draw was sent.

        All draws of one burst are refused for the same reason, so only the first refusal counts.

        Args:
            halvings: The result of ``acquire`` for this draw.
        """
        self.on_refusal(self.name)
        if halvings == self._halvings:
            self._learnt = max(1, self.limit // 2)
            self._halvings += 1
            self._successes = 0

    def succeeded(self) -> None:
        """Count a successful draw, before its place is released.

        Draws at a server that is less than half used do not show that it would take more.
        """
        if self._learnt < self.ceiling and 2 * self.in_flight >= self.limit:
            self._successes += 1
            if self._successes >= self.limit:
                self._successes = 0
                self._learnt += 1

    async def learn_capacity(self, ask: Callable[[], Coroutine[Any, Any, int | None]]) -> None:
        """Ask the server how many draws it takes at once, unless it has answered; concurrent callers share one call.

        Args:
            ask: Asks the server; None if it does not say.

        Raises:
            GatewayError: The server could not be asked; the next caller asks again.
        """
        if self._capacity_asked:
            return
        await self._asking.result(ask)

    def forget_capacity(self) -> None:
        """Let the next ``learn_capacity`` ask again: a restart may have changed the capacity."""
        self._capacity_asked = False

    def _capacity_answered(self, asking: asyncio.Task[int | None]) -> None:
        if asking.cancelled() or asking.exception() is not None:
            return
        self._capacity_asked = True
        capacity = asking.result()
        if capacity != self.capacity:
            self.capacity = capacity
            self.share(self.ceiling if capacity is None else max(1, capacity // self.sharers))

    def _wake(self) -> None:
        while self._waiters and self.has_room:
            place = self._waiters.popleft()
            if not place.done():
                self.in_flight += 1
                place.set_result(None)

    def _give_up(self, place: asyncio.Future[None]) -> None:
        """Remove a waiter; one that got its place at the same moment releases it."""
        if place in self._waiters:
            self._waiters.remove(place)
        elif place.done() and not place.cancelled():
            self.release()


class Turn:
    """One draw's attempts at one server: ``async with`` holds a place, ``again`` says whether to try once more."""

    __slots__ = ("_halvings", "_limit", "_pause_s", "_refused", "_until_s")

    def __init__(self, limit: ServerLimit, timeout_s: float) -> None:
        self._limit = limit
        self._until_s = asyncio.get_running_loop().time() + timeout_s
        self._pause_s = _FIRST_PAUSE_S
        self._halvings = 0
        self._refused = False

    async def __aenter__(self) -> None:
        self._halvings = await self._limit.acquire(self._until_s, ahead=self._refused)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if kind is None:
            self._limit.succeeded()
        elif isinstance(error, BackendOverloaded):
            self._refused = True
            self._limit.refused(self._halvings)
        elif isinstance(error, BackendUnreachable):
            self._limit.forget_capacity()
        self._limit.release()

    async def again(self) -> bool:
        """Pause after a refusal, longer each time; return False when the time is over and the refusal is final."""
        left_s = self._until_s - asyncio.get_running_loop().time()
        if left_s <= 0:
            return False
        await asyncio.sleep(min(self._pause_s * random.uniform(0.5, 1.5), left_s))
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        return True


class ServerLimits:
    """The limits of all servers, by URL: pools that share a server share its limit.

    Args:
        make: Makes a server's limit by its name.
    """

    def __init__(self, make: Callable[[str], ServerLimit] = ServerLimit) -> None:
        self._make = make
        self._by_url: dict[str, ServerLimit] = {}

    @property
    def all(self) -> Sequence[ServerLimit]:
        return tuple(self._by_url.values())

    def of(self, url: str) -> ServerLimit:
        limit = self._by_url.get(url)
        if limit is None:
            limit = self._by_url[url] = self._make(host_of(url))
        return limit
