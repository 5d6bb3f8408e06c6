"""Greedy answers with the log-probabilities of the likeliest tokens, which show which weights answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from distill.errors import EvaluationError
from gateway.backend.pool import BackendPool
from gateway.types import Message, Prompt, Sampling

Logprobs = Mapping[str, float]
GreedyToken = tuple[str, Logprobs]
"""A token's text, and the log-probabilities of the likeliest tokens at its place by their texts."""

TOP_TOKENS = 5  # TGI gives no more
_SEED = 1  # every call has a seed; it has no effect on a greedy answer


async def answer_greedily(
    pool: BackendPool, messages: Sequence[Message], adapter: str | None, *, max_tokens: int
) -> list[GreedyToken]:
    """Return the tokens of a greedy answer of a pool's first replica.

    Raises:
        GatewayError: The replica does not answer.
        EvaluationError: The answer has no log-probabilities, or some are not numbers.
    """
    sampling = Sampling(temperature=0.0, max_tokens=max_tokens, logprobs=True, top_logprobs=TOP_TOKENS)
    answer = await pool.complete(Prompt(list(messages), sampling, adapter), seed=_SEED, replica=0)
    entries: list[dict[str, Any]] = (answer.logprobs or {}).get("content") or []
    if answer.text and not entries:
        raise EvaluationError("the answer came without log-probabilities")
    try:
        return [(entry["token"], _logprobs(entry)) for entry in entries]
    except (ValueError, TypeError) as error:
        raise EvaluationError("the answer came with log-probabilities that are not numbers") from error


def _logprobs(entry: Mapping[str, Any]) -> dict[str, float]:
    """Return log-probabilities by text; of two tokens with one text (bytes of a character) the likelier."""
    logprobs: dict[str, float] = {}
    for one in [entry, *entry["top_logprobs"]]:
        logprobs[one["token"]] = max(float(one["logprob"]), logprobs.get(one["token"], -math.inf))
    return logprobs
