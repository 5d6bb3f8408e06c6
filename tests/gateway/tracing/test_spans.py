"""The spans of a race: their names, parents and attributes."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import pairwise
from urllib.parse import urlsplit

import pytest

from gateway.journal.record import CompletionRecord, FeedbackRecord
from tests.redis_server import RedisServer
from tests.serving import MESSAGES, Serve
from tests.stubs.collector import CollectedSpan, CollectorStub
from tests.stubs.knobs import Fault, Knobs
from tests.stubs.reward import RewardFault, RewardKnobs

ROUTE = "POST /v1/chat/completions"


def only(spans: list[CollectedSpan], name: str) -> CollectedSpan:
    """The one span of that name."""
    [found] = [span for span in spans if span.name == name]
    return found


def candidates(spans: list[CollectedSpan]) -> list[CollectedSpan]:
    """The candidates' spans, by index."""
    found = [span for span in spans if span.name == "candidate"]
    return sorted(found, key=lambda span: int(span.attributes["ratchet.candidate.index"]))


async def test_a_race_has_a_span_for_each_candidate_each_score_and_its_record(
    serve_traced: Serve, collector: CollectorStub
) -> None:
    served = await serve_traced()
    response = await served.chat(best_of=3, seed=7, headers={"x-request-id": "r-1"})
    spans = await collector.trace()
    assert {ROUTE: 1, "race": 1, "candidate": 3, "score": 3, "journal write": 1} == Counter(s.name for s in spans)
    server, race = only(spans, ROUTE), only(spans, "race")
    assert ("", server.span_id) == (server.parent_id, race.parent_id)
    assert server.span_id == only(spans, "journal write").parent_id
    assert {race.span_id} == {span.parent_id for span in spans if span.name in {"candidate", "score"}}
    assert 1 == len({span.trace_id for span in spans})
    assert not any(span.failed for span in spans)
    for outer, inner in pairwise([server, race, candidates(spans)[0]]):
        assert outer.began_ns <= inner.began_ns <= inner.ended_ns <= outer.ended_ns
    assert "r-1" == server.attributes["ratchet.request_id"]
    assert (200, "/v1/chat/completions") == (
        server.attributes["http.response.status_code"],
        server.attributes["http.route"],
    )
    assert "ratchet-gateway" == collector.resource["service.name"]
    assert 200 == response.status_code


async def test_spans_and_record_of_a_race_agree(
    serve_traced: Serve, collector: CollectorStub, redis_server: RedisServer
) -> None:
    served = await serve_traced()
    await served.chat(best_of=4, seed=7, max_tokens=20)
    spans = await collector.trace()
    [record] = await served.records(1)
    assert isinstance(record, CompletionRecord)
    stub = urlsplit(served.tgi.url)
    for candidate, span in zip(record.candidates, candidates(spans), strict=True):
        assert {
            "ratchet.candidate.index": candidate.index,
            "ratchet.cut": False,
            "gen_ai.response.finish_reasons": [candidate.finish_reason],
            "gen_ai.usage.input_tokens": record.usage.prompt_tokens,
            "gen_ai.usage.output_tokens": candidate.tokens,
            "server.address": stub.hostname,
            "server.port": stub.port,
        } == span.attributes
    rewards = {candidate.reward for candidate in record.candidates}
    assert rewards == {span.attributes["ratchet.reward"] for span in spans if span.name == "score"}
    race = only(spans, "race").attributes
    assert (4, 4, "scored", "stable") == tuple(race[f"ratchet.{name}"] for name in ("n", "n_asked", "selection", "arm"))
    assert max(reward for reward in rewards if reward is not None) == race["ratchet.winner.reward"]
    journal = only(spans, "journal write").attributes
    assert {
        "ratchet.record.id": record.id,
        "ratchet.record.kind": "completion",
        "ratchet.record.durable": True,
    } == journal


@pytest.mark.parametrize("n", [1, 3])
async def test_a_stream_has_the_same_spans_until_its_last_byte(
    serve_traced: Serve, collector: CollectorStub, n: int
) -> None:
    served = await serve_traced(tgi=Knobs(latency_ms=30.0))
    assert (await served.chat(best_of=n, stream=True)).text.endswith("[DONE]\n\n")
    spans = await collector.trace()
    scores = n if n > 1 else 0
    assert Counter({ROUTE: 1, "race": 1, "candidate": n, "score": scores, "journal write": 1}) == Counter(
        span.name for span in spans
    )
    server, race = only(spans, ROUTE), only(spans, "race")
    assert ("", server.span_id) == (server.parent_id, race.parent_id)
    assert {race.span_id} == {span.parent_id for span in candidates(spans)}
    for span in candidates(spans):
        assert (False, urlsplit(served.tgi.url).port) == (
            span.attributes["ratchet.cut"],
            span.attributes["server.port"],
        )
        assert span.attributes["gen_ai.usage.output_tokens"] > 0
    assert race.attributes["ratchet.selection"] == ("scored" if n > 1 else "single")
    assert server.ended_ns >= max(span.ended_ns for span in spans)


