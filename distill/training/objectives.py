"""Training objectives: rejected answers, IPO's β and replay of earlier nights' examples."""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import fmean, median, pstdev

from distill.dataset.example import Example, ScoredAnswer
from distill.errors import TrainingError

MANY_DRAWS = 16
"""From this many candidates on the minimum is an outlier, and not a fair rejected answer (2502.16825)."""


def with_replay(fresh: Sequence[Example], earlier: Sequence[Example], share: float, seed: int) -> list[Example]:
    """Return tonight's examples and a random choice of earlier nights', the same for the same seed.

    Conversations that are among tonight's are not repeated: the newer winner stays.

    Args:
        fresh: Tonight's examples; all of them are used.
        earlier: Earlier nights' examples.
        share: Largest share of earlier examples in the result, in [0, 1).
        seed: Of the random choice.
    """
    known = {example.key for example in fresh}
    candidates = {example.record_id: example for example in earlier if example.key not in known}
    room = int(len(fresh) * share / (1 - share) + 1e-9)
    # Sorted, so that the order of the files does not matter.
    chosen = random.Random(seed).sample(sorted(candidates), min(room, len(candidates)))
    return [*fresh, *(candidates[record_id] for record_id in sorted(chosen))]


def rejected(example: Example) -> ScoredAnswer | None:
    """Return the answer that the winner is compared with, or None if it has no losers.

    The worst; of many candidates the one whose reward is nearest to two standard deviations below the race's mean.
    """
    if not example.losers:
        return None
    if len(example.losers) + 1 < MANY_DRAWS:
        return example.losers[0]
    rewards = [answer.reward for answer in (example.winner, *example.losers)]
    aim = fmean(rewards) - 2 * pstdev(rewards)
    return min(example.losers, key=lambda answer: abs(answer.reward - aim))


def ipo_beta(examples: Sequence[Example]) -> float:
    """Return the β at which TRL's IPO aims at the margin that best-of-n has over worst-of-n.

    TRL averages log-probabilities over an answer's tokens and pulls the average's margin to 1 / (2β). For whole
    answers the margin of best-of-n is (n − 1) · (1 + 1/2 + … + 1/(n − 1)) nats, so β = tokens / (2 · margin).

    Source: Gui, Gârbacea, Veitch 2024 (BoNBoN, 2406.00832), theorem 3, divided by the answer's length.

    Raises:
        TrainingError: No example has a loser.
    """
    contested = [example for example in examples if example.losers]
    if not contested:
        raise TrainingError("no example has a rejected answer: only the objective sft can train on these")
    n = round(median(len(example.losers) + 1 for example in contested))
    tokens = fmean(max(1, example.winner.tokens) for example in contested)
    margin_nats = (n - 1) * sum(1 / k for k in range(1, n))
    return tokens / (2 * margin_nats)
