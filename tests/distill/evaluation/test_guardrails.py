"""Each guardrail holds up to its bound and fails beyond it."""

from dataclasses import replace

import numpy as np
import pytest

from distill.evaluation.curve import Floats
from distill.evaluation.guardrails import Bounds, Comparison, Guardrail, check_judge
from distill.evaluation.resample import Bootstrap
from distill.evaluation.scored import ScoredSamples, TextStatistics
from gateway.expected_max import expected_max

PROMPTS, DRAWS = 80, 4


def scored(
    rewards_PM: Floats,
    texts: TextStatistics | None = None,
    *,
    judge_PM: Floats | None = None,
    temperature: float = 1.0,
) -> ScoredSamples:
    return ScoredSamples("a policy", temperature, rewards_PM, texts, judge_PM)


INDEX = np.arange(PROMPTS)
REWARDS = np.random.default_rng(0).standard_normal((PROMPTS, DRAWS))


def constant(value: float) -> Floats:
    return np.full((PROMPTS, DRAWS), value)


def answers(
    *,
    tokens: float = 100,
    truncated: float = 0.1,
    repetition: float = 0.05,
    distinct: float = 1.0,
    bigrams: float = 0.8,
) -> TextStatistics:
    return TextStatistics(
        tokens_PM=constant(tokens),
        truncated_PM=constant(truncated),
        repetition_PM=constant(repetition),
        distinct_P=np.full(PROMPTS, distinct),
        distinct_bigrams_P=np.full(PROMPTS, bigrams),
    )


def check(old: TextStatistics | None, new: TextStatistics | None, bounds: Bounds | None = None) -> dict[str, Guardrail]:
    comparison = Comparison(scored(REWARDS, old), 4, scored(REWARDS, new), 2, INDEX, Bootstrap(PROMPTS))
    return {guardrail.name: guardrail for guardrail in comparison.check(bounds or Bounds())}


def test_the_same_answers_pass_every_guardrail() -> None:
    guardrails = check(answers(), answers())
    names = ["length", "truncation", "repetition", "distinct answers", "distinct word pairs"]
    assert names == list(guardrails)
    assert all(guardrail.passed for guardrail in guardrails.values())


@pytest.mark.parametrize(
    ("changed", "broken"),
    [
        (answers(tokens=114), None),
        (answers(tokens=86), None),
        (answers(tokens=116), "length"),
        (answers(tokens=84), "length"),
        (answers(truncated=0.12), None),
        (answers(truncated=0.14), "truncation"),
        (answers(truncated=0.0), None),
        (answers(repetition=0.07), None),
        (answers(repetition=0.09), "repetition"),
        (answers(distinct=0.61), None),
        (answers(distinct=0.59), "distinct answers"),
        (answers(bigrams=0.47), "distinct word pairs"),
    ],
)
def test_a_guardrail_fails_exactly_beyond_its_bound(changed: TextStatistics, broken: str | None) -> None:
    guardrails = check(answers(), changed)
    assert ([broken] if broken else []) == [guardrail.name for guardrail in guardrails.values() if not guardrail.passed]


@pytest.mark.parametrize(("mean_rise", "passed"), [(0.029, True), (0.031, False)])
@pytest.mark.parametrize("name", ["truncation", "repetition"])
def test_a_rise_is_compared_by_its_mean_not_by_its_interval(name: str, mean_rise: float, passed: bool) -> None:
    """Few conversations leave a wide interval: its lower end would let a real rise through."""
    rise_P1 = np.where(INDEX % 2 == 0, mean_rise + 0.2, mean_rise - 0.2)[:, None]
    field = {"truncation": "truncated_PM", "repetition": "repetition_PM"}[name]
    risen = replace(answers(), **{field: constant(0.5) + rise_P1})
    guardrail = check(answers(truncated=0.5, repetition=0.5), risen)[name]
    assert guardrail.low < 0.03 < guardrail.high
    assert passed == guardrail.passed


