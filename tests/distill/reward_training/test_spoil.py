"""Spoiled answers: each worse in one way, and of the same length."""

from __future__ import annotations

import random

import pytest

from distill.reward_training.spoil import KINDS, LENGTH_TOLERANCE, MAX_WORDS, Source, auxiliary_groups, trimmed

CHANGES_LENGTH = {"padded", "halved"}
SUBJECTS = ("bread", "bicycles", "volcanoes", "violins", "whales", "gardens", "maps", "clocks", "rivers", "bridges")


def essay(subject: str, sentences: int) -> str:
    """A few sentences about a subject, all of them different."""
    parts = (
        f"People have cared about {subject} for a very long time.",
        f"Anyone who studies {subject} soon finds that small details matter.",
        "Patience is worth more than talent here.",
        f"The best way to learn about {subject} is to look closely and to ask questions.",
        "After a month of practice, most beginners notice real progress.",
        "That is also the moment when it starts to be fun!",
    )
    return " ".join(parts[:sentences])


ANSWERS: list[Source] = [
    ((("user", f"Tell me something about {subject} and why they matter"),), essay(subject, 2 + index % 5))
    for index, subject in enumerate(SUBJECTS * 2)
]


@pytest.mark.parametrize("kind", sorted(set(KINDS) - CHANGES_LENGTH))
def test_a_spoiled_answer_is_as_long_as_the_good_one(kind: str) -> None:
    lengths = [
        (len(group.texts[c.better].split()), len(group.texts[c.worse].split()))
        for seed in range(5)
        for group in auxiliary_groups(ANSWERS, per_answer=len(KINDS), seed=seed)
        for c in group.comparisons
        if c.kind == kind
    ]
    assert lengths
    assert all(abs(worse - better) <= max(3, LENGTH_TOLERANCE * better + 1) for better, worse in lengths)


def test_padding_is_longer_and_halving_shorter_and_both_are_worse() -> None:
    for group in auxiliary_groups(ANSWERS, per_answer=len(KINDS), seed=3):
        for comparison in group.comparisons:
            better, worse = group.texts[comparison.better], group.texts[comparison.worse]
            if comparison.kind == "padded":
                assert len(worse) > len(better)
                assert better in worse
            if comparison.kind == "halved":
                assert len(worse) < len(better)
                assert better.startswith(worse)


def test_off_topic_answers_are_whole_answers_to_other_prompts() -> None:
    own = dict(ANSWERS)
    texts = set(own.values())
    found = [
        (group.prompt, group.texts[c.worse])
        for group in auxiliary_groups(ANSWERS, per_answer=len(KINDS), seed=4)
        for c in group.comparisons
        if c.kind in {"off_topic", "near_topic"}
    ]
    assert found
    assert all(any(text.startswith(worse) for text in texts) and worse != own[prompt] for prompt, worse in found)


def test_the_same_seed_gives_the_same_groups_and_another_seed_others() -> None:
    first = auxiliary_groups(ANSWERS, per_answer=3, seed=1)
    assert first == auxiliary_groups(ANSWERS, per_answer=3, seed=1)
    assert first != auxiliary_groups(ANSWERS, per_answer=3, seed=2)
    assert all(len(group.comparisons) == 3 for group in first)


def test_every_kind_is_made() -> None:
    groups = auxiliary_groups(ANSWERS, per_answer=len(KINDS), seed=5)
    assert {comparison.kind for group in groups for comparison in group.comparisons} == set(KINDS)


def test_answers_too_short_to_be_spoiled_are_left_out() -> None:
    assert auxiliary_groups([((("user", "Hi"),), "Hello there!")], per_answer=3, seed=0) == []


def test_a_good_answer_ends_where_a_sentence_ends() -> None:
    assert trimmed("One whole sentence is here. Another one that") == "One whole sentence is here."
    assert trimmed("A whole one. And a second.") == "A whole one. And a second."
    assert trimmed("no end at all " * 5).split() == ["no", "end", "at", "all"] * 5
    assert len(trimmed(essay("maps", 6) * 5).split()) <= MAX_WORDS


def test_a_single_answer_has_no_off_topic_versions() -> None:
    """With one answer there is no other topic; the other kinds still work."""
    (group,) = auxiliary_groups(ANSWERS[:1], per_answer=len(KINDS), seed=random.Random(0).randint(0, 9))
    assert not {"off_topic", "near_topic", "drifted"} & {comparison.kind for comparison in group.comparisons}
