"""Comparisons of good answers with spoiled versions of similar length, so that length does not predict the better one.

Human pairs are few and their answers fluent; answers of a small language model fail in simpler ways. Spoiled answers
teach a reward model those failures. Two kinds change the length on purpose, one each way and equally often: ``padded``
(longer is worse) and ``halved`` (shorter is worse).
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from distill.reward_training.preferences import Conversation, Group

MIN_WORDS = 8  # shorter answers cannot be spoiled recognisably
MAX_WORDS = 70  # longer ones are trimmed first: training time goes with length
LENGTH_TOLERANCE = 0.15
SENTENCE_ENDS = (".", "!", "?", ")", '"', "`", "|")

FILLER = (
    "I hope this helps!",
    "Please let me know if you have any other questions.",
    "This is a very interesting and important topic that many people think about.",
    "There are many things to consider here, and it depends on a number of factors.",
    "As we all know, this is something that matters a great deal to a lot of people.",
    "It is important to keep in mind that every situation is different.",
    "In conclusion, this is an important point to remember.",
    "Thank you for asking this wonderful question, I am always happy to help you.",
    "Overall, it can be said that there is much more that could be said about this.",
    "Feel free to ask me anything else at any time, I am here for you.",
    "That being said, it is what it is, and that is the way things are.",
    "This is just a general overview, and more information can be found elsewhere.",
)

Source = tuple[Conversation, str]


@dataclass(frozen=True, slots=True)
class _Corpus:
    """Good answers, and the indexes that corruptions use."""

    answers: Sequence[Source]
    by_word: dict[str, list[int]]  # content word of a prompt → answers to prompts that have it
    words: list[str]

    @classmethod
    def of(cls, answers: Sequence[Source]) -> _Corpus:
        by_word: dict[str, list[int]] = defaultdict(list)
        for index, (prompt, _) in enumerate(answers):
            for word in _content_words(prompt):
                by_word[word].append(index)
        words = [word for _, text in answers for word in text.split()]
        return cls(answers, dict(by_word), words)


def auxiliary_groups(answers: Sequence[Source], *, per_answer: int, seed: int) -> list[Group]:
    """Return a group for each usable answer: the answer above ``per_answer`` spoiled versions of different kinds.

    Args:
        answers: Coherent answers, (prompt, text). Only they and their prompts are used, so folds stay separate.
        per_answer: Number of spoiled versions of each answer.
        seed: Same seed and answers, same groups.
    """
    rng = random.Random(seed)
    corpus = _Corpus.of(answers)
    groups = []
    for prompt, text in answers:
        good = trimmed(text)
        if len(good.split()) < MIN_WORDS:
            continue
        group = Group(prompt, [good])
        # Weighted sampling without replacement (Efraimidis and Spirakis 2006).
        order = sorted(KINDS, key=lambda kind: rng.random() ** (1 / KINDS[kind][1]), reverse=True)
        for kind in order:
            if len(group.comparisons) == per_answer:
                break
            pair = KINDS[kind][0](prompt, good, corpus, rng)
            if pair is not None and pair[0].split() != pair[1].split():
                group.compare(pair[0], pair[1], kind)
        if group.comparisons:
            groups.append(group)
    return groups


def trimmed(text: str, max_words: int = MAX_WORDS) -> str:
    """Cut ``text`` at its last sentence end within ``max_words``.

    Without a sentence end in the second half (lists, code), cut it at ``max_words``.
    """
    head = _first_words(text, max_words)
    if len(head) == len(text.strip()) and head.endswith(SENTENCE_ENDS):
        return head
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s|$)", head)]
    return head[: ends[-1]] if ends and ends[-1] > len(head) / 2 else head


def shuffled(prompt: Conversation, good: str, corpus: _Corpus, rng: random.Random) -> tuple[str, str]:
    words = good.split()
    if rng.random() < 0.5:  # in short runs, which keeps phrases and breaks sentences
        size = rng.randint(2, 4)
        runs = [words[i : i + size] for i in range(0, len(words), size)]
        rng.shuffle(runs)
        return good, _finished([word for run in runs for word in run], rng)
    rng.shuffle(words)
    return good, _finished(words, rng)


def muddled(prompt: Conversation, good: str, corpus: _Corpus, rng: random.Random) -> tuple[str, str]:
    """Replace a share of the words by words of other answers."""
    share = rng.uniform(0.2, 0.6)
    return good, " ".join(rng.choice(corpus.words) if rng.random() < share else word for word in good.split())


def babbled(prompt: Conversation, good: str, corpus: _Corpus, rng: random.Random) -> tuple[str, str]:
    """Change the topic every few words, like samples at a high temperature."""
    pieces: list[str] = _first_words(good, rng.randint(2, 8)).split()
    while len(pieces) < len(good.split()):
        start = rng.randrange(len(corpus.words))
        pieces += corpus.words[start : start + rng.randint(2, 7)]
    return good, _finished(pieces[: len(good.split())], rng)


def off_topic(prompt: Conversation, good: str, corpus: _Corpus, rng: random.Random) -> tuple[str, str] | None:
    """Use a whole answer of the same length to another prompt."""
    sample = rng.sample(range(len(corpus.answers)), min(60, len(corpus.answers)))
    return _of_same_length(prompt, good, sample, corpus)


def near_topic(prompt: Conversation, good: str, corpus: _Corpus, rng: random.Random) -> tuple[str, str] | None:
    """Use a whole answer of the same length to a prompt that shares rare words with this one: a harder off-topic."""
    shared: dict[int, float] = defaultdict(float)
    for word in _content_words(prompt):
        holders = corpus.by_word.get(word, [])
        for index in holders:
            shared[index] += 1 / len(holders)
    nearest = sorted(shared, key=lambda index: -shared[index])[:25]
    return _of_same_length(prompt, good, nearest, corpus)


def drifted(prompt: Conversation, good: str, corpus: _Corpus, rng: random.Random) -> tuple[str, str] | None:
    """Continue the beginning of the answer with an answer to another prompt."""
    other = off_topic(prompt, good, corpus, rng)
    if other is None:
        return None
    words = good.split()
    kept = int(len(words) * rng.uniform(0.15, 0.5))
    return good, _finished(words[:kept] + other[1].split()[: len(words) - kept], rng)


def repeated(prompt: Conversation, good: str, corpus: _Corpus, rng: random.Random) -> tuple[str, str]:
    """Repeat a phrase of the answer until its length is reached."""
    words = good.split()
    lead = rng.randint(0, len(words) // 2)
    size = min(rng.choice((2, 3, 5, 8, 12, 16)), max(2, (len(words) - lead) // 2))
    loop = words[lead : lead + size]
    spoiled = words[:lead]
    while len(spoiled) < len(words):
        spoiled += loop
    return good, _finished(spoiled[: len(words)], rng)


def cut(prompt: Conversation, good: str, corpus: _Corpus, rng: random.Random) -> tuple[str, str] | None:
    """Stop in the middle of a sentence; the better version of the same length ends with a sentence."""
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s|$)", good)]
    if not ends:
        return None
    end = rng.choice(ends[len(ends) // 2 :])
    whole = good[:end]
    rest = good[end:].split()
    wanted = len(whole.split())
    longest = len(good.split()) - 1
    stop = wanted + rng.choice((-3, -2, 2, 3) if len(rest) > 3 else (-3, -2))
    spoiled = _first_words(good, min(stop, longest)).rstrip(".!?,;:")
    if wanted < MIN_WORDS or abs(len(spoiled.split()) - wanted) > max(3, LENGTH_TOLERANCE * wanted):
        return None
    return whole, spoiled


def parroted(prompt: Conversation, good: str, corpus: _Corpus, rng: random.Random) -> tuple[str, str]:
    """Repeat the question, after an opening phrase, to the answer's length."""
    question = prompt[-1][1].split()
    openings = ("You asked:", "The question is:", "", "", "So, you want to know:", "I understand that you said:")
    spoiled = rng.choice(openings).split()
    while len(spoiled) < len(good.split()):
        spoiled += question
    return good, _finished(spoiled[: len(good.split())], rng)


