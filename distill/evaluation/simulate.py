"""Simulate nights with a known truth through the real gate, and count how often it promotes.

Rewards are a prompt's own level plus noise within the prompt. The new policy's are shifted so that the true E[D], on
the gate's [0, 1] scale, is the given multiple of δ: −1 is the edge of the null, 0 equality with the old best of N.
Shapes: P prompts, M samples; G × U a grid of levels and quantiles that represents the whole population.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
from scipy import optimize, stats

from distill.errors import DataError
from distill.evaluation.curve import Floats
from distill.evaluation.gate import DEFAULTS, QuantileMap, Rules, decide
from distill.evaluation.scored import ScoredSamples

Shape = Literal["gaussian", "skewed", "heavy", "discrete"]

_LEVELS = (np.arange(100) + 0.5) / 100
_QUANTILES = (np.arange(1000) + 0.5) / 1000
_HEAVY_DF = 3
_SKEW_SHAPE = 1.0  # of the gamma distribution: exponential
_RESAMPLES = 50  # the decision does not depend on intervals
_MAX_PROMPTS = 50_000
_SEARCH_STEP = 0.03


@dataclass(frozen=True, slots=True)
class Scenario:
    """A night with a known truth."""

    prompts: int
    samples: int
    n_from: int
    n_to: int
    true_d: float
    """E[D] at N′ = ``n_to``, in units of δ."""
    shape: Shape = "gaussian"
    """Distribution of rewards within a prompt: gaussian; skewed (exponential); heavy (t with 3 degrees of freedom);
    discrete (whole standard deviations: about six values)."""
    sd_ratio: float = 1.0
    """The new policy's spread within a prompt, over the old one's."""
    prompt_sd: float = 1.0
    """Spread of the prompts' levels, in standard deviations within a prompt."""

    def __post_init__(self) -> None:
        if not 1 <= self.n_to < self.n_from <= self.samples:
            raise DataError(f"1 ≤ to < from ≤ samples does not hold: {self.n_to}, {self.n_from}, {self.samples}")
        if self.prompts < 1 or self.sd_ratio <= 0 or self.prompt_sd < 0:
            raise DataError("prompts and spreads must be positive")


@dataclass(frozen=True, slots=True)
class Outcome:
    """The share of nights in which N fell to ``n_to``."""

    promoted: float
    """Share of the nights."""
    low: float
    high: float
    """Clopper-Pearson 95 % interval of the share."""
    nights: int
    fixed_sample: float
    """Share that a t-test of a fixed sample would promote; the difference is the cost of anytime validity."""
    crossed_at: float | None
    """Mean share of the prompts after which promoted nights had enough evidence; None if no night was promoted."""


def simulate(
    scenario: Scenario,
    nights: int,
    *,
    seed: int = 0,
    rules: Rules = DEFAULTS,
    on_night: Callable[[], None] = lambda: None,
) -> Outcome:
    """Run nights through the gate.

    Args:
        scenario: The truth.
        nights: Number of nights.
        seed: Same seed, same nights.
        rules: The gate's level; N′ below the scenario's is not tested.
        on_night: Called after each night.
    """
    shift = solve_shift(replace(scenario, prompts=1))
    rules = replace(rules, least_n=scenario.n_to, resamples=_RESAMPLES)
    crossed: list[float] = []
    fixed_sample = 0
    for child in np.random.SeedSequence(seed).spawn(nights):
        old_PM, new_PM = _night(scenario, shift, np.random.default_rng(child))
        old, new = ScoredSamples("old", 1.0, old_PM), ScoredSamples("new", 1.0, new_PM)
        verdict = decide([old], 1.0, [new], n_now=scenario.n_from, rules=rules)
        test = verdict.candidates[0].tests[-1]
        if verdict.n_new == scenario.n_to and test.crossed_at is not None:
            crossed.append(test.crossed_at / scenario.prompts)
        fixed_sample += test.fixed_sample_p <= rules.alpha
        on_night()
    low, high = clopper_pearson(len(crossed), nights)
    mean_crossed = float(np.mean(crossed)) if crossed else None
    return Outcome(len(crossed) / nights, low, high, nights, fixed_sample / nights, mean_crossed)


