"""The parts of a gateway that leave spans, each in the place of one that does not.

They stand at the seams between rooms, so that what they wrap knows nothing of traces and costs nothing without them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from opentelemetry.trace import Span, SpanKind, Tracer

from gateway.best_of_n.permits import Permits
from gateway.best_of_n.plan import draw_seed
from gateway.best_of_n.race import BestOfN, Entry, Live
from gateway.journal.record import Record
from gateway.journal.writer import Journal
from gateway.settings import JournalSettings, RaceSettings, RedisSettings
from gateway.tracing.spans import CUT, each_under, ending, spanning
from gateway.types import (
    Answer,
    Backend,
    Delta,
    JsonObject,
    Message,
    Outcome,
    Prompt,
    Readiness,
    Score,
    Scorer,
)


class TracedRace(BestOfN):
    """Races with a span each, around those of its candidates and scores."""

    def __init__(
        self, scorer: Scorer, permits: Permits, settings: RaceSettings, *, reward_timeout_s: float, tracer: Tracer
    ) -> None:
        super().__init__(scorer, permits, settings, reward_timeout_s=reward_timeout_s)
        self._tracer = tracer

    async def run(self, entry: Entry, prompt: Prompt, backend: Backend) -> Outcome:
        """Draw, score and select, under a span."""
        with spanning(self._tracer, "race", attributes=_planned(entry)) as span:
            outcome = await super().run(entry, prompt, TracedBackend(backend, entry, self._tracer))
            span.set_attributes(_ended(outcome))
            return outcome

    def stream(self, entry: Entry, prompt: Prompt, backend: Backend) -> Live:
        """Stream a race of one draw, under a span that ends with it."""
        live = super().stream(entry, prompt, TracedBackend(backend, entry, self._tracer))
        live.deltas = self._traced(entry, live.deltas, live.outcome)
        return live

    async def _traced(self, entry: Entry, deltas: AsyncGenerator[Delta], outcome: Outcome) -> AsyncGenerator[Delta]:
        span = self._tracer.start_span("race", attributes=_planned(entry))
        with ending(span):
            async with aclosing(each_under(span, deltas)) as steps:
                async for delta in steps:
                    yield delta
            span.set_attributes(_ended(outcome))


class TracedBackend:
    """A race's backend, with a span for each of its draws; implements ``gateway.types.Backend``.

    Which replica answers is written on the span where the call leaves (``gateway.tracing.http``): another one may
    have taken over.
    """

    def __init__(self, backend: Backend, entry: Entry, tracer: Tracer) -> None:
        self._backend = backend
        self._tracer = tracer
        self._indices = {draw_seed(entry.plan.seed, index): index for index in range(entry.n_run)}

    def choose_replica(self) -> Any:
        """The backend's choice."""
        return self._backend.choose_replica()

    async def complete(self, prompt: Prompt, *, seed: int, replica: Any) -> Answer:
        """Draw one whole answer, under a span."""
        with spanning(self._tracer, "candidate", kind=SpanKind.CLIENT, attributes=self._drawn(seed)) as span:
            answer = await self._backend.complete(prompt, seed=seed, replica=replica)
            _finished(span, answer)
            return answer

    async def stream(self, prompt: Prompt, *, seed: int, replica: Any) -> AsyncGenerator[Delta]:
        """Draw one answer piece by piece, under a span that ends with it."""
        span = self._tracer.start_span("candidate", kind=SpanKind.CLIENT, attributes=self._drawn(seed))
        with ending(span):
            deltas = self._backend.stream(prompt, seed=seed, replica=replica)
            async with aclosing(each_under(span, deltas)) as steps:
                async for delta in steps:
                    _finished(span, delta)
                    yield delta

    def _drawn(self, seed: int) -> dict[str, int | bool]:
        return {"ratchet.candidate.index": self._indices[seed], CUT: False}


class TracedScorer:
    """A scorer with a span for each call; implements ``gateway.types.Scorer``."""

    def __init__(self, scorer: Scorer, tracer: Tracer) -> None:
        self._scorer = scorer
        self._tracer = tracer

    @property
    def name(self) -> str:
        """The reward model's name."""
        return self._scorer.name

    @property
    def available(self) -> bool:
        """Whether rewards can be expected now."""
        return self._scorer.available

    @property
    def n_away(self) -> int:
        """How many sources of rewards are not asked now."""
        return self._scorer.n_away

    def start(self) -> None:
        """Begin to load what scoring needs."""
        self._scorer.start()

    async def score(self, messages: Sequence[Message], answer: str) -> Score:
        """Reward of the answer, under a span."""
        with spanning(self._tracer, "score", attributes={"ratchet.reward_model": self.name, CUT: False}) as span:
            score = await self._scorer.score(messages, answer)
            span.set_attributes({"ratchet.reward": score.reward, "ratchet.prompt_truncated": score.prompt_truncated})
            return score

    async def readiness(self) -> Readiness:
        """The scorer's own."""
        return await self._scorer.readiness()

    async def aclose(self) -> None:
        """Release the scorer."""
        await self._scorer.aclose()


class TracedJournal(Journal):
    """The journal, with a span for each record until it is durable."""

    def __init__(self, settings: JournalSettings, redis: RedisSettings, *, tracer: Tracer) -> None:
        super().__init__(settings, redis)
        self._tracer = tracer

    async def append(self, record: Record) -> bool:
        """Make the record durable, under a span that carries its id."""
        attributes = {"ratchet.record.id": record.id, "ratchet.record.kind": record.kind}
        with spanning(self._tracer, "journal write", attributes=attributes) as span:
            durable = await super().append(record)
            span.set_attribute("ratchet.record.durable", durable)
            return durable


def _planned(entry: Entry) -> JsonObject:
    plan = entry.plan
    return {
        "ratchet.n": entry.n_run,
        "ratchet.n_asked": plan.n_asked,
        "ratchet.queue_ms": entry.queue_ms,
        "ratchet.policy_version": plan.policy_version,
        "ratchet.arm": plan.arm.name,
        "ratchet.exploration": plan.exploration,
        CUT: False,
    }


def _ended(outcome: Outcome) -> JsonObject:
    winner = outcome.winners[0]
    told: JsonObject = {
        "ratchet.selection": outcome.selection.value,
        "ratchet.winner.index": winner.index,
        "ratchet.n_scored": outcome.n_scored,
        "ratchet.generated_tokens": outcome.generated_tokens,
        "ratchet.deadline_hit": outcome.deadline_hit,
    }
    if winner.reward is not None:
        told["ratchet.winner.reward"] = winner.reward
    if outcome.scoring_error is not None:
        told["ratchet.scoring_error"] = outcome.scoring_error
    return told


def _finished(span: Span, said: Answer | Delta) -> None:
    """Tell how a draw ended, in the terms of OpenTelemetry's conventions for generative AI."""
    if said.finish_reason is not None:
        span.set_attribute("gen_ai.response.finish_reasons", [said.finish_reason])
    if said.prompt_tokens is not None:
        span.set_attribute("gen_ai.usage.input_tokens", said.prompt_tokens)
    if said.completion_tokens is not None:
        span.set_attribute("gen_ai.usage.output_tokens", said.completion_tokens)
