"""Races over fakes, and a clock that a test advances."""

import asyncio
from collections.abc import Sequence
from typing import Any

from gateway.best_of_n.permits import Permits
from gateway.best_of_n.race import BestOfN
from gateway.settings import RaceSettings
from gateway.types import Arm, Message, Outcome, Plan, Prompt, Sampling, Score
from tests.gateway.best_of_n.fakes import FakeBackend, FakeScorer

PROMPT = Prompt([{"role": "user", "content": "hello"}], Sampling())


def plan(
    n: int,
    *,
    n_returned: int = 1,
    exploration: bool = False,
    ordinary: int | None = None,
    score_single: bool = False,
) -> Plan:
    return Plan(
        n_asked=n,
        n_ordinary=ordinary or n,
        seed=7,
        arm=Arm("stable", None, n),
        policy_version=0,
        exploration=exploration,
        n_returned=n_returned,
        score_single=score_single,
    )


def length(text: str) -> float:
    return float(len(text))


class Track:
    """A race over fakes."""

    def __init__(
        self,
        backend: FakeBackend,
        scorer: FakeScorer | None = None,
        *,
        limit: int = 16,
        max_waiting: int = 0,
        deadline_s: float = 5.0,
        quorum: float = 1.0,
        quorum_after_s: float = 0.02,
        reward_timeout_s: float = 5.0,
    ) -> None:
        self.backend = backend
        self.scorer = scorer or FakeScorer(length)
        self.permits = Permits(limit, max_waiting=max_waiting, queue_timeout_s=0.05)
        settings = RaceSettings(deadline_s=deadline_s, quorum=quorum, quorum_after_s=quorum_after_s)
        self.race = BestOfN(self.scorer, self.permits, settings, reward_timeout_s=reward_timeout_s)

    async def run(self, n: int, **options: Any) -> Outcome:
        try:
            async with self.race.entered(plan(n, **options)) as entry:
                return await self.race.run(entry, PROMPT, self.backend)
        finally:
            await asyncio.sleep(0)  # the last task gives its permit back in a callback
            assert self.permits.in_flight == 0


class Clock:
    """A clock that a test advances."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    async def after(self, seconds: float, event: asyncio.Event) -> None:
        """Advance, set the event, and let all tasks that wait for it run."""
        self.now += seconds
        event.set()
        await settled()


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


class SlowScorer(FakeScorer):
    """Gives rewards once ``may_answer`` is set."""

    def __init__(self) -> None:
        super().__init__(length)
        self.may_answer = asyncio.Event()

    async def score(self, messages: Sequence[Message], answer: str) -> Score:
        await self.may_answer.wait()
        return await super().score(messages, answer)
