"""Decide by samples over time if a quantity grows that should stay constant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

_WARM_UP = 0.2  # share of the samples that is left out: caches fill, pools open


@dataclass(frozen=True, slots=True)
class Allowance:
    """The growth that is allowed: a share of the first value, and a number of units."""

    share: float
    units: float


@dataclass(frozen=True, slots=True)
class Growth:
    """Medians of the first and of the last third, after the warm-up. ``grows``: more than is allowed."""

    before: float
    after: float
    grows: bool


def growth(samples: Sequence[float], allowance: Allowance) -> Growth:
    """Compare the end of the samples with their beginning.

    Raises:
        ValueError: There are too few samples to tell.
    """
    steady = samples[int(len(samples) * _WARM_UP) :]
    third = len(steady) // 3
    if third < 1:
        raise ValueError(f"{len(samples)} samples are too few to decide")
    before, after = median(steady[:third]), median(steady[-third:])
    return Growth(before, after, after > before * (1 + allowance.share) + allowance.units)
