"""Weight check: compare a replica's answers under an adapter's name with what the adapter computes.

A name proves nothing: TGI serves the base, silently, under a name it does not know, and a restart may bring up
yesterday's weights. So a few greedy answers with log-probabilities are requested from each replica under the adapter's
name, and compared with log-probabilities computed offline when the adapter was published: the adapter's own, the
base's, and those of other adapters that might be served in its place (rivals), all along the adapter's own greedy
answers.

The statistic is a position on a line. With s the served log-probabilities, a the adapter's and r a rival's (of the
listed tokens, as long as the served answer follows the adapter's), it is

    Σ (a − r)(s − r) / Σ (a − r)²

1 for the adapter, 0 for the rival, above ½ exactly when s is nearer to a than to r. Quantised weights add noise to
every number (about .15 nats on a 135M model in 4 bits), as large as a weak adapter's change of any one; over some
hundred numbers it averages out. Twice the adapter's strength would give 2. Each prompt votes as well. Other weights far
off the line can project onto the adapter's position, so the distance |s − a| itself has a bound too.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from distill.errors import EvaluationError, PromotionError
from distill.evaluation.greedy import GreedyToken, Logprobs, answer_greedily
from distill.promotion.adapter import WEIGHT_CHECK_FILE, Adapter
from gateway.backend.discovery import expand, host_of
from gateway.backend.pool import BackendPool
from gateway.errors import GatewayError
from gateway.settings import BackendSettings
from gateway.weight_check import CheckedPrompt, WeightCheck

BASE = "the base model"
"""The name of the rival that every adapter has."""

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
class ExpectedToken:
    """One token of an expected answer, and the log-probabilities of each model's likeliest tokens at its place.

    ``likely`` is by model ("" is the adapter itself), then by the token's text.
    """

    token: str
    likely: Mapping[str, Logprobs]


@dataclass(frozen=True, slots=True)
class ExpectedAnswers:
    """The adapter's greedy answers, prompt by prompt, as computed offline."""

    prompts: Sequence[str]
    answers: Sequence[Sequence[ExpectedToken]]

    @property
    def rivals(self) -> list[str]:
        return [name for name in self.answers[0][0].likely if name]

    def encode(self) -> bytes:
        return json.dumps(asdict(self), ensure_ascii=False).encode()

    @classmethod
    def decode(cls, content: bytes) -> Self:
        """Parse what ``encode`` returned.

        Raises:
            PromotionError: It is malformed.
        """
        try:
            fields = json.loads(content)
            answers = [[_expected_token(one) for one in answer] for answer in fields["answers"]]
            prompts = [str(prompt) for prompt in fields["prompts"]]
            models = {frozenset(one.likely) for answer in answers for one in answer}
            if not answers or len(prompts) != len(answers) or not all(answers):
                raise ValueError("an answer is missing")
            if len(models) != 1 or not {"", BASE} <= models.pop():
                raise ValueError("a model is missing")
            return cls(prompts, answers)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise PromotionError(f"{WEIGHT_CHECK_FILE} does not hold the expected answers of a weight check") from error


@dataclass(frozen=True, slots=True)
class RivalComparison:
    """A replica's position between a rival (0) and the adapter (1), and the share of prompts nearer to the adapter."""

    rival: str
    position: float
    votes: float

    @property
    def passed(self) -> bool:
        return _LOW <= self.position <= _HIGH and self.votes >= _LEAST_VOTES


@dataclass(frozen=True, slots=True)
class ReplicaCheck:
    """The result of one replica's weight check.

    ``distance_nats`` is the root mean square difference to the adapter's log-probabilities, ``tokens_followed`` counts
    the tokens that are as expected, up to the first other one.
    """

    replica: str
    comparisons: Sequence[RivalComparison]
    distance_nats: float
    tokens_followed: int
    tokens_expected: int

    @property
    def passed(self) -> bool:
        return self.distance_nats <= _MOST_DISTANCE_NATS and all(each.passed for each in self.comparisons)

    def __str__(self) -> str:
        positions = "; ".join(
            f"{one.position:.2f} on the way from {one.rival} (0) to the adapter (1), "
            f"{one.votes:.0%} of the prompts nearer to the adapter"
            for one in self.comparisons
        )
        followed = f"{self.tokens_followed} of {self.tokens_expected} greedy tokens as expected"
        return f"{self.replica}: {positions}; {self.distance_nats:.2f} nats from the adapter; {followed}"


def standing_check(adapter: Adapter) -> WeightCheck:
    """Return a short check of the adapter's weights, which gateways repeat while it serves.

    Raises:
        PromotionError: The adapter's expected answers cannot be read.
    """
    expected = _read_expected(adapter)
    return tuple(
        CheckedPrompt(
            prompt=prompt,
            tokens=tuple(one.token for one in answer),
            adapter=tuple(_likeliest(one.likely[""]) for one in answer),
            base=tuple(_likeliest(one.likely[BASE]) for one in answer),
        )
        for prompt, answer in list(zip(expected.prompts, expected.answers, strict=True))[:_STANDING_PROMPTS]
    )


