"""The gate's verdicts on rewards whose truth is known."""

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from distill.errors import DataError
from distill.evaluation import eprocess
from distill.evaluation.curve import Floats
from distill.evaluation.gate import Baseline, QuantileMap, Rules, decide
from distill.evaluation.scored import ScoredSamples, TextStatistics
from distill.evaluation.verdict import Verdict
from gateway.expected_max import expected_max

PROMPTS, DRAWS = 250, 8
RULES = Rules(resamples=200)


def rewards(mean: float, *, sd: float = 1.0, seed: int, prompts: int = PROMPTS, draws: int = DRAWS) -> Floats:
    """Gaussian draws on prompts that differ; the same prompts for every seed."""
    level_P1 = np.random.default_rng(99).standard_normal((prompts, 1))
    return level_P1 + np.random.default_rng(seed).normal(mean, sd, (prompts, draws))


def old(rewards_PM: Floats, temperature: float = 1.0) -> ScoredSamples:
    return ScoredSamples("old", temperature, rewards_PM)


SERVING = [old(rewards(0.0, seed=0))]


def candidate(mean: float, *, seed: int = 1, name: str = "step-10", sd: float = 1.0) -> ScoredSamples:
    return ScoredSamples(name, 1.0, rewards(mean, seed=seed, sd=sd))


def gate(*candidates: ScoredSamples, serving: list[ScoredSamples] | None = None, n_now: int = 8) -> Verdict:
    return decide(serving or SERVING, 1.0, candidates, n_now=n_now, rules=RULES)


def test_a_policy_that_is_far_better_shrinks_n_to_one() -> None:
    verdict = gate(candidate(3.0))
    assert (True, 8, 1, "step-10", 1.0) == (
        verdict.promote, verdict.n_now, verdict.n_new, verdict.checkpoint, verdict.temperature
    )  # fmt: skip
    assert "N falls from 8 to 1: the best of 1 of step-10 beats the old policy's best of 7" in verdict.why
    assert verdict.more_prompts is None


def test_a_policy_that_is_somewhat_better_shrinks_n_as_far_as_its_rewards_reach() -> None:
    """+.86 SD is equality at N′ = 2; +1.1 is clearly above best of 7 at 2, and below it at 1."""
    verdict = gate(candidate(1.1))
    assert (True, 2) == (verdict.promote, verdict.n_new)
    passed = {test.n: test.passed for test in verdict.candidates[0].tests}
    assert {7: True, 6: True, 5: True, 4: True, 3: True, 2: True, 1: False} == passed


def test_the_same_policy_is_not_promoted_and_the_reason_says_so() -> None:
    verdict = gate(candidate(0.0))
    assert (False, 8, None) == (verdict.promote, verdict.n_new, verdict.checkpoint)
    assert verdict.why.startswith("N stays 8: the best of 7 of step-10 scores")


def test_for_a_worse_policy_the_reason_says_that_more_prompts_would_not_help() -> None:
    verdict = gate(candidate(-0.5))
    assert verdict.more_prompts is None
    assert verdict.why.endswith("on this evidence it is no better, and more prompts of this kind would not change that")


def test_a_mean_below_zero_on_few_prompts_may_be_chance() -> None:
    few = slice(0, 20)
    before, new = (replace(each, rewards_PM=each.rewards_PM[few]) for each in (*SERVING, candidate(-0.25, seed=4)))
    verdict = gate(new, serving=[before])
    assert verdict.candidates[0].tests[0].gain_mean < 0
    assert verdict.why.endswith("but 20 conversations are too few to rule out that it is")


def test_for_a_slightly_better_policy_the_reason_names_the_prompts_it_needs() -> None:
    verdict = gate(candidate(0.07, seed=2))
    assert not verdict.promote
    assert verdict.more_prompts is not None
    assert 25 <= verdict.more_prompts < 20_000
    assert f"about {verdict.more_prompts} more conversations are needed" in verdict.why


def test_the_promised_number_of_prompts_is_enough_if_they_are_like_those_measured() -> None:
    verdict = gate(candidate(0.07, seed=2))
    assert verdict.more_prompts is not None
    rows = np.random.default_rng(0).permutation(np.arange(PROMPTS + verdict.more_prompts) % PROMPTS)
    more = ScoredSamples("step-10", 1.0, candidate(0.07, seed=2).rewards_PM[rows])
    assert gate(more, serving=[old(SERVING[0].rewards_PM[rows])]).promote


