"""The fault suite: acknowledged, lost and wiped records, normal service, and the verdict."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis

from loadtests.faults.__main__ import observe
from loadtests.faults.callers import Seen, counts, normal_after_s, outcome_of_answer, outcome_of_stream
from loadtests.faults.scenarios import SCENARIOS, Scenario, redis_full
from loadtests.faults.verdict import Facts, judge
from loadtests.records import StreamRecords
from tests.redis_server import RedisServer

SCENARIO = Scenario("redis-full", "nobody notices", redis_full, readiness="degraded")
FACTS = Facts(
    seen=[Seen(0.0, 0.5, "scored", "a"), Seen(1.0, 1.5, "scored", "b"), Seen(3.0, 3.5, "scored", "c")],
    since_s=2.0,
    struck_s=0.8,
    acknowledged=3,
    lost=0,
    wiped=0,
    duplicates=0,
    arrived_after_s=0.4,
    readiness="degraded",
    readiness_after="ready",
    as_planned=True,
)


def test_a_run_in_which_all_held_has_no_failures() -> None:
    """A good run has no failures, and its numbers stand in the row."""
    row = judge(SCENARIO, FACTS)
    assert [] == row.failures
    assert {"scored": 3} == row.outcomes
    assert 0.0 == row.normal_after_s


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"lost": 1}, "1 acknowledged records are lost"),
        ({"readiness": "ready"}, "readiness was 'ready' under the fault"),
        ({"readiness_after": "degraded"}, "in the end readiness is 'degraded'"),
        ({"arrived_after_s": None}, "Redis did not get"),
        ({"as_planned": False}, "the fault did not strike"),
        ({"seen": []}, "no traffic"),
        ({"seen": [*FACTS.seen, Seen(1.0, 1.2, "502")]}, "clients saw {'502': 1}"),
        ({"seen": [*FACTS.seen, Seen(1.0, 9.0, "scored", "d"), Seen(9.0, 9.5, "scored", "e")]}, "a request took 8.0 s"),
        ({"seen": FACTS.seen[:2]}, "not served normally again"),
        ({"seen": [Seen(0.0, 0.5, "scored", "a"), Seen(50.0, 50.5, "cut"), Seen(51.0, 52.0, "scored", "b")]}, "again"),
    ],
)
def test_each_condition_that_does_not_hold_fails_the_run(change: dict[str, Any], complaint: str) -> None:
    """Each condition has a failure of its own."""
    failures = judge(SCENARIO, replace(FACTS, **change)).failures
    assert any(complaint in failure for failure in failures), failures


@pytest.mark.parametrize(
    ("drawn", "holds"), [([1] * 10, True), ([4, *[1] * 14], True), ([4, *[1] * 13], False), ([], True)]
)
def test_draws_under_a_fault_are_bounded_where_a_scenario_says_so(drawn: list[int], *, holds: bool) -> None:
    """1.2 draws for each request hold, more do not; races before and after the fault do not count."""
    before, *_, after = FACTS.seen
    during = [Seen(1.0, 1.5, "scored", "b", n) for n in drawn]
    facts = replace(FACTS, struck_s=1.0, since_s=2.0, seen=[replace(before, n=4), *during, replace(after, n=4)])
    failures = judge(replace(SCENARIO, most_draws=1.2), facts).failures
    assert holds == (not any("draws for" in failure for failure in failures))


@pytest.mark.parametrize(
    ("slow", "took_s", "holds"), [(0, 9.0, True), (4, 9.0, True), (5, 1.5, True), (5, 1.6, False), (100, 1.6, False)]
)
def test_under_a_fault_the_p95_is_bounded_by_that_before_it(slow: int, took_s: float, *, holds: bool) -> None:
    """Three times the calm 0.5 s holds, more does not; requests after the fault do not count."""
    before, *_, after = FACTS.seen
    during = [Seen(1.0, 1.0 + (took_s if number < slow else 0.5), "scored", "b") for number in range(100)]
    facts = replace(FACTS, seen=[before, *during, Seen(after.started_s, after.started_s + 60, "scored", "c")])
    failures = judge(replace(SCENARIO, most_slowdown=3.0, slowest_s=100), facts).failures
    assert holds == (not any("p95" in failure for failure in failures)), failures


def test_outcomes_that_a_fault_allows_are_no_failures_but_still_count() -> None:
    """A fallback under a dead reward server is allowed; too few answers are not."""
    seen = [Seen(0.0, 0.5, "scored", "a"), Seen(1.0, 1.5, "fallback", "b"), Seen(3.0, 3.5, "scored", "c")]
    scenario = replace(SCENARIO, allowed=frozenset({"fallback"}), least_answered=1.0)
    row = judge(scenario, replace(FACTS, seen=seen))
    assert [] == row.failures
    assert {"scored": 2, "fallback": 1} == row.outcomes
    gone = judge(replace(scenario, allowed=frozenset({"502"})), replace(FACTS, seen=[*seen[:1], Seen(1, 2, "502")]))
    assert "only 1 of 2 requests were answered" in gone.failures


@pytest.mark.parametrize(
    ("under", "even"),
    [
        ({2: 100}, True),
        ({2: 60, 3: 40}, True),
        ({2: 60, 3: 39, 4: 1}, False),
        ({2: 50, 4: 50}, False),
        ({1: 3, 2: 60, 3: 37}, False),
        ({}, False),
    ],
)
def test_where_n_must_be_even_it_takes_two_neighbouring_values_under_the_fault(
    under: dict[int, int], even: bool
) -> None:
    """Races before the fault do not count."""
    before, *_, after = FACTS.seen
    given_n = [n for n, count in under.items() for _ in range(count)]
    seen = [replace(before, n=4), *(Seen(1.0, 1.5, "scored", "b", n) for n in given_n), after]
    failures = judge(replace(SCENARIO, even=True), replace(FACTS, seen=seen)).failures
    assert even == (failures == []), failures
    assert [] == judge(SCENARIO, replace(FACTS, seen=seen)).failures


def test_normal_is_when_the_last_bad_request_has_ended() -> None:
    """A request that was answered in between does not make it normal."""
    bad, good = Seen(1.0, 5.0, "504"), Seen(2.0, 3.0, "scored", "a")
    assert 3.0 == normal_after_s([bad, good, Seen(5.5, 6.0, "scored", "b")], 2.0)
    assert None is normal_after_s([bad, good], 2.0)
    assert None is normal_after_s([], 2.0)


def test_an_answer_is_acknowledged_only_when_it_is_whole() -> None:
    """A stream needs its report and ``[DONE]``; an error event is its error, a torn stream is cut."""
    report = {"id": "chatcmpl-1", "best_of_n": {"selection": "scored", "n": 4}}
    whole = b"data: {}\n\n: alive\n\ndata: " + orjson.dumps(report) + b"\n\ndata: [DONE]\n\n"
    assert ("scored", "chatcmpl-1", 4) == outcome_of_stream(whole)
    cut = ("cut", None, None)
    assert cut == outcome_of_stream(whole.removesuffix(b"data: [DONE]\n\n"))
    assert cut == outcome_of_stream(b"data: {}\n\ndata: [DONE]\n\n")
    assert cut == outcome_of_stream(b"")
    failed = b'data: {"error":{"code":"overloaded"}}\n\ndata: [DONE]\n\n'
    assert ("overloaded", None, None) == outcome_of_stream(failed)
    assert ("scored", "chatcmpl-1", 4) == outcome_of_answer(orjson.dumps(report))


def test_counts_put_the_commonest_first() -> None:
    """The table begins with the outcome of most clients."""
    seen = [Seen(0, 1, "cut"), Seen(0, 1, "scored", "a"), Seen(0, 1, "scored", "b")]
    assert [("scored", 2), ("cut", 1)] == list(counts(seen).items())


async def test_new_records_are_found_and_a_wiped_redis_is_accounted_for(redis_server: RedisServer) -> None:
    """New ids are found, duplicates are counted, and ids from before a wipe are known."""
    async with Redis.from_url(redis_server.url) as redis:
        for identity in ("a", "b", "a"):
            await redis.xadd("ratchet:journal", {"id": identity, "data": "{}"})
        records = StreamRecords(redis_server.url)
        assert None is not await records.wait_for({"a", "b"}, 5.0)
        assert 1 == records.duplicates
        assert None is await records.wait_for({"c"}, 0.0)
        await records.note_wipe()
    redis_server.restart(empty=True)
    async with Redis.from_url(redis_server.url) as redis:
        await redis.xadd("ratchet:journal", {"id": "c", "data": "{}"})
    assert None is not await records.wait_for({"a", "b", "c"}, 5.0)
    assert {"a", "b"} == records.wiped
    assert {"c"} == records.present
    assert {"d"} == records.missing({"a", "c", "d"})
    await records.aclose()


def test_every_scenario_has_a_name_of_its_own_and_a_sentence() -> None:
    """``--only`` picks one, and the table describes it."""
    assert len(SCENARIOS) == len({scenario.name for scenario in SCENARIOS})
    assert all(scenario.must_hold and scenario.strike.__doc__ for scenario in SCENARIOS)


async def test_a_whole_scenario_runs_on_real_processes_and_holds() -> None:
    """The suite itself works: a full Redis under load costs no client anything, and nothing is lost."""
    scenario = next(one for one in SCENARIOS if one.name == "redis-full")
    facts = await observe(scenario, Namespace(callers=2, n=2, calm_s=1.0, fault_s=1.0, pause_s=1.0))
    row = judge(scenario, facts)
    assert [] == row.failures
    assert row.acknowledged == row.requests > 0
