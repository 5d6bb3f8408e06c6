"""The expected maximum of n draws, estimated without bias from m ≥ n draws."""

from __future__ import annotations

import math
from collections.abc import Sequence


def rank_weights(m: int, n: int) -> list[float]:
    """Return for each rank, ascending, the probability that it is the highest of n draws.

    Args:
        m: Number of draws.
        n: Draws taken from them at random without replacement, 1 ≤ n ≤ m.

    Returns:
        m probabilities: C(i − 1, n − 1) / C(m, n) for rank i, from 1.

    Raises:
        ValueError: n is out of range; with more draws than there are this would be extrapolation.
    """
    if not 1 <= n <= m:
        raise ValueError(f"n = {n} is not in 1..{m}, the number of draws")
    # Integers until the one division: exact for any m.
    return [math.comb(rank - 1, n - 1) / math.comb(m, n) for rank in range(1, m + 1)]


def expected_max(values: Sequence[float], n: int) -> float:
    """Return the mean of the highest value over all subsets of size n."""
    weights = rank_weights(len(values), n)
    return math.fsum(weight * value for weight, value in zip(weights, sorted(values), strict=True))
