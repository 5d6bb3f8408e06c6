"""A request's way from its plan to its record, without HTTP: races, streams, other arms, records however it ends."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import orjson
import pytest
from structlog.testing import capture_logs

from gateway.errors import BackendFailed, BackendUnreachable, GatewayError, InvalidRequest, UnsupportedField
from gateway.policy import Canary, Policy
from gateway.types import Delta, Outcome, Selection
from tests.gateway.best_of_n.conftest import Answering, StartAnswering, request, server_that_sends
from tests.gateway.best_of_n.fakes import HELLO
from tests.stubs.knobs import Fault, Knobs
from tests.stubs.reward import RewardFault, RewardKnobs, reward_of
from tests.stubs.tgi import TgiStub

DEAD = "http://127.0.0.1:9"


async def none_in_flight(answering: Answering) -> bool:
    """Return True if all permits and pools are given back, once the last task has ended."""
    await asyncio.sleep(0)
    return (0, 0) == (answering.parts.permits.in_flight, answering.parts.backends.leased)


def text_of(outcome: Outcome) -> str | None:
    [winner] = outcome.winners
    assert winner.answer is not None
    return winner.answer.text


async def test_the_candidate_with_the_highest_reward_wins_and_the_race_is_recorded(start: StartAnswering) -> None:
    answering = await start()
    outcome = await answering.answer(best_of=4, seed=1, user="someone", metadata={"a": "b"})
    texts = [candidate.answer.text or "" for candidate in outcome.candidates if candidate.answer]
    assert 4 == len(texts)
    assert [pytest.approx(reward_of(text)) for text in texts] == outcome.rewards
    assert max(texts, key=reward_of) == text_of(outcome)
    [record] = answering.records()
    assert ("job-0", "key", "ratchet", HELLO) == (record.id, record.key_id, record.model, record.messages)
    assert ("someone", {"a": "b"}, 1) == (record.user, record.metadata, record.sampling.seed)
    assert (texts, outcome.rewards) == ([c.text for c in record.candidates], [c.reward for c in record.candidates])
    assert ([outcome.winners[0].index], "scored", "answered") == (record.winners, record.selection, record.ending)
    assert await none_in_flight(answering)


async def test_the_outcomes_times_add_up_once_it_is_recorded(start: StartAnswering) -> None:
    """The record has no time of its own writing: that is not known as it is written."""
    answering = await start()
    timings = (await answering.answer(best_of=2)).timings
    [record] = answering.records()
    assert 0 == record.timings.journal_ms < timings.journal_ms
    assert 0 < record.timings.total_ms < timings.total_ms
    assert timings.total_ms == pytest.approx(record.timings.total_ms + timings.journal_ms)


@pytest.mark.parametrize(("best_of", "n", "drawn"), [(None, 1, 2), (3, 1, 3), (None, 4, 4)])
async def test_n_is_the_callers_or_the_policys_and_no_less_than_the_answers(
    start: StartAnswering, best_of: int | None, n: int, drawn: int
) -> None:
    answering = await start(document=Policy(version=7, n=2, n_max=8))
    outcome = await answering.answer(best_of=best_of, n_returned=n)
    assert (drawn, n, 7) == (outcome.n_run, len(outcome.winners), outcome.plan.policy_version)


async def test_the_same_seed_gives_the_same_answer_streamed_or_not(start: StartAnswering) -> None:
    answering = await start()
    whole = await answering.answer(best_of=4, seed=3)
    deltas, streamed = await answering.stream(best_of=4, seed=3)
    assert [] == deltas, "a race is not streamed while it runs"
    assert text_of(whole) == text_of(streamed)


async def test_a_single_candidate_is_streamed_as_it_is_drawn(start: StartAnswering) -> None:
    answering = await start()
    deltas, outcome = await answering.stream(best_of=1, seed=3)
    assert len(deltas) > 2
    assert (
        "".join(delta.text for delta in deltas)
        == text_of(outcome)
        == text_of(await answering.answer(best_of=1, seed=3))
    )
    streamed, whole = answering.records()
    assert (streamed.candidates[0].text, streamed.usage) == (whole.candidates[0].text, whole.usage)
    assert await none_in_flight(answering)


@pytest.mark.parametrize("stream", [False, True])
async def test_each_completion_is_counted_and_logged_once(start: StartAnswering, stream: bool) -> None:
    answering = await start()
    with capture_logs() as logs:
        await answering.finish(stream=stream, best_of=3)
    [line] = [line for line in logs if line["event"] == "completion"]
    assert ("job-0", 3, 3, "stable", "scored") == tuple(
        line[name] for name in ("completion", "n", "n_asked", "arm", "selection")
    )
    assert (1, 3) == (
        answering.count("ratchet_selections_total", selection="scored"),
        answering.count("ratchet_candidates_total", outcome="finished"),
    )


async def test_the_policys_temperature_holds_where_the_caller_sets_none(start: StartAnswering) -> None:
    answering = await start(document=Policy(version=1, n=1, n_max=1, default_temperature=0.4))
    await answering.answer()
    await answering.answer(temperature=1.1)
    assert [0.4, 1.1] == [orjson.loads(request.body)["temperature"] for request in answering.tgi.state.requests]
    assert [0.4, 1.1] == [record.sampling.temperature for record in answering.records()]


async def test_a_request_that_cannot_be_served_is_refused_before_anything_is_drawn(start: StartAnswering) -> None:
    answering = await start(schemas={"max_properties": 1}, backend={"kind": "tgi"})
    two = {"type": "object", "properties": {"a": {}, "b": {}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": two}}
    with pytest.raises(InvalidRequest):
        answering.accept(tools=(tool,))
    with pytest.raises(UnsupportedField):
        answering.accept(logit_bias={"1": 1.0})
    assert (0, 0) == (len(answering.tgi.state.requests), answering.parts.permits.in_flight)


async def test_without_rewards_the_answer_is_a_flagged_fallback(start: StartAnswering) -> None:
    answering = await start(rewards=RewardKnobs(fault=RewardFault.NAN, fault_probability=1.0))
    outcome = await answering.answer(best_of=2)
    [record] = answering.records()
    assert (Selection.FALLBACK, "RewardError") == (outcome.selection, outcome.scoring_error)
    assert ("fallback", "RewardError", [None, None]) == (
        record.selection,
        record.scoring_error,
        [candidate.reward for candidate in record.candidates],
    )


async def test_a_candidate_that_fails_costs_the_race_that_candidate(start: StartAnswering) -> None:
    answering = await start(Knobs(fault=Fault.STATUS, fault_next=1))
    outcome = await answering.answer(best_of=3)
    assert (3, 2, 1) == (outcome.n_run, outcome.n_scored, outcome.rewards.count(None))


async def test_load_shrinks_the_race(start: StartAnswering) -> None:
    outcome = await (await start(race={"max_in_flight": 3})).answer(best_of=8)
    assert (3, 8) == (outcome.n_run, outcome.plan.n_asked)


async def test_content_stays_out_of_the_record_where_the_caller_says_so(start: StartAnswering) -> None:
    answering = await start()
    await answering.answer(best_of=2, store=False, user="someone", metadata={"a": "b"})
    [record] = answering.records()
    assert (None, None, None) == (record.messages, record.user, record.metadata)
    assert [None, None] == [candidate.text for candidate in record.candidates]
    assert record.usage.generated_tokens > 0


async def test_the_caller_is_answered_although_the_disk_refuses_the_record(
    start: StartAnswering, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering = await start()

    async def refuse(_: object) -> bool:
        return False

    monkeypatch.setattr(answering.parts.journal, "append", refuse)
    with capture_logs() as logs:
        assert text_of(await answering.answer(best_of=2))
    assert 1 == answering.count("ratchet_journal_not_durable_total")
    assert ["job-0"] == [line["completion"] for line in logs if line["event"] == "record_not_durable"]


def with_canary(n: int = 2, url: str = DEAD) -> Policy:
    """A policy of N = 3 whose canary serves nearly all requests."""
    return Policy(version=4, n=3, n_max=8, canary=Canary(adapter="new", n=n, urls=(url,), share=0.999))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 2])
async def test_the_stable_arm_answers_at_its_own_n_where_the_canary_cannot(
    start: StartAnswering, n: int, stream: bool
) -> None:
    answering = await start(document=with_canary(n))
    with capture_logs() as logs:
        outcome = await answering.finish(stream=stream)
    assert isinstance(outcome, Outcome)
    assert ("stable", "canary", 3) == (outcome.plan.arm.name, outcome.plan.arm_failed, outcome.n_run)
    [record] = answering.records()
    assert ("stable", "canary", None, 3) == (record.arm, record.arm_failed, record.adapter, record.n_run)
    assert 1 == answering.count("ratchet_arm_failures_total", arm="canary")
    assert [("canary", "BackendUnreachable")] == [
        (line["arm"], line["error"]) for line in logs if line["event"] == "arm_failed"
    ]
    assert await none_in_flight(answering)


async def test_the_base_answers_at_the_settings_n_where_no_server_has_the_stable_arms_adapter(
    start: StartAnswering,
) -> None:
    choice = {"message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}
    body = {"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
    document = Policy(version=2, adapter="rft-lost", n=2, n_max=8)
    async with server_that_sends(body) as url:
        answering = await start(document=document, policy={"n": 3}, backend={"kind": "vllm", "urls": (url,)})
        outcome = await answering.answer()
    assert ("base", None, 3) == (outcome.plan.arm.name, outcome.plan.arm.adapter, outcome.n_run)
    assert "stable" == outcome.plan.arm_failed


async def test_the_arm_depends_on_the_api_key_and_on_the_user(start: StartAnswering) -> None:
    """A message that many callers send is not always served by one arm."""
    halves = Policy(version=4, n=3, n_max=8, canary=Canary(adapter="new", n=2, share=0.5))
    answerer = (await start(document=halves)).answerer
    by_key, by_user = (
        {answerer.accept(request(user=user), id="a", key_id=key).plan.arm.name for key, user in callers}
        for callers in ([(str(number), None) for number in range(40)], [("key", str(number)) for number in range(40)])
    )
    assert {"stable", "canary"} == by_key == by_user


async def test_keys_take_turns_for_permits(start: StartAnswering) -> None:
    """The queue is full of one key's requests; the other key's request is answered before most of them."""
    answering = await start(
        Knobs(latency_ms=50), document=Policy(version=1, n=1, n_max=1), race={"max_in_flight": 1, "max_waiting": 20}
    )

    async def answer(key_id: str) -> None:
        await answering.answerer.answer(answering.answerer.accept(request(), id=key_id, key_id=key_id))

    flood = [asyncio.create_task(answer("one")) for _ in range(20)]
    await answering.tgi.state.until(lambda state: state.generating == 1)
    await answer("other")
    assert 15 <= sum(not task.done() for task in flood)
    for task in flood:
        task.cancel()
    await asyncio.wait(flood)


async def test_an_arm_that_failed_is_not_tried_by_the_next_request(start: StartAnswering) -> None:
    async with TgiStub(Knobs(fault=Fault.HANG, fault_probability=1.0)) as hung:
        answering = await start(
            document=with_canary(1, hung.url), race={"deadline_s": 0.5}, backend={"unhealthy_s": 60.0}
        )
        outcomes = [await answering.answer() for _ in range(2)]
        assert 1 == hung.state.started
    assert [("stable", "canary")] * 2 == [(one.plan.arm.name, one.plan.arm_failed) for one in outcomes]


@pytest.mark.parametrize("stream", [False, True])
async def test_the_stable_arm_answers_where_the_canarys_servers_know_no_such_model(
    start: StartAnswering, stream: bool
) -> None:
    async with TgiStub(Knobs(fault=Fault.STATUS, fault_status=404, fault_probability=1.0)) as without:
        answering = await start(document=with_canary(2, without.url))
        outcome = await answering.finish(stream=stream)
    assert isinstance(outcome, Outcome)
    assert ("stable", "canary") == (outcome.plan.arm.name, outcome.plan.arm_failed)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("best_of", [1, 3])
async def test_a_request_that_no_arm_can_answer_ends_with_its_error_and_no_record(
    start: StartAnswering, best_of: int, stream: bool
) -> None:
    answering = await start(Knobs(fault=Fault.STATUS, fault_probability=1.0), document=with_canary(1))
    error = await answering.finish(stream=stream, best_of=best_of)
    assert isinstance(error, BackendFailed)
    assert [] == answering.records()
    assert await none_in_flight(answering)


async def test_a_stream_that_its_caller_leaves_is_recorded_without_a_winner(start: StartAnswering) -> None:
    answering = await start(Knobs(tokens_per_s=50, answer_tokens_min=90))
    with capture_logs() as logs:
        job = answering.accept(best_of=1)
        async with aclosing(answering.answerer.stream(job)) as stream:
            for _ in range(20):
                await anext(stream)
    [record] = answering.records()
    [candidate] = record.candidates
    assert ("job-0", "cut", [], "single") == (record.id, record.ending, record.winners, record.selection)
    assert (None, None) == (candidate.text, candidate.error)
    assert 15 < record.usage.generated_tokens == candidate.cut_at_tokens == job.prompt.meter.tokens
    assert 0 == record.usage.returned_tokens
    assert 0 < record.timings.total_ms
    assert 1 == answering.count("ratchet_errors_total", kind="ClientGone")
    assert 0 == answering.count("ratchet_selections_total", selection="single")
    assert [("job-0", "cut")] == [
        (line["completion"], line["ending"]) for line in logs if line["event"] == "stream_unfinished"
    ]
    assert await none_in_flight(answering)


async def test_a_stream_that_is_left_before_its_first_delta_has_no_record(start: StartAnswering) -> None:
    answering = await start(Knobs(tokens_per_s=1, time_to_first_token_ms=60_000))
    stream = answering.answerer.stream(answering.accept(best_of=1))
    reading = asyncio.ensure_future(anext(stream))
    await answering.tgi.state.until(lambda state: state.generating == 1)
    reading.cancel()
    await asyncio.wait([reading])
    await stream.aclose()
    await answering.tgi.state.until(lambda state: state.cancelled == 1)
    assert [] == answering.records()
    assert await none_in_flight(answering)


@pytest.mark.parametrize(
    ("fault", "error"), [(Fault.ERROR_FRAME, BackendFailed), (Fault.DISCONNECT, BackendUnreachable)]
)
async def test_a_stream_that_fails_after_its_first_delta_is_recorded_with_its_error_and_no_other_arm_takes_over(
    start: StartAnswering, fault: Fault, error: type[GatewayError]
) -> None:
    breaks = Knobs(fault=fault, fault_probability=1.0, fault_after_tokens=30, tokens_per_s=200, answer_tokens_min=90)
    async with TgiStub(breaks) as canary:
        answering = await start(document=with_canary(1, canary.url))
        pieces: list[Delta | Outcome] = []
        with pytest.raises(error):
            await answering.read(pieces)
    assert all(isinstance(piece, Delta) for piece in pieces)
    [record] = answering.records()
    assert ("failed", [], error.__name__) == (record.ending, record.winners, record.candidates[0].error)
    assert 29 <= record.usage.generated_tokens <= 60
    assert 0 == answering.count("ratchet_errors_total", kind="ClientGone")
    assert 0 == len(answering.tgi.state.requests)
    assert await none_in_flight(answering)
