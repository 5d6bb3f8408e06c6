"""Statistics of texts, and scored samples that cannot be measured."""

import numpy as np
import pytest

from distill.errors import DataError
from distill.evaluation.curve import Floats
from distill.evaluation.prompts import Prompt
from distill.evaluation.samples import Sample, SampleSet
from distill.evaluation.scored import ScoredSamples, TextStatistics, repeated_share


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0.0),
        ("one two three", 0.0),
        ("one two three four five", 0.0),
        ("so it goes on so it goes on", 1 / 5),
        ("la la la la la la la", 3 / 4),
        ("So it goes ON so it goes on", 1 / 5),
    ],
)
def test_repetition_is_the_share_of_repeated_four_word_runs(text: str, share: float) -> None:
    assert pytest.approx(share) == repeated_share(text)


def sample_set(texts: list[list[str]], tokens: int = 1, finish_reason: str = "stop") -> SampleSet:
    """One row of texts a prompt; sample i of a prompt is i tokens longer than the first."""
    return [
        [Sample(Prompt.of_text(f"p{p}"), 1.0, i, 0, text, finish_reason, tokens + i) for i, text in enumerate(row)]
        for p, row in enumerate(texts)
    ]


def test_distinctness_is_of_the_answers_to_one_prompt() -> None:
    statistics = TextStatistics.of(sample_set([["a b", "a b ", "a b"], ["a b", "c d", "a d"]]))
    assert pytest.approx([1 / 3, 1.0]) == statistics.distinct_P.tolist()
    assert pytest.approx([1 / 3, 1.0]) == statistics.distinct_bigrams_P.tolist()


@pytest.mark.parametrize(("finish_reason", "truncated"), [("length", 1.0), ("stop", 0.0)])
def test_statistics_have_the_order_of_the_samples(finish_reason: str, truncated: float) -> None:
    statistics = TextStatistics.of(sample_set([["la la la la la", "a b c d"], ["", "x"]], 3, finish_reason))
    assert [[3.0, 4.0], [3.0, 4.0]] == statistics.tokens_PM.tolist()
    assert [[truncated] * 2] * 2 == statistics.truncated_PM.tolist()
    assert statistics.tokens_PM.dtype == statistics.truncated_PM.dtype == np.float64
    assert [[0.5, 0.0], [0.0, 0.0]] == statistics.repetition_PM.tolist()


def test_one_word_answers_have_no_word_pairs() -> None:
    assert [0.0] == TextStatistics.of(sample_set([["yes", "no"]])).distinct_bigrams_P.tolist()


@pytest.mark.parametrize(
    ("rewards_PM", "judge_PM", "message"),
    [
        (np.ones(4), None, "rewards of shape"),
        (np.ones((3, 4)), None, "there are 2 prompts"),
        (np.ones((2, 3)), None, "3 samples of each prompt; at least 4"),
        (np.array([[1.0, 2, 3, np.nan]] * 2), None, "old: 2 rewards are not finite numbers"),
        (np.ones((2, 4)), np.ones((2, 3)), "did not score the same samples"),
        (np.ones((2, 4)), np.full((2, 4), np.inf), "8 rewards are not finite"),
    ],
)
def test_what_cannot_be_measured_is_refused_by_name(rewards_PM: Floats, judge_PM: Floats | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ScoredSamples("old", 1.0, rewards_PM, judge_PM=judge_PM).check("old", prompts=2, samples=4)
