"""A gateway whose reward server is away: N is 1, and reports and metrics say so, until it is back."""

from __future__ import annotations

import asyncio

import pytest

from gateway.reward.availability import FAILURES_IN_A_ROW
from tests.serving import Serve
from tests.stubs.reward import RewardFault

N = 4


@pytest.mark.parametrize("fault", [RewardFault.STATUS, RewardFault.DISCONNECT, RewardFault.HANG])
async def test_n_falls_to_1_while_no_rewards_can_be_had_and_recovers_with_them(
    serve: Serve, fault: RewardFault
) -> None:
    served = await serve(policy={"n": N, "exploration": 0}, reward={"timeout_s": 0.5})
    well = {"ready": True, "detail": ""}
    assert well == (await served.http.get("/health/ready")).json()["parts"]["reward"]
    assert N == (await served.chat()).json()["best_of_n"]["scored"]
    served.rewards.knobs.fault, served.rewards.knobs.fault_probability = fault, 1.0
    races = [(await served.chat()).json()["best_of_n"] for _ in range(20)]
    assert sum(race["n"] for race in races) <= 20 + FAILURES_IN_A_ROW * (N - 1)
    assert (1, N, "single", "RewardUnavailable") == tuple(
        races[-1][name] for name in ("n", "n_asked", "selection", "scoring_error")
    )
    ready = await served.http.get("/health/ready")
    assert (200, "degraded") == (ready.status_code, ready.json()["status"])
    assert "gives no rewards" in ready.json()["parts"]["reward"]["detail"]
    async with asyncio.timeout(10):  # gauges are refreshed once a second
        while "ratchet_reward_available 0.0" not in (metrics := (await served.http.get("/metrics")).text):
            await asyncio.sleep(0.05)
    assert "ratchet_reward_servers_away 1.0" in metrics
    served.rewards.knobs.fault_probability = 0.0
    async with asyncio.timeout(20):
        while (await served.chat()).json()["best_of_n"]["scored"] != N:
            await asyncio.sleep(0.1)
    assert well == (await served.http.get("/health/ready")).json()["parts"]["reward"]
