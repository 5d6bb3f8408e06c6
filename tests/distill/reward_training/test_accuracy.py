"""Accuracies of the reward model."""

from __future__ import annotations

import pytest

from distill.reward_training.accuracy import (
    ScoredPair,
    by_length,
    human_report,
    length_balanced,
    robustness_report,
    wilson,
)
from distill.reward_training.preferences import Group, Preference


def judged(prompt: str, *, longer_is_better: bool, right: bool, source: str = "s") -> ScoredPair:
    texts = ("a longer answer", "short") if longer_is_better else ("short", "a longer answer")
    return ScoredPair(Preference((("user", prompt),), *texts, source, "l"), 1.0 if right else 0.0, 0.5)


def test_a_model_that_rewards_length_has_one_half_for_any_mix() -> None:
    items = [judged(f"a{i}", longer_is_better=True, right=True) for i in range(30)]
    items += [judged(f"b{i}", longer_is_better=False, right=False) for i in range(10)]
    share = length_balanced(items)
    assert share.value == 0.5
    assert share.n == 40


def test_length_balanced_accuracy_is_the_mean_of_both_sides() -> None:
    items = [judged(f"a{i}", longer_is_better=True, right=i < 9) for i in range(10)]
    items += [judged(f"b{i}", longer_is_better=False, right=i < 2) for i in range(4)]
    assert length_balanced(items).value == pytest.approx((0.9 + 0.5) / 2)
    assert by_length(items)["longer"].value == pytest.approx(0.9)
    assert by_length(items)["shorter"].value == pytest.approx(0.5)


def test_the_interval_holds_the_value_and_is_wider_when_pairs_share_prompts() -> None:
    apart = [judged(f"{side}{i}", longer_is_better=side, right=i % 3 > 0) for side in (True, False) for i in range(60)]
    shared = [
        judged(str(i // 6), longer_is_better=side, right=(i // 6) % 3 > 0) for side in (True, False) for i in range(60)
    ]
    wide, narrow = length_balanced(shared), length_balanced(apart)
    assert narrow.low < narrow.value < narrow.high
    assert wide.high - wide.low > narrow.high - narrow.low


def test_a_tie_is_half_right() -> None:
    item = ScoredPair(Preference((("user", "q"),), "a", "b", "s", "l"), 0.3, 0.3)
    assert item.right == 0.5


def test_wilsons_interval_as_tabulated() -> None:
    """Eight of ten: .490 to .943 in Agresti and Coull 1998."""
    share = wilson(8, 10)
    assert [share.low, share.high] == pytest.approx([0.490, 0.943], abs=1e-3)
    assert wilson(0, 0).n == 0
    assert str(wilson(8, 10)) == "80.0% [49.0%, 94.3%]"


@pytest.mark.parametrize(
    ("right", "n", "interval"),
    [(0, 0, (0.0, 1.0)), (0, 10, (0.0, 0.2775)), (5, 10, (0.2366, 0.7634)), (10, 10, (0.7225, 1.0))],
)
def test_wilsons_interval_stays_between_0_and_1(right: int, n: int, interval: tuple[float, float]) -> None:
    share = wilson(right, n)
    assert pytest.approx(interval, abs=1e-4) == (share.low, share.high)


def test_the_human_report_is_by_source_and_length() -> None:
    items = [judged("a", longer_is_better=True, right=True, source="one")]
    items += [judged("b", longer_is_better=False, right=False, source="two")]
    report = human_report(items)
    assert report["length_balanced"]["value"] == 0.5
    assert report["by_source"]["one"]["all"]["value"] == 1.0
    assert report["by_source"]["two"]["better_is_shorter"]["value"] == 0.0


def test_the_robustness_report_counts_spoiled_answers_below_the_good_one() -> None:
    group = Group((("user", "q"),))
    group.compare("good", "bad", "cut")
    group.compare("good", "worse", "shuffled")
    report = robustness_report([group], [[1.0, 0.5, 1.5]])
    assert report["by_kind"]["cut"]["value"] == 1.0
    assert report["by_kind"]["shuffled"]["value"] == 0.0
    assert report["all"]["value"] == 0.5
