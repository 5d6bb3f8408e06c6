"""The shipped prompts are many, varied and loadable from the package."""

import re
from collections import Counter
from importlib import resources
from itertools import combinations

from gateway.demo.prompts import DemoPrompt, load

KINDS = {
    "advice",
    "description",
    "explanation",
    "instruction",
    "list",
    "question",
    "rewriting",
    "short_story",
    "small_code_or_math",
    "summary",
}
DEMO_PROMPTS = 12


def word_trigrams(text: str) -> set[tuple[str, ...]]:
    """The set of runs of three words, blind to case and punctuation; a shorter text is one run."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))}


def jaccard(a: set[tuple[str, ...]], b: set[tuple[str, ...]]) -> float:
    return len(a & b) / len(a | b)


def test_there_are_at_least_three_hundred_prompts_and_none_twice() -> None:
    prompts = [demo.prompt for demo in load()]
    assert len(prompts) >= 300
    assert len(set(prompts)) == len(prompts)


def test_every_kind_has_at_least_fifteen_prompts() -> None:
    count_by_kind = Counter(demo.kind for demo in load())
    assert set(count_by_kind) == KINDS
    assert {kind: count for kind, count in count_by_kind.items() if count < 15} == {}


def test_no_two_prompts_are_near_duplicates() -> None:
    trigrams = [(demo.prompt, word_trigrams(demo.prompt)) for demo in load()]
    near = [(a, b) for (a, of_a), (b, of_b) in combinations(trigrams, 2) if jaccard(of_a, of_b) >= 0.5]
    assert near == []


def test_the_near_duplicate_measure_catches_a_reworded_prompt() -> None:
    """Changing one word of a long prompt must count as a near duplicate, or the test above holds nothing."""
    one = word_trigrams("Describe a busy market on a sunny morning in exactly three sentences")
    other = word_trigrams("describe a busy market on a sunny morning, in exactly four sentences!")
    assert jaccard(one, other) >= 0.5


def test_the_file_is_plain_utf_8_without_control_characters() -> None:
    raw = resources.files("gateway.embedded").joinpath("prompts.jsonl").read_bytes()
    text = raw.decode("utf-8")
    assert not text.startswith("\ufeff")
    assert [char for char in text if char != "\n" and not char.isprintable()] == []
    assert text.endswith("\n")
    assert text.count("\n") == len(load())


def test_prompts_are_trimmed_and_of_chat_length() -> None:
    assert [demo for demo in load() if demo.prompt != demo.prompt.strip()] == []
    assert [demo for demo in load() if not 5 <= len(demo.prompt.split()) <= 120] == []


def test_the_demo_selection_shows_every_kind() -> None:
    assert {demo.kind for demo in load()[:DEMO_PROMPTS]} == KINDS


def test_kinds_are_interleaved() -> None:
    """Any stretch of thirty prompts is a fair sample: no kind fills a third of it, and nine of the ten show up."""
    kinds = [demo.kind for demo in load()]
    for start in range(len(kinds) - 29):
        counts = Counter(kinds[start : start + 30])
        assert len(counts) >= 9
        assert max(counts.values()) < 10


def test_a_demo_prompt_is_a_value() -> None:
    assert DemoPrompt("question", "Why?") == DemoPrompt(kind="question", prompt="Why?")
