"""The race: N cancellable calls, scored as they finish, bounded by permits, deadline and quorum."""

import asyncio
import contextlib
import math
from typing import Any

import pytest

from gateway.best_of_n.permits import Grant, Permits
from gateway.best_of_n.plan import draw_seed
from gateway.best_of_n.race import BestOfN
from gateway.errors import (
    BackendFailed,
    BackendOverloaded,
    BackendUnreachable,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    RewardError,
)
from gateway.settings import RaceSettings
from gateway.types import Answer, Selection, Unusable
from tests.gateway.best_of_n.fakes import FakeBackend, FakeScorer, answer
from tests.gateway.best_of_n.track import PROMPT, Clock, SlowScorer, Track, length, plan, settled


async def test_the_best_of_n_answers_wins() -> None:
    track = Track(FakeBackend([answer("a"), answer("aaa"), answer("aa")]))
    outcome = await track.run(3)
    assert (outcome.winners[0].answer, outcome.selection) == (answer("aaa"), Selection.SCORED)
    assert outcome.rewards == [1.0, 3.0, 2.0]
    assert (outcome.n_run, outcome.n_scored, outcome.generated_tokens) == (3, 3, 9)
    assert outcome.reward_model == "fake-judge"


@pytest.mark.parametrize(("n_returned", "winners"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 0])])
async def test_as_many_winners_as_asked_for_are_returned_best_first(n_returned: int, winners: list[int]) -> None:
    track = Track(FakeBackend([answer("a"), answer("aaa"), answer("aa")]))
    outcome = await track.run(3, n_returned=n_returned)
    assert winners == [winner.index for winner in outcome.winners]


async def test_every_candidate_has_its_own_seed_derived_from_the_callers() -> None:
    track = Track(FakeBackend([answer("a"), answer("b")]))
    await track.run(2)
    assert track.backend.seeds == [draw_seed(7, 0), draw_seed(7, 1)]


async def test_all_candidates_are_drawn_at_once() -> None:
    track = Track(FakeBackend([answer("a")] * 8))
    await track.run(8)
    assert track.backend.most_running == 8


async def test_each_candidate_is_scored_as_soon_as_it_is_drawn() -> None:
    gate = asyncio.Event()

    def score(text: str) -> float:
        gate.set()
        return length(text)

    track = Track(FakeBackend([answer("early"), answer("late")], gates={1: gate}), FakeScorer(score))
    outcome = await track.run(2)  # would hang if the first score waited for the second draw
    assert outcome.n_scored == 2


async def test_identical_answers_are_scored_once() -> None:
    track = Track(FakeBackend([answer("same"), answer("same"), answer("other")]))
    outcome = await track.run(3)
    assert sorted(track.scorer.asked) == ["other", "same"]
    assert outcome.rewards == [4.0, 4.0, 5.0]


async def test_a_single_candidate_is_not_scored() -> None:
    track = Track(FakeBackend([answer("a")]))
    outcome = await track.run(1)
    assert (outcome.selection, track.scorer.asked) == (Selection.SINGLE, [])


async def test_a_single_candidate_is_scored_while_policies_are_compared() -> None:
    """Its selection is still "single"."""
    outcome = await Track(FakeBackend([answer("a")])).run(1, score_single=True)
    assert (outcome.selection, outcome.rewards) == (Selection.SINGLE, [1.0])


async def test_a_failing_candidate_costs_that_candidate() -> None:
    track = Track(FakeBackend([BackendFailed("no"), answer("a"), answer("bb")]))
    outcome = await track.run(3)
    assert outcome.winners[0].index == 2
    assert isinstance(outcome.candidates[0].error, BackendFailed)


async def test_a_race_whose_candidates_all_fail_raises_the_most_informative_error() -> None:
    track = Track(FakeBackend([BackendUnreachable("gone"), BackendOverloaded("full")]))
    with pytest.raises(BackendOverloaded):
        await track.run(2)


async def test_a_request_that_the_backend_cannot_take_is_the_callers_error() -> None:
    track = Track(FakeBackend([InvalidRequest("no", param="messages"), BackendFailed("no")]))
    with pytest.raises(InvalidRequest):
        await track.run(2)


