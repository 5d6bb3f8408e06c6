"""Chat completions over real HTTP: N, the backend's requests, streams, and callers who hang up."""

import asyncio
from typing import Any

import httpx2
import orjson
import pytest

from gateway.journal.record import CompletionRecord
from tests.redis_server import RedisServer
from tests.serving import MESSAGES, Serve, Served
from tests.stubs.knobs import Fault, Knobs
from tests.stubs.reward import RewardKnobs, reward_of


def sent_to_backend(served: Served) -> list[dict[str, Any]]:
    return [orjson.loads(request.body) for request in served.tgi.state.requests if "chat" in request.path]


async def events(served: Served, **fields: Any) -> tuple[httpx2.Response, list[str]]:
    """Return a streamed answer: the response, and its frames and comments."""
    body = {"model": "ratchet", "messages": MESSAGES, "stream": True, **fields}
    async with served.http.stream("POST", "/v1/chat/completions", json=body) as response:
        text = (await response.aread()).decode()
    return response, [part for part in text.split("\n\n") if part]


def chunks(frames: list[str]) -> list[dict[str, Any]]:
    assert frames[-1] == "data: [DONE]"
    return [orjson.loads(frame.removeprefix("data: ")) for frame in frames[:-1] if not frame.startswith(":")]


def text_of(pieces: list[dict[str, Any]], index: int = 0) -> str:
    choices = [choice for piece in pieces for choice in piece["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


async def test_the_answer_is_the_candidate_with_the_highest_reward(serve: Serve, redis_server: RedisServer) -> None:
    served = await serve()
    response = await served.chat(best_of=4, seed=1)
    body = response.json()
    [record] = await served.records(1)
    assert isinstance(record, CompletionRecord)
    rewards = [candidate.reward for candidate in record.candidates]
    best = max(record.candidates, key=lambda candidate: candidate.reward or 0)
    assert response.status_code == 200
    assert body["choices"][0]["message"]["content"] == best.text
    assert body["best_of_n"]["rewards"] == rewards
    assert (record.id, record.winners, record.n_run) == (body["id"], [best.index], 4)
    assert best.reward == pytest.approx(reward_of(best.text or ""))


async def test_body_and_headers_agree(serve: Serve) -> None:
    served = await serve()
    response = await served.chat(best_of=3)
    report, headers = response.json()["best_of_n"], response.headers
    assert (report["n"], report["scored"], report["selection"]) == (3, 3, "scored")
    assert headers["x-bon-n"] == "3"
    assert headers["x-bon-selection"] == "scored"
    assert headers["x-bon-generated-tokens"] == str(report["generated_tokens"])
    assert float(headers["x-bon-overhead-ms"]) == report["timings"]["overhead_ms"]
    assert float(headers["x-bon-reward"]) == pytest.approx(max(report["rewards"]), rel=1e-5)


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 50}}, "required": ["a"]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}


async def test_answers_that_break_the_schema_are_returned_only_without_usable_ones(
    serve: Serve, redis_server: RedisServer
) -> None:
    """TGI ignores ``maximum``; the stub draws whole numbers below 100."""
    served = await serve()
    response = await served.chat(best_of=8, n=8, seed=5, response_format=FORMAT)
    body, report = response.json(), response.json()["best_of_n"]
    fitting = [index for index, reason in enumerate(report["unusable"]) if reason is None]
    assert 0 < len(fitting) < 8
    assert sorted(fitting) == sorted(report["winners"])
    assert len(fitting) == len(body["choices"])
    assert all(orjson.loads(choice["message"]["content"])["a"] <= 50 for choice in body["choices"])
    wanting = f"{len(fitting)} of 8 answers: of 8 candidates the others are no use ({8 - len(fitting)} breaks_schema)"
    assert (wanting, wanting) == (report["shortfall"], response.headers["x-bon-shortfall"])
    [record] = await served.records(1)
    assert isinstance(record, CompletionRecord)
    assert report["unusable"] == [candidate.unusable for candidate in record.candidates]
    assert SCHEMA == (record.sampling.response_format or {})["json_schema"]["schema"]
    metrics = (await served.http.get("/metrics")).text
    assert f'ratchet_unusable_candidates_total{{reason="breaks_schema"}} {8.0 - len(fitting)}' in metrics


