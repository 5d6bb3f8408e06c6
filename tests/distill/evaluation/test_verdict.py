"""The verdict in words, and how many more conversations it asks for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distill.evaluation.curve import Estimate
from distill.evaluation.equivalent import EquivalentN
from distill.evaluation.guards import Guard
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


@pytest.mark.parametrize(
    ("mean", "hope"),
    [
        (-0.12, "and more prompts of this kind would not change that"),
        (-0.1, "and more prompts of this kind would not change that"),
        (-0.09, "but 100 conversations are too few to rule out that it is"),
        (0.0, "but 100 conversations are too few to rule out that it is"),
    ],
)
def test_a_mean_two_standard_errors_below_zero_is_called_hopeless(mean: float, hope: str) -> None:
    """0.5 over 100 conversations is a standard error of 0.05."""
    assert explain(verdict(mean, 0.5, 100))[0].endswith(f"on this evidence it is no better, {hope}")


def test_the_reason_names_the_most_promising_checkpoint() -> None:
    first = verdict(0.1, 0.5, 100)
    (judged,) = first.candidates
    worse = replace(judged, checkpoint="epoch-2", trials=[trial(0.05, 0.5), trial(9.0, 0.5)])
    why, _ = explain(replace(first, candidates=[worse, judged, worse]))
    assert why == (
        "N stays 4: the best of 3 of epoch-1 lies +0.1000 from the old policy (a sample is worth 0.0100): "
        "not enough evidence, needs about 94 more conversations"
    )


@pytest.mark.parametrize(
    ("n_now", "n_base", "n_new", "what", "beaten"),
    [
        (4, None, 3, "N may fall from 4 to 3: the best of 3", "3"),
        (2, 8, 1, "N may fall from 2 to 1: the best of 1", "1 and the base's best of 7"),
        (1, 1, 1, "N stays 1: the best of 1", "1 and the base's best of 1"),
        (1, 2, 1, "N stays 1: the best of 1", "1 and the base's best of 1"),
    ],
)
def test_a_promotion_says_what_was_beaten_and_after_how_many_conversations(
    n_now: int, n_base: int | None, n_new: int, what: str, beaten: str
) -> None:
    passed = replace(trial(0.1, 0.5), n=n_new, passed=True, highest_wealth=60.25, crossed_at=70)
    first = verdict(0.1, 0.5, 100)
    judged = replace(first.candidates[0], trials=[replace(passed, n=5, crossed_at=1), passed], chosen=n_new)
    others = [replace(judged, checkpoint="epoch-2"), replace(judged, temperature=0.5)]
    facts = replace(
        first, promote=True, n_now=n_now, n_base=n_base, n_new=n_new, checkpoint="epoch-1", temperature=1.0,
        threshold=20.0, candidates=[*(replace(each, trials=[]) for each in others), judged],
    )  # fmt: skip
    assert explain(facts) == (
        f"{what} of epoch-1 beats the old policy's best of {beaten} at every temperature drawn "
        "(evidence 60.2, 20 asked, after 70 of 100 conversations)",
        None,
    )


def test_a_broken_guard_is_told_at_the_largest_n_whose_guards_were_asked() -> None:
    def guard(why: str, *, passed: bool) -> Guard:
        return Guard("length", 0.2, 0.1, 0.3, 0.15, passed, why)

    first = verdict(0.1, 0.5, 100)
    guards = (guard("fine", passed=True), guard("too long", passed=False), guard("cut", passed=False))
    trials = [
        trial(0.1, 0.5),
        replace(trial(0.1, 0.5), n=2, guards=guards),
        replace(trial(0.1, 0.5), n=1, guards=guards[:2]),
    ]
    why = explain(replace(first, candidates=[replace(first.candidates[0], trials=trials)]))
    assert why == ("N stays 4: epoch-1 keeps the reward at N = 2, but too long; cut", None)
