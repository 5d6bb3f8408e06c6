"""Accuracy of a reward model: on human pairs by source and by length, and on spoiled answers by kind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

import numpy as np

from distill.reward_training.preferences import Group, Preference

Z95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Share:
    """The share of ``n`` comparisons that are ranked right, with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.1%} [{self.low:.1%}, {self.high:.1%}]"


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """A human pair and the rewards of its two answers."""

    pair: Preference
    chosen: float
    rejected: float

    @property
    def right(self) -> float:
        """1 if the rewards rank as people did, 0 if not, one half for a tie."""
        return (float(np.sign(self.chosen - self.rejected)) + 1) / 2


def wilson(right: float, n: int) -> Share:
    """Return ``right`` out of ``n`` with Wilson's score interval."""
    if n == 0:
        return Share(float("nan"), 0.0, 1.0, 0)
    share = right / n
    centre = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
    return Share(share, max(0.0, centre - half), min(1.0, centre + half), n)


def length_balanced(pairs: Sequence[ScoredPair], *, resamples: int = 2000, seed: int = 0) -> Share:
    """Average the accuracies on pairs whose better answer is longer and on pairs whose better answer is shorter.

    A model that rewards length alone has exactly one half. The interval is a bootstrap over prompts, as pairs share
    them.
    """
    prompts: dict[object, int] = {}
    for item in pairs:
        prompts.setdefault(item.pair.prompt, len(prompts))
    # P prompts × (longer better, shorter better) × (right, all)
    counts_P22 = np.zeros((len(prompts), 2, 2))
    for item in pairs:
        cell = counts_P22[prompts[item.pair.prompt], 0 if item.pair.longer_is_better else 1]
        cell += (item.right, 1.0)
    drawn = np.random.default_rng(seed).multinomial(len(prompts), np.full(len(prompts), 1 / len(prompts)), resamples)
    values = _balanced(np.tensordot(drawn, counts_P22, axes=1))
    low, high = np.nanquantile(values, (0.025, 0.975))
    return Share(float(_balanced(counts_P22.sum(axis=0)[None])[0]), float(low), float(high), len(pairs))


def by_length(pairs: Sequence[ScoredPair]) -> dict[str, Share]:
    """Return the accuracies on pairs whose better answer is longer, and on pairs whose better answer is shorter."""
    sides = {"longer": True, "shorter": False}
    return {name: _share([j for j in pairs if j.pair.longer_is_better is side]) for name, side in sides.items()}


def human_report(pairs: Sequence[ScoredPair]) -> dict[str, Any]:
    """Return all accuracies on human pairs as a JSON-ready document."""
    sources: dict[str, list[ScoredPair]] = defaultdict(list)
    for item in pairs:
        sources[item.pair.source].append(item)
    return {
        "length_balanced": asdict(length_balanced(pairs)),
        "all": asdict(_share(pairs)),
        **{f"better_is_{name}": asdict(share) for name, share in by_length(pairs).items()},
        "by_source": {
            source: {
                "all": asdict(_share(rows)),
                **{f"better_is_{name}": asdict(share) for name, share in by_length(rows).items()},
            }
            for source, rows in sorted(sources.items())
        },
    }


def robustness_report(groups: Sequence[Group], rewards: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return the shares of spoiled answers ranked below the good one, by kind.

    Args:
        groups: Good answers with their spoiled versions.
        rewards: For each group, the rewards of its texts in order.
    """
    right: dict[str, list[float]] = defaultdict(list)
    for group, own in zip(groups, rewards, strict=True):
        for comparison in group.comparisons:
            right[comparison.kind].append(float(own[comparison.better] > own[comparison.worse]))
    every = [value for values in right.values() for value in values]
    return {
        "all": asdict(wilson(sum(every), len(every))),
        "by_kind": {kind: asdict(wilson(sum(values), len(values))) for kind, values in sorted(right.items())},
    }


def _share(pairs: Sequence[ScoredPair]) -> Share:
    return wilson(sum(item.right for item in pairs), len(pairs))


def _balanced(counts_R22: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Average right / all over the two sides, for each of R rows; a side without pairs is ignored."""
    with np.errstate(invalid="ignore"):
        shares_R2 = counts_R22[..., 0] / counts_R22[..., 1]
    means: np.ndarray[Any, np.dtype[np.float64]] = np.nanmean(shares_R2, axis=-1)
    return means
