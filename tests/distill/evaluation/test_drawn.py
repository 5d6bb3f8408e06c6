"""Facts of answers, and draws that cannot be measured."""

import numpy as np
import pytest

from distill.errors import DataError
from distill.evaluation.drawn import Drawn, describe, repeated_share


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
def test_repetition_is_the_share_of_four_word_runs_said_before(text: str, share: float) -> None:
    assert pytest.approx(share) == repeated_share(text)


def test_distinctness_is_of_the_answers_to_one_prompt() -> None:
    texts = [["a b", "a b ", "a b"], ["a b", "c d", "a d"]]
    answers = describe(texts, np.ones((2, 3)), np.zeros((2, 3)))
    assert pytest.approx([1 / 3, 1.0]) == answers.distinct_P.tolist()
    assert pytest.approx([1 / 3, 1.0]) == answers.distinct_bigrams_P.tolist()
    assert answers.entropy_PM is None


def test_facts_of_answers_are_numbers_in_the_draws_places() -> None:
    texts = [["la la la la la", "a b c d"], ["", "x"]]
    tokens, cut, entropy = (np.array([[1, 2], [3, 4]]) * factor for factor in (1, 0, 10))
    answers = describe(texts, tokens, cut, entropy)
    assert [[1.0, 2.0], [3.0, 4.0]] == answers.tokens_PM.tolist()
    assert [[0.0, 0.0], [0.0, 0.0]] == answers.truncated_PM.tolist()
    assert answers.tokens_PM.dtype == answers.truncated_PM.dtype == np.float64
    assert [[0.5, 0.0], [0.0, 0.0]] == answers.repetition_PM.tolist()
    assert answers.entropy_PM is entropy


def test_one_word_answers_have_no_word_pairs() -> None:
    assert [0.0] == describe([["yes", "no"]], np.ones((1, 2)), np.zeros((1, 2))).distinct_bigrams_P.tolist()


@pytest.mark.parametrize(
    ("drawn", "message"),
    [
        (Drawn(np.ones(4)), "rewards of shape"),
        (Drawn(np.ones((3, 4))), "there are 2 prompts"),
        (Drawn(np.ones((2, 3))), "3 draws of each prompt; at least 4"),
        (Drawn(np.array([[1.0, 2, 3, np.nan]] * 2)), "old: 2 rewards are no finite numbers"),
        (Drawn(np.ones((2, 4)), judge_PM=np.ones((2, 3))), "did not score the same draws"),
        (Drawn(np.ones((2, 4)), judge_PM=np.full((2, 4), np.inf)), "8 rewards are no finite"),
    ],
)
def test_what_cannot_be_measured_is_refused_by_name(drawn: Drawn, message: str) -> None:
    with pytest.raises(DataError, match=message):
        drawn.check("old", prompts=2, draws=4)
