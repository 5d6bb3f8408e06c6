"""Means over each conversation's prompts, and the bootstrap over conversations: conversations are the unit of evidence.

Shapes: P prompts, C conversations, R bootstrap samples, K columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from distill.evaluation.curve import Estimate, Floats


def conversation_index(conversations: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the number of each prompt's conversation; conversations are numbered as they first appear."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in conversations], dtype=np.int64)


def by_conversation(values_PK: Floats, index_P: npt.NDArray[np.int64]) -> Floats:
    """Return the mean of each conversation's rows, in the order of their numbers.

    Prompts of one conversation are similar; conversations are independent. So every test and interval counts each
    conversation once.
    """
    sizes_C = np.bincount(index_P)
    sums_CK = np.zeros((len(sizes_C), values_PK.shape[1]))
    np.add.at(sums_CK, index_P, values_PK)
    return sums_CK / sizes_C[:, None]


class Bootstrap:
    """Percentile intervals over conversations; every column is resampled alike, so differences are paired."""

    def __init__(self, conversations: int, *, resamples: int = 2000, level: float = 0.95, seed: int = 0) -> None:
        self._weights_RC = _weights(conversations, resamples, seed)
        self._tails = [(1 - level) / 2, (1 + level) / 2]

    def means(self, values_CK: Floats) -> Floats:
        """Return the mean of each column in each bootstrap sample, shape (R, K)."""
        means_RK: Floats = self._weights_RC @ values_CK
        return means_RK

    def estimates(self, values_CK: Floats) -> list[Estimate]:
        """Return the mean and interval of each column."""
        low_K, high_K = np.quantile(self.means(values_CK), self._tails, axis=0)
        columns = zip(values_CK.mean(axis=0), low_K, high_K, strict=True)
        return [Estimate(float(mean), float(low), float(high)) for mean, low, high in columns]

    def interval(self, statistic_R: Floats) -> tuple[float, float]:
        """Return the interval of a statistic that was computed in each bootstrap sample."""
        low, high = np.quantile(statistic_R, self._tails)
        return float(low), float(high)


@lru_cache(maxsize=4)  # a simulation asks for the same thousands of times
def _weights(conversations: int, resamples: int, seed: int) -> Floats:
    picks_RC = np.random.default_rng(seed).integers(conversations, size=(resamples, conversations))
    cells = (picks_RC + conversations * np.arange(resamples)[:, None]).ravel()
    counts = np.bincount(cells, minlength=resamples * conversations)
    return (counts / conversations).reshape(resamples, conversations)