async def test_at_the_deadline_the_best_finished_answer_wins_and_losers_are_cancelled() -> None:
    track = Track(FakeBackend([answer("a"), answer("bb"), None]), deadline_s=0.05)
    outcome = await track.run(3)
    assert (outcome.winners[0].index, outcome.deadline_hit, track.backend.cancelled) == (1, True, 1)
    late = outcome.candidates[2].error
    assert isinstance(late, DeadlineExceeded)
    assert "this candidate was not finished in time" == late.message


async def test_nothing_finished_by_the_deadline_is_an_error() -> None:
    track = Track(FakeBackend([None, None]), deadline_s=0.02)
    with pytest.raises(DeadlineExceeded):
        await track.run(2)
    assert track.backend.cancelled == 2


async def test_a_quorum_suffices_after_its_time() -> None:
    track = Track(FakeBackend([answer("a"), answer("bb"), None, None]), quorum=0.5)
    outcome = await asyncio.wait_for(track.run(4), timeout=3.0)  # before the deadline
    assert (outcome.deadline_hit, outcome.n_scored, track.backend.cancelled) == (True, 2, 2)


async def test_the_race_waits_until_the_quorum_is_reached() -> None:
    gate = asyncio.Event()
    track = Track(FakeBackend([answer("a"), answer("bb"), None], gates={1: gate}), quorum=0.6)
    running = asyncio.create_task(track.run(3))
    await asyncio.sleep(0.05)
    assert not running.done()
    gate.set()
    assert (await running).n_scored == 2


async def test_exploration_is_never_cut_by_the_quorum() -> None:
    gate = asyncio.Event()
    track = Track(FakeBackend([answer("a"), answer("bb")], gates={1: gate}), quorum=0.5)
    running = asyncio.create_task(track.run(2, exploration=True))
    await asyncio.sleep(0.05)
    gate.set()
    outcome = await running
    assert (outcome.n_scored, outcome.deadline_hit, outcome.plan.exploration) == (2, False, True)


async def test_exploration_without_all_its_permits_becomes_an_ordinary_race() -> None:
    track = Track(FakeBackend([answer("a"), answer("b")]), limit=4)
    outcome = await track.run(8, exploration=True, ordinary=2)
    assert (outcome.plan.exploration, outcome.plan.n_asked, outcome.n_run) == (False, 2, 2)


@pytest.mark.parametrize(
    "reward", [RewardError("down"), math.nan, math.inf, None], ids=["error", "nan", "infinite", "slow"]
)
async def test_without_rewards_the_answer_is_a_flagged_fallback(reward: float | RewardError | None) -> None:
    track = Track(FakeBackend([answer("a"), answer("bb")]), FakeScorer(lambda _: reward), reward_timeout_s=0.02)
    outcome = await asyncio.wait_for(track.run(2), timeout=10.0)
    assert (outcome.selection, outcome.winners[0].index) == (Selection.FALLBACK, 0)
    assert outcome.scoring_error == ("RewardTimeout" if reward is None else "RewardError")
    assert outcome.rewards == [None, None]


@pytest.mark.parametrize(
    ("n", "options", "drawn"),
    [
        (4, {}, 1),
        (8, {"exploration": True, "ordinary": 4}, 1),
        (4, {"n_returned": 2}, 2),
        (1, {"score_single": True}, 1),
    ],
)
async def test_while_no_rewards_can_be_had_a_race_draws_the_answers_wanted_and_is_flagged(
    n: int, options: dict[str, Any], drawn: int
) -> None:
    scorer = FakeScorer(length, available=False)
    outcome = await Track(FakeBackend([answer("a"), answer("bb")]), scorer).run(n, **options)
    assert (drawn, [None] * drawn, "RewardUnavailable") == (outcome.n_run, outcome.rewards, outcome.scoring_error)
    assert ([], False) == (scorer.asked, outcome.plan.exploration)
    assert min(n, 4) == outcome.plan.n_asked


async def test_a_single_candidate_that_needs_no_reward_is_not_flagged() -> None:
    outcome = await Track(FakeBackend([answer("a")]), FakeScorer(length, available=False)).run(1)
    assert (1, None) == (outcome.n_run, outcome.scoring_error)


async def test_a_reward_missing_for_one_costs_that_one() -> None:
    track = Track(
        FakeBackend([answer("a"), answer("bb"), answer("ccc")]),
        FakeScorer(lambda text: RewardError("odd") if text == "ccc" else length(text)),
    )
    outcome = await track.run(3)
    assert (outcome.selection, outcome.winners[0].index, outcome.n_scored) == (Selection.SCORED, 1, 2)