@pytest.mark.parametrize(
    ("tokens", "passed"), [(159, True), (160, True), (161, False), (97, True), (96, True), (95, False)]
)
def test_the_length_may_change_by_the_bound_and_no_more(tokens: float, passed: bool) -> None:
    assert passed == check(answers(tokens=128), answers(tokens=tokens), Bounds(max_length_change=0.25))["length"].passed


@pytest.mark.parametrize(("now", "passed"), [(0.374, True), (0.375, True), (0.376, False)])
@pytest.mark.parametrize("name", ["truncation", "repetition"])
def test_a_share_may_rise_by_the_bound_and_no_more(name: str, now: float, passed: bool) -> None:
    field = {"truncation": "truncated", "repetition": "repetition"}[name]
    guardrail = check(answers(**{field: 0.25}), answers(**{field: now}), Bounds(max_rise=0.125))[name]
    assert passed == guardrail.passed
    assert [pytest.approx(now - 0.25)] * 3 == [guardrail.value, guardrail.low, guardrail.high]
    assert 0.125 == guardrail.bound
    assert f": 25.0% → {now:.1%} (at most +12.5% allowed)" in guardrail.why


@pytest.mark.parametrize(("now", "passed"), [(0.49, False), (0.5, True), (0.51, True)])
@pytest.mark.parametrize("name", ["distinct answers", "distinct word pairs"])
def test_diversity_may_fall_to_the_bound_and_no_further(name: str, now: float, passed: bool) -> None:
    field = {"distinct answers": "distinct", "distinct word pairs": "bigrams"}[name]
    old, new = ({field: value} for value in (1.0, now))
    guardrail = check(answers(**old), answers(**new), Bounds(min_diversity=0.5))[name]
    assert passed == guardrail.passed
    assert [pytest.approx(now)] * 3 == [guardrail.value, guardrail.low, guardrail.high]
    assert 0.5 == guardrail.bound
    assert f"{name} of one prompt: 1.00 → {now:.2f} ({now:.0%} of before; at least 50% required)" == guardrail.why


def test_a_ratio_has_the_interval_of_its_resamples() -> None:
    """Half of the conversations keep all of the diversity, half keep nothing: the mean is a half, the interval wide."""
    new = replace(answers(), distinct_P=np.where(INDEX % 2 == 0, 1.0, 0.0))
    guardrail = check(answers(), new)["distinct answers"]
    assert pytest.approx(0.5) == guardrail.value
    assert pytest.approx((0.39, 0.61), abs=0.02) == (guardrail.low, guardrail.high)


def test_a_bound_can_be_set() -> None:
    assert check(answers(), answers(tokens=130), Bounds(max_length_change=0.4))["length"].passed
    assert not check(answers(), answers(tokens=110), Bounds(max_length_change=0.05))["length"].passed


def test_a_guardrails_text_names_both_values() -> None:
    guardrail = check(answers(), answers(tokens=120))["length"]
    assert "answers are 100 → 120 tokens long (+20.0%; allowed ±15%)" == guardrail.why
    assert pytest.approx((0.2, 0.2, 0.2, 0.15)) == (guardrail.value, guardrail.low, guardrail.high, guardrail.bound)


def test_the_picked_answers_are_compared_not_all_samples() -> None:
    """Only the winner of two grew: the mean of all samples would hide it at N′ = 2."""
    long = replace(answers(), tokens_PM=np.where(REWARDS == REWARDS.max(axis=1, keepdims=True), 200.0, 100.0))
    assert pytest.approx(0.5) == check(answers(), long)["length"].value


def test_without_answers_there_is_no_guardrail() -> None:
    assert {} == check(None, answers()) == check(answers(), None)


def test_a_ratio_of_zero_to_zero_is_no_change() -> None:
    assert check(answers(bigrams=0.0, tokens=0), answers(bigrams=0.0, tokens=0))["distinct word pairs"].passed
    assert not check(answers(tokens=0), answers())["length"].passed


