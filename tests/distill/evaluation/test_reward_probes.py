"""Two lists of the probes' rewards: one model within the tolerance, two models beyond it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from distill.evaluation import reward_probes
from distill.evaluation.reward_probes import PROBES, rewards_of_probes, same_rewards, tolerance, wait_until_ready
from gateway.errors import RewardError
from gateway.types import Readiness
from tests.gateway.best_of_n.fakes import FakeScorer

REWARDS = [-1.0, 1.0]


@pytest.mark.parametrize(
    ("rewards", "within"),
    [
        ([-1.0, 1.0], 0.02),  # a fiftieth of their standard deviation
        ([-1.0, 1.0, None], 0.02),
        ([3.0, 7.0], 0.04),
        ([5e6, 5e6], 5.0),  # all alike: a millionth of the largest
        ([-5e6, -5e6], 5.0),
        ([0.0, 0.0], 1e-6),
        ([None, None], 1e-6),
        ([], 1e-6),
    ],
)
def test_the_tolerance_is_a_fiftieth_of_the_probes_spread(rewards: list[float | None], within: float) -> None:
    assert pytest.approx(within) == tolerance(rewards)


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ([-1.0, 1.0], True),
        ([-1.019, 1.019], True),
        ([-1.0, 1.021], False),
        ([-0.979, 1.0], False),
        ([-1.0, None], False),
        ([-1.0], False),
        ([-1.0, 1.0, 1.0], False),
        ([None, 1.0], False),
    ],
)
def test_rewards_within_the_tolerance_are_of_one_model(other: list[float | None], same: bool) -> None:
    assert same == same_rewards(REWARDS, other)


def test_a_refused_probe_equals_only_a_refused_probe() -> None:
    assert same_rewards([None, *REWARDS], [None, *REWARDS])
    assert not same_rewards([None, *REWARDS], [0.0, *REWARDS])


async def test_each_probe_has_its_reward_and_a_refused_one_has_none() -> None:
    longest = max(len(answer) for _, answer in PROBES)
    scorer = FakeScorer(lambda text: RewardError("too long") if len(text) == longest else float(len(text)))
    expected = [None if len(answer) == longest else float(len(answer)) for _, answer in PROBES]
    assert expected == await rewards_of_probes(scorer)
    assert [messages for messages, _ in PROBES] == scorer.conversations


async def test_a_model_that_gives_no_reward_at_all_is_an_error() -> None:
    with pytest.raises(RewardError, match="down"):
        await rewards_of_probes(FakeScorer(lambda _: RewardError("down")))


def test_the_probes_roles_take_turns_and_the_caller_speaks_last() -> None:
    for messages, _ in PROBES:
        assert ["user", "assistant"] * (len(messages) // 2) + ["user"] == [message["role"] for message in messages]


@pytest.mark.parametrize(("other", "same"), [(51.0, True), (51.01, False), (49.0, True), (48.99, False)])
def test_rewards_exactly_at_the_tolerance_are_the_same(other: float, same: bool) -> None:
    """A standard deviation of 50 allows a difference of 1."""
    assert same == same_rewards([-50.0, 50.0], [-50.0, other])


def test_the_first_lists_spread_is_the_measure() -> None:
    assert same_rewards([-50.0, 50.0], [-50.0, 51.0])
    assert not same_rewards([0.0, 0.0], [0.0, 0.5])


@dataclass
class Loading(FakeScorer):
    """A reward model that is ready at the given look."""

    ready_at: int = 1
    looks: int = 0

    async def readiness(self) -> Readiness:
        self.looks += 1
        return Readiness(self.looks >= self.ready_at, "still loading")


@pytest.mark.parametrize(("timeout_s", "ready_at"), [(60.0, 3), (60.0, 1), (-1.0, 1)])
async def test_a_model_is_awaited_until_it_is_ready(
    monkeypatch: pytest.MonkeyPatch, timeout_s: float, ready_at: int
) -> None:
    monkeypatch.setattr(reward_probes, "_POLL_S", 0.0)
    scorer = Loading(lambda _: 0.0, ready_at=ready_at)
    await wait_until_ready(scorer, timeout_s)
    assert ready_at == scorer.looks


async def test_a_model_that_is_not_ready_in_time_is_an_error_with_its_reason() -> None:
    scorer = Loading(lambda _: 0.0, ready_at=2)
    with pytest.raises(RewardError, match=r"^the reward model is not ready: still loading$"):
        await wait_until_ready(scorer, -1.0)
    assert 1 == scorer.looks