def test_the_old_policy_is_compared_at_its_best_temperature() -> None:
    """Against temperature 1 alone N would fall; the old policy at .5 is as good as the new one."""
    new = candidate(1.0, sd=0.7)
    assert gate(new).promote
    verdict = gate(new, serving=[*SERVING, old(rewards(1.0, sd=0.7, seed=7), 0.5)])
    assert not verdict.promote
    assert (1.0, 0.5) == (verdict.serving_temperature, verdict.control_temperature)
    assert {"the old policy's best of 7 at temperature 0.5"} == {test.against for test in verdict.candidates[0].tests}
    (result,) = verdict.candidates
    assert result.worth_at_best.value < 1.3 < 2 < result.worth_at_serving.value


def test_every_temperature_must_be_beaten() -> None:
    """Two temperatures that look alike: evidence against both is required, so never less than against one."""
    new, twin = candidate(0.25, seed=3), old(rewards(0.0, seed=8), 0.7)
    alone, both = gate(new), gate(new, serving=[*SERVING, twin])
    for one, two in zip(alone.candidates[0].tests, both.candidates[0].tests, strict=True):
        assert (two.crossed_at or math.inf) >= (one.crossed_at or math.inf)
        assert two.passed <= one.passed


def test_n_prime_is_tested_downwards_and_nothing_passes_after_a_failure() -> None:
    for mean in (0.2, 0.5, 0.9):
        passed = [test.passed for test in gate(candidate(mean)).candidates[0].tests]
        assert sorted(passed, reverse=True) == passed


