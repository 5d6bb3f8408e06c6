"""Whom the winner is set against, and what earlier nights add."""

from __future__ import annotations

from dataclasses import replace
from math import isclose

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.dataset.example import ScoredAnswer
from distill.errors import TrainingError
from distill.training.objectives import ipo_beta, rejected, with_replay
from tests.distill.training.tiny import tiny_examples


def test_of_few_draws_the_worst_is_rejected() -> None:
    """The fair loser at small N is the minimum."""
    (example,) = tiny_examples(1, losers=7)
    assert example.losers[0] == rejected(example)


def test_of_many_draws_the_one_two_deviations_below_the_mean_is_rejected() -> None:
    """An outlier far below is skipped."""
    (example,) = tiny_examples(1, losers=15)
    rewards = [-50.0, -20.0, *[2.0] * 13]
    losers = tuple(ScoredAnswer(str(place), reward, 5) for place, reward in enumerate(rewards))
    mean = sum([*rewards, 2.0]) / 16
    deviation = (sum((reward - mean) ** 2 for reward in [*rewards, 2.0]) / 16) ** 0.5
    nearest = min(losers, key=lambda answer: abs(answer.reward - (mean - 2 * deviation)))
    assert nearest == rejected(replace(example, losers=losers))
    assert -50.0 != nearest.reward


@pytest.mark.parametrize(("draws", "worst"), [(15, True), (16, False)])
def test_the_outlier_is_skipped_from_sixteen_candidates_on(draws: int, worst: bool) -> None:
    (example,) = tiny_examples(1, losers=draws - 1)
    rewards = [-50.0, -20.0, *[2.0] * (draws - 3)]
    losers = tuple(ScoredAnswer(str(place), reward, 5) for place, reward in enumerate(rewards))
    chosen = rejected(replace(example, losers=losers))
    assert chosen is not None
    assert worst == (chosen.reward == -50.0)


def test_an_example_without_losers_has_no_rejected_answer() -> None:
    """Only SFT can train on it."""
    (example,) = tiny_examples(1, losers=0)
    assert rejected(example) is None


@given(fresh=st.integers(0, 12), earlier=st.integers(0, 30), share=st.floats(0, 0.95), seed=st.integers(0, 5))
def test_replay_keeps_its_share_and_every_fresh_example(fresh: int, earlier: int, share: float, seed: int) -> None:
    """Tonight's come first, earlier ones take at most the share, none is repeated, the seed decides."""
    tonight, before = tiny_examples(fresh), tiny_examples(earlier, start=6)
    mixed = with_replay(tonight, before, share, seed)
    assert tonight == mixed[:fresh]
    assert len(mixed) - fresh <= share * len(mixed) + 1e-6
    assert len({example.key for example in mixed}) == len(mixed)
    assert mixed == with_replay(tonight, before[::-1], share, seed)


def test_replay_uses_its_whole_share() -> None:
    """A half means as many earlier as fresh ones."""
    assert 20 == len(with_replay(tiny_examples(10), tiny_examples(50, start=100), 0.5, 0))


def test_ipos_beta_aims_at_the_margin_of_best_over_worst_of_n() -> None:
    """Four candidates of twelve tokens: a margin of 3 · (1 + 1/2 + 1/3) nats over the tokens."""
    assert isclose(12 / (2 * 3 * (1 + 1 / 2 + 1 / 3)), ipo_beta(tiny_examples(5, losers=3)))


def test_ipo_without_losers_is_refused() -> None:
    """There is nothing to compare the winner with."""
    with pytest.raises(TrainingError, match="no example has a rejected answer"):
        ipo_beta(tiny_examples(3, losers=0))
