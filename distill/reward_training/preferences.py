"""Preference pairs: read them, group them by prompt, and split them so that no prompt or near copy is on both sides."""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from distill.errors import DataError
from gateway.types import Message

SHINGLE_WORDS = 4
NEAR_COPY = 0.6  # share of the smaller prompt's shingles that two prompts must have in common to be near copies

Row = TypeVar("Row", bound=BaseModel)
Conversation = tuple[tuple[str, str], ...]  # (role, content) of each turn; hashable
Text = Annotated[str, StringConstraints(min_length=1, pattern=r"\S")]


class _Turn(BaseModel):
    model_config = ConfigDict(extra="ignore")
    role: str
    content: Text


class _PreferenceRow(BaseModel):
    model_config = ConfigDict(extra="ignore")
    prompt: list[_Turn] = Field(min_length=1)
    chosen: list[_Turn] = Field(min_length=1, max_length=1)
    rejected: list[_Turn] = Field(min_length=1, max_length=1)
    source: str = "unnamed"
    license: str = "unknown"


class _AnswerRow(BaseModel):
    model_config = ConfigDict(extra="ignore")
    prompt: list[_Turn] = Field(min_length=1)
    text: Text


@dataclass(frozen=True, slots=True)
class Preference:
    """A human preference between two answers to a prompt."""

    prompt: Conversation
    chosen: str
    rejected: str
    source: str
    license: str

    @property
    def longer_is_better(self) -> bool:
        """True if the preferred answer is the longer one, in characters."""
        return len(self.chosen) > len(self.rejected)


@dataclass(frozen=True, slots=True)
class Comparison:
    """``texts[better]`` should be rewarded above ``texts[worse]``; ``kind`` names a source or a corruption.

    ``doubt`` is the expected share of wrong labels.
    """

    better: int
    worse: int
    kind: str
    weight: float = 1.0
    doubt: float = 0.0


@dataclass(slots=True)
class Group:
    """Answers to one prompt and their comparisons: each text is encoded once, however often it is compared."""

    prompt: Conversation
    texts: list[str] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)

    def compare(self, better: str, worse: str, kind: str, weight: float = 1.0, doubt: float = 0.0) -> None:
        for text in (better, worse):
            if text not in self.texts:
                self.texts.append(text)
        self.comparisons.append(Comparison(self.texts.index(better), self.texts.index(worse), kind, weight, doubt))

    @property
    def messages(self) -> list[Message]:
        return [{"role": role, "content": content} for role, content in self.prompt]  # type: ignore[typeddict-item]


def read_preferences(path: Path) -> list[Preference]:
    """Read every pair of a JSON Lines file.

    Raises:
        DataError: The file cannot be read, is empty, or has a bad row; rows are named by line number, never quoted.
    """
    pairs = []
    for number, line in _lines(path):
        row = _parsed(_PreferenceRow, line, path, number)
        chosen, rejected = row.chosen[0].content, row.rejected[0].content
        if chosen == rejected:
            raise DataError(f"{path}, line {number}: chosen and rejected are the same text")
        pairs.append(Preference(_turns(row.prompt), chosen, rejected, row.source, row.license))
    if not pairs:
        raise DataError(f"{path}: no preference pairs")
    return pairs


def read_answers(path: Path) -> list[tuple[Conversation, str]]:
    """Read coherent answers, (prompt, text), from a JSON Lines file of ``{"prompt": [message, …], "text": …}``.

    Raises:
        DataError: As ``read_preferences``.
    """
    rows = [_parsed(_AnswerRow, line, path, number) for number, line in _lines(path)]
    return [(_turns(row.prompt), row.text) for row in rows]


def folds(prompts: Iterable[Conversation], n_folds: int) -> dict[Conversation, int]:
    """Assign a fold to each prompt by a hash of its text; near copies share the fold of their group's first member.

    Two prompts are near copies if most of the smaller one's word shingles are in the other: with them on both sides, a
    split would overestimate the accuracy, since the model has seen the question.
    """
    distinct = sorted(set(prompts))
    parent = list(range(len(distinct)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    shingles = [_shingles(prompt) for prompt in distinct]
    holders: dict[str, list[int]] = defaultdict(list)
    for index, own in enumerate(shingles):
        shared: dict[int, int] = defaultdict(int)
        for shingle in own:
            for other in holders[shingle]:
                shared[other] += 1
            holders[shingle].append(index)
        for other, count in shared.items():
            if count >= NEAR_COPY * min(len(own), len(shingles[other])):
                first, second = sorted((root(index), root(other)))
                parent[second] = first
    return {prompt: _bucket(distinct[root(index)], n_folds) for index, prompt in enumerate(distinct)}


def human_groups(pairs: Sequence[Preference], doubt: float = 0.0, weight: float = 1.0) -> list[Group]:
    """Group pairs by prompt, weighted so that within each source the longer answer wins half of the weight.

    Otherwise the model would learn the length that each source prefers. ``doubt`` keeps a small model from overfitting
    labels on which people disagree; ``weight`` multiplies all weights.
    """
    counts: dict[tuple[str, bool], int] = defaultdict(int)
    for pair in pairs:
        counts[pair.source, pair.longer_is_better] += 1
    groups: dict[Conversation, Group] = {}
    for pair in pairs:
        group = groups.setdefault(pair.prompt, Group(pair.prompt))
        same, other = counts[pair.source, pair.longer_is_better], counts[pair.source, not pair.longer_is_better]
        balance = min(3.0, (same + other) / (2 * same))
        group.compare(pair.chosen, pair.rejected, pair.source, weight * balance, doubt)
    return list(groups.values())


def _lines(path: Path) -> list[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]


def _parsed(kind: type[Row], line: str, path: Path, number: int) -> Row:
    try:
        return kind.model_validate(json.loads(line))
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'row'}: {item['msg']}" for item in error.errors(include_url=False)
        )
        raise DataError(f"{path}, line {number}: {problems}") from error
    except ValueError as error:
        raise DataError(f"{path}, line {number}: not JSON") from error


def _turns(messages: Sequence[_Turn]) -> Conversation:
    return tuple((message.role, message.content) for message in messages)


def _words(prompt: Conversation) -> list[str]:
    return re.findall(r"\w+", " ".join(content for _, content in prompt).lower())


def _shingles(prompt: Conversation) -> set[str]:
    words = _words(prompt)
    return {" ".join(words[i : i + SHINGLE_WORDS]) for i in range(max(1, len(words) - SHINGLE_WORDS + 1))}


def _bucket(prompt: Conversation, n_folds: int) -> int:
    digest = hashlib.sha256(" ".join(_words(prompt)).encode()).digest()
    return int.from_bytes(digest[:8], "big") % n_folds