def test_a_smaller_n_does_not_pass_after_a_larger_one_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rare, since the best of more is never lower; the fixed sequence does not rely on that."""
    crossings = iter([None, 5])
    monkeypatch.setattr(eprocess, "run", lambda x, **_: eprocess.Process(np.ones(len(x)), next(crossings)))
    verdict = gate(candidate(0.0), n_now=3)
    tests = verdict.candidates[0].tests
    assert [(2, None, False), (1, 5, False)] == [(test.n, test.crossed_at, test.passed) for test in tests]
    assert not verdict.promote


def test_several_checkpoints_share_the_level_and_the_best_is_named() -> None:
    verdict = gate(
        candidate(0.0, name="step-10"), candidate(1.2, seed=2, name="step-20"), candidate(0.4, seed=3, name="x")
    )
    assert "step-20" == verdict.checkpoint
    assert pytest.approx(3 / RULES.alpha) == verdict.threshold
    assert ["step-10", "step-20", "x"] == [each.checkpoint for each in verdict.candidates]


def test_between_equal_n_the_larger_difference_wins() -> None:
    verdict = gate(candidate(3.0, name="good"), candidate(4.0, seed=2, name="better"))
    assert (1, "better") == (verdict.n_new, verdict.checkpoint)


def test_at_n_one_only_a_better_policy_replaces_the_old() -> None:
    better, same = gate(candidate(1.0), n_now=1), gate(candidate(0.0), n_now=1)
    assert (True, 1, "step-10", 0.0) == (better.promote, better.n_new, better.checkpoint, better.delta)
    assert better.why.startswith("N stays 1, with the new policy: the best of 1 of step-10 beats")
    assert (False, 1) == (same.promote, same.n_new)


def test_at_n_two_one_draw_is_compared_with_one_draw() -> None:
    (test,) = gate(candidate(1.0), n_now=2).candidates[0].tests
    assert (1, True) == (test.n, test.passed)


def test_prompts_of_one_conversation_count_as_one_observation() -> None:
    """The same 40 prompts five times over are no more than 40."""
    few = [old(rewards(0.0, seed=0, prompts=40))]
    new = ScoredSamples("step-10", 1.0, rewards(0.3, seed=1, prompts=40))
    many = [old(np.tile(few[0].rewards_PM, (5, 1)))]
    again = ScoredSamples("step-10", 1.0, np.tile(new.rewards_PM, (5, 1)))
    names = [str(place % 40) for place in range(200)]
    once = decide(few, 1.0, [new], n_now=8, rules=RULES)
    five = decide(many, 1.0, [again], n_now=8, rules=RULES, conversations=names)
    assert (200, 40) == (five.prompts, five.conversations)
    for one, other in zip(once.candidates[0].tests, five.candidates[0].tests, strict=True):
        assert pytest.approx(one.path) == other.path


def answered(tokens: float) -> TextStatistics:
    ones = np.ones((PROMPTS, DRAWS))
    return TextStatistics(ones * tokens, ones * 0, ones * 0, ones[:, 0], ones[:, 0])


def test_a_failed_guardrail_keeps_n_and_is_the_reason() -> None:
    serving = [replace(SERVING[0], texts=answered(100))]
    new = candidate(3.0)
    longer = replace(new, texts=answered(150))
    verdict = gate(longer, serving=serving)
    assert (False, None) == (verdict.promote, verdict.candidates[0].chosen)
    assert "keeps the reward at N = 7, but answers are 100 → 150 tokens long" in verdict.why
    assert all(test.guardrails for test in verdict.candidates[0].tests if test.passed)


def test_if_a_guardrail_fails_at_the_smallest_n_the_next_larger_n_is_chosen() -> None:
    """The judge likes winners of two and more; single draws it finds worse than before."""
    judge_old = np.zeros((PROMPTS, DRAWS))
    new = candidate(3.0)
    ranks = new.rewards_PM.argsort(axis=1).argsort(axis=1)
    judge_new = np.where(ranks == 0, -10.0, 1.0)
    serving = [replace(SERVING[0], judge_PM=judge_old)]
    verdict = gate(replace(new, judge_PM=judge_new), serving=serving)
    assert (True, 2) == (verdict.promote, verdict.n_new)
    guardrails = {test.n: [guardrail.passed for guardrail in test.guardrails] for test in verdict.candidates[0].tests}
    assert ([False], [True], []) == (guardrails[1], guardrails[2], guardrails[3])


def test_the_numbers_in_the_verdict_follow_their_definitions() -> None:
    new = candidate(0.5)
    verdict = gate(new)
    to_unit = QuantileMap(SERVING[0].rewards_PM)
    before, fresh = to_unit(SERVING[0].rewards_PM), to_unit(new.rewards_PM)
    best = {n: np.mean([expected_max(row, n) for row in before.tolist()]) for n in (7, 8)}
    assert pytest.approx(best[8] - best[7]) == verdict.delta
    for test in verdict.candidates[0].tests:
        mean = np.mean([expected_max(row, test.n) for row in fresh.tolist()])
        assert pytest.approx(mean - best[8]) == test.difference.mean
        assert pytest.approx(test.difference.mean + verdict.delta) == test.gain_mean
        assert test.difference.low < test.difference.mean < test.difference.high
        assert pytest.approx(test.wealth) == test.path[-1]
    assert pytest.approx(1.0, abs=0.05) == verdict.candidates[0].sd_ratio
    assert pytest.approx(0.0, abs=1e-9) == verdict.serving_curves["1"][0].mean
    assert list(range(1, 9)) == [point.n for point in verdict.candidates[0].curve]


@settings(max_examples=30, deadline=None)
@given(arrays(np.float64, (6, 4), elements=st.floats(-1e3, 1e3)), st.floats(0.1, 10), st.floats(-5, 5))
def test_the_scale_of_the_reward_model_does_not_matter(values: Floats, factor: float, offset: float) -> None:
    """Ranks, so gate and evidence, are the same under any rising map of the rewards."""
    values = np.round(values)  # apart enough that rounding errors make no new ties
    expected = QuantileMap(values)(values)
    assert expected.tolist() == QuantileMap(values * factor + offset)(values * factor + offset).tolist()
    assert 0 <= expected.min() <= expected.max() <= 1


def test_mid_ranks_split_ties() -> None:
    to_unit = QuantileMap(np.array([[1.0, 2.0], [2.0, 3.0]]))
    assert [0.0, 0.125, 0.5, 0.875, 1.0] == to_unit(np.array([0.0, 1.0, 2.0, 3.0, 4.0])).tolist()


def test_a_look_at_the_first_conversations_gives_the_start_of_the_path() -> None:
    serving, new = rewards(0.0, seed=0), rewards(0.3, seed=1)
    whole = decide([old(serving)], 1.0, [ScoredSamples("a", 1.0, new)], n_now=8, rules=RULES)
    part = decide(
        [old(serving[:100])], 1.0, [ScoredSamples("a", 1.0, new[:100])],
        n_now=8, planned=PROMPTS, rules=RULES,
    )  # fmt: skip
    # The ranks are among the draws seen so far, so the paths are close, not equal.
    first = whole.candidates[0].tests[0].path[:100]
    assert pytest.approx(np.log(first), abs=0.3) == np.log(part.candidates[0].tests[0].path)


def test_a_verdict_is_json() -> None:
    facts = json.loads(json.dumps(asdict(gate(candidate(0.5))), allow_nan=False))
    assert {"promote", "n_new", "why", "candidates", "serving_curves", "delta"} <= facts.keys()


def test_one_prompt_is_not_evidence() -> None:
    serving = [old(np.arange(8.0)[None])]
    verdict = decide(serving, 1.0, [ScoredSamples("a", 1.0, np.full((1, 8), 9.0))], n_now=8, rules=RULES)
    assert (False, 1) == (verdict.promote, verdict.conversations)


def test_one_side_may_have_more_draws_than_the_other() -> None:
    serving = [old(rewards(0.0, seed=0, draws=12))]
    assert 8 == len(decide(serving, 1.0, [candidate(0.0)], n_now=8, rules=RULES).serving_curves["1"])
    with pytest.raises(DataError, match="6 samples of each prompt; at least 7"):
        gate(ScoredSamples("short", 1.0, rewards(0.0, seed=1, draws=6)))
    assert not gate(ScoredSamples("seven", 1.0, rewards(0.0, seed=1, draws=7))).promote


@pytest.mark.parametrize(
    ("serving", "candidates", "n_now", "message"),
    [
        (SERVING, [], 8, "no checkpoint"),
        (SERVING, [candidate(0.0)], 0, "N = 0 is not a number of candidates"),
        (SERVING, [candidate(0.0)], 9, "temperature 1: 8 samples of each prompt; at least 9"),
        ([replace(SERVING[0], temperature=0.5)], [candidate(0.0)], 8, "no samples at the serving temperature 1"),
        ([old(np.empty((0, 8)))], [candidate(0.0)], 8, "no held-out prompts"),
        ([old(np.ones((PROMPTS, DRAWS)))], [candidate(0.0)], 8, "same reward"),
        (SERVING, [ScoredSamples("nan", 1.0, np.full((PROMPTS, 8), np.nan))], 8, "checkpoint nan: 2000 rewards"),
        (SERVING, [ScoredSamples("few", 1.0, np.ones((3, 8)))], 8, "there are 250 prompts"),
        ([old(rewards(0.0, seed=0, draws=1))], [candidate(0.0)], 1, "temperature 1: 1 samples .* at least 2 are"),
        (SERVING, [ScoredSamples("one", 1.0, rewards(0.0, seed=1, draws=1))], 1, "one: 1 samples .* at least 2 are"),
        (SERVING, [ScoredSamples("one", 1.0, rewards(0.0, seed=1, draws=1))], 3, "one: 1 samples .* at least 2 are"),
        (SERVING, [ScoredSamples("two", 1.0, rewards(0.0, seed=1, draws=2))], 4, "two: 2 samples .* at least 3 are"),
    ],
)
def test_bad_input_is_refused_with_its_reason(
    serving: list[ScoredSamples], candidates: list[ScoredSamples], n_now: int, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        decide(serving, 1.0, candidates, n_now=n_now, rules=RULES)


def test_the_quality_of_the_base_before_the_first_night_is_kept() -> None:
    """The serving policy lost quality on the way; the new one beats it at N = 2, and is still short of the base's 7."""
    serving = [old(rewards(-0.5, seed=0))]
    base = Baseline(8, [old(rewards(0.0, seed=5)), old(rewards(-0.3, seed=6), 0.5)])
    new = candidate(0.2)
    assert gate(new, serving=serving, n_now=2).promote
    verdict = decide(serving, 1.0, [new], n_now=2, baseline=base, rules=RULES)
    assert (False, 8) == (verdict.promote, verdict.n_base)
    assert "compared with the base's best of 7 at temperature 1, which every night must keep (" in verdict.why
    far = decide(serving, 1.0, [candidate(3.0)], n_now=2, baseline=base, rules=RULES)
    assert "beats the old policy's best of 1 and the base's best of 7 at every temperature (" in far.why


