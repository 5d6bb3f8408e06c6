"""Unbiased estimates of the expected reward of the best of n draws, from m ≥ n draws. Pure statistics.

Shapes: P prompts, M draws of each, K values of n. Arrays are float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gateway.expected_max import rank_weights

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over prompts with its bootstrap interval."""

    mean: float
    low: float
    high: float


def curves(select_rewards_PM: Floats, values_PM: Floats, ns: Sequence[int]) -> Floats:
    """Return the expected value of the draw with the highest reward among n, for each prompt.

    The same array twice gives the best of n. The gateway breaks a tie by position, and draws have no particular order:
    over all orders each tied draw is picked equally often, so their mean counts.

    Args:
        select_rewards_PM: Rewards by which a draw is picked.
        values_PM: Values of the picked draw (a judge's reward, a length), in the same places.
        ns: Numbers of draws to pick from, each at most M.

    Returns:
        Shape (P, K).
    """
    if select_rewards_PM.shape != values_PM.shape:
        raise ValueError(f"{select_rewards_PM.size} rewards but {values_PM.size} values")
    prompts, draws = select_rewards_PM.shape
    weights_MK: Floats = np.array([rank_weights(draws, n) for n in ns]).T
    if select_rewards_PM is values_PM:  # tied draws are equal: nothing to average
        return np.sort(values_PM) @ weights_MK
    order_PM = np.argsort(select_rewards_PM)
    select_PM = np.take_along_axis(select_rewards_PM, order_PM, axis=1)
    rises_PM = np.ones((prompts, draws), dtype=np.int64)
    rises_PM[:, 1:] = select_PM[:, 1:] != select_PM[:, :-1]
    group = np.cumsum(rises_PM) - 1
    sums = np.bincount(group, weights=np.take_along_axis(values_PM, order_PM, axis=1).ravel())
    return (sums / np.bincount(group))[group].reshape(prompts, draws) @ weights_MK


def within_prompt_sd(rewards_PM: Floats) -> float:
    """Return the pooled within-prompt standard deviation: the root of the mean of each prompt's unbiased variance."""
    return float(np.sqrt(rewards_PM.var(axis=1, ddof=1).mean()))


def within_prompt_correlation(first_PM: Floats, second_PM: Floats) -> float:
    """Return the correlation of two rewards of the same draws, less each prompt's mean; 0 where one never varies."""
    first, second = ((rewards - rewards.mean(axis=1, keepdims=True)).ravel() for rewards in (first_PM, second_PM))
    norm = float(np.sqrt((first @ first) * (second @ second)))
    return float(first @ second) / norm if norm else 0.0
