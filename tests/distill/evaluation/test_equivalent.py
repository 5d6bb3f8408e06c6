"""k*: the number of old draws that one new draw is worth."""

import numpy as np
import pytest

from distill.evaluation.curve import curves
from distill.evaluation.equivalent import equivalent_n
from distill.evaluation.resample import Bootstrap


def curve(mean: float, seed: int = 0, conversations: int = 400) -> np.ndarray:
    rewards_PM = np.random.default_rng(seed).normal(mean, 1, (conversations, 8))
    return curves(rewards_PM, rewards_PM, range(1, 9))


def test_the_old_policys_own_best_of_n_is_worth_n() -> None:
    old_CK = curve(0.0)
    for n in (1, 3, 8):
        worth = equivalent_n(old_CK[:, n - 1 : n], [old_CK], Bootstrap(400))
        assert pytest.approx((n, n, n)) == (worth.value, worth.low, worth.high)


def test_a_shift_is_worth_its_gaussian_order_statistic() -> None:
    """A mean .846 above is the best of three; the interval holds it."""
    worth = equivalent_n(curve(0.846, seed=1)[:, :1], [curve(0.0)], Bootstrap(400))
    assert worth.low < 3 < worth.high
    assert 0.3 < worth.high - worth.low < 1
    assert not worth.beyond


def test_against_the_best_temperature_a_draw_is_worth_less() -> None:
    new_C1, serving_CK, best_CK = curve(0.846, seed=1)[:, :1], curve(0.0), curve(0.5, seed=2)
    at_serving = equivalent_n(new_C1, [serving_CK], Bootstrap(400))
    at_best = equivalent_n(new_C1, [serving_CK, best_CK], Bootstrap(400))
    assert at_best.value < at_serving.value
    assert at_best.value == equivalent_n(new_C1, [best_CK], Bootstrap(400)).value


def test_nothing_is_extrapolated() -> None:
    old_CK = curve(0.0)
    above = equivalent_n(curve(5.0)[:, :1], [old_CK], Bootstrap(400))
    below = equivalent_n(curve(-5.0)[:, :1], [old_CK], Bootstrap(400))
    assert pytest.approx(8) == above.value
    assert pytest.approx(1) == below.value
    assert (True, False) == (above.beyond, below.beyond)


@pytest.mark.parametrize(("place", "beyond"), [(-0.001, False), (0.0, False), (0.001, True)])
def test_a_draw_is_beyond_the_curve_only_above_its_end(place: float, beyond: bool) -> None:
    old_C3 = np.tile([0.0, 0.25, 0.5], (4, 1))
    assert beyond == equivalent_n(np.full((4, 1), 0.5 + place), [old_C3], Bootstrap(4)).beyond


def test_between_whole_n_the_curve_is_straight_in_log_n() -> None:
    old_C3 = np.tile([0.0, 0.25, 0.75], (4, 1))
    worth = [equivalent_n(np.full((4, 1), level), [old_C3], Bootstrap(4)).value for level in (0.125, 0.25, 0.5)]
    assert pytest.approx([2**0.5, 2.0, 6**0.5]) == worth
