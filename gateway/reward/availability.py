"""Circuit breaker: a source of rewards that fails repeatedly is not asked until a probe succeeds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from gateway.errors import RewardError

FAILURES_IN_A_ROW = 3  # after these a source is away
FIRST_PAUSE_S = 1.0  # from then until the first probe; doubles each time that it is away again soon …
LONGEST_PAUSE_S = 30.0  # … up to this
PROBE_PAUSE_S = 5.0  # between the probes after the first one
SOON_S = 60.0  # a source that worked for this long begins with the first pause again

_log = structlog.get_logger()


class Availability:
    """Counts a source's failures in a row. After three it is away until a probe succeeds.

    Args:
        probe: Scores something; raises RewardError if that fails.
        name: Name of the source in log lines.
        clock: Monotonic seconds.
    """

    def __init__(
        self, probe: Callable[[], Awaitable[object]], *, name: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.reason = ""
        self._probe = probe
        self._name = name
        self._clock = clock
        self._failures = 0
        self._pause_s = FIRST_PAUSE_S
        self._back_at_s: float | None = None
        self._probing: asyncio.Task[None] | None = None

    @property
    def away(self) -> bool:
        return self._probing is not None

    def succeeded(self) -> None:
        self._failures = 0

    def failed(self, error: RewardError) -> None:
        self._failures += 1
        if self._failures < FAILURES_IN_A_ROW or self._probing is not None:
            return
        soon = self._back_at_s is not None and self._clock() - self._back_at_s < SOON_S
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S) if soon else FIRST_PAUSE_S
        self.reason = error.message
        _log.warning("rewards_away", source=self._name, error=error.message, probe_in_s=self._pause_s)
        self._probing = asyncio.create_task(self._probe_until_it_answers(), name="reward-probe")

    async def aclose(self) -> None:
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.wait([self._probing])

    async def _probe_until_it_answers(self) -> None:
        pause_s = self._pause_s
        while True:
            await asyncio.sleep(pause_s)
            pause_s = PROBE_PAUSE_S
            try:
                await self._probe()
            except RewardError as error:
                self.reason = error.message
            else:
                break
        self._failures, self._back_at_s, self._probing = 0, self._clock(), None
        _log.info("rewards_back", source=self._name)