async def test_under_load_a_race_draws_fewer_and_reports_it() -> None:
    track = Track(FakeBackend([answer("a")] * 8), limit=3)
    outcome = await track.run(8)
    assert (outcome.n_run, outcome.plan.n_asked) == (3, 8)


async def test_without_any_permit_a_request_is_refused() -> None:
    track = Track(FakeBackend([None]), limit=1)
    async with track.race.entered(plan(1)):
        with pytest.raises(Overloaded):
            await track.race.entered(plan(1)).__aenter__()
    assert track.permits.in_flight == 0


async def test_a_cancelled_race_cancels_all_draws_and_scores_and_keeps_no_permit() -> None:
    scoring = asyncio.Event()
    track = Track(FakeBackend([answer("a"), None, None]), FakeScorer(lambda _: scoring.set()))
    running = asyncio.create_task(track.run(3))
    await scoring.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (track.backend.cancelled, track.scorer.cancelled, track.permits.in_flight) == (2, 1, 0)


async def test_a_race_cancelled_before_its_first_step_keeps_no_permit() -> None:
    track = Track(FakeBackend([None] * 4))
    running = asyncio.create_task(track.run(4))
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert track.permits.in_flight == 0


async def test_tool_calls_are_scored_by_function_and_arguments() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    calling = Answer(None, "tool_calls", 1, 1, tool_calls=(call,))
    track = Track(FakeBackend([calling, answer("a")]))
    await track.run(2)
    assert sorted(track.scorer.asked) == ['[{"arguments": "{}", "name": "look"}]', "a"]


async def test_a_races_timings_are_its_phases_in_milliseconds() -> None:
    """A quarter of a second in the queue, candidates of 1 and 1.5 s, and an eighth of a second for rewards."""
    clock, scorer, gates = Clock(), SlowScorer(), {index: asyncio.Event() for index in range(2)}
    permits = Permits(8, max_waiting=1, queue_timeout_s=5.0)
    settings = RaceSettings(deadline_s=5.0, quorum=1.0)
    race = BestOfN(scorer, permits, settings, reward_timeout_s=5.0, clock=clock)
    async with contextlib.AsyncExitStack() as stack:
        async with race.entered(plan(8)) as before:
            assert (8, 8, 0.0) == (before.n_run, before.unused, before.queue_ms)
            waiting = asyncio.create_task(stack.enter_async_context(race.entered(plan(2))))
            await settled()
            clock.now += 0.25
        entry = await waiting
        assert (2, 2, 250.0) == (entry.n_run, entry.unused, entry.queue_ms)
        running = asyncio.create_task(race.run(entry, PROMPT, FakeBackend([answer("a"), answer("bb")], gates)))
        await settled()
        assert 0 == entry.unused
        await clock.after(1.0, gates[0])
        await clock.after(0.5, gates[1])
        await clock.after(0.125, scorer.may_answer)
        outcome = await running
    assert [1000.0, 1500.0] == [each.latency_ms for each in outcome.candidates]
    timings = outcome.timings
    found = (timings.queue_ms, timings.generate_ms, timings.score_ms, timings.total_ms)
    assert (250.0, 1500.0, 125.0, 1875.0) == found
    assert 0 == permits.in_flight


