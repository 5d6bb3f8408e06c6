"""Guardrails: conditions that must hold besides the reward.

A reward model can be pleased in ways that callers would not be.
All but distinctness compare the answer that callers would get: the best of N′ of the new policy with the best of N of
the old one at its serving temperature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from distill.evaluation.curve import Floats, curves
from distill.evaluation.resample import Bootstrap, by_conversation
from distill.evaluation.scored import ScoredSamples, TextStatistics

JUDGE = "judge"


@dataclass(frozen=True, slots=True)
class Bounds:
    """The largest changes that the guardrails allow."""

    max_length_change: float = 0.15
    """Relative change of the mean length, in either direction."""
    max_rise: float = 0.03
    """Absolute rise of the share of truncated answers, and of the share of repeated text."""
    min_diversity: float = 0.6
    """Ratio of the new policy's distinctness to the old one's."""


@dataclass(frozen=True, slots=True)
class Guardrail:
    """The outcome of one guardrail."""

    name: str
    value: float
    low: float
    high: float
    """Bootstrap interval of the value, over conversations."""
    bound: float
    """Limit of the value."""
    passed: bool
    why: str

    @property
    def label(self) -> str:
        return "held-out reward model" if self.name == JUDGE else self.name


class Comparison:
    """Compare both policies' answers on the same conversations.

    Args:
        old: The serving policy at its serving temperature.
        n_old: Samples that it chooses from now.
        new: The candidate.
        n_new: Samples that it would choose from.
        index_P: Number of each prompt's conversation.
        bootstrap: Over conversations.
    """

    def __init__(
        self,
        old: ScoredSamples,
        n_old: int,
        new: ScoredSamples,
        n_new: int,
        index_P: npt.NDArray[np.int64],
        bootstrap: Bootstrap,
    ) -> None:
        self._sides = ((old, n_old), (new, n_new))
        self._index_P = index_P
        self._bootstrap = bootstrap

    def check(self, bounds: Bounds) -> list[Guardrail]:
        """Return every guardrail on the answers; none where the answers are not known."""
        old, new = (scored.texts for scored, _ in self._sides)
        if old is None or new is None:
            return []
        return [
            self._length(old, new, bounds.max_length_change),
            self._rise("truncation", "answers cut at the limit", old.truncated_PM, new.truncated_PM, bounds.max_rise),
            self._rise("repetition", "repeated text", old.repetition_PM, new.repetition_PM, bounds.max_rise),
            self._floor("distinct answers", old.distinct_P, new.distinct_P, bounds.min_diversity),
            self._floor("distinct word pairs", old.distinct_bigrams_P, new.distinct_bigrams_P, bounds.min_diversity),
        ]

    def _length(self, old: TextStatistics, new: TextStatistics, bound: float) -> Guardrail:
        means_C2 = self._means_of_the_picks(old.tokens_PM, new.tokens_PM)
        value, low, high = self._ratio(means_C2)
        change = value - 1
        tokens = means_C2.mean(axis=0)
        why = f"answers are {tokens[0]:.0f} → {tokens[1]:.0f} tokens long ({change:+.1%}; allowed ±{bound:.0%})"
        return Guardrail("length", change, low - 1, high - 1, bound, abs(change) <= bound, why)

    def _rise(self, name: str, what: str, old_PM: Floats, new_PM: Floats, bound: float) -> Guardrail:
        means_C2 = self._means_of_the_picks(old_PM, new_PM)
        (rise,) = self._bootstrap.estimates(means_C2[:, 1:] - means_C2[:, :1])
        was, now = means_C2.mean(axis=0)
        why = f"{what}: {was:.1%} → {now:.1%} (at most {bound:+.1%} allowed)"
        return Guardrail(name, rise.mean, rise.low, rise.high, bound, rise.mean <= bound, why)

    def _floor(self, name: str, old_P: Floats, new_P: Floats, bound: float) -> Guardrail:
        means_C2 = by_conversation(np.stack([old_P, new_P], axis=1), self._index_P)
        value, low, high = self._ratio(means_C2)
        was, now = means_C2.mean(axis=0)
        why = f"{name} of one prompt: {was:.2f} → {now:.2f} ({value:.0%} of before; at least {bound:.0%} required)"
        return Guardrail(name, value, low, high, bound, value >= bound, why)

    def _means_of_the_picks(self, old_PM: Floats, new_PM: Floats) -> Floats:
        columns = [
            curves(scored.rewards_PM, values_PM, [n])
            for (scored, n), values_PM in zip(self._sides, (old_PM, new_PM), strict=True)
        ]
        return by_conversation(np.hstack(columns), self._index_P)

    def _ratio(self, means_C2: Floats) -> tuple[float, float, float]:
        """Return new over old with its interval; 1 where both are zero."""
        was, now = means_C2.mean(axis=0)
        if was == 0:
            return (1.0, 1.0, 1.0) if now == 0 else (np.finfo(np.float64).max,) * 3
        means_R2 = self._bootstrap.means(means_C2)
        ratios_R = means_R2[:, 1] / np.maximum(means_R2[:, 0], np.finfo(np.float64).tiny)
        return (float(now / was), *self._bootstrap.interval(ratios_R))


def check_judge(
    old: Sequence[ScoredSamples],
    n_old: int,
    new: ScoredSamples,
    n_new: int,
    index_P: npt.NDArray[np.int64],
    bootstrap: Bootstrap,
) -> Guardrail | None:
    """Check the claim with a reward model that selected nothing.

    The claim that lets N shrink is "best of N′ of the new policy is above best of N − 1 of the old one". The judge's
    mean of that difference must be positive, against the old policy at the temperature that the judge rates highest.
    Its difference to the best of N is reported too.

    Args:
        old: The serving policy's sample sets, one a temperature.
        n_old: Samples that it chooses from now.
        new: The checkpoint's samples.
        n_new: Samples that it would choose from.
        index_P: Number of each prompt's conversation.
        bootstrap: Over conversations.

    Returns:
        None where there is no judge.
    """
    if new.judge_PM is None or any(scored.judge_PM is None for scored in old):
        return None
    judged_T_C2 = [
        by_conversation(curves(scored.rewards_PM, scored.judge_PM, [max(n_old - 1, 1), n_old]), index_P)
        for scored in old
        if scored.judge_PM is not None
    ]
    control_C2 = np.stack([max((each[:, k] for each in judged_T_C2), key=np.mean) for k in range(2)], axis=1)
    chosen_C1 = by_conversation(curves(new.rewards_PM, new.judge_PM, [n_new]), index_P)
    claim, whole = bootstrap.estimates(chosen_C1 - control_C2)
    why = (
        f"the judge scores the best of {n_new} {claim.mean:+.3f} compared with the old best of {max(n_old - 1, 1)} "
        f"[{claim.low:+.3f}, {claim.high:+.3f}], {whole.mean:+.3f} compared with its best of {n_old} "
        f"[{whole.low:+.3f}, {whole.high:+.3f}]; the first must be positive"
    )
    return Guardrail(JUDGE, claim.mean, claim.low, claim.high, 0.0, claim.mean > 0, why)
