"""The spans of a race over fakes: their names, kinds, parents and attributes."""

import asyncio
import contextlib
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gateway import spans
from gateway.errors import RewardError
from gateway.types import Delta
from tests.gateway.best_of_n.fakes import FakeBackend, FakeScorer, answer
from tests.gateway.best_of_n.track import PROMPT, Track, length, plan


@pytest.fixture
def ended() -> Iterator[InMemorySpanExporter]:
    """Keep ended spans in memory."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    spans.use_tracer(provider.get_tracer("test"))
    yield exporter
    spans.use_tracer(None)


def described(ended: InMemorySpanExporter) -> list[tuple[str, str, str | None, dict[str, object]]]:
    """Each span's name, kind, parent and attributes, ordered by name and attributes."""
    found = ended.get_finished_spans()
    names = {span.context.span_id: span.name for span in found if span.context is not None}

    def describe(span: ReadableSpan) -> tuple[str, str, str | None, dict[str, object]]:
        parent = None if span.parent is None else names[span.parent.span_id]
        return span.name, span.kind.name, parent, dict(span.attributes or {})

    return sorted(map(describe, found), key=lambda each: (each[0], str(each[3])))


RACE = {
    "ratchet.n_asked": 2,
    "ratchet.policy_version": 0,
    "ratchet.arm": "stable",
    "ratchet.exploration": False,
    "ratchet.cut": False,
    "ratchet.deadline_hit": False,
}


async def test_the_spans_of_a_race_have_its_plan_candidates_rewards_and_outcome(ended: InMemorySpanExporter) -> None:
    track = Track(FakeBackend([answer("a", tokens=3), answer("bb", tokens=4)]))
    async with track.race.entered(plan(2)) as entry:
        entry.queue_ms = 250.0
        await track.race.run(entry, PROMPT, track.backend)
    candidate = {"gen_ai.response.finish_reasons": ("stop",), "gen_ai.usage.input_tokens": 5, "ratchet.cut": False}
    race = {
        **RACE,
        "ratchet.n": 2,
        "ratchet.queue_ms": 250.0,
        "ratchet.selection": "scored",
        "ratchet.winner.index": 1,
        "ratchet.winner.reward": 2.0,
        "ratchet.n_scored": 2,
        "ratchet.generated_tokens": 7,
    }
    score = {"ratchet.reward_model": "fake-judge", "ratchet.prompt_truncated": False, "ratchet.cut": False}
    assert [
        ("candidate", "CLIENT", "race", {**candidate, "ratchet.candidate.index": 0, "gen_ai.usage.output_tokens": 3}),
        ("candidate", "CLIENT", "race", {**candidate, "ratchet.candidate.index": 1, "gen_ai.usage.output_tokens": 4}),
        ("race", "INTERNAL", None, race),
        ("score", "INTERNAL", "race", {**score, "ratchet.reward": 1.0}),
        ("score", "INTERNAL", "race", {**score, "ratchet.reward": 2.0}),
    ] == described(ended)


async def test_the_spans_of_a_stream_have_the_same_attributes(ended: InMemorySpanExporter) -> None:
    pieces = [Delta("Hello"), Delta(finish_reason="stop", prompt_tokens=4, completion_tokens=2)]
    track = Track(FakeBackend([], deltas=pieces), FakeScorer(length))
    async with track.race.entered(plan(1, score_single=True)) as entry:
        entry.queue_ms = 250.0
        live = track.race.stream(entry, PROMPT, track.backend)
        async with contextlib.aclosing(live.deltas):
            assert pieces == [delta async for delta in live.deltas]
    candidate = {
        "ratchet.candidate.index": 0,
        "ratchet.cut": False,
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 4,
        "gen_ai.usage.output_tokens": 2,
    }
    race = {
        **RACE,
        "ratchet.n": 1,
        "ratchet.n_asked": 1,
        "ratchet.queue_ms": 250.0,
        "ratchet.selection": "single",
        "ratchet.winner.index": 0,
        "ratchet.winner.reward": 5.0,
        "ratchet.n_scored": 1,
        "ratchet.generated_tokens": 2,
    }
    score = {
        "ratchet.reward_model": "fake-judge",
        "ratchet.prompt_truncated": False,
        "ratchet.cut": False,
        "ratchet.reward": 5.0,
    }
    assert [
        ("candidate", "CLIENT", "race", candidate),
        ("race", "INTERNAL", None, race),
        ("score", "INTERNAL", "race", score),
    ] == described(ended)


async def test_the_span_of_a_race_without_rewards_has_the_error_and_no_reward(ended: InMemorySpanExporter) -> None:
    track = Track(FakeBackend([answer("a"), answer("bb")]), FakeScorer(lambda _: RewardError("down")))
    await asyncio.wait_for(track.run(2), 5.0)
    [race] = [attributes for name, _, _, attributes in described(ended) if name == "race"]
    assert ("RewardError", "fallback", 0) == tuple(
        race[f"ratchet.{name}"] for name in ("scoring_error", "selection", "n_scored")
    )
    assert "ratchet.winner.reward" not in race