class RecordingPermits(Permits):
    """Records the arguments of ``acquire``."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit, max_waiting=0, queue_timeout_s=0.05)
        self.asked: list[tuple[int, int, str | None]] = []

    async def acquire(self, want: int, *, floor: int = 1, key: str | None = None) -> Grant:
        self.asked.append((want, floor, key))
        return await super().acquire(want, floor=floor, key=key)


@pytest.mark.parametrize(
    ("n", "options", "available", "asked", "without_rewards"),
    [
        (4, {}, True, [(4, 1, "a")], False),
        (4, {"n_returned": 3}, True, [(4, 3, "a")], False),
        (8, {"exploration": True, "ordinary": 4, "n_returned": 2}, True, [], False),
        (9, {"exploration": True, "ordinary": 4, "n_returned": 2}, True, [(4, 2, "a")], False),
        (4, {"n_returned": 3}, False, [(3, 3, "a")], True),
        (2, {}, False, [(1, 1, "a")], True),
        (1, {}, False, [(1, 1, "a")], False),
        (1, {"score_single": True}, False, [(1, 1, "a")], True),
    ],
)
async def test_a_race_acquires_permits_for_its_key_and_at_least_one_for_each_answer(
    n: int,
    options: dict[str, Any],
    available: bool,
    asked: list[tuple[int, int, str | None]],
    without_rewards: bool,
) -> None:
    permits = RecordingPermits(8)
    race = BestOfN(FakeScorer(length, available=available), permits, RaceSettings(), reward_timeout_s=5.0)
    async with race.entered(plan(n, **options), key="a") as entry:
        assert (asked, without_rewards) == (permits.asked, entry.without_rewards)
        assert [entry.n_run, entry.n_run] == [entry.unused, permits.in_flight]
        assert 0.0 <= entry.queue_ms < (1000.0 if asked else 1e-9)
    assert (0, 0) == (entry.unused, permits.in_flight)


async def test_every_candidate_is_drawn_and_scored_with_the_callers_prompt() -> None:
    """All candidates of a race go to one replica, whose cache then has the prompt."""
    track = Track(FakeBackend([answer("a"), answer("bb")]))
    await track.run(2)
    assert [(PROMPT, 3), (PROMPT, 3)] == track.backend.asked
    assert [PROMPT.messages, PROMPT.messages] == track.scorer.conversations


@pytest.mark.parametrize(("n", "options"), [(2, {}), (8, {"exploration": True, "ordinary": 2})])
@pytest.mark.parametrize("available", [True, False])
async def test_the_entry_has_the_time_in_the_queue(n: int, options: dict[str, Any], available: bool) -> None:
    clock, permits = Clock(), Permits(8, max_waiting=1, queue_timeout_s=5.0)
    scorer = FakeScorer(length, available=available)
    race = BestOfN(scorer, permits, RaceSettings(), reward_timeout_s=5.0, clock=clock)
    running = await permits.acquire(8)
    async with contextlib.AsyncExitStack() as stack:
        entered = race.entered(plan(n, **options))
        waiting = asyncio.create_task(stack.enter_async_context(entered))
        await settled()
        clock.now += 0.25
        running.release(8)
        assert 250.0 == (await waiting).queue_ms


async def test_a_candidate_that_finishes_after_the_deadline_does_not_count() -> None:
    late = asyncio.Event()
    track = Track(FakeBackend([answer("a"), answer("bb")], {1: late}), deadline_s=0.05)
    asyncio.get_running_loop().call_later(0.5, late.set)
    outcome = await track.run(2)
    assert (True, None) == (outcome.deadline_hit, outcome.candidates[1].answer)


async def test_a_deadline_before_the_quorums_time_ends_the_race() -> None:
    track = Track(FakeBackend([answer("a"), None]), deadline_s=0.02, quorum=0.9, quorum_after_s=60.0)
    outcome = await asyncio.wait_for(track.run(2), timeout=10.0)
    assert (True, [0]) == (outcome.deadline_hit, [each.index for each in outcome.winners])


@pytest.mark.parametrize(("quorum", "finished"), [(0.5, 2), (0.51, 3), (0.75, 3), (0.76, 4)])
async def test_a_quorum_is_rounded_up_to_whole_candidates(quorum: float, finished: int) -> None:
    gates = {index: asyncio.Event() for index in range(4)}
    track = Track(FakeBackend([answer("a")] * 4, gates), deadline_s=60.0, quorum=quorum, quorum_after_s=0.001)
    running = asyncio.create_task(track.run(4))
    await asyncio.sleep(0.02)
    for index in range(finished):
        assert not running.done()
        gates[index].set()
        await asyncio.sleep(0.02)
    outcome = await asyncio.wait_for(running, timeout=5.0)
    assert (finished, finished < 4) == (outcome.n_scored, outcome.deadline_hit)


async def test_an_empty_answer_is_neither_scored_nor_chosen() -> None:
    scorer = FakeScorer(lambda text: -1.0 if text else 5.0)
    track = Track(FakeBackend([answer(""), answer("no")]), scorer)
    outcome = await track.run(2)
    assert ([1], [None, -1.0]) == ([winner.index for winner in outcome.winners], outcome.rewards)
    assert [Unusable.EMPTY, None] == [each.unusable for each in outcome.candidates]