async def check_replicas(adapter: Adapter, backend: BackendSettings) -> list[ReplicaCheck]:
    """Check on every replica that the adapter answers under its name.

    Returns:
        Each replica's result, for the report.

    Raises:
        PromotionError: A replica did not answer, or answered with other weights; names it and the result.
    """
    expected = _read_expected(adapter)
    checks = []
    for url in await expand(backend.urls):
        async with BackendPool(backend.model_copy(update={"urls": (url,)})) as pool:
            try:
                # Together: llama.cpp computes one adapter's answers at a time, so each alone waits for a whole race.
                served = await asyncio.gather(
                    *(answer_prompt(pool, prompt, adapter.name) for prompt in expected.prompts)
                )
            except (GatewayError, EvaluationError) as error:
                raise PromotionError(
                    f"{host_of(url)} did not answer the weight check of {adapter.name}: {error}"
                ) from error
        checks.append(compare(host_of(url), expected, served))
    failed = [str(one) for one in checks if not one.passed]
    if failed:
        raise PromotionError(f"other weights than {adapter.name}'s answer under its name at {' | '.join(failed)}")
    return checks


async def answer_prompt(pool: BackendPool, prompt: str, name: str | None) -> list[GreedyToken]:
    """Return the greedy answer of the pool's first replica under an adapter's name; None: the base's."""
    return await answer_greedily(pool, [{"role": "user", "content": prompt}], name, max_tokens=ANSWER_TOKENS)


def compare(replica: str, expected: ExpectedAnswers, served: Sequence[Sequence[GreedyToken]]) -> ReplicaCheck:
    """Compare a replica's greedy answers, one for each prompt, with the adapter's and each rival's."""
    pairs = list(zip(expected.answers, served, strict=True))
    comparisons = []
    for rival in expected.rivals:
        sums = [_sums(answer, tokens, rival) for answer, tokens in pairs]
        across, squared = (math.fsum(column) for column in zip(*sums, strict=True))
        votes = sum(one > _LOW * whole for one, whole in sums) / len(sums)
        comparisons.append(RivalComparison(rival, across / squared if squared else 0.0, votes))
    followed = sum(_tokens_followed(answer, tokens) for answer, tokens in pairs)
    return ReplicaCheck(replica, comparisons, _distance(pairs), followed, sum(map(len, expected.answers)))


def _read_expected(adapter: Adapter) -> ExpectedAnswers:
    path = adapter.folder / WEIGHT_CHECK_FILE
    try:
        return ExpectedAnswers.decode(path.read_bytes())
    except OSError as error:
        raise PromotionError(f"{path} cannot be read: {error.strerror}") from error


def _likeliest(likely: Logprobs) -> dict[str, float]:
    return dict(sorted(likely.items(), key=lambda one: -one[1])[:_STANDING_LISTED])


def _distance(pairs: Iterable[tuple[Sequence[ExpectedToken], Sequence[GreedyToken]]]) -> float:
    """Return the root mean square difference to the adapter over its likely tokens, in nats."""
    differences = [
        (_logprob(one.likely[""], token) - max(logprob, LEAST_LOGPROB)) ** 2
        for answer, tokens in pairs
        for one, (_, likely) in _comparable(answer, tokens)
        for token, logprob in likely.items()
        if one.likely[""].get(token, LEAST_LOGPROB) >= _LIKELY_LOGPROB
    ]
    # Without any likely token the positions between adapter and rivals decide.
    return math.sqrt(math.fsum(differences) / len(differences)) if differences else 0.0


def _sums(answer: Sequence[ExpectedToken], tokens: Sequence[GreedyToken], rival: str) -> tuple[float, float]:
    """Return the position's numerator and denominator, summed over the comparable tokens."""
    across = squared = 0.0
    for one, (_, served) in _comparable(answer, tokens):
        own, other = one.likely[""], one.likely[rival]
        for token, logprob in served.items():
            if token not in own and token not in other:
                continue  # unlikely to both: it says little, and how little is not known
            adapter, against = (_logprob(likely, token) for likely in (own, other))
            across += (adapter - against) * (max(logprob, LEAST_LOGPROB) - against)
            squared += (adapter - against) ** 2
    return across, squared


def _comparable(
    answer: Sequence[ExpectedToken], tokens: Sequence[GreedyToken]
) -> list[tuple[ExpectedToken, GreedyToken]]:
    """Pair expected and served tokens as long as the text before them is the same."""
    return list(zip(answer, tokens, strict=False))[: _tokens_followed(answer, tokens) + 1]


def _logprob(likely: Logprobs, token: str) -> float:
    """Return a token's log-probability; one that is not listed counts as the least likely listed one."""
    return max(likely.get(token, min(likely.values())), LEAST_LOGPROB)


def _tokens_followed(answer: Sequence[ExpectedToken], tokens: Sequence[GreedyToken]) -> int:
    """Count the tokens as expected before the first other one; after it the two texts differ."""
    same = [one.token == token for one, (token, _) in zip(answer, tokens, strict=False)]
    return same.index(False) if False in same else len(same)


def _expected_token(fields: Mapping[str, Any]) -> ExpectedToken:
    likely = {
        str(model): {str(token): float(logprob) for token, logprob in listed.items()}
        for model, listed in fields["likely"].items()
    }
    if not all(likely.values()):
        raise ValueError("a model has no likely token")
    return ExpectedToken(str(fields["token"]), likely)
