"""Greedy answers with the log-probabilities of the likeliest tokens at each place: which weights answer shows there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from distill.errors import EvaluationError
from gateway.backend.pool import BackendPool
from gateway.types import Message, Prompt, Sampling

Logprobs = Mapping[str, float]

TOP_TOKENS = 5  # TGI gives no more
_SEED = 1  # greedy: without effect, but every draw has one


async def draw_greedily(
    pool: BackendPool, messages: Sequence[Message], adapter: str | None, *, max_tokens: int
) -> list[tuple[str, Logprobs]]:
    """Draw a greedy answer from the first replica of a pool.

    Returns:
        Each token's text, with the log-probabilities of the likeliest tokens there by their texts.

    Raises:
        GatewayError: The replica does not answer.
        EvaluationError: The answer comes without log-probabilities, or with some that are no numbers.
    """
    sampling = Sampling(temperature=0.0, max_tokens=max_tokens, logprobs=True, top_logprobs=TOP_TOKENS)
    answer = await pool.complete(Prompt(list(messages), sampling, adapter), seed=_SEED, replica=0)
    entries: list[dict[str, Any]] = (answer.logprobs or {}).get("content") or []
    if answer.text and not entries:
        raise EvaluationError("the answer came without log-probabilities")
    try:
        return [(entry["token"], _listed(entry)) for entry in entries]
    except (ValueError, TypeError) as error:
        raise EvaluationError("the answer came with log-probabilities that are no numbers") from error


def _listed(entry: Mapping[str, Any]) -> dict[str, float]:
    """Log-probabilities by text; of two tokens with one text (bytes of a character) the likelier."""
    listed: dict[str, float] = {}
    for one in [entry, *entry["top_logprobs"]]:
        listed[one["token"]] = max(float(one["logprob"]), listed.get(one["token"], -math.inf))
    return listed
