"""Sources of rewards that fail repeatedly: they are away until a probe succeeds."""

from __future__ import annotations

import asyncio

import pytest

from gateway.errors import RewardError
from gateway.reward.availability import FAILURES_IN_A_ROW, FIRST_PAUSE_S, LONGEST_PAUSE_S, SOON_S, Availability


class Source:
    """A source with a clock of its own: the probes' pauses are recorded and take no time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        self.pauses_s: list[float] = []
        self.answers = False
        self.probed = asyncio.Event()
        self._sleep = asyncio.sleep
        monkeypatch.setattr(asyncio, "sleep", self._pause)
        self.availability = Availability(self._probe, name="source", clock=lambda: self.now_s)

    async def _pause(self, pause_s: float) -> None:
        self.pauses_s.append(pause_s)
        await self._sleep(0)

    async def _probe(self) -> None:
        self.probed.set()
        if not self.answers:
            raise RewardError("still away")

    def fail(self, times: int) -> None:
        for _ in range(times):
            self.availability.failed(RewardError("status 500"))

    async def come_back(self) -> None:
        self.answers = True
        while self.availability.away:
            await self._sleep(0)
        self.answers = False


async def test_a_source_is_away_after_the_third_failure_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source(monkeypatch)
    source.fail(FAILURES_IN_A_ROW - 1)
    assert not source.availability.away
    source.availability.succeeded()
    source.fail(FAILURES_IN_A_ROW - 1)
    assert not source.availability.away
    source.fail(1)
    assert (True, "status 500") == (source.availability.away, source.availability.reason)
    await source.come_back()


async def test_only_a_successful_probe_brings_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source(monkeypatch)
    source.fail(FAILURES_IN_A_ROW)
    await source.probed.wait()
    source.availability.succeeded()  # a call that was under way as it failed
    assert (True, "still away") == (source.availability.away, source.availability.reason)
    await source.come_back()
    source.fail(FAILURES_IN_A_ROW - 1)
    assert not source.availability.away, "failures from before the return count no more"


async def test_pauses_grow_each_time_it_is_away_again_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = Source(monkeypatch)
    for _ in range(7):
        source.fail(FAILURES_IN_A_ROW)
        await source.come_back()
        source.now_s += SOON_S - 1
    assert [1, 2, 4, 8, 16, LONGEST_PAUSE_S, LONGEST_PAUSE_S] == source.pauses_s
    source.now_s += 1
    source.fail(FAILURES_IN_A_ROW)
    await source.come_back()
    assert FIRST_PAUSE_S == source.pauses_s[-1]


async def test_closing_ends_the_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source(monkeypatch)
    source.fail(FAILURES_IN_A_ROW)
    await source.availability.aclose()
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "reward-probe"]
