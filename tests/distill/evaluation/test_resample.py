"""Means of conversations, and bootstrap intervals over them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.evaluation.resample import Bootstrap, by_conversation, conversation_index


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.floats(-1e3, 1e3)), min_size=1, max_size=30))
def test_each_conversation_counts_once_with_its_prompts_mean(rows: list[tuple[str, float]]) -> None:
    index_P = conversation_index([name for name, _ in rows])
    means_C1 = by_conversation(np.array([[value] for _, value in rows]), index_P)
    firsts = list(dict.fromkeys(name for name, _ in rows))
    brute = [np.mean([value for name, value in rows if name == first]) for first in firsts]
    assert pytest.approx(brute) == means_C1[:, 0].tolist()


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    means_RC = np.random.default_rng(1).standard_normal((200, 40))
    intervals = [Bootstrap(40, resamples=300).estimates(means_C[:, None])[0] for means_C in means_RC]
    covered = sum(each.low <= 0 <= each.high for each in intervals)
    assert 180 <= covered <= 198


def test_twins_of_one_conversation_do_not_make_the_interval_narrower() -> None:
    values_C1 = np.random.default_rng(0).standard_normal((60, 1))
    names = [str(place) for place in range(60)]
    twice = by_conversation(np.vstack([values_C1, values_C1]), conversation_index(names + names))
    assert Bootstrap(60).estimates(values_C1) == Bootstrap(60).estimates(twice)


def test_differences_are_paired_and_a_seed_repeats_itself() -> None:
    """Conversations that differ widely and columns that differ by a constant: the difference has no spread."""
    level_C1 = np.random.default_rng(0).standard_normal((40, 1)) * 10
    values_CK = np.hstack([level_C1, level_C1 + 1])
    means_RK = Bootstrap(40).means(values_CK)
    assert pytest.approx(1.0) == float((means_RK[:, 1] - means_RK[:, 0]).min())
    wide, _ = Bootstrap(40).estimates(values_CK)
    (gain,) = Bootstrap(40).estimates(values_CK[:, 1:] - values_CK[:, :1])
    assert wide.high - wide.low > 2
    assert pytest.approx((1.0, 1.0, 1.0)) == (gain.mean, gain.low, gain.high)
    assert Bootstrap(40, seed=1).estimates(level_C1) == Bootstrap(40, seed=1).estimates(level_C1)
    assert Bootstrap(40, seed=1).estimates(level_C1) != Bootstrap(40, seed=2).estimates(level_C1)


def test_an_interval_is_the_middle_95_percent_of_2000_resamples() -> None:
    """By default; from the columns and from a statistic of the resamples alike."""
    values_C1 = np.random.default_rng(0).standard_normal((40, 1))
    picks_RC = np.random.default_rng(0).integers(40, size=(2000, 40))
    means_R = values_C1[picks_RC, 0].mean(axis=1)
    bounds = np.quantile(means_R, [0.025, 0.975])
    (estimate,) = Bootstrap(40).estimates(values_C1)
    assert pytest.approx(means_R) == Bootstrap(40).means(values_C1)[:, 0]
    assert pytest.approx((values_C1.mean(), *bounds)) == (estimate.mean, estimate.low, estimate.high)
    assert pytest.approx(bounds) == list(Bootstrap(40).interval(means_R))
    half = Bootstrap(40, resamples=100, level=0.5, seed=3)
    assert (100, 1) == half.means(values_C1).shape
    assert pytest.approx(np.quantile(means_R, [0.25, 0.75])) == list(half.interval(means_R))
