"""Failures of backends, reward servers and Redis: each has its error or its fallback, and costs nothing else."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from tests.gateway.api.conftest import Shared, chat_body
from tests.redis_server import RedisServer
from tests.serving import MESSAGES, Serve
from tests.stubs.knobs import Fault, Knobs
from tests.stubs.reward import Dialect, RewardFault, RewardKnobs

module_loop = pytest.mark.asyncio(loop_scope="module")

UNREADABLE = (502, "upstream_error", "backend_protocol_error")
FAILED = (502, "upstream_error", "backend_failed")
BUSY = (429, "rate_limit_error", "backend_overloaded")
BROKE = (502, "upstream_error", "backend_unreachable")
BACKEND_FAULTS: list[tuple[Fault, int, tuple[int, str, str], str]] = [
    (Fault.STATUS, 500, FAILED, "the backend answered with status 500"),
    (Fault.STATUS, 429, BUSY, "the backend is overloaded"),
    (Fault.STATUS, 503, BUSY, "the backend is overloaded"),
    (Fault.STATUS, 504, (504, "timeout_error", "backend_timeout"), "the backend did not answer in time"),
    (Fault.STATUS, 401, (502, "upstream_error", "backend_key_refused"), "the backend refused the gateway's API key"),
    (Fault.STATUS, 404, FAILED, "the backend answered with status 404"),
    (Fault.STATUS, 422, (400, "invalid_request_error", "rejected_by_backend"), ""),
    (Fault.HTML, 502, FAILED, "the backend answered with status 502"),
    (Fault.HTML, 200, UNREADABLE, ""),
    (Fault.HALF_JSON, 500, UNREADABLE, ""),
    (Fault.EMPTY, 500, UNREADABLE, ""),
    (Fault.GARBAGE, 500, UNREADABLE, ""),
    (Fault.ERROR_FRAME, 500, FAILED, "the backend answered with status 424"),
    (Fault.DISCONNECT, 500, BROKE, "the connection to the backend broke"),
]


@module_loop
@pytest.mark.parametrize("fields", [{"best_of": 1}, {"best_of": 3}, {"stream": True}], ids=["one", "three", "stream"])
@pytest.mark.parametrize(
    ("fault", "status", "expected", "message"), BACKEND_FAULTS, ids=[f"{row[0]}-{row[1]}" for row in BACKEND_FAULTS]
)
async def test_a_backend_that_fails_every_call_gives_its_error(
    gateway: Shared, fields: dict[str, Any], fault: Fault, status: int, expected: tuple[int, str, str], message: str
) -> None:
    gateway.served.tgi.knobs.update({"fault": fault, "fault_status": status, "fault_probability": 1.0})
    response = await gateway.chat(**fields)
    error = response.json()["error"]
    assert expected == (response.status_code, error["type"], error["code"])
    assert error["param"] is None
    assert message in error["message"]
    assert ("1" if expected[0] == 429 else None) == response.headers.get("retry-after")
    gateway.restore()
    await gateway.assert_unharmed(*(await gateway.until_all_permits() if expected is BUSY else ()))


@module_loop
@pytest.mark.parametrize("best_of", [1, 2])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_slow_answer_is_waited_for(gateway: Shared, best_of: int, stream: bool) -> None:
    gateway.served.tgi.knobs.update({"fault": Fault.DRIP, "fault_probability": 1.0, "drip_interval_ms": 0.1})
    response = await gateway.chat(best_of=best_of, stream=stream, max_tokens=4)
    assert 200 == response.status_code
    first = orjson.loads(response.text.split("\n\n")[0].removeprefix("data: ")) if stream else response.json()
    gateway.restore()
    await gateway.assert_unharmed(first["id"])


@pytest.mark.parametrize("fields", [{"best_of": 1}, {"best_of": 3}, {"best_of": 1, "stream": True}])
async def test_calls_to_a_backend_that_hangs_end_at_the_deadline(serve: Serve, fields: dict[str, Any]) -> None:
    served = await serve(
        tgi=Knobs(fault=Fault.HANG, fault_probability=1.0), race={"deadline_s": 0.2, "max_in_flight": 3}
    )
    response = await served.chat(**fields)
    error = response.json()["error"]
    assert (504, "timeout_error", "deadline_exceeded") == (response.status_code, error["type"], error["code"])
    await served.tgi.state.until(lambda state: state.generating == 0)
    assert fields["best_of"] == served.tgi.state.cancelled
    served.tgi.knobs.update({"fault": "none"})
    assert 3 == (await served.chat(best_of=3)).json()["best_of_n"]["n"]


async def test_one_hanging_candidate_costs_the_race_its_deadline_and_no_more(serve: Serve) -> None:
    served = await serve(tgi=Knobs(fault=Fault.HANG, fault_next=1), race={"deadline_s": 0.5})
    report = (await served.chat(best_of=3)).json()["best_of_n"]
    assert (3, 2, True) == (report["n"], report["scored"], report["deadline_hit"])


async def test_a_backend_that_is_down_is_a_502_until_it_is_back(serve: Serve) -> None:
    served = await serve(backend={"unhealthy_s": 0.0})
    await served.tgi.stop()
    for fields in ({"best_of": 1}, {"best_of": 3}, {"best_of": 1, "stream": True}):
        response = await served.chat(**fields)
        assert (502, "backend_unreachable") == (response.status_code, response.json()["error"]["code"])
    assert 503 == (await served.http.get("/health/ready")).status_code
    await served.tgi.start()
    assert 200 == (await served.chat(best_of=3)).status_code
    assert 200 == (await served.http.get("/health/ready")).status_code


REWARD_FAULTS = [
    {"fault": RewardFault.NAN},
    {"fault": RewardFault.NULL},
    {"fault": RewardFault.GARBAGE},
    {"fault": RewardFault.WRONG_LENGTH},
    {"fault": RewardFault.TWO_LABELS},
    {"fault": RewardFault.DISCONNECT},
    {"fault": RewardFault.STATUS, "fault_status": 500},
    {"fault": RewardFault.STATUS, "fault_status": 404},
]


@module_loop
@pytest.mark.parametrize("knobs", REWARD_FAULTS, ids=lambda knobs: "-".join(map(str, knobs.values())))
async def test_a_reward_server_that_fails_gives_a_flagged_answer(gateway: Shared, knobs: dict[str, Any]) -> None:
    gateway.served.rewards.knobs.update({**knobs, "fault_probability": 1.0})
    response = await gateway.chat(best_of=3)
    body = response.json()
    assert (200, "fallback") == (response.status_code, response.headers["x-bon-selection"])
    assert ("fallback", 0, [None] * 3) == (
        body["best_of_n"]["selection"],
        body["best_of_n"]["scored"],
        body["best_of_n"]["rewards"],
    )
    assert "x-bon-reward" not in response.headers
    gateway.restore()
    await gateway.assert_unharmed(body["id"])


async def test_a_reward_server_that_hangs_costs_its_timeout(serve: Serve) -> None:
    served = await serve(rewards=RewardKnobs(fault=RewardFault.HANG, fault_probability=1.0), reward={"timeout_s": 0.2})
    body = (await served.chat(best_of=3)).json()
    assert "fallback" == body["best_of_n"]["selection"]
    await served.rewards.state.until(lambda state: state.scoring == 0)


async def test_a_server_that_returns_probabilities_gives_no_rewards(serve: Serve) -> None:
    served = await serve(rewards=RewardKnobs(dialect=Dialect.VLLM, always_activate=True))
    body = (await served.chat(best_of=3)).json()
    assert "fallback" == body["best_of_n"]["selection"]


async def test_a_gateway_starts_without_redis_and_ships_its_records_later(
    serve: Serve, stopped_redis_server: RedisServer
) -> None:
    served = await serve()
    first = await served.chat(best_of=2)
    assert (200, "scored") == (first.status_code, first.headers["x-bon-selection"])
    ready = await served.http.get("/health/ready")
    assert (200, "degraded") == (ready.status_code, ready.json()["status"])
    stopped_redis_server.start()
    [record] = await served.records(1)
    assert first.json()["id"] == record.id


async def test_records_written_while_redis_was_down_reach_it_later(serve: Serve, redis_server: RedisServer) -> None:
    served = await serve()
    ids = [(await served.chat(best_of=2)).json()["id"]]
    redis_server.kill()
    ids += [(await served.chat(best_of=2)).json()["id"] for _ in range(3)]
    redis_server.start()
    # Records that only Redis's memory held are lost with it; later ones are not.
    records = await served.records(3)
    assert ids[1:] == [record.id for record in records if record.id in ids[1:]]


@pytest.mark.parametrize("state", ["paused", "full"])
async def test_a_redis_that_accepts_nothing_delays_no_request(
    serve: Serve, redis_server: RedisServer, state: str
) -> None:
    served = await serve()
    redis_server.pause() if state == "paused" else redis_server.fill()
    try:
        responses = await asyncio.gather(*(served.chat(best_of=2) for _ in range(5)))
    finally:
        redis_server.resume() if state == "paused" else redis_server.drain()
    assert [200] * 5 == [response.status_code for response in responses]
    assert {response.json()["id"] for response in responses} == {record.id for record in await served.records(5)}


async def test_a_full_gateway_answers_429_with_the_time_to_wait(serve: Serve) -> None:
    served = await serve(tgi=Knobs(tokens_per_s=5), race={"max_in_flight": 1, "max_waiting": 0, "queue_timeout_s": 3})
    first = asyncio.create_task(served.http.post("/v1/chat/completions", json=chat_body(messages=MESSAGES)))
    await served.tgi.state.until(lambda state: state.generating == 1)
    for stream in (False, True):
        response = await served.chat(best_of=4, stream=stream)
        error = response.json()["error"]
        assert (429, "rate_limit_error", "overloaded") == (response.status_code, error["type"], error["code"])
        assert "3" == response.headers["retry-after"]
    first.cancel()
    await served.tgi.state.until(lambda state: state.generating == 0)
