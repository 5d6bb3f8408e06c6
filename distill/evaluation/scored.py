"""Scored samples: the rewards of a sample set and statistics of its texts, which the gate compares.

Shapes: P prompts, M samples of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distill.errors import DataError
from distill.evaluation.curve import Floats
from distill.evaluation.samples import SampleSet

_REPETITION_WORDS = 4  # shorter runs of words recur in honest prose


@dataclass(frozen=True, slots=True, eq=False)
class TextStatistics:
    """Statistics of each sample's text, and of how much the samples of one prompt differ."""

    tokens_PM: Floats
    truncated_PM: Floats
    """1 where the answer was cut at the limit, else 0."""
    repetition_PM: Floats
    """Share of an answer's 4-word runs that occurred in it before."""
    distinct_P: Floats
    """Share of a prompt's answers that are unlike all others."""
    distinct_bigrams_P: Floats
    """Share of the word pairs in a prompt's answers that are distinct."""

    @classmethod
    def of(cls, samples: SampleSet) -> TextStatistics:
        texts = [[sample.text for sample in row] for row in samples]
        return cls(
            tokens_PM=np.array([[float(sample.completion_tokens) for sample in row] for row in samples]),
            truncated_PM=np.array([[float(sample.finish_reason == "length") for sample in row] for row in samples]),
            repetition_PM=np.array([[repeated_share(text) for text in row] for row in texts]),
            distinct_P=np.array([len({text.strip() for text in row}) / len(row) for row in texts]),
            distinct_bigrams_P=np.array([_distinct_bigrams(row) for row in texts]),
        )


@dataclass(frozen=True, slots=True, eq=False)
class ScoredSamples:
    """A sample set with its rewards."""

    policy: str
    """The serving policy, the base, or a checkpoint, by name."""
    temperature: float
    rewards_PM: Floats
    texts: TextStatistics | None = None
    """None: the guardrails on the texts are not checked."""
    judge_PM: Floats | None = None
    """Rewards of the held-out reward model; None: there is none."""

    def check(self, name: str, *, prompts: int, samples: int) -> None:
        """Refuse samples that cannot be measured.

        Args:
            name: Of the policy, for the message.
            prompts: Prompts there must be.
            samples: Samples of each there must be at least.

        Raises:
            DataError: They cannot; the message names the reason.
        """
        if self.rewards_PM.ndim != 2 or len(self.rewards_PM) != prompts:
            raise DataError(f"{name}: rewards of shape {self.rewards_PM.shape}, but there are {prompts} prompts")
        if self.rewards_PM.shape[1] < samples:
            raise DataError(f"{name}: {self.rewards_PM.shape[1]} samples of each prompt; at least {samples} are needed")
        for rewards_PM in (self.rewards_PM, *(() if self.judge_PM is None else (self.judge_PM,))):
            if rewards_PM.shape != self.rewards_PM.shape:
                raise DataError(f"{name}: the two reward models did not score the same samples")
            if not np.isfinite(rewards_PM).all():
                raise DataError(f"{name}: {int((~np.isfinite(rewards_PM)).sum())} rewards are not finite numbers")


def repeated_share(text: str) -> float:
    """Return the share of the text's 4-word runs that occurred in it before; 0 for a text of fewer words."""
    runs = _runs(text, _REPETITION_WORDS)
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def _distinct_bigrams(texts: Sequence[str]) -> float:
    # Pairs of words tell answers apart that differ as whole texts but say the same.
    runs = [run for text in texts for run in _runs(text, 2)]
    return len(set(runs)) / len(runs) if runs else 0.0


def _runs(text: str, length: int) -> list[tuple[str, ...]]:
    words = text.lower().split()
    return [tuple(words[start : start + length]) for start in range(len(words) - length + 1)]