async def test_a_streamed_answer_is_recorded_as_usable_or_not(serve: Serve, redis_server: RedisServer) -> None:
    served = await serve()
    for seed in range(12):
        _, frames = await events(served, best_of=1, seed=seed, response_format=FORMAT)
        text, [*_, last] = text_of(chunks(frames)), chunks(frames)
        expected = "breaks_schema" if orjson.loads(text)["a"] > 50 else None
        assert [expected] == last["best_of_n"]["unusable"]
    records = await served.records(12)
    assert {None, "breaks_schema"} == {
        candidate.unusable
        for record in records
        if isinstance(record, CompletionRecord)
        for candidate in record.candidates
    }


@pytest.mark.parametrize("stream", [False, True])
async def test_a_schema_over_a_bound_is_refused_before_anything_is_drawn(serve: Serve, stream: bool) -> None:
    served = await serve(schemas={"max_properties": 1})
    two = {"type": "object", "properties": {"a": {}, "b": {}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": two}}
    response = await served.chat(tools=[tool], stream=stream)
    assert (400, "tools[0].function.parameters", "invalid_request_error") == (
        response.status_code,
        response.json()["error"]["param"],
        response.json()["error"]["type"],
    )
    assert [] == sent_to_backend(served)


async def test_usage_counts_what_was_returned_and_the_report_what_was_drawn(serve: Serve) -> None:
    served = await serve()
    body = (await served.chat(best_of=4, n=2)).json()
    usage = body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert 0 < usage["completion_tokens"] < body["best_of_n"]["generated_tokens"]


async def test_n_comes_from_header_before_body_before_policy(serve: Serve) -> None:
    served = await serve(policy={"n": 2})
    assert (await served.chat()).json()["best_of_n"]["n"] == 2
    assert (await served.chat(best_of=3)).json()["best_of_n"]["n"] == 3
    assert (await served.chat(best_of=3, headers={"X-Best-Of": "5"})).json()["best_of_n"]["n"] == 5


async def test_n_answers_are_returned_in_order_of_reward(serve: Serve) -> None:
    served = await serve()
    body = (await served.chat(best_of=5, n=3)).json()
    rewards = [body["best_of_n"]["rewards"][index] for index in body["best_of_n"]["winners"]]
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert rewards == sorted(body["best_of_n"]["rewards"], reverse=True)[:3]


async def test_the_same_seed_gives_the_same_winner(serve: Serve) -> None:
    served = await serve()
    first, second = [(await served.chat(best_of=4, seed=11)).json()["choices"] for _ in range(2)]
    assert first == second


async def test_sampling_reaches_every_candidate_with_a_seed_of_its_own(serve: Serve) -> None:
    served = await serve()
    await served.chat(
        best_of=3, temperature=0.9, top_p=0.8, max_completion_tokens=20, stop=["\n\n"], frequency_penalty=0.5, seed=4
    )
    bodies = sent_to_backend(served)
    assert len({body["seed"] for body in bodies}) == 3
    for body in bodies:
        assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.9, 0.8, 20)
        assert (body["stop"], body["frequency_penalty"]) == (["\n\n"], 0.5)


async def test_temperature_0_draws_one_candidate(serve: Serve) -> None:
    served = await serve()
    report = (await served.chat(best_of=8, temperature=0)).json()["best_of_n"]
    assert (report["n"], report["selection"], report["rewards"]) == (1, "single", [None])


async def test_text_parts_reach_the_backend_as_one_text(serve: Serve) -> None:
    served = await serve()
    parts = [{"type": "text", "text": "What"}, {"type": "text", "text": "floats?"}]
    await served.chat(
        best_of=1, messages=[{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    )
    assert sent_to_backend(served)[0]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What\nfloats?"},
    ]


async def test_without_rewards_the_answer_is_flagged(serve: Serve, redis_server: RedisServer) -> None:
    served = await serve(rewards=RewardKnobs(healthy=False))
    await served.rewards.stop()
    response = await served.chat(best_of=3)
    assert (response.status_code, response.headers["x-bon-selection"]) == (200, "fallback")
    [record] = await served.records(1)
    assert isinstance(record, CompletionRecord)
    assert record.scoring_error is not None


async def test_a_streamed_race_sends_its_winner_in_chunks_with_the_report_last(serve: Serve) -> None:
    served = await serve()
    whole = (await served.chat(best_of=4, seed=3)).json()
    response, frames = await events(served, best_of=4, seed=3, stream_options={"include_usage": True})
    pieces = chunks(frames)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-bon-selection"] == "scored"
    assert text_of(pieces) == whole["choices"][0]["message"]["content"]
    assert len(pieces) > 10
    assert pieces[0]["choices"][0]["delta"]["role"] == "assistant"
    assert pieces[-2]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert pieces[-2]["best_of_n"]["rewards"] == whole["best_of_n"]["rewards"]
    assert (pieces[-1]["choices"], pieces[-1]["usage"]) == ([], whole["usage"])


@pytest.mark.parametrize("options", [None, {}, {"include_usage": False}])
@pytest.mark.parametrize("best_of", [1, 2])
async def test_a_stream_has_no_usage_unless_it_is_asked_for(
    serve: Serve, options: dict[str, Any] | None, best_of: int
) -> None:
    served = await serve()
    _, frames = await events(served, best_of=best_of, stream_options=options)
    assert not any("usage" in chunk for chunk in chunks(frames))


async def test_an_answer_that_is_not_streamed_has_its_usage_whatever_the_stream_options(serve: Serve) -> None:
    served = await serve()
    assert (await served.chat(best_of=1, stream_options={"include_usage": True})).json()["usage"]["total_tokens"] > 0


async def test_a_streamed_race_of_several_answers_numbers_its_choices(serve: Serve) -> None:
    served = await serve()
    whole = (await served.chat(best_of=4, n=2, seed=3)).json()
    _, frames = await events(served, best_of=4, n=2, seed=3)
    assert [text_of(chunks(frames), index) for index in (0, 1)] == [
        choice["message"]["content"] for choice in whole["choices"]
    ]


async def test_comments_keep_the_stream_alive_while_the_race_runs(serve: Serve) -> None:
    served = await serve(tgi=Knobs(latency_ms=120), api={"keep_alive_s": 0.02})
    response, frames = await events(served, best_of=2)
    assert frames[0].startswith(":")
    assert text_of(chunks(frames))
    assert "x-bon-selection" not in response.headers  # the headers were sent before the race was decided


async def test_a_single_candidate_is_streamed_as_it_is_drawn(serve: Serve) -> None:
    served = await serve(tgi=Knobs(tokens_per_s=200))
    whole = (await served.chat(best_of=1, seed=3)).json()
    _, frames = await events(served, best_of=1, seed=3, stream_options={"include_usage": True})
    pieces = chunks(frames)
    assert text_of(pieces) == whole["choices"][0]["message"]["content"]
    assert sent_to_backend(served)[-1]["stream"] is True
    assert pieces[-1]["usage"] == whole["usage"]
    assert {piece["id"] for piece in pieces} == {pieces[0]["id"]}


async def test_an_error_before_the_first_byte_is_a_status(serve: Serve) -> None:
    served = await serve(tgi=Knobs(fault=Fault.STATUS, fault_probability=1.0))
    for best_of in (1, 3):
        response, frames = await events(served, best_of=best_of)
        assert response.status_code == 502
        assert orjson.loads(frames[0])["error"]["code"] == "backend_failed"


async def test_an_error_after_the_first_byte_is_a_frame(serve: Serve) -> None:
    served = await serve(
        tgi=Knobs(tokens_per_s=200, fault=Fault.DISCONNECT, fault_probability=1.0, fault_after_tokens=3)
    )
    response, frames = await events(served, best_of=1)
    assert response.status_code == 200
    assert orjson.loads(frames[-2].removeprefix("data: "))["error"]["type"] == "upstream_error"
    assert frames[-1] == "data: [DONE]"


@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"stream": True, "best_of": 1}])
async def test_generation_of_all_candidates_stops_when_the_caller_hangs_up(
    serve: Serve, fields: dict[str, Any]
) -> None:
    served = await serve(tgi=Knobs(tokens_per_s=5))
    body = {"model": "ratchet", "messages": MESSAGES, "best_of": 4, **fields}
    request = asyncio.create_task(served.http.post("/v1/chat/completions", json=body))
    await served.tgi.state.until(lambda state: state.generating == body["best_of"])
    request.cancel()
    await served.tgi.state.until(lambda state: state.generating == 0)
    assert (served.tgi.state.cancelled, served.tgi.state.finished) == (body["best_of"], 0)


async def test_generation_stops_when_the_caller_hangs_up_after_the_headers(serve: Serve) -> None:
    served = await serve(tgi=Knobs(tokens_per_s=5), api={"keep_alive_s": 0.02})
    body = {"model": "ratchet", "messages": MESSAGES, "best_of": 4, "stream": True}
    async with served.http.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200
        await served.tgi.state.until(lambda state: state.generating == 4)
    await served.tgi.state.until(lambda state: state.generating == 0)
    assert served.tgi.state.cancelled == 4
