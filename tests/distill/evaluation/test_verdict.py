"""The verdict in words, and how many more conversations it asks for."""

from __future__ import annotations

import pytest

from distill.evaluation.curve import Estimate
from distill.evaluation.equivalent import EquivalentN
from distill.evaluation.verdict import Judged, Trial, Verdict, explain


def trial(mean: float, sd: float) -> Trial:
    difference = Estimate(mean, mean - 0.1, mean + 0.1)
    return Trial(3, False, difference, mean, sd, "the old policy", 1.0, 1.5, None, [], 0.5)


def verdict(mean: float, sd: float, conversations: int, threshold: float = 20.0) -> Verdict:
    worth = EquivalentN(1.0, 0.9, 1.1, False)
    judged = Judged("epoch-1", 1.0, None, [trial(mean, sd)], [], 1.0, worth, worth)
    return Verdict(
        promote=False,
        n_now=4,
        n_base=None,
        n_new=4,
        checkpoint=None,
        temperature=None,
        why="",
        more_prompts=None,
        prompts=conversations,
        conversations=conversations,
        alpha=0.05,
        threshold=threshold,
        delta=0.01,
        serving_temperature=1.0,
        control_temperature=1.0,
        serving_curves={},
        candidates=[judged],
    )


@pytest.mark.parametrize(
    ("mean", "sd", "conversations", "threshold", "needed"),
    [
        (0.1, 0.5, 100, 20.0, 94),  # 1.25 · (2.4865 · 5)² = 193.2
        (0.1, 0.5, 180, 20.0, 18),  # a tenth at least: the night that failed may have had a lucky mean
        (0.1, 0.5, 100, 40.0, 146),  # z is 2.8016 at a threshold of 40
        (0.05, 0.5, 100, 20.0, 673),
    ],
)
def test_a_night_that_failed_says_how_many_more_conversations_it_needs(
    mean: float, sd: float, conversations: int, threshold: float, needed: int
) -> None:
    """So many that a night with this mean and spread passes with 80 %, at 1.25 times a fixed-sample test's cost."""
    why, more = explain(verdict(mean, sd, conversations, threshold))
    assert needed == more
    assert f"needs about {needed} more conversations" in why


@pytest.mark.parametrize("mean", [0.0, -0.1])
def test_a_mean_that_is_not_above_zero_asks_for_no_number(mean: float) -> None:
    assert explain(verdict(mean, 0.5, 100))[1] is None
