"""Races of one that are streamed: deltas pass through, and the outcome is complete at their end."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import pytest

from gateway.best_of_n.permits import Permits
from gateway.best_of_n.plan import draw_seed
from gateway.best_of_n.race import BestOfN
from gateway.errors import BackendProtocolError, DeadlineExceeded
from gateway.settings import RaceSettings
from gateway.types import Answer, Delta, Outcome, Prompt, Selection, Unusable
from tests.gateway.best_of_n.fakes import FakeBackend, FakeScorer
from tests.gateway.best_of_n.track import PROMPT, Clock, SlowScorer, Track, length, plan, settled

PIECES = [Delta("Hello"), Delta(finish_reason="stop", prompt_tokens=4, completion_tokens=2)]


async def drain(track: Track, n: int = 1, **options: bool) -> tuple[list[Delta], Outcome]:
    async with track.race.entered(plan(n, **options)) as entry:
        live = track.race.stream(entry, PROMPT, track.backend)
        async with contextlib.aclosing(live.deltas):
            deltas = [delta async for delta in live.deltas]
    assert track.permits.in_flight == 0
    return deltas, live.outcome


async def test_a_stream_in_place_of_a_race_is_flagged() -> None:
    track = Track(FakeBackend([], deltas=PIECES), FakeScorer(length, available=False))
    _, outcome = await drain(track, 4)
    assert (1, "RewardUnavailable", [None]) == (outcome.n_run, outcome.scoring_error, outcome.rewards)


async def test_a_streams_timings_are_its_phases_in_milliseconds() -> None:
    clock, scorer = Clock(), SlowScorer()

    class Timed(FakeBackend):
        async def stream(self, prompt: Prompt, *, seed: int, replica: int) -> AsyncGenerator[Delta]:
            clock.now += 1.5
            for delta in PIECES:
                yield delta

    race = BestOfN(
        scorer, Permits(2, max_waiting=1, queue_timeout_s=5.0), RaceSettings(), reward_timeout_s=5.0, clock=clock
    )
    async with race.entered(plan(1, score_single=True)) as entry:
        entry.queue_ms = 250.0
        live = race.stream(entry, PROMPT, Timed([]))
        outcome = live.outcome
        assert (0, draw_seed(7, 0)) == (outcome.candidates[0].index, outcome.candidates[0].seed)
        assert (1, 250.0, "fake-judge") == (outcome.n_run, outcome.timings.queue_ms, outcome.reward_model)
        assert entry.plan is outcome.plan

        async def read() -> list[Delta]:
            return [delta async for delta in live.deltas]

        reading = asyncio.create_task(read())
        await settled()
        assert 0 == entry.unused
        await clock.after(0.125, scorer.may_answer)
        assert PIECES == await reading
    timings = live.outcome.timings
    found = (timings.queue_ms, timings.generate_ms, timings.score_ms, timings.total_ms)
    assert (250.0, 1500.0, 125.0, 1875.0) == found
    assert 1500.0 == live.outcome.candidates[0].latency_ms


async def test_a_stream_passes_through_and_is_assembled_for_the_record() -> None:
    pieces = [Delta("Hel"), Delta("lo"), Delta(finish_reason="stop", prompt_tokens=4, completion_tokens=2)]
    deltas, outcome = await drain(Track(FakeBackend([], deltas=pieces)))
    assert deltas == pieces
    assert outcome.winners[0].answer == Answer("Hello", "stop", 4, 2)
    assert outcome.timings.generate_ms > 0
    assert outcome.scoring_error is None


async def test_a_stream_is_scored_at_its_end_while_policies_are_compared() -> None:
    deltas, outcome = await drain(Track(FakeBackend([], deltas=PIECES)), score_single=True)
    assert (deltas, outcome.rewards, outcome.selection) == (PIECES, [5.0], Selection.SINGLE)
    assert outcome.timings.score_ms > 0


async def test_a_stream_is_drawn_and_scored_with_the_callers_prompt() -> None:
    track = Track(FakeBackend([], deltas=PIECES))
    await drain(track, score_single=True)
    assert ([(PROMPT, 3)], [PROMPT.messages]) == (track.backend.asked, track.scorer.conversations)
    assert [draw_seed(7, 0)] == track.backend.seeds


async def test_a_stream_waits_for_its_reward_no_longer_than_the_timeout() -> None:
    track = Track(FakeBackend([], deltas=PIECES), FakeScorer(lambda _: None), reward_timeout_s=0.02)
    _, outcome = await asyncio.wait_for(drain(track, score_single=True), timeout=10.0)
    assert (outcome.rewards, outcome.scoring_error, track.scorer.cancelled) == ([None], "RewardTimeout", 1)


async def test_a_stream_without_a_finish_reason_is_a_protocol_error() -> None:
    with pytest.raises(BackendProtocolError):
        await drain(Track(FakeBackend([], deltas=[Delta("Hel")])))


async def test_a_stream_over_its_deadline_ends_with_that_error() -> None:
    track = Track(FakeBackend([]), deadline_s=0.02)
    with pytest.raises(DeadlineExceeded):
        await drain(track)
    assert track.permits.in_flight == 0


async def test_a_flood_of_deltas_meets_its_deadline_too() -> None:
    """While deltas are always ready the task never waits, and a timeout alone never strikes."""

    class Flood(FakeBackend):
        async def stream(self, prompt: Prompt, *, seed: int, replica: int) -> AsyncGenerator[Delta]:
            while True:
                yield Delta("a")

    track = Track(Flood([]), deadline_s=0.05)
    with pytest.raises(DeadlineExceeded):
        await drain(track)


async def test_closing_a_stream_closes_the_backends_and_gives_its_permit_back() -> None:
    track = Track(FakeBackend([], deltas=[Delta("a"), Delta("b")]))
    async with track.race.entered(plan(1)) as entry:
        live = track.race.stream(entry, PROMPT, track.backend)
        await anext(live.deltas)
        await live.deltas.aclose()
    assert (track.backend.closed_streams, track.permits.in_flight) == (1, 0)


async def test_a_streamed_answer_is_checked_for_use() -> None:
    cut = [Delta(text="Hel"), Delta(finish_reason="length", prompt_tokens=1, completion_tokens=1)]
    track = Track(FakeBackend([], deltas=cut))
    _, outcome = await drain(track)
    assert Unusable.CUT is outcome.candidates[0].unusable
