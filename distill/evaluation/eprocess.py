"""An e-process: evidence that stays valid however often one looks at it.

H0: E[x] ≤ 0 for independent x in [−1, 1]. Before each x a bet 0 ≤ λ < 1 is made from the earlier observations, and the
wealth is

    W_t = Π (1 + λ_i x_i).

Under H0, W is a nonnegative supermartingale that starts at 1, whatever the bets: the chance that it **ever** reaches
1/α is at most α (Ville's inequality). So one may look after every prompt, and stop. The bets decide power alone:

- ``star`` bets towards 1/α at the last planned observation. The gate uses it: a night knows how many prompts it has.
  A night that ends without reaching 1/α has spent most of its wealth; the next night's checkpoint starts from 1 again.
- ``mixture`` spreads the wealth over seven constant bets. The live guard uses it: a promotion's traffic has no end.

Source: Waudby-Smith and Ramdas, arXiv 2010.09686 (the process and the mixture); Voráček and Orabona, arXiv 2505.22422
(STaR: recalculate the bet towards the target).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

from distill.evaluation.curve import Floats

Strategy = Literal["star", "mixture"]

_MAX_BET = 0.99  # no single observation may take more than this share of the wealth
_PRIOR_VARIANCE = 0.0625  # one imagined observation at a quarter of the range keeps the first bets moderate
_CONSTANT_BETS = np.array([0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8])


@dataclass(frozen=True, slots=True, eq=False)
class Process:
    """The wealth after each observation."""

    wealth: Floats
    """One value an observation; constant once 1/α is reached."""
    crossed_at: int | None
    """Number of observations after which the wealth reached 1/α; None if it never did."""

    @property
    def final(self) -> float:
        return float(self.wealth[-1])

    @property
    def highest(self) -> float:
        """The highest wealth so far, which Ville's inequality bounds."""
        return max(1.0, float(self.wealth.max()))


def run(x: Floats, *, alpha: float, planned: int | None = None, strategy: Strategy = "star") -> Process:
    """Bet on the observations in their order. The order must not depend on the observations.

    Args:
        x: Shape (T,), each in [−1, 1].
        alpha: Largest chance of ever reaching 1/α under H0.
        planned: Final number of observations, at least T; default T. It tunes ``star``'s bets, so a look at the first
            part is valid only with the same plan as the whole.
        strategy: How to bet.

    Raises:
        ValueError: There are no observations or more than planned, or one is out of range.
    """
    planned = planned or len(x)
    if not 0 < len(x) <= planned:
        raise ValueError(f"{len(x)} observations, {planned} planned")
    if not (np.abs(x) <= 1).all():
        raise ValueError("an observation is outside [-1, 1]: the wealth could become negative")
    bettor = _Star(alpha, planned) if strategy == "star" else _Mixture()
    wealth, crossed_at, path = 1.0, None, []
    for place, value in enumerate(x.tolist(), start=1):
        if crossed_at is None:
            wealth *= 1 + bettor.bet(wealth) * value
            bettor.observe(value)
            crossed_at = place if wealth >= 1 / alpha else None
        path.append(wealth)
    return Process(np.array(path), crossed_at)


def fixed_sample_p(x: Floats) -> float:
    """Return the one-sided p-value of the t-test of H0, which allows a single look at a fixed number of prompts."""
    if len(x) < 2 or x.std() == 0:
        return 1.0
    t = x.mean() / (x.std(ddof=1) / math.sqrt(len(x)))
    return float(special.stdtr(len(x) - 1, -t))


class _Star:
    """Bet so that the smallest sum of the remaining x reaches 1/α: λ = √(2 log(1/(αW)) / (σ² · remaining))."""

    def __init__(self, alpha: float, planned: int) -> None:
        self._log_target = -math.log(alpha)
        self._remaining = planned
        self._count = 1
        self._squares = _PRIOR_VARIANCE

    def bet(self, wealth: float) -> float:
        missing = self._log_target - math.log(wealth)
        variance = self._squares / self._count
        return min(_MAX_BET, math.sqrt(2 * missing / (variance * self._remaining)))

    def observe(self, x: float) -> None:
        self._squares += x * x
        self._count += 1
        self._remaining -= 1


class _Mixture:
    """Spread the wealth equally over constant bets; the joint bet weights each by its wealth so far."""

    def __init__(self) -> None:
        self._wealths = np.full(len(_CONSTANT_BETS), 1 / len(_CONSTANT_BETS))

    def bet(self, wealth: float) -> float:
        return float(_CONSTANT_BETS @ self._wealths / self._wealths.sum())

    def observe(self, x: float) -> None:
        self._wealths *= 1 + _CONSTANT_BETS * x
