"""Canary by behaviour: which weights answer under an adapter's name is seen in what they answer, and only there.

TGI serves the base, silently, under a name it does not know; a restart may bring up yesterday's weights. So a few
greedy answers are drawn from each replica under the adapter's name, with log-probabilities, and compared with those
that were computed offline when the adapter was published: its own, the base's, and those of other adapters that might
answer in its place (rivals), all along the adapter's own greedy answers.

The statistic is a place on a line. With s what was served, a what the adapter gives and r what a rival gives (log-
probabilities of the listed tokens, everywhere the served answer has followed the adapter's), it is

    Σ (a − r)(s − r) / Σ (a − r)²

1 where the adapter answers, 0 where the rival does, above ½ exactly when s is nearer to a than to r. Quantised weights
add noise to every number (about .15 nats on a 135M model in 4 bits), as large as a weak adapter's change of any one;
over some hundred numbers it averages out. Twice the adapter's strength would give 2. Each prompt votes as well. A
stranger far off the line may stand beside the adapter on it, so the distance |s − a| itself has a bound too.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from distill.errors import EvaluationError, PromotionError
from distill.evaluation.greedy import Logprobs, draw_greedily
from distill.promotion.adapter import CANARY_FILE, Adapter
from gateway.backend.discovery import expand, host_of
from gateway.backend.pool import BackendPool
from gateway.errors import GatewayError
from gateway.settings import BackendSettings
from gateway.weight_check import CheckedPrompt, WeightCheck

BASE = "the base model"
"""What the canary calls the rival that every adapter has."""

LEAST_LOGPROB = -12.0  # below it a log-probability is noise
_LOW, _HIGH = 0.5, 1.5
_LEAST_VOTES = 2 / 3
_LIKELY_LOGPROB = -4.0  # the distance counts tokens at least this likely: noise grows with rarity
_MOST_DISTANCE_NATS = 0.4

PROMPTS = (
    "What is the capital of France, and what is the city best known for?",
    "Give four reasons why people enjoy camping.",
    "Please explain how a seed turns into a plant.",
    "What are a few simple habits that would help me get to sleep earlier?",
    "Tell me a very short story about a lighthouse keeper and a lost seagull.",
    "Write a short thank-you note to a neighbour who watered my plants while I was on holiday.",
    "Why do cats purr when they are petted?",
    "How can I make new friends after moving to a different city?",
    "Describe a busy market on a sunny morning in three sentences.",
    "If a notebook costs 3 dollars and a pen costs 2 dollars, how much do 2 notebooks and 4 pens cost?",
)
ANSWER_TOKENS = 8


_STANDING_PROMPTS = 3
_STANDING_LISTED = 10


@dataclass(frozen=True, slots=True)
class Position:
    """One token of an expected answer: its text, and what each model gives the likeliest ones there.

    ``likely`` is by model ("" is the adapter itself), then by the token's text.
    """

    token: str
    likely: Mapping[str, Logprobs]


@dataclass(frozen=True, slots=True)
class Expectation:
    """What the adapter answers greedily, prompt by prompt, as computed offline."""

    prompts: Sequence[str]
    answers: Sequence[Sequence[Position]]

    @property
    def rivals(self) -> list[str]:
        """Which other models are told from the adapter."""
        return [name for name in self.answers[0][0].likely if name]

    def encode(self) -> bytes:
        """As JSON."""
        return json.dumps(asdict(self), ensure_ascii=False).encode()

    @classmethod
    def decode(cls, content: bytes) -> Self:
        """From JSON.

        Raises:
            PromotionError: It is none.
        """
        try:
            fields = json.loads(content)
            answers = [[_position(place) for place in answer] for answer in fields["answers"]]
            prompts = [str(prompt) for prompt in fields["prompts"]]
            models = {frozenset(place.likely) for answer in answers for place in answer}
            if not answers or len(prompts) != len(answers) or not all(answers):
                raise ValueError("an answer is missing")
            if len(models) != 1 or not {"", BASE} <= models.pop():
                raise ValueError("a model is missing")
            return cls(prompts, answers)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise PromotionError(f"{CANARY_FILE} is no expectation of a canary") from error


@dataclass(frozen=True, slots=True)
class Likeness:
    """How a replica stands between a rival (0) and the adapter (1), and the share of prompts nearer to the adapter."""

    rival: str
    place: float
    votes: float

    @property
    def passed(self) -> bool:
        """Whether the adapter answers, and not the rival."""
        return _LOW <= self.place <= _HIGH and self.votes >= _LEAST_VOTES


@dataclass(frozen=True, slots=True)
class ReplicaCanary:
    """What one replica answered.

    ``distance_nats`` is the root mean square difference to the adapter's log-probabilities, ``tokens_followed`` counts
    tokens as expected before another came.
    """

    replica: str
    likenesses: Sequence[Likeness]
    distance_nats: float
    tokens_followed: int
    tokens_expected: int

    @property
    def passed(self) -> bool:
        """Whether the adapter answers here."""
        return self.distance_nats <= _MOST_DISTANCE_NATS and all(likeness.passed for likeness in self.likenesses)

    def __str__(self) -> str:
        seen = "; ".join(
            f"{one.place:.2f} on the way from {one.rival} (0) to the adapter (1), "
            f"{one.votes:.0%} of the prompts nearer to the adapter"
            for one in self.likenesses
        )
        followed = f"{self.tokens_followed} of {self.tokens_expected} greedy tokens as expected"
        return f"{self.replica}: {seen}; {self.distance_nats:.2f} nats from the adapter; {followed}"


def standing_check(adapter: Adapter) -> WeightCheck:
    """Return a short check of the adapter's weights, which gateways repeat while it serves.

    Raises:
        PromotionError: The adapter's expectation cannot be read.
    """
    path = adapter.folder / CANARY_FILE
    try:
        expected = Expectation.decode(path.read_bytes())
    except OSError as error:
        raise PromotionError(f"{path} cannot be read: {error.strerror}") from error
    return tuple(
        CheckedPrompt(
            prompt=prompt,
            tokens=tuple(place.token for place in answer),
            adapter=tuple(_likeliest(place.likely[""]) for place in answer),
            base=tuple(_likeliest(place.likely[BASE]) for place in answer),
        )
        for prompt, answer in list(zip(expected.prompts, expected.answers, strict=True))[:_STANDING_PROMPTS]
    )


def _likeliest(likely: Logprobs) -> dict[str, float]:
    return dict(sorted(likely.items(), key=lambda one: -one[1])[:_STANDING_LISTED])


async def check_canary(adapter: Adapter, backend: BackendSettings) -> list[ReplicaCanary]:
    """Draw from every replica under the adapter's name, and tell whether the adapter answered.

    Returns:
        What each replica showed, for the report.

    Raises:
        PromotionError: A replica did not answer, or not with these weights; names it and what was seen.
    """
    path = adapter.folder / CANARY_FILE
    try:
        expected = Expectation.decode(path.read_bytes())
    except OSError as error:
        raise PromotionError(f"{path} cannot be read: {error.strerror}") from error
    seen = []
    for url in await expand(backend.urls):
        async with BackendPool(backend.model_copy(update={"urls": (url,)})) as pool:
            try:
                # Together: llama.cpp computes one adapter's draws at a time, so each by itself waits for a whole race.
                served = await asyncio.gather(*(_draw(pool, prompt, adapter.name) for prompt in expected.prompts))
            except (GatewayError, EvaluationError) as error:
                raise PromotionError(f"{host_of(url)} did not answer the canary of {adapter.name}: {error}") from error
        seen.append(compare(host_of(url), expected, served))
    strange = [str(one) for one in seen if not one.passed]
    if strange:
        raise PromotionError(f"not {adapter.name} answers under its name at {' | '.join(strange)}")
    return seen


def compare(replica: str, expected: Expectation, served: Sequence[Sequence[tuple[str, Logprobs]]]) -> ReplicaCanary:
    """Place a replica's answers between the adapter's and each rival's.

    Args:
        replica: What to call it.
        expected: What was computed offline.
        served: For each prompt the tokens drawn, each with the log-probabilities of the likeliest ones there.
    """
    followed = [_followed(answer, drawn) for answer, drawn in zip(expected.answers, served, strict=True)]
    likenesses = []
    for rival in expected.rivals:
        sums = [_sums(answer, drawn, rival) for answer, drawn in zip(expected.answers, served, strict=True)]
        across, squared = (math.fsum(column) for column in zip(*sums, strict=True))
        votes = sum(one > _LOW * whole for one, whole in sums) / len(sums)
        likenesses.append(Likeness(rival, across / squared if squared else 0.0, votes))
    return ReplicaCanary(
        replica, likenesses, _distance(expected, served), sum(followed), sum(map(len, expected.answers))
    )


def _distance(expected: Expectation, served: Sequence[Sequence[tuple[str, Logprobs]]]) -> float:
    """Root mean square difference to the adapter over its likely tokens, in nats."""
    off = [
        (_at(place.likely[""], token) - max(logprob, LEAST_LOGPROB)) ** 2
        for answer, drawn in zip(expected.answers, served, strict=True)
        for place, (_, likely) in _reached(answer, drawn)
        for token, logprob in likely.items()
        if place.likely[""].get(token, LEAST_LOGPROB) >= _LIKELY_LOGPROB
    ]
    return math.sqrt(math.fsum(off) / len(off)) if off else 0.0  # nothing is likely: the places on the lines decide


def _sums(answer: Sequence[Position], drawn: Sequence[tuple[str, Logprobs]], rival: str) -> tuple[float, float]:
    """Numerator and denominator of the place, over all places that the drawn answer reached on the expected way."""
    across = squared = 0.0
    for place, (_, served) in _reached(answer, drawn):
        own, other = place.likely[""], place.likely[rival]
        for token, logprob in served.items():
            if token not in own and token not in other:
                continue  # unlikely to both: it says little, and how little is not known
            adapter, against = (_at(likely, token) for likely in (own, other))
            across += (adapter - against) * (max(logprob, LEAST_LOGPROB) - against)
            squared += (adapter - against) ** 2
    return across, squared


def _reached(
    answer: Sequence[Position], drawn: Sequence[tuple[str, Logprobs]]
) -> list[tuple[Position, tuple[str, Logprobs]]]:
    """The places before which both texts are the same."""
    return list(zip(answer, drawn, strict=False))[: _followed(answer, drawn) + 1]


def _at(likely: Logprobs, token: str) -> float:
    """A token's log-probability; one that is not listed is at most as likely as the least likely listed one."""
    return max(likely.get(token, min(likely.values())), LEAST_LOGPROB)


def _followed(answer: Sequence[Position], drawn: Sequence[tuple[str, Logprobs]]) -> int:
    """Tokens as expected before the first that is another: from there on the two answer different texts."""
    same = [place.token == token for place, (token, _) in zip(answer, drawn, strict=False)]
    return same.index(False) if False in same else len(same)


async def _draw(pool: BackendPool, prompt: str, name: str | None) -> list[tuple[str, Logprobs]]:
    return await draw_greedily(pool, [{"role": "user", "content": prompt}], name, max_tokens=ANSWER_TOKENS)


def _position(place: Mapping[str, Any]) -> Position:
    likely = {
        str(model): {str(token): float(logprob) for token, logprob in listed.items()}
        for model, listed in place["likely"].items()
    }
    if not all(likely.values()):
        raise ValueError("a model has no likely token")
    return Position(str(place["token"]), likely)
