"""The expected maximum equals brute force over all subsets."""

from itertools import combinations
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.expected_max import expected_max, rank_weights


@given(st.data(), st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8))
def test_the_expected_maximum_is_the_mean_over_all_subsets(data: st.DataObject, values: list[float]) -> None:
    n = data.draw(st.integers(1, len(values)))
    brute = fmean(max(subset) for subset in combinations(values, n))
    assert pytest.approx(brute, rel=1e-9, abs=1e-6) == expected_max(values, n)


@given(st.integers(1, 40), st.data())
def test_rank_weights_are_a_distribution(m: int, data: st.DataObject) -> None:
    weights = rank_weights(m, data.draw(st.integers(1, m)))
    assert pytest.approx(1.0) == sum(weights)
    assert min(weights) >= 0


@pytest.mark.parametrize("n", [0, 4])
def test_n_outside_the_draws_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match="the number of draws"):
        expected_max([1.0, 2.0, 3.0], n)
