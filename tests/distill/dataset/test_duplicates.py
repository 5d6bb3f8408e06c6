"""Near-duplicate prompts."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.dataset.duplicates import NearDuplicates, shingles

WORDS = st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=40).map(" ".join)


def among(text: str, others: list[str], threshold: float) -> bool:
    index = NearDuplicates(threshold)
    for other in others:
        index.add(other)
    return index.has(text)


def test_shingles_are_runs_of_three_words() -> None:
    assert {("write", "a", "poem"), ("a", "poem", "!")} == shingles("Write  a POEM!")
    assert {("hi",)} == shingles("Hi")
    assert {()} == shingles("   ")


def test_scripts_without_spaces_have_a_word_a_character() -> None:
    assert {("天", "空", "は"), ("空", "は", "青"), ("は", "青", "い")} == shingles("天空は青い")


@settings(max_examples=50)
@given(WORDS, st.lists(WORDS, max_size=5), st.sampled_from([0.1, 0.5, 0.8, 1.0]))
def test_a_text_is_its_own_near_duplicate_independent_of_case_and_spacing(
    text: str, others: list[str], threshold: float
) -> None:
    assert among(text, [*others, text.upper().replace(" ", "  ")], threshold)


def test_an_empty_index_has_no_near_duplicates() -> None:
    assert not among("why", [], 0.5)


def test_one_changed_number_makes_another_prompt() -> None:
    assert not among("what is 12 plus 7 ?", ["what is 12 plus 8 ?"], 0.8)


def test_one_changed_word_in_a_long_prompt_does_not() -> None:
    words = [f"word{n}" for n in range(60)]
    assert among(" ".join(words), [" ".join([*words[:-1], "other"])], 0.8)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.9])
def test_pairs_far_above_the_threshold_are_found_and_pairs_far_below_are_not(threshold: float) -> None:
    """The index must find all pairs above the threshold: missed ones leak held-out prompts into training."""
    random.seed(0)
    found = {True: 0, False: 0}
    for trial in range(40):
        words = [f"{trial}w{n}" for n in range(102)]  # 100 shingles
        for over in (True, False):
            wanted = min(0.99, threshold + 0.12) if over else threshold - 0.15
            kept = round(100 * 2 * wanted / (1 + wanted))  # shingles in common, of 100 each
            other = [*words[: kept + 2], *(f"{trial}other{n}" for n in range(100 - kept))]
            found[over] += among(" ".join(words), [" ".join(other)], threshold)
    assert found[True] >= 38
    assert found[False] <= 2
