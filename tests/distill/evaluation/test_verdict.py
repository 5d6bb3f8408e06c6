"""The verdict's sentences, and how many more conversations it asks for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distill.evaluation.curve import Estimate
from distill.evaluation.equivalent import EquivalentN
from distill.evaluation.guardrails import Guardrail
from distill.evaluation.verdict import CheckpointResult, NonInferiorityTest, Verdict, explain


def a_test(mean: float, sd: float) -> NonInferiorityTest:
    difference = Estimate(mean, mean - 0.1, mean + 0.1)
    return NonInferiorityTest(3, False, difference, mean, sd, "the old policy", 1.0, 1.5, None, [], 0.5)


def verdict(mean: float, sd: float, conversations: int, threshold: float = 20.0) -> Verdict:
    worth = EquivalentN(1.0, 0.9, 1.1, False)
    result = CheckpointResult("epoch-1", 1.0, None, [a_test(mean, sd)], [], 1.0, worth, worth)
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
        candidates=[result],
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
def test_a_failed_night_names_the_conversations_that_it_needs(
    mean: float, sd: float, conversations: int, threshold: float, needed: int
) -> None:
    """So many that a night with this mean and spread passes with 80 %, at 1.25 times a fixed-sample test's cost."""
    why, more = explain(verdict(mean, sd, conversations, threshold))
    assert needed == more
    assert f"not enough evidence, about {needed} more conversations are needed" in why


@pytest.mark.parametrize("mean", [0.0, -0.1])
def test_a_mean_that_is_not_above_zero_needs_no_number(mean: float) -> None:
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
def test_a_mean_two_standard_errors_below_zero_has_no_prospect(mean: float, hope: str) -> None:
    """0.5 over 100 conversations is a standard error of 0.05."""
    assert explain(verdict(mean, 0.5, 100))[0].endswith(f"on this evidence it is no better, {hope}")


def test_the_reason_names_the_most_promising_checkpoint() -> None:
    first = verdict(0.1, 0.5, 100)
    (result,) = first.candidates
    worse = replace(result, checkpoint="epoch-2", tests=[a_test(0.05, 0.5), a_test(9.0, 0.5)])
    why, _ = explain(replace(first, candidates=[worse, result, worse]))
    assert why == (
        "N stays 4: the best of 3 of epoch-1 scores +0.1000 compared with the old policy (one sample is worth 0.0100): "
        "not enough evidence, about 94 more conversations are needed"
    )


@pytest.mark.parametrize(
    ("n_now", "n_base", "n_new", "what", "beaten"),
    [
        (4, None, 3, "N falls from 4 to 3: the best of 3", "3"),
        (2, 8, 1, "N falls from 2 to 1: the best of 1", "1 and the base's best of 7"),
        (1, 1, 1, "N stays 1, with the new policy: the best of 1", "1 and the base's best of 1"),
        (1, 2, 1, "N stays 1, with the new policy: the best of 1", "1 and the base's best of 1"),
    ],
)
def test_a_promotions_reason_names_the_beaten_controls_and_the_conversations_it_took(
    n_now: int, n_base: int | None, n_new: int, what: str, beaten: str
) -> None:
    passed = replace(a_test(0.1, 0.5), n=n_new, passed=True, highest_wealth=60.25, crossed_at=70)
    first = verdict(0.1, 0.5, 100)
    result = replace(first.candidates[0], tests=[replace(passed, n=5, crossed_at=1), passed], chosen=n_new)
    others = [replace(result, checkpoint="epoch-2"), replace(result, temperature=0.5)]
    facts = replace(
        first, promote=True, n_now=n_now, n_base=n_base, n_new=n_new, checkpoint="epoch-1", temperature=1.0,
        threshold=20.0, candidates=[*(replace(each, tests=[]) for each in others), result],
    )  # fmt: skip
    assert explain(facts) == (
        f"{what} of epoch-1 beats the old policy's best of {beaten} at every temperature "
        "(evidence 60.2 of 20 needed, reached after 70 of 100 conversations)",
        None,
    )


def test_the_reason_names_failed_guardrails_at_the_largest_n_whose_guardrails_were_checked() -> None:
    def guardrail(why: str, *, passed: bool) -> Guardrail:
        return Guardrail("length", 0.2, 0.1, 0.3, 0.15, passed, why)

    first = verdict(0.1, 0.5, 100)
    guardrails = (guardrail("fine", passed=True), guardrail("too long", passed=False), guardrail("cut", passed=False))
    tests = [
        a_test(0.1, 0.5),
        replace(a_test(0.1, 0.5), n=2, guardrails=guardrails),
        replace(a_test(0.1, 0.5), n=1, guardrails=guardrails[:2]),
    ]
    why = explain(replace(first, candidates=[replace(first.candidates[0], tests=tests)]))
    assert why == ("N stays 4: epoch-1 keeps the reward at N = 2, but too long; cut", None)


def test_the_summary_has_no_numbers_but_n_and_the_prompts_needed() -> None:
    first = verdict(0.1, 0.5, 100)
    assert first.summary == "N stays 4: on this evidence the new policy is no better"
    more = replace(first, more_prompts=1240)
    assert more.summary == "N stays 4: not enough evidence yet, about 1,240 more prompts would settle it"
    fallen = replace(first, promote=True, n_new=2)
    assert fallen.summary == "N falls from 4 to 2: the best of 2 new samples beats the best of 3 old ones"
    same = replace(first, promote=True, n_now=1, n_new=1)
    assert same.summary == "N stays 1, with the new policy: the best of 1 new samples beats the best of 1 old ones"


def test_the_summary_names_failed_guardrails() -> None:
    first = verdict(0.1, 0.5, 100)
    guardrails = tuple(
        Guardrail(name, 0.2, 0.1, 0.3, 0.15, passed, "")
        for name, passed in (("length", False), ("repetition", True), ("judge", False))
    )
    tests = [a_test(0.1, 0.5), replace(a_test(0.1, 0.5), n=2, guardrails=guardrails)]
    failed = replace(first, more_prompts=3, candidates=[replace(first.candidates[0], tests=tests)])
    expected = "N stays 4: 2 samples would keep the reward, but guardrails fail: length, held-out reward model"
    assert expected == failed.summary


def test_the_best_checkpoint_is_the_chosen_one_or_else_the_nearest() -> None:
    first = verdict(0.1, 0.5, 100)
    (near,) = first.candidates
    far = replace(near, checkpoint="epoch-2", tests=[a_test(0.0, 0.5)])
    warm = replace(near, temperature=1.5, tests=[a_test(-0.1, 0.5)])
    several = replace(first, candidates=[far, near, warm])
    assert near == several.best
    chosen = replace(several, promote=True, checkpoint="epoch-1", temperature=1.5)
    assert warm == chosen.best
