"""One model selects and another judges, on known rewards."""

import random
from collections.abc import Sequence
from typing import cast

import numpy as np
import pytest

from distill.errors import DataError
from distill.evaluation.prompts import Prompt
from distill.evaluation.quality import Quality, complete_prompts, measure, score_sets
from distill.evaluation.samples import Sample
from gateway.reward.model import RewardModel
from gateway.types import Message


class CountsLetters:
    """A reward model whose reward is how often a letter stands in the answer; remembers its batches."""

    def __init__(self, letter: str) -> None:
        self.letter = letter
        self.batches: list[list[str]] = []

    def encode(self, messages: Sequence[Message], answer: str) -> str:
        assert ["user"] == [message["role"] for message in messages]
        return answer

    def score(self, batch: Sequence[str]) -> list[float]:
        self.batches.append(list(batch))
        return [float(answer.count(self.letter)) for answer in batch]


def a_sample(prompt: str, temperature: float, index: int, text: str) -> Sample:
    return Sample(Prompt.of_text(prompt, "list"), temperature, index, 0, text, "stop", len(text))


def some_samples(prompts: int = 4, samples: int = 3, temperatures: Sequence[float] = (0.5, 1.0)) -> list[Sample]:
    chance = random.Random(0)
    texts = {
        (p, t, i): "".join(chance.choices("ab", k=9))
        for p in range(prompts)
        for t in temperatures
        for i in range(samples)
    }
    return [a_sample(f"p{p}", t, i, text) for (p, t, i), text in texts.items()]


def measured(samples: Sequence[Sample], select: str = "a", judge: str = "b") -> Quality:
    sets = complete_prompts(samples)
    rewards = [score_sets(cast(RewardModel, CountsLetters(letter)), sets) for letter in (select, judge)]
    return measure(sets, rewards[0], rewards[1], ns=[1, 2, 3], reference_temperature=1.0)


def test_prompts_that_are_not_fully_sampled_are_left_out_everywhere() -> None:
    whole = complete_prompts(some_samples()[:-1])
    assert {0.5: ["p0", "p1", "p2"], 1.0: ["p0", "p1", "p2"]} == {
        t: [p[0].prompt.text for p in whole[t]] for t in whole
    }


def test_samples_are_in_the_order_of_their_index() -> None:
    samples = some_samples()
    random.Random(1).shuffle(samples)
    assert all(
        [0, 1, 2] == [sample.index for sample in prompt]
        for prompts in complete_prompts(samples).values()
        for prompt in prompts
    )


def test_no_complete_prompt_is_an_error() -> None:
    with pytest.raises(DataError, match="no prompt has all its samples"):
        complete_prompts([a_sample("p0", 0.5, 0, "a"), a_sample("p1", 1.0, 0, "a")])
    with pytest.raises(DataError, match="no prompt has all its samples"):
        complete_prompts([])


def test_equal_answers_to_a_prompt_are_scored_once() -> None:
    sets = complete_prompts(
        [a_sample(p, 1.0, i, text) for p in ("p", "q") for i, text in enumerate(["ab", "ab", "aa"])]
    )
    model = CountsLetters("a")
    settled: list[int] = []
    rewards = score_sets(cast(RewardModel, model), sets, settled.append)
    assert [[1.0, 1.0, 2.0], [1.0, 1.0, 2.0]] == rewards[1.0].tolist()
    assert ["aa", "aa", "ab", "ab"] == sorted(text for batch in model.batches for text in batch)
    assert 6 == sum(settled)


def test_at_n_1_the_selecting_model_changes_nothing() -> None:
    sets = complete_prompts(some_samples())
    tokens = {t: np.mean([sample.completion_tokens for prompt in sets[t] for sample in prompt]) for t in sets}
    for point in measured(some_samples()).points:
        if point.n == 1:
            assert 0.0 == point.select_gain.mean == point.judge_gain.mean
            assert pytest.approx(tokens[point.temperature]) == point.completion_tokens.mean


def test_the_reference_is_one_sample_at_the_reference_temperature() -> None:
    point = next(p for p in measured(some_samples()).points if (p.temperature, p.n) == (1.0, 1))
    assert pytest.approx((0.0, 0.0)) == (point.select.mean, point.judge.mean)


def test_a_judge_with_opposite_rewards_sees_a_loss() -> None:
    """Answers have nine letters, a or b: who selects for a selects against b, exactly."""
    quality = measured(some_samples())
    assert all(pytest.approx(-1.0) == value for value in quality.correlation.values())
    assert all(pytest.approx(-p.select_gain.mean) == p.judge_gain.mean for p in quality.points)
    assert all(p.select_gain.mean > 0 for p in quality.points if p.n > 1)


def test_raw_and_standard_rewards_agree() -> None:
    quality = measured(some_samples())
    for point in quality.points:
        for scale, raw, standard in (
            (quality.select_scale, point.select_raw, point.select),
            (quality.judge_scale, point.judge_raw, point.judge),
        ):
            assert pytest.approx((raw.mean - scale.origin) / scale.sd) == standard.mean


def test_no_temperature_is_above_the_best_one() -> None:
    low = [a_sample(f"p{p}", 0.5, i, text) for p in range(3) for i, text in enumerate(["bbb", "bbb", "bbb"])]
    high = [a_sample(f"p{p}", 1.0, i, text) for p in range(3) for i, text in enumerate(["", "b", "bbbbbb"])]
    quality = measured(low + high, select="b")
    assert {1: 0.5, 2: 1.0, 3: 1.0} == quality.best_temperatures()
    for point in quality.points:
        best = point.temperature == quality.best_temperatures()[point.n]
        assert (point.judge_behind.mean == 0) is best
        assert point.judge_behind.mean <= 0


def test_rewards_that_never_differ_are_an_error() -> None:
    with pytest.raises(DataError, match="nothing can be compared"):
        measured(some_samples(), judge="z")


def test_a_reference_that_was_not_sampled_is_an_error() -> None:
    with pytest.raises(DataError, match="reference temperature 1"):
        measured(some_samples(temperatures=(0.5,)))
