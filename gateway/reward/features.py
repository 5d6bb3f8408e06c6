"""Features of an answer and its question, each between 0 and 1, weighted into the reward.

A copied question, a repeated sentence, wrong word order or an unfinished end is counted exactly in microseconds; a
cross-encoder of a few layers and a thousand human pairs learns to see none of them on unseen questions. An adapter
may bring weights for them, fitted on people's preferences (``distill.reward_training.features``).
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from gateway.errors import SettingsError

WORDLESS = "wordless"  # an answer without a word; its weight is a rule, see distill.reward_training.features
RELEVANCE = "relevance"  # weighted like a feature, but computed on embeddings: gateway.reward.relevance
ARTICLES = frozenset(("a", "an", "the"))
FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a about an and are as at be been but by can could did do does for from had has have he her his how i if in "
        "into is it its may me my no nor not of on or our she should so than that the their them then there these "
        "they this those to us was we were what when where which who why will with would you your",
    )
)
STOCK_PHRASES = re.compile(
    r"hope (?:this|that|it) helps|let me know|feel free|any (?:other|more|further) questions|thank you for"
    r"|in conclusion|you asked|as we all know|important to (?:keep in mind|note|remember)|that being said"
    r"|happy to help",
    re.IGNORECASE,
)
PLACEHOLDER = re.compile(r"\W*(?:no ?input|no ?output|n/a|none)\b|[\[<].*[\]>]$", re.IGNORECASE)
FINISHED = (".", "!", "?", ")", '"', "'", "`", "}", "]", "|", "”", "。")
CONTENT_LETTERS = 4  # shorter words seldom carry the topic
COMPRESSIBLE_BYTES = 60  # a shorter text does not compress, whatever its content …
INCOMPRESSIBLE = 0.8  # … and counts as ordinary prose


@dataclass(frozen=True, slots=True)
class _Text:
    """A text and its parts, split once for all features."""

    raw: str
    tokens: list[str]
    words: list[str]
    sentences: list[str]
    content: frozenset[str]

    @classmethod
    def of(cls, raw: str) -> _Text:
        tokens = re.findall(r"\w+(?:'\w+)?|[^\w\s]|\n", raw)
        words = [token.lower() for token in tokens if token[0].isalnum()]
        sentences = [" ".join(part.lower().split()) for part in re.split(r"[.!?\n]+", raw) if len(part.split()) > 2]
        content = frozenset(word for word in words if len(word) >= CONTENT_LETTERS and word not in FUNCTION_WORDS)
        return cls(raw.strip(), tokens, words, sentences, content)

    def ngrams(self, n: int) -> list[tuple[str, ...]]:
        return [tuple(self.words[start : start + n]) for start in range(len(self.words) - n + 1)]


def _share(part: float, whole: float) -> float:
    return min(1.0, part / whole) if whole else 0.0


def _copied(question: _Text, answer: _Text, n: int) -> float:
    own, asked = answer.ngrams(n), set(question.ngrams(n))
    return _share(sum(ngram in asked for ngram in own), len(own))


def _repeated(parts: Iterable[object]) -> float:
    every = list(parts)
    return _share(len(every) - len(set(every)), len(every))


def _compressed(answer: _Text) -> float:
    raw = answer.raw.encode("utf-8", "replace")
    return _share(len(zlib.compress(raw)), len(raw)) if len(raw) > COMPRESSIBLE_BYTES else INCOMPRESSIBLE


def _stray(answer: _Text) -> float:
    """Articles before function words or stops, small letters after a stop, capital function words in mid-sentence."""
    wrong = 0
    for before, after in pairwise(answer.tokens):
        article = before.lower() in ARTICLES and before != "A"
        wrong += article and (after.lower() in FUNCTION_WORDS or after in ".,;:!?")
        wrong += before in ".!?" and after.islower()
        wrong += before.islower() and after.istitle() and after != "I" and after.lower() in FUNCTION_WORDS
    return _share(4 * wrong, len(answer.words))


FEATURES: Mapping[str, Callable[[_Text, _Text], float]] = {
    "copied_3": lambda question, answer: _copied(question, answer, 3),
    "copied_6": lambda question, answer: _copied(question, answer, 6),
    "covered": lambda question, answer: _share(len(question.content & answer.content), len(question.content)),
    "new": lambda question, answer: _share(len(answer.content - question.content), len(answer.content)),
    "repeated": lambda _, answer: _repeated(answer.ngrams(3)),
    "repeated_sentences": lambda _, answer: _repeated(answer.sentences),
    "compressed": lambda _, answer: _compressed(answer),
    "function_words": lambda _, answer: _share(sum(w in FUNCTION_WORDS for w in answer.words), len(answer.words)),
    "word_length": lambda _, answer: _share(sum(map(len, answer.words)), 10 * len(answer.words)),
    "stray": lambda _, answer: _stray(answer),
    "finished": lambda _, answer: float(answer.raw.endswith(FINISHED)),
    "stock_phrases": lambda _, answer: _share(len(STOCK_PHRASES.findall(answer.raw)), 3),
    WORDLESS: lambda _, answer: float(not any(map(str.isalnum, answer.raw))),
    "placeholder": lambda _, answer: float(PLACEHOLDER.match(answer.raw) is not None),
}


def extract_features(question: str, answer: str) -> tuple[float, ...]:
    """Return every feature of ``answer`` to ``question``, in the order of ``FEATURES``."""
    asked, given = _Text.of(question), _Text.of(answer)
    return tuple(feature(asked, given) for feature in FEATURES.values())


def weighted_sum(weights: Mapping[str, float], question: str, answer: str) -> float:
    values = extract_features(question, answer)
    return sum(weights.get(name, 0.0) * value for name, value in zip(FEATURES, values, strict=True))


def parse_weights(text: str) -> dict[str, float]:
    """Parse an adapter's weights by feature (or ``RELEVANCE``) from JSON.

    Raises:
        SettingsError: It is not a JSON object of numbers, or names a feature that this version does not know.
    """
    try:
        weights = {str(name): float(weight) for name, weight in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise SettingsError("feature weights are not a JSON object of numbers") from error
    unknown = weights.keys() - FEATURES.keys() - {RELEVANCE}
    if unknown:
        raise SettingsError(f"feature weights name unknown features: {', '.join(sorted(unknown))}")
    return weights