def test_one_draw_is_worth_more_draws_of_the_base_than_of_the_serving_adapter() -> None:
    """One draw at +1.0 SD; the adapter serves at +.5 (k* near 1.8), the base's best temperature is its 1.0 at 0."""
    serving = [old(rewards(0.5, seed=0))]
    base = Baseline(8, [old(rewards(0.0, seed=5)), old(rewards(-0.3, seed=6), 0.5)])
    (result,) = decide(serving, 1.0, [candidate(1.0)], n_now=4, baseline=base, rules=RULES).candidates
    of_base = result.worth_at_base
    assert of_base is not None
    straight = gate(candidate(1.0), serving=[base.samples[0]]).candidates[0].worth_at_best
    assert pytest.approx(straight.value, rel=1e-6) == of_base.value
    assert (True, False) == (of_base.low < of_base.value < of_base.high, of_base.beyond)
    assert result.worth_at_best.value < of_base.value
    assert gate(candidate(1.0)).candidates[0].worth_at_base is None


def test_a_baseline_with_too_few_draws_is_refused() -> None:
    few = Baseline(8, [old(rewards(0.0, seed=5, draws=4))])
    with pytest.raises(DataError, match="the base at temperature 1: 4 samples of each prompt; at least 7 are needed"):
        decide(SERVING, 1.0, [candidate(1.0)], n_now=8, baseline=few, rules=RULES)


