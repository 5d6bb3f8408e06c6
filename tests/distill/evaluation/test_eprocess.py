"""The wealth follows its formula, is seldom large under the null, and soon large when the mean is above it."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from distill.evaluation.curve import Floats
from distill.evaluation.eprocess import Strategy, fixed_sample_p, run

STRATEGIES: list[Strategy] = ["star", "mixture"]
ALPHA = 0.05

observations = st.lists(st.floats(-1, 1), min_size=1, max_size=40).map(np.array)


def drift(mean: float, count: int, seed: int) -> Floats:
    """Differences as the gate sees them: small, inside the bounds."""
    return np.clip(np.random.default_rng(seed).normal(mean, 0.13, count), -1, 1)


@given(observations)
def test_a_mixtures_wealth_is_the_mean_of_its_constant_bets(x: Floats) -> None:
    grid = [0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8]
    brute = np.mean([np.cumprod(1 + bet * x) for bet in grid], axis=0)
    process = run(x, alpha=1e-30, strategy="mixture")
    assert pytest.approx(brute.tolist(), rel=1e-6) == process.wealth.tolist()


@given(observations, st.integers(0, 20), st.sampled_from([0.5, 0.05, 0.001]))
def test_star_bets_follow_their_formula(x: Floats, more: int, alpha: float) -> None:
    """√(2 log(1/(αW)) / (σ² · remaining)), σ² the mean square of what was seen and one imagined quarter."""
    wealth, squares, planned, path = 1.0, [0.0625], len(x) + more, []
    for place, value in enumerate(x.tolist()):
        if wealth < 1 / alpha:
            missing = math.log(1 / alpha) - math.log(wealth)
            bet = min(0.99, math.sqrt(2 * missing / (np.mean(squares) * (planned - place))))
            wealth *= 1 + bet * value
            squares.append(value * value)
        path.append(wealth)
    assert pytest.approx(path, rel=1e-6) == run(x, alpha=alpha, planned=planned).wealth.tolist()


EDGE = 0.25 / 0.99


@pytest.mark.parametrize(
    ("x", "crossed_at"), [([0.9999 * EDGE], None), ([EDGE], 1), ([0.9999 * EDGE, 1.0], 2), ([EDGE, -1.0], 1)]
)
def test_reaching_the_threshold_exactly_is_enough(x: list[float], crossed_at: int | None) -> None:
    """The first bet is 0.99, the largest: it makes a wealth of 1.25 of the edge, which is 1/α at α = 0.8."""
    process = run(np.array(x), alpha=0.8)
    assert crossed_at == process.crossed_at
    assert crossed_at != 1 or process.final == 1.25


@pytest.mark.parametrize(
    ("x", "final", "highest"), [([-1.0], 0.01, 1.0), ([1.0, -1.0], 0.0199, 1.99), ([0.0], 1.0, 1.0)]
)
def test_the_highest_wealth_is_at_least_the_first(x: list[float], final: float, highest: float) -> None:
    """So little is planned that every bet is 0.99, the largest."""
    process = run(np.array(x), alpha=0.01)
    assert pytest.approx((final, highest)) == (process.final, process.highest)


@given(observations, st.sampled_from(STRATEGIES))
def test_wealth_stays_positive_and_stops_where_it_crossed(x: Floats, strategy: Strategy) -> None:
    process = run(x, alpha=0.5, strategy=strategy)
    assert len(x) == len(process.wealth)
    assert (process.wealth > 0).all()
    reached = np.flatnonzero(process.wealth >= 2)
    assert (int(reached[0]) + 1 if len(reached) else None) == process.crossed_at
    if process.crossed_at is not None:
        assert process.final == process.wealth[process.crossed_at - 1] == process.highest


@given(observations, st.integers(1, 39), st.sampled_from(STRATEGIES))
def test_a_bet_does_not_depend_on_later_observations(x: Floats, seen: int, strategy: Strategy) -> None:
    """The path over a prefix is a prefix of the path, when the plan is the same."""
    part = x[:seen]
    whole = run(x, alpha=ALPHA, strategy=strategy).wealth[: len(part)]
    assert whole.tolist() == run(part, alpha=ALPHA, planned=len(x), strategy=strategy).wealth.tolist()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_under_the_null_the_mean_wealth_does_not_grow_and_few_ever_cross(strategy: Strategy) -> None:
    """A skewed null with mean zero: mostly small gains, rarely a big loss."""
    rng = np.random.default_rng(1)
    x_RT = np.where(rng.random((600, 150)) < 0.9, 0.05, -0.45)
    processes = [run(x, alpha=ALPHA, strategy=strategy) for x in x_RT]
    wealth_R = np.array([process.final for process in processes])
    standard_error = wealth_R.std() / len(wealth_R) ** 0.5
    assert wealth_R.mean() <= 1 + 4 * standard_error
    # 5 % of 600 is 30; more than 48 has a chance below 0.001.
    assert sum(process.crossed_at is not None for process in processes) <= 48


def test_a_clear_gain_crosses_early_and_a_loss_never() -> None:
    gain, loss = run(drift(0.05, 700, 2), alpha=ALPHA), run(drift(-0.02, 700, 2), alpha=ALPHA)
    assert gain.crossed_at is not None
    assert gain.crossed_at < 350
    assert loss.crossed_at is None
    assert loss.highest < 20


def test_betting_towards_the_target_beats_the_mixture() -> None:
    """At the product's effect size, with the number of prompts known."""
    nights = [drift(0.0123, 711, seed) for seed in range(100, 200)]
    passed = {
        strategy: sum(run(x, alpha=ALPHA, strategy=strategy).crossed_at is not None for x in nights)
        for strategy in STRATEGIES
    }
    assert passed["star"] >= passed["mixture"] + 10


def test_half_the_level_needs_twice_the_wealth() -> None:
    x = drift(0.05, 300, 3)
    assert run(x, alpha=0.05).final >= 20
    assert run(x, alpha=0.025).final >= 40


@pytest.mark.parametrize(
    ("x", "planned", "message"),
    [
        ([], None, "0 observations"),
        ([0.1, 0.2], 1, "2 observations, 1 planned"),
        ([0.1, -1.5], None, "outside"),
        ([0.1, float("nan")], None, "outside"),
    ],
)
def test_observations_that_break_the_bound_are_refused(x: list[float], planned: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(np.array(x), alpha=ALPHA, planned=planned)


def test_the_fixed_sample_test_is_students() -> None:
    x = drift(0.02, 50, 4)
    t = x.mean() / (x.std(ddof=1) / len(x) ** 0.5)
    assert (t > 1.677) == (fixed_sample_p(x) < 0.05)
    assert pytest.approx(stats.ttest_1samp(x, 0.0, alternative="greater").pvalue) == fixed_sample_p(x)
    assert pytest.approx(stats.ttest_1samp(x[:2], 0.0, alternative="greater").pvalue) == fixed_sample_p(x[:2])
    assert 1.0 == fixed_sample_p(np.array([0.3]))
    assert 1.0 == fixed_sample_p(np.zeros(5))
