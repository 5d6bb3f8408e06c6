"""Probes of a reward model: fixed answers to fixed conversations, whose rewards distinguish one model from another."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from statistics import pstdev

from gateway.errors import RewardError
from gateway.types import Message, Scorer

Values = Sequence[float | None]

_TOLERANCE_SD = 0.02  # of the probes' own rewards; 16-bit weights in another batch differ by less
_NOISE = 1e-6
_POLL_S = 0.2


def _chat(*turns: str) -> list[Message]:
    return [{"role": "user" if place % 2 == 0 else "assistant", "content": text} for place, text in enumerate(turns)]


PROBES: tuple[tuple[list[Message], str], ...] = (
    (_chat("What is the capital of France?"), "The capital of France is Paris."),
    (_chat("What is the capital of France?"), "qq zz qq zz qq zz"),
    (_chat("Is seven a prime number?"), "No."),
    (_chat("Is seven a prime number?"), "Yes. Seven can be divided by one and by itself only, so it is prime."),
    (
        _chat("How do I boil an egg?", "Put it into boiling water for eight minutes.", "And if I want it soft?"),
        "Take it out after five minutes and cool it under the tap.",
    ),
    (_chat("Write a line of Python that adds two numbers."), "```python\nprint(1 + 2)\n```"),
    (_chat("Tell me something useful."), "I cannot help with that."),
    (_chat("Describe a walk along a river."), "The path follows the water past willows and a small bridge. " * 60),
)
"""Conversations and answers: good, bad, short and long ones, so that their rewards differ widely."""


async def wait_until_ready(scorer: Scorer, timeout_s: float) -> None:
    """Wait until the reward model answers.

    Raises:
        RewardError: It is not ready in time.
    """
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + timeout_s
    while not (state := await scorer.readiness()).ready:
        if loop.time() > deadline_s:
            raise RewardError(f"the reward model is not ready: {state.detail}")
        await asyncio.sleep(_POLL_S)


async def rewards_of_probes(scorer: Scorer) -> list[float | None]:
    """Return the reward of each probe; None for a probe that the model refuses (too long, …).

    Raises:
        RewardError: It refuses every probe.
    """

    async def reward(messages: Sequence[Message], answer: str) -> float | RewardError:
        try:
            return (await scorer.score(messages, answer)).reward
        except RewardError as error:
            return error

    rewards = await asyncio.gather(*(reward(messages, answer) for messages, answer in PROBES))
    refused = [value for value in rewards if isinstance(value, RewardError)]
    if len(refused) == len(rewards):
        raise refused[0]
    return [None if isinstance(value, RewardError) else value for value in rewards]


def same_rewards(one: Values, other: Values) -> bool:
    """Return True if two lists of the probes' rewards come from one model.

    A little further training changes some of them by far more than the tolerance.
    """
    return len(one) == len(other) and all(map(_close, one, other, [tolerance(one)] * len(one)))


def tolerance(rewards: Values) -> float:
    """Return the largest difference of two rewards that one model gives one answer."""
    given = [reward for reward in rewards if reward is not None]
    if not given:
        return _NOISE
    return max(_TOLERANCE_SD * pstdev(given), _NOISE * max(map(abs, given)), _NOISE)


def _close(one: float | None, other: float | None, within: float) -> bool:
    if one is None or other is None:
        return one is other
    return abs(one - other) <= within