@pytest.mark.parametrize(
    ("before", "now", "ratio"),
    [(0.0, 0.0, 1.0), (0.0, 1.0, float(np.finfo(np.float64).max)), (1.0, 0.0, 0.0), (1.0, 2.0, 2.0)],
)
def test_a_ratio_to_zero_is_a_finite_number(before: float, now: float, ratio: float) -> None:
    guardrail = check(answers(distinct=before), answers(distinct=now))["distinct answers"]
    assert [pytest.approx(ratio)] * 3 == [guardrail.value, guardrail.low, guardrail.high]


def check_the_judge(old: list[ScoredSamples], new: ScoredSamples) -> Guardrail | None:
    return check_judge(old, 4, new, 2, INDEX, Bootstrap(PROMPTS))


def test_the_judge_agrees_if_it_scores_the_new_answers_higher() -> None:
    old = [scored(REWARDS, judge_PM=REWARDS)]
    better, worse = (scored(REWARDS, judge_PM=REWARDS + shift) for shift in (1.0, -1.0))
    for new, passed in ((better, True), (worse, False)):
        guardrail = check_the_judge(old, new)
        assert guardrail is not None
        assert passed == guardrail.passed
        assert guardrail.low < guardrail.value < guardrail.high


def test_the_judge_compares_with_the_temperature_that_it_rates_highest() -> None:
    """Against the serving temperature alone it would agree."""
    old = [scored(REWARDS, judge_PM=REWARDS), scored(REWARDS, judge_PM=REWARDS + 2, temperature=0.5)]
    new = scored(REWARDS, judge_PM=REWARDS + 1)
    alone, both = check_the_judge(old[:1], new), check_the_judge(old, new)
    assert alone is not None
    assert both is not None
    assert (True, False) == (alone.passed, both.passed)


def test_the_judge_rates_the_answers_that_the_selecting_model_picked() -> None:
    """A judge that likes what the serving model rejects sees no gain in best-of-n."""
    guardrail = check_the_judge([scored(REWARDS, judge_PM=-REWARDS)], scored(REWARDS, judge_PM=-REWARDS - 3))
    assert guardrail is not None
    assert not guardrail.passed


def test_without_a_judge_there_is_no_such_guardrail() -> None:
    assert check_the_judge([scored(REWARDS)], scored(REWARDS)) is None
    assert check_the_judge([scored(REWARDS)], scored(REWARDS, judge_PM=REWARDS)) is None


@pytest.mark.parametrize("n_old", [1, 2, 4])
def test_the_judge_compares_best_of_n_prime_with_best_of_n_minus_one(n_old: int) -> None:
    """At N = 1 against one draw. The exact claim, and the difference to the best of N in the reason."""
    new = scored(REWARDS, judge_PM=REWARDS + 0.25)
    guardrail = check_judge([scored(REWARDS, judge_PM=REWARDS)], n_old, new, 2, INDEX, Bootstrap(PROMPTS))
    best = {n: np.mean([expected_max(row, n) for row in REWARDS.tolist()]) for n in (1, 2, 3, 4)}
    assert guardrail is not None
    assert pytest.approx(best[2] + 0.25 - best[max(n_old - 1, 1)]) == guardrail.value
    assert ("judge", 0.0) == (guardrail.name, guardrail.bound)
    assert f"the best of 2 {guardrail.value:+.3f} compared with the old best of {max(n_old - 1, 1)} [" in guardrail.why
    assert f"{best[2] + 0.25 - best[n_old]:+.3f} compared with its best of {n_old} [" in guardrail.why


def test_a_judge_that_sees_no_difference_does_not_agree() -> None:
    zeros = constant(0.0)
    guardrail = check_the_judge([scored(REWARDS, judge_PM=zeros)], scored(REWARDS, judge_PM=zeros))
    assert guardrail is not None
    assert (0.0, False) == (guardrail.value, guardrail.passed)