async def test_a_cut_candidate_is_marked(serve_traced: Serve, collector: CollectorStub) -> None:
    served = await serve_traced(tgi=Knobs(fault=Fault.HANG, fault_every=3), race={"quorum": 0.5, "quorum_after_s": 0.2})
    assert 200 == (await served.chat(best_of=3)).status_code
    spans = await collector.trace()
    assert [False, False, True] == sorted(span.attributes["ratchet.cut"] for span in candidates(spans))
    assert only(spans, "race").attributes["ratchet.deadline_hit"]
    assert not any(span.failed for span in spans)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_caller_who_hangs_up_cuts_race_and_candidates(
    serve_traced: Serve, collector: CollectorStub, stream: bool
) -> None:
    served = await serve_traced(tgi=Knobs(fault=Fault.HANG, fault_probability=1.0))
    asking = asyncio.create_task(served.chat(best_of=1, stream=stream))
    await served.tgi.state.until(lambda state: state.started == 1)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    spans = await collector.trace()
    assert [True, True] == [only(spans, name).attributes["ratchet.cut"] for name in ("race", "candidate")]


async def test_a_span_of_a_failure_has_only_the_errors_class(serve_traced: Serve, collector: CollectorStub) -> None:
    served = await serve_traced(tgi=Knobs(fault=Fault.STATUS, fault_probability=1.0))
    assert 502 == (await served.chat(best_of=2)).status_code
    spans = await collector.trace()
    assert {ROUTE: 1, "race": 1, "candidate": 2} == Counter(span.name for span in spans)
    assert all(span.failed for span in spans)
    assert {"BackendFailed"} == {span.attributes["error.type"] for span in spans if span.name != ROUTE}
    assert 502 == only(spans, ROUTE).attributes["http.response.status_code"]


async def test_a_failed_score_is_on_its_span_and_costs_no_answer(serve_traced: Serve, collector: CollectorStub) -> None:
    served = await serve_traced(rewards=RewardKnobs(fault=RewardFault.STATUS, fault_probability=1.0))
    assert 200 == (await served.chat(best_of=2)).status_code
    spans = await collector.trace()
    assert ["RewardError"] * 2 == [span.attributes["error.type"] for span in spans if span.name == "score"]
    race = only(spans, "race").attributes
    assert ("fallback", "RewardError") == (race["ratchet.selection"], race["ratchet.scoring_error"])


async def test_a_candidates_span_names_the_replica_that_took_over(
    serve_traced: Serve, collector: CollectorStub
) -> None:
    served = await serve_traced()
    here = urlsplit(served.tgi.url)
    dead = "http://someone:pa55word@127.0.0.1:9"
    two = await serve_traced(backend={"urls": (dead, served.tgi.url)})
    assert 200 == (await two.chat(best_of=2)).status_code
    spans = await collector.trace()
    assert {(here.hostname, here.port)} == {
        (span.attributes["server.address"], span.attributes["server.port"]) for span in candidates(spans)
    }
    assert b"pa55word" not in b"".join(request.body for request in collector.state.requests)


async def test_feedback_is_a_request_and_a_journal_write(
    serve_traced: Serve, collector: CollectorStub, redis_server: RedisServer
) -> None:
    served = await serve_traced()
    await served.http.post("/v1/feedback", json={"id": "chatcmpl-" + "0" * 32, "rating": 1})
    spans = await collector.trace()
    [record] = await served.records(1)
    assert isinstance(record, FeedbackRecord)
    assert {"POST /v1/feedback", "journal write"} == {span.name for span in spans}
    assert record.id == only(spans, "journal write").attributes["ratchet.record.id"]


async def test_spans_contain_no_text_and_no_key(serve_traced: Serve, collector: CollectorStub) -> None:
    """Texts of callers, backend and reward model, headers and queries, for every outcome of a request."""
    marker = "zyzzyva"
    served = await serve_traced(backend={"api_key": f"sk-{marker}"}, reward={"api_key": f"rk-{marker}"})
    headers = {
        "authorization": f"Bearer {marker}",
        "traceparent": f"00-{'a' * 32}-{'b' * 16}-01",
        "tracestate": f"vendor={marker}",
        "baggage": f"who={marker}",
        "user-agent": marker,
        "host": f"{marker}.example",
    }
    said = [{"role": "user", "content": f"What does a {marker} eat?"}]
    answers = []
    for fault in (Fault.NONE, *(fault for fault in Fault if fault is not Fault.HANG)):
        served.tgi.knobs.update({"fault": fault, "fault_probability": 1.0})
        for fields in (
            {"stream": True},
            {"best_of": 2},
            {"user": marker, "metadata": {marker: marker}, "stop": marker},
        ):
            response = await served.chat(messages=said, headers=headers, **fields)
            if response.status_code == 200 and "stream" not in fields:
                answers.append(response.json()["choices"][0]["message"]["content"])
    for path in (f"/v1/chat/completions?q={marker}", f"/v1/models/{marker}", f"/v1/{marker}"):
        await served.http.post(path, json={"model": marker, "messages": MESSAGES}, headers=headers)
        await served.http.get(path, headers=headers)
    await served.http.get("/v1/models", headers={**headers, "traceparent": f"00-{'c' * 32}-{'d' * 16}-01"})
    await collector.trace("c" * 32)
    sent = b"".join(request.body for request in collector.state.requests)
    assert b"ratchet.candidate.index" in sent
    assert marker.encode() not in sent
    assert [] == [answer for answer in answers if answer and answer[:24].encode() in sent]
