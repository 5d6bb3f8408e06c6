"""What the gate is given: rewards of a policy's draws, and what is known of the answers.

Shapes: P prompts, M draws of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distill.errors import DataError
from distill.evaluation.curve import Floats

_REPETITION_WORDS = 4  # shorter runs of words recur in honest prose


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What the guards compare: facts of each draw, and how much the draws of one prompt differ."""

    tokens_PM: Floats
    truncated_PM: Floats
    """1 where the answer was cut at the limit, else 0."""
    repetition_PM: Floats
    """Share of an answer's 4-word runs that it had said before."""
    distinct_P: Floats
    """Share of a prompt's answers that are unlike all others."""
    distinct_bigrams_P: Floats
    """Share of the word pairs in a prompt's answers that are distinct."""
    entropy_PM: Floats | None = None
    """Mean entropy, or surprise, of the answer's tokens; None where the backend does not tell."""


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """One policy's draws at one temperature, scored."""

    rewards_PM: Floats
    answers: Answers | None = None
    """None: the guards on the answers are not asked."""
    judge_PM: Floats | None = None
    """Rewards of the held-out reward model; None: there is none."""

    def check(self, name: str, *, prompts: int, draws: int) -> None:
        """Refuse what cannot be measured.

        Args:
            name: Whose draws, for the message.
            prompts: Prompts there must be.
            draws: Draws of each there must be at least.

        Raises:
            DataError: Says what is wrong.
        """
        if self.rewards_PM.ndim != 2 or len(self.rewards_PM) != prompts:
            raise DataError(f"{name}: rewards of shape {self.rewards_PM.shape}, but there are {prompts} prompts")
        if self.rewards_PM.shape[1] < draws:
            raise DataError(f"{name}: {self.rewards_PM.shape[1]} draws of each prompt; at least {draws} are needed")
        for rewards_PM in (self.rewards_PM, *(() if self.judge_PM is None else (self.judge_PM,))):
            if rewards_PM.shape != self.rewards_PM.shape:
                raise DataError(f"{name}: the two reward models did not score the same draws")
            if not np.isfinite(rewards_PM).all():
                raise DataError(f"{name}: {int((~np.isfinite(rewards_PM)).sum())} rewards are no finite numbers")


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A checkpoint's draws at the temperature it would be served at."""

    checkpoint: str
    temperature: float
    drawn: Drawn


def describe(
    texts: Sequence[Sequence[str]], tokens_PM: Floats, truncated_PM: Floats, entropy_PM: Floats | None = None
) -> Answers:
    """The facts of answers, from their texts.

    Args:
        texts: P prompts' M answers each.
        tokens_PM: Their lengths.
        truncated_PM: 1 where cut at the limit, else 0.
        entropy_PM: Mean token entropy, where known.
    """
    return Answers(
        tokens_PM=np.asarray(tokens_PM, dtype=np.float64),
        truncated_PM=np.asarray(truncated_PM, dtype=np.float64),
        repetition_PM=np.array([[repeated_share(text) for text in prompt] for prompt in texts]),
        distinct_P=np.array([len({text.strip() for text in prompt}) / len(prompt) for prompt in texts]),
        distinct_bigrams_P=np.array([_distinct_bigrams(prompt) for prompt in texts]),
        entropy_PM=entropy_PM,
    )


def repeated_share(text: str) -> float:
    """Share of the text's 4-word runs that occurred in it before; 0 for a text of fewer words."""
    runs = _runs(text, _REPETITION_WORDS)
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def _distinct_bigrams(prompt: Sequence[str]) -> float:
    # Pairs of words tell answers apart that differ as whole texts but say the same.
    runs = [run for text in prompt for run in _runs(text, 2)]
    return len(set(runs)) / len(runs) if runs else 0.0


def _runs(text: str, length: int) -> list[tuple[str, ...]]:
    words = text.lower().split()
    return [tuple(words[start : start + length]) for start in range(len(words) - length + 1)]
