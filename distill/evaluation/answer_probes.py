"""The probes of what answers: fixed prompts, drawn from each replica, that tell one set-up of a model from another.

Greedy answers with log-probabilities show the base's weights, their quantisation and the chat template. Short answers
drawn at a high temperature from fixed seeds show the sampler's defaults (top-k, top-p, min-p), which nothing else does;
they are drawn twice, since a server that ignores seeds gives others each time and shows nothing by them.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Mapping
from typing import Any

from distill.errors import EvaluationError
from distill.evaluation.greedy import Logprobs, draw_greedily
from gateway.backend.discovery import expand, host_of
from gateway.backend.pool import BackendPool
from gateway.errors import BackendRejected, GatewayError
from gateway.settings import BackendSettings
from gateway.types import Message, Prompt, Sampling

GREEDY_TOKENS = 8
SAMPLED_TOKENS = 4
SEEDS = 16
MOST_DISTANCE_NATS = 0.05
"""Root mean square difference of log-probabilities from which weights, quantisation or template are others."""
LEAST_AGREEMENT = 0.75
"""Share of sampled answers that must be the same for the sampler to be the same."""

_TEMPERATURE = 2.0  # many tokens are about as likely, so that a sampler which leaves some out shows
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
"""Conversations of every shape that a chat template treats in its own way."""
_SAMPLED = _user("Say any word that comes to your mind.")


async def answers_to_probes(backend: BackendSettings) -> list[dict[str, Any]]:
    """What each replica says, without any adapter; JSON holds it as it is.

    Raises:
        EvaluationError: A replica does not answer.
    """
    found = []
    for url in await expand(backend.urls):
        async with BackendPool(backend.model_copy(update={"urls": (url,)})) as pool:
            try:
                greedy = await asyncio.gather(*(_greedy(pool, messages) for messages in PROBES))
                sampled = await _sampled(pool)
            except (GatewayError, EvaluationError) as error:
                raise EvaluationError(f"sampling stopped: {host_of(url)} did not answer the probes: {error}") from error
        found.append({"greedy": greedy, "sampled": sampled})
    return found


def same_answers(one: Iterable[Mapping[str, Any]], other: Iterable[Mapping[str, Any]]) -> bool:
    """Whether the replicas of two fleets behave alike: each as one of the other fleet, however many there are."""
    ours, theirs = list(one), list(other)
    return all(any(_same(a, b) for b in theirs) for a in ours) and all(any(_same(a, b) for a in ours) for b in theirs)


def distance_nats(one: Iterable[Any], other: Iterable[Any]) -> float:
    """Root mean square difference of greedy answers' log-probabilities, over the likely tokens at shared places.

    Infinite where one of the two refused a prompt that the other answers.
    """
    squares: list[float] = []
    for ours, theirs in zip(one, other, strict=True):
        if (ours is None) != (theirs is None):
            return math.inf
        for (token, likely), (other_token, other_likely) in zip(ours or [], theirs or [], strict=False):
            squares += _squares(likely, other_likely)
            if token != other_token:
                break  # from here on the two continue other texts
        if ours is not None and bool(ours) != bool(theirs):
            return math.inf
    return math.sqrt(math.fsum(squares) / len(squares)) if squares else 0.0


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return distance_nats(one["greedy"], other["greedy"]) <= MOST_DISTANCE_NATS and _agree(
        one["sampled"], other["sampled"]
    )


def _squares(one: Logprobs, other: Logprobs) -> list[float]:
    """Squared differences of tokens likely to either; one that is not listed is as likely as the least listed one."""

    def at(listed: Logprobs, token: str) -> float:
        return max(listed.get(token, min(listed.values())), _LEAST_LOGPROB)

    return [
        (at(one, token) - at(other, token)) ** 2
        for token in {*one, *other}
        if max(one.get(token, _LEAST_LOGPROB), other.get(token, _LEAST_LOGPROB)) >= _LIKELY_LOGPROB
    ]


async def _greedy(pool: BackendPool, messages: list[Message]) -> list[tuple[str, Logprobs]] | None:
    """A greedy answer; None where the backend refuses the prompt: not every template knows a system message."""
    try:
        return await draw_greedily(pool, messages, None, max_tokens=GREEDY_TOKENS)
    except BackendRejected:
        return None


async def _sampled(pool: BackendPool) -> list[str] | None:
    """Short answers by seed; None where the same seeds give others the next time."""
    sampling = Sampling(temperature=_TEMPERATURE, max_tokens=SAMPLED_TOKENS)
    prompt = Prompt([_SAMPLED], sampling, None)

    async def draw_each() -> list[str]:
        answers = await asyncio.gather(*(pool.complete(prompt, seed=seed, replica=0) for seed in range(1, SEEDS + 1)))
        return [answer.text or "" for answer in answers]

    first, second = await draw_each(), await draw_each()
    return first if _agree(first, second) else None


def _agree(one: list[str] | None, other: list[str] | None) -> bool:
    if one is None or other is None:
        return one is other
    return sum(a == b for a, b in zip(one, other, strict=True)) >= LEAST_AGREEMENT * len(one)