def stuffed(prompt: Conversation, good: str, corpus: _Corpus, rng: random.Random) -> tuple[str, str]:
    """Use filler alone to the answer's length, sometimes after a copy of the question."""
    spoiled = prompt[-1][1].split()[: len(good.split()) // 2] if rng.random() < 0.4 else []
    while len(spoiled) < len(good.split()):
        spoiled += rng.choice(FILLER).split()
    return good, _finished(spoiled[: len(good.split())], rng)


def padded(prompt: Conversation, good: str, corpus: _Corpus, rng: random.Random) -> tuple[str, str]:
    """Add filler or the question to the answer: longer and worse."""
    filler = " ".join(rng.sample(FILLER, rng.randint(1, 4)))
    question = prompt[-1][1]
    forms = (f"{good} {filler}", f"{filler} {good}", f"{question} {good}", f"{good} {question}", f"{good} {good}")
    return good, rng.choice(forms)


def halved(prompt: Conversation, good: str, corpus: _Corpus, rng: random.Random) -> tuple[str, str]:
    """Cut the answer early: shorter and worse."""
    words = len(good.split())
    return good, _first_words(good, max(3, int(words * rng.uniform(0.3, 0.8)))).rstrip(".!?,;:")


Spoil = Callable[[Conversation, str, _Corpus, random.Random], tuple[str, str] | None]
# Weights of the kinds by their difficulty: shuffled words are easy to detect, a fluent answer to a similar question is
# as hard as human pairs.
KINDS: dict[str, tuple[Spoil, float]] = {
    "shuffled": (shuffled, 1.0),
    "muddled": (muddled, 0.7),
    "babbled": (babbled, 0.7),
    "off_topic": (off_topic, 4.0),
    "near_topic": (near_topic, 5.0),
    "drifted": (drifted, 2.5),
    "repeated": (repeated, 2.0),
    "cut": (cut, 1.0),
    "parroted": (parroted, 1.0),
    "stuffed": (stuffed, 0.7),
    "padded": (padded, 1.5),
    "halved": (halved, 1.5),
}


def _of_same_length(
    prompt: Conversation, good: str, candidates: Sequence[int], corpus: _Corpus
) -> tuple[str, str] | None:
    """Return the good answer with the first candidate of similar length; longer ones are trimmed to a sentence."""
    wanted = len(good.split())
    for index in candidates:
        other_prompt, other = corpus.answers[index]
        if other_prompt == prompt:
            continue
        other = trimmed(other, max(MIN_WORDS, int(wanted * (1 + LENGTH_TOLERANCE))))
        if abs(len(other.split()) - wanted) <= LENGTH_TOLERANCE * wanted:
            return good, other
    return None


def _finished(words: Sequence[str], rng: random.Random) -> str:
    """Join the words, often with a full stop: otherwise its absence would mark every spoiled answer."""
    text = " ".join(words)
    return f"{text.rstrip('.!?,;:')}." if rng.random() < 0.7 else text


def _first_words(text: str, count: int) -> str:
    """Return the first words with their spacing and line breaks."""
    ends = [match.end() for match in re.finditer(r"\S+", text)]
    return text[: ends[min(count, len(ends)) - 1]].strip() if count > 0 and ends else ""


def _content_words(prompt: Conversation) -> set[str]:
    return set(re.findall(r"[a-z]{4,}", prompt[-1][1].lower()))
