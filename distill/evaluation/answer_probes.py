"""Probes of the fleet: fixed prompts whose answers distinguish one set-up of a model from another.

Greedy answers with log-probabilities show the base's weights, their quantisation and the chat template. Short answers
sampled at a high temperature from fixed seeds show the sampler's defaults (top-k, top-p, min-p), which nothing else
does; they are sampled twice, since the answers of a server that ignores seeds differ each time and show nothing.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Mapping
from typing import Any

from distill.errors import EvaluationError
from distill.evaluation.greedy import GreedyToken, Logprobs, answer_greedily
from gateway.backend.discovery import expand, host_of
from gateway.backend.pool import BackendPool
from gateway.errors import BackendRejected, GatewayError
from gateway.settings import BackendSettings
from gateway.types import Message, Prompt, Sampling

GREEDY_TOKENS = 8
SAMPLED_TOKENS = 4
SEEDS = 16
MOST_DISTANCE_NATS = 0.05
"""Root mean square difference of log-probabilities above which weights, quantisation or template differ."""
LEAST_AGREEMENT = 0.75
"""Least share of equal sampled answers at which the samplers count as the same."""

_TEMPERATURE = 2.0  # many tokens are about as likely: a sampler that excludes some of them gives other answers
_LIKELY_LOGPROB = -4.0
_LEAST_LOGPROB = -12.0


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


PROBES: tuple[list[Message], ...] = (
    [_user("What is the capital of France, and what is the city best known for?")],
    [_user("Please explain how a seed turns into a plant.")],
    [_user("Write a short thank-you note to a neighbour who watered my plants.")],
    [_user("If a notebook costs 3 dollars and a pen costs 2 dollars, how much do 2 notebooks and 4 pens cost?")],
    [_user("Name a tree."), {"role": "assistant", "content": "Oak."}, _user("And one that is always green?")],
    [{"role": "system", "content": "Answer in one sentence."}, _user("Why is the sky blue?")],
)
"""Conversations of every shape that chat templates treat differently."""
_SAMPLED = _user("Say any word that comes to your mind.")


async def answers_to_probes(backend: BackendSettings) -> list[dict[str, Any]]:
    """Ask the probes of each replica, without any adapter; return the answers as JSON-ready documents.

    Raises:
        EvaluationError: A replica does not answer.
    """
    answers = []
    for url in await expand(backend.urls):
        async with BackendPool(backend.model_copy(update={"urls": (url,)})) as pool:
            try:
                greedy = await asyncio.gather(*(_greedy(pool, messages) for messages in PROBES))
                sampled = await _sampled(pool)
            except (GatewayError, EvaluationError) as error:
                raise EvaluationError(f"sampling stopped: {host_of(url)} did not answer the probes: {error}") from error
        answers.append({"greedy": greedy, "sampled": sampled})
    return answers


def same_answers(one: Iterable[Mapping[str, Any]], other: Iterable[Mapping[str, Any]]) -> bool:
    """Return True if every replica of each fleet behaves like one of the other fleet, whatever their numbers."""
    ours, theirs = list(one), list(other)
    return all(any(_same(a, b) for b in theirs) for a in ours) and all(any(_same(a, b) for a in ours) for b in theirs)


def distance_nats(one: Iterable[Any], other: Iterable[Any]) -> float:
    """Return the root mean square difference of greedy answers' log-probabilities over likely tokens.

    Two answers are compared up to the first token that differs. Infinite if one refuses a prompt that the other
    answers.
    """
    squares: list[float] = []
    for ours, theirs in zip(one, other, strict=True):
        if (ours is None) != (theirs is None):
            return math.inf
        for (token, likely), (other_token, other_likely) in zip(ours or [], theirs or [], strict=False):
            squares += _squares(likely, other_likely)
            if token != other_token:
                break  # after it the texts differ
        if ours is not None and bool(ours) != bool(theirs):
            return math.inf
    return math.sqrt(math.fsum(squares) / len(squares)) if squares else 0.0


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return distance_nats(one["greedy"], other["greedy"]) <= MOST_DISTANCE_NATS and _agree(
        one["sampled"], other["sampled"]
    )


def _squares(one: Logprobs, other: Logprobs) -> list[float]:
    """Return squared differences of tokens likely in either; one that is not listed counts as the least listed one."""

    def at(listed: Logprobs, token: str) -> float:
        return max(listed.get(token, min(listed.values())), _LEAST_LOGPROB)

    return [
        (at(one, token) - at(other, token)) ** 2
        for token in {*one, *other}
        if max(one.get(token, _LEAST_LOGPROB), other.get(token, _LEAST_LOGPROB)) >= _LIKELY_LOGPROB
    ]


async def _greedy(pool: BackendPool, messages: list[Message]) -> list[GreedyToken] | None:
    """Return a greedy answer, or None if the backend refuses the prompt: not every template has a system message."""
    try:
        return await answer_greedily(pool, messages, None, max_tokens=GREEDY_TOKENS)
    except BackendRejected:
        return None


async def _sampled(pool: BackendPool) -> list[str] | None:
    """Return short answers by seed, or None if the same seeds give other answers the second time."""
    sampling = Sampling(temperature=_TEMPERATURE, max_tokens=SAMPLED_TOKENS)
    prompt = Prompt([_SAMPLED], sampling, None)

    async def sample_each() -> list[str]:
        answers = await asyncio.gather(*(pool.complete(prompt, seed=seed, replica=0) for seed in range(1, SEEDS + 1)))
        return [answer.text or "" for answer in answers]

    first, second = await sample_each(), await sample_each()
    return first if _agree(first, second) else None


def _agree(one: list[str] | None, other: list[str] | None) -> bool:
    if one is None or other is None:
        return one is other
    return sum(a == b for a, b in zip(one, other, strict=True)) >= LEAST_AGREEMENT * len(one)