def prompts_for_power(
    scenario: Scenario,
    power: float,
    nights: int,
    *,
    seed: int = 0,
    rules: Rules = DEFAULTS,
    on_night: Callable[[], None] = lambda: None,
) -> tuple[int, Outcome]:
    """Return the fewest prompts, to about 3 %, at which the gate promotes with the given chance.

    Args:
        scenario: The truth; its number of prompts is where the search starts.
        power: Required share of promotions.
        nights: Nights for each number of prompts tried.
        seed: Seed of the nights.
        rules: The gate's parameters.
        on_night: Called after each night.

    Raises:
        DataError: At the edge of the null or below no number of prompts is enough.
    """
    if scenario.true_d <= -1 or not 0 < power < 1:
        raise DataError("no number of prompts promotes a policy at the null's edge with that chance")
    tried: dict[int, Outcome] = {}

    def reaches(prompts: int) -> bool:
        if prompts not in tried:
            tried[prompts] = simulate(
                replace(scenario, prompts=prompts), nights, seed=seed, rules=rules, on_night=on_night
            )
        return tried[prompts].promoted >= power

    high = scenario.prompts
    while not reaches(high):
        high *= 2
        if high > _MAX_PROMPTS:
            raise DataError(f"even {high // 2} prompts do not reach {power:.0%}")
    low = high // 2
    while low > 1 and reaches(low):
        high, low = low, low // 2
    while high - low > max(_SEARCH_STEP * high, 1):
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return high, tried[high]


def clopper_pearson(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Return the exact interval of a share."""
    tail = (1 - level) / 2
    low = stats.beta.ppf(tail, successes, trials - successes + 1) if successes else 0.0
    high = stats.beta.ppf(1 - tail, successes + 1, trials - successes) if successes < trials else 1.0
    return float(low), float(high)


@lru_cache(maxsize=64)
def solve_shift(scenario: Scenario) -> float:
    """Return the shift of the new policy's rewards that gives the scenario's true E[D], in standard deviations.

    The population is a grid of levels and quantiles; the best of n of U(0, 1) has the quantile function u^(1/n).
    """
    level_G1 = scenario.prompt_sd * stats.norm.ppf(_LEVELS)[:, None]
    to_unit = QuantileMap(_observed(scenario, level_G1 + _noise(scenario, _QUANTILES)))

    def best_of(n: int, shift: float, sd_ratio: float) -> float:
        rewards_GU = level_G1 + shift + sd_ratio * _noise(scenario, _QUANTILES ** (1 / n))
        return float(to_unit(_observed(scenario, rewards_GU)).mean())

    old, fewer = (best_of(n, 0.0, 1.0) for n in (scenario.n_from, scenario.n_from - 1))
    target = old + scenario.true_d * (old - fewer)
    try:
        return float(
            optimize.brentq(lambda shift: best_of(scenario.n_to, shift, scenario.sd_ratio) - target, -20, 20, xtol=1e-4)
        )
    except ValueError as error:
        raise DataError(f"no policy is {scenario.true_d:+g} δ from the old one: the scale ends before") from error


def _night(scenario: Scenario, shift: float, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Sample rewards of the old and the new policy on the same prompts."""
    level_P1 = scenario.prompt_sd * rng.standard_normal((scenario.prompts, 1))
    old_U, new_U = rng.random((2, scenario.prompts, scenario.samples))
    new_PM = level_P1 + shift + scenario.sd_ratio * _noise(scenario, new_U)
    return _observed(scenario, level_P1 + _noise(scenario, old_U)), _observed(scenario, new_PM)


def _noise(scenario: Scenario, quantiles: Floats) -> Floats:
    """Return standardised noise within a prompt."""
    if scenario.shape == "skewed":
        noise = (stats.gamma.ppf(quantiles, _SKEW_SHAPE) - _SKEW_SHAPE) / _SKEW_SHAPE**0.5
    elif scenario.shape == "heavy":
        noise = stats.t.ppf(quantiles, _HEAVY_DF) / (_HEAVY_DF / (_HEAVY_DF - 2)) ** 0.5
    else:
        noise = stats.norm.ppf(quantiles)
    return np.asarray(noise, dtype=np.float64)


def _observed(scenario: Scenario, rewards: Floats) -> Floats:
    return np.rint(rewards) if scenario.shape == "discrete" else rewards