def test_the_rules_set_the_seed_and_the_size_of_the_bootstrap() -> None:
    """Its seed and its size move the intervals, and nothing else."""
    new = candidate(0.5)
    tests = [
        decide(SERVING, 1.0, [new], n_now=8, rules=Rules(resamples=resamples, seed=seed)).candidates[0].tests[0]
        for resamples, seed in ((200, 0), (200, 0), (200, 1), (201, 0))
    ]
    first, again, other_seed, other_size = (test.difference for test in tests)
    assert first == again
    assert 3 == len({first.low, other_seed.low, other_size.low})
    assert {first.mean} == {other_seed.mean, other_size.mean}


@pytest.mark.parametrize(("conversations", "has_spread"), [(1, False), (2, True), (3, True)])
def test_two_conversations_have_a_spread(conversations: int, has_spread: bool) -> None:
    serving, new = rewards(0.0, seed=0, prompts=conversations), rewards(0.5, seed=1, prompts=conversations)
    verdict = decide([old(serving)], 1.0, [ScoredSamples("a", 1.0, new)], n_now=8, rules=RULES)
    assert has_spread == (verdict.candidates[0].tests[0].gain_sd > 0)


@pytest.mark.parametrize(
    ("n", "draws", "least"), [(1, 1, 2), (2, 1, 2), (3, 1, 2), (4, 2, 3), (1, 2, 0), (3, 2, 0), (4, 3, 0)]
)
def test_a_baseline_needs_one_draw_less_than_its_n_and_two_at_least(n: int, draws: int, least: int) -> None:
    """``least`` is 0 where the draws suffice."""
    base = Baseline(n, [old(rewards(0.0, seed=5, draws=draws), 0.5)])
    if least:
        message = f"the base at temperature 0.5: {draws} samples of each prompt; at least {least} are needed"
        with pytest.raises(DataError, match=message):
            decide(SERVING, 1.0, [candidate(1.0)], n_now=8, baseline=base, rules=RULES)
    else:
        assert n == decide(SERVING, 1.0, [candidate(1.0)], n_now=8, baseline=base, rules=RULES).n_base


@pytest.mark.parametrize(("n_now", "draws"), [(1, 2), (2, 2), (3, 2), (4, 3)])
def test_a_checkpoint_needs_one_draw_less_than_n_and_two_at_least(n_now: int, draws: int) -> None:
    new = ScoredSamples("few", 1.0, rewards(0.0, seed=1, draws=draws))
    assert n_now == gate(new, serving=[old(rewards(0.0, seed=0, draws=max(n_now, 2)))], n_now=n_now).n_now
