"""What a night teaches from its races: whom the winner is set against, how hard, and what earlier nights add."""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import fmean, median, pstdev

from distill.dataset.example import Example, ScoredAnswer
from distill.errors import TrainingError

MANY_DRAWS = 16
"""From this many draws on the minimum is an outlier, and no fair rejected answer (2502.16825)."""


def with_replay(fresh: Sequence[Example], earlier: Sequence[Example], share: float, seed: int) -> list[Example]:
    """Tonight's examples and a random choice of earlier nights', the same for the same seed.

    Conversations that are among tonight's already are not repeated: the newer winner stands.

    Args:
        fresh: Tonight's examples; all of them are taken.
        earlier: Earlier nights' examples.
        share: Largest share of the result that earlier ones may take, in [0, 1).
        seed: Decides the choice.
    """
    known = {example.key for example in fresh}
    candidates = {example.record_id: example for example in earlier if example.key not in known}
    room = int(len(fresh) * share / (1 - share) + 1e-9)
    # Sorted, so that the order of the files does not matter.
    chosen = random.Random(seed).sample(sorted(candidates), min(room, len(candidates)))
    return [*fresh, *(candidates[record_id] for record_id in sorted(chosen))]


def rejected(example: Example) -> ScoredAnswer | None:
    """The answer that the winner is set against, or None where it beat nothing.

    The worst; of many draws the one whose reward is nearest to two standard deviations below the race's mean.
    """
    if not example.losers:
        return None
    if len(example.losers) + 1 < MANY_DRAWS:
        return example.losers[0]
    rewards = [answer.reward for answer in (example.winner, *example.losers)]
    aim = fmean(rewards) - 2 * pstdev(rewards)
    return min(example.losers, key=lambda answer: abs(answer.reward - aim))


def ipo_beta(examples: Sequence[Example]) -> float:
    """The β at which TRL's IPO asks for the margin that best-of-n really has over worst-of-n.

    TRL averages log-probabilities over an answer's tokens and pulls the average's margin to 1 / (2β). For whole
    answers the margin of best-of-n is (n − 1) · (1 + 1/2 + … + 1/(n − 1)) nats, so β = tokens / (2 · margin).

    Source: Gui, Gârbacea, Veitch 2024 (BoNBoN, 2406.00832), theorem 3, divided by the answer's length.

    Raises:
        TrainingError: No example has a loser.
    """
    contested = [example for example in examples if example.losers]
    if not contested:
        raise TrainingError("no example has a rejected answer: only the objective sft can learn from these")
    n = round(median(len(example.losers) + 1 for example in contested))
    tokens = fmean(max(1, example.winner.tokens) for example in contested)
    margin_nats = (n - 1) * sum(1 / k for k in range(1, n))
    return tokens / (2 * margin_nats)
