"""The estimators equal brute force."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.evaluation.curve import curves, within_prompt_correlation, within_prompt_sd


def selected_value(select: Sequence[float], values: Sequence[float], n: int) -> float:
    """One cell of ``curves``."""
    return float(curves(np.array([select]), np.array([values]), [n])[0, 0])


# Few distinct values, so that ties are common.
rewards = st.integers(-3, 3).map(float)
draws = st.lists(st.tuples(rewards, st.integers(-100, 100).map(float)), min_size=1, max_size=7)


@given(st.data(), draws)
def test_selected_value_is_the_mean_over_all_subsets_and_all_ways_to_break_ties(
    data: st.DataObject, pairs: list[tuple[float, float]]
) -> None:
    n = data.draw(st.integers(1, len(pairs)))

    def picked(subset: tuple[tuple[float, float], ...]) -> float:
        best = max(reward for reward, _ in subset)
        return float(np.mean([value for reward, value in subset if reward == best]))

    brute = np.mean([picked(subset) for subset in combinations(pairs, n)])
    select, values = zip(*pairs, strict=True)
    assert pytest.approx(brute, rel=1e-9, abs=1e-9) == selected_value(select, values, n)


@given(st.data(), draws)
def test_the_order_of_the_draws_does_not_matter(data: st.DataObject, pairs: list[tuple[float, float]]) -> None:
    n = data.draw(st.integers(1, len(pairs)))
    select, values = zip(*pairs, strict=True)
    shuffled_select, shuffled_values = zip(*data.draw(st.permutations(pairs)), strict=True)
    expected = pytest.approx(selected_value(select, values, n), rel=1e-9, abs=1e-9)
    assert expected == selected_value(shuffled_select, shuffled_values, n)


def test_gaussian_rewards_have_the_known_curve() -> None:
    """E[max] of n standard normals is 0 / .56 / 1.03 / 1.42."""
    draws_PM = np.random.default_rng(0).standard_normal((4_000, 8))
    curve = curves(draws_PM, draws_PM, [1, 2, 4, 8]).mean(axis=0)
    assert pytest.approx([0.0, 0.564, 1.029, 1.424], abs=0.05) == curve.tolist()


def test_rewards_and_values_must_pair_up() -> None:
    with pytest.raises(ValueError, match="2 rewards but 1 values"):
        selected_value([1.0, 2.0], [1.0], 1)


def test_spread_and_correlation_ignore_differences_between_prompts() -> None:
    within_PM = np.array([[-1.0, 1.0], [1.0, -1.0]])
    offset_P1 = np.array([[100.0], [-100.0]])
    assert pytest.approx(2**0.5) == within_prompt_sd(within_PM + offset_P1)
    assert pytest.approx(-1.0) == within_prompt_correlation(within_PM + offset_P1, -within_PM)
    assert 0.0 == within_prompt_correlation(within_PM, np.zeros((2, 2)))


def test_tied_draws_leave_no_empty_group() -> None:
    with np.errstate(all="raise"):
        assert 1.5 == selected_value([1.0, 1.0], [1.0, 2.0], 2)
        assert 2.0 == selected_value([1.0, 0.0], [2.0, 1.0], 2)
