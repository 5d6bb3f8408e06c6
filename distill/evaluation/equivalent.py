"""Equivalent N: the number of samples of the old policy that one sample of the new one is worth.

Shapes: C conversations, K = 1..n_max, R bootstrap samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distill.evaluation.curve import Floats
from distill.evaluation.resample import Bootstrap


@dataclass(frozen=True, slots=True)
class EquivalentN:
    """k*: the n at which the old policy's curve reaches the new policy's mean reward of one sample."""

    value: float
    low: float
    high: float
    beyond: bool
    """The curve ends below the new policy's mean: the value is the end of the curve, and the true k* is larger."""


def equivalent_n(new_C1: Floats, old_CK: Sequence[Floats], bootstrap: Bootstrap) -> EquivalentN:
    """Return k* with its bootstrap interval.

    Between whole n the curve is interpolated linearly in log n, where it is nearly straight. Nothing is extrapolated:
    k* lies in 1..n_max. A new policy below one sample of the old one gets 1; the difference shows how far below it is.

    Args:
        new_C1: The new policy's mean reward of one sample.
        old_CK: The old policy's curves. Of several (temperatures) the highest mean at each n counts, chosen anew in
            each bootstrap sample.
        bootstrap: Over conversations.
    """
    curve_K = np.max([each.mean(axis=0) for each in old_CK], axis=0)
    level = float(new_C1.mean())
    curves_RK = np.max([bootstrap.means(each) for each in old_CK], axis=0)
    levels_R = bootstrap.means(new_C1)[:, 0]
    values_R = np.array([_interpolate(level, curve) for level, curve in zip(levels_R, curves_RK, strict=True)])
    low, high = bootstrap.interval(values_R)
    return EquivalentN(_interpolate(level, curve_K), low, high, beyond=level > float(curve_K[-1]))


def _interpolate(level: float, curve_K: Floats) -> float:
    log_n_K = np.log(np.arange(1, len(curve_K) + 1))
    return float(np.exp(np.interp(level, curve_K, log_n_K)))
