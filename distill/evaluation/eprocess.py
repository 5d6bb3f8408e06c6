"""Evidence that may be looked at at any time: a wealth that grows only if a mean is above zero.

H0: E[x] ≤ 0 for independent x ≥ −1. Before each x a bet 0 ≤ λ < 1 is made from what came before, and

    W_t = Π (1 + λ_i x_i).

Under H0 W is a nonnegative supermartingale from 1, whatever the bets: the chance that it **ever** reaches 1/α is at
most α (Ville). So one may look after every prompt, and stop. The gate's x is D + δ = best of N′ of the new policy −
best of N − 1 of the old.

Bets decide power alone. Promoted of 1,000 simulated nights at the product's effect size (8 → 4, true D = 0, 8 draws,
α = 5 %; `python -m distill simulate --true-d 0 --betting …`):

    ==========  ===========  ===========  ========================================================
    strategy    711 prompts  300 prompts  bets
    ==========  ===========  ===========  ========================================================
    star             74.8 %       35.0 %  towards 1/α at the last planned prompt (the default)
    agrapa           51.2 %       21.0 %  what would have grown fastest so far
    mixture          49.7 %        6.4 %  capital spread over seven constant bets
    fixed            59.6 %        7.2 %  λ = .5
    t-test           81.7 %       50.7 %  (fixed sample: one look, no guarantee at another)
    ==========  ===========  ===========  ========================================================

agrapa and mixture are made to grow for ever; a night knows how many prompts it has. The price of ``star`` is that a
night that ends without crossing has spent most of its wealth; the next night's checkpoint starts from 1 again.

Source: Waudby-Smith and Ramdas, arXiv 2010.09686 (the process, aGRAPA); Voráček and Orabona, arXiv 2505.22422
(STaR: recalculating the bet towards the target).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from scipy import special

from distill.evaluation.curve import Floats

Strategy = Literal["star", "agrapa", "mixture", "fixed"]

_MOST = 0.99  # no single prompt may take more than this of the wealth
_PRIOR_VARIANCE = 0.0625  # one imagined observation at a quarter of the range: the first bets are not wild
_GRID = np.array([0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8])
_FIXED = 0.5


class Bettor(Protocol):
    """A strategy: what it bets next, given what it has seen."""

    def bet(self, wealth: float) -> float:
        """λ for the next observation."""
        ...

    def see(self, x: float) -> None:
        """Take in the observation."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Process:
    """A wealth after each observation."""

    wealth: Floats
    """One value an observation; once 1/α is reached no more is bet."""
    crossed_at: int | None
    """Observations it took to reach 1/α; None: never."""

    @property
    def final(self) -> float:
        """Wealth at the end."""
        return float(self.wealth[-1])

    @property
    def highest(self) -> float:
        """Highest wealth on the way: what Ville's inequality speaks of."""
        return max(1.0, float(self.wealth.max()))


def run(x: Floats, *, alpha: float, planned: int | None = None, strategy: Strategy = "star") -> Process:
    """The wealth of one bettor over the observations, in their order.

    The order must not depend on the observations (the held-out prompts are ordered by hash).

    Args:
        x: Shape (T,), each in [−1, 1].
        alpha: Chance of ever reaching 1/α under H0.
        planned: Observations there will be once all are in, at least T; unset: these. It tunes the bets: a look at
            the first part is valid only with the plan that the whole will use.
        strategy: How to bet.

    Raises:
        ValueError: No observations, one is out of range, or more came than were planned.
    """
    planned = planned or len(x)
    if not 0 < len(x) <= planned:
        raise ValueError(f"{len(x)} observations, {planned} planned")
    if not (np.abs(x) <= 1).all():
        raise ValueError("an observation is outside [-1, 1]: the wealth could become negative")
    bettor = _bettor(strategy, alpha, planned)
    wealth, crossed_at, path = 1.0, None, []
    for place, value in enumerate(x.tolist(), start=1):
        if crossed_at is None:
            wealth *= 1 + bettor.bet(wealth) * value
            bettor.see(value)
            crossed_at = place if wealth >= 1 / alpha else None
        path.append(wealth)
    return Process(np.array(path), crossed_at)


def fixed_sample_p(x: Floats) -> float:
    """One-sided p-value of the t-test of the same H0: what a single look at a fixed number of prompts would use."""
    if len(x) < 2 or x.std() == 0:
        return 1.0
    t = x.mean() / (x.std(ddof=1) / math.sqrt(len(x)))
    return float(special.stdtr(len(x) - 1, -t))


def _bettor(strategy: Strategy, alpha: float, planned: int) -> Bettor:
    if strategy == "star":
        return _Star(alpha, planned)
    if strategy == "agrapa":
        return _Agrapa()
    return _Mixture(_GRID if strategy == "mixture" else np.array([_FIXED]))


class _Star:
    """The bet that needs the smallest sum of the remaining x to reach 1/α: √(2 log(1/(αW)) / (σ² · remaining))."""

    def __init__(self, alpha: float, planned: int) -> None:
        self._log_target = -math.log(alpha)
        self._remaining = planned
        self._count = 1
        self._squares = _PRIOR_VARIANCE

    def bet(self, wealth: float) -> float:
        missing = self._log_target - math.log(wealth)
        variance = self._squares / self._count
        return min(_MOST, math.sqrt(2 * missing / (variance * self._remaining)))

    def see(self, x: float) -> None:
        self._squares += x * x
        self._count += 1
        self._remaining -= 1


class _Agrapa:
    """The bet that would have grown fastest on what was seen, to second order: mean / (variance + mean²)."""

    def __init__(self) -> None:
        self._sum = 0.0
        self._squares = _PRIOR_VARIANCE

    def bet(self, wealth: float) -> float:
        # variance + mean² is the second moment.
        return min(_MOST, max(0.0, self._sum / self._squares))

    def see(self, x: float) -> None:
        self._sum += x
        self._squares += x * x


class _Mixture:
    """Equal capital on each of several constant bets; the joint bet weighs them by what they have become."""

    def __init__(self, bets: Floats) -> None:
        self._bets = bets
        self._wealths = np.full(len(bets), 1 / len(bets))

    def bet(self, wealth: float) -> float:
        return float(self._bets @ self._wealths / self._wealths.sum())

    def see(self, x: float) -> None:
        self._wealths *= 1 + self._bets * x
