"""Liveness, readiness of each part, metrics, and the counts of every request."""

from __future__ import annotations

import asyncio

import pytest

from gateway.api.health import needed_at_start
from gateway.policy import PolicyStore
from gateway.types import Readiness
from tests.redis_server import RedisServer
from tests.serving import Serve
from tests.stubs.knobs import Knobs
from tests.stubs.reward import RewardKnobs


async def test_a_complete_gateway_is_ready(serve: Serve, redis_server: RedisServer) -> None:
    served = await serve()
    assert {"status": "ok"} == (await served.http.get("/health/live")).json()
    response = await served.http.get("/health/ready")
    body = response.json()
    assert (200, "ready") == (response.status_code, body["status"])
    assert {"backend", "reward", "journal", "policy", "keys"} == set(body["parts"])
    assert [{"max_tokens": 4096, "max_input_tokens": 4095, "max_draws": 128}] == list(
        body["parts"]["backend"]["limits"].values()
    )


async def test_a_gateway_without_its_backend_is_alive_and_not_ready(serve: Serve, redis_server: RedisServer) -> None:
    served = await serve(tgi=Knobs(healthy=False))
    response = await served.http.get("/health/ready")
    parts = response.json()["parts"]
    assert (503, "not ready") == (response.status_code, response.json()["status"])
    assert (False, True) == (parts["backend"]["ready"], parts["reward"]["ready"])
    assert parts["backend"]["detail"]
    assert 200 == (await served.http.get("/health/live")).status_code


async def test_rewards_are_needed_at_start_and_not_after_it(serve: Serve, redis_server: RedisServer) -> None:
    served = await serve(rewards=RewardKnobs(healthy=False))
    assert 503 == (await served.http.get("/health/ready")).status_code
    served.rewards.knobs.update({"healthy": True})
    assert "ready" == (await served.http.get("/health/ready")).json()["status"]
    served.rewards.knobs.update({"healthy": False})
    response = await served.http.get("/health/ready")
    assert (200, "degraded") == (response.status_code, response.json()["status"])
    assert "reward server" in response.json()["parts"]["reward"]["detail"]


async def test_a_lenient_probe_reports_the_present_problem() -> None:
    answers = [Readiness(False, "loading"), Readiness(True), Readiness(False, "gone"), Readiness(True)]

    async def probe() -> Readiness:
        return answers.pop(0)

    lenient = needed_at_start(probe)
    found = [await lenient() for _ in range(4)]
    assert [(False, "loading"), (True, ""), (True, "gone"), (True, "")] == [(part.ready, part.detail) for part in found]


async def test_metrics_count_by_route_and_never_by_the_path_as_sent(serve: Serve) -> None:
    served = await serve()
    await served.chat(best_of=2)
    await served.chat(best_of=0)
    await served.http.get("/v1/models/a-made-up-name")
    await served.http.get("/a-made-up-path")
    text = (await served.http.get("/metrics")).text
    assert 'ratchet_requests_total{route="/v1/chat/completions",status="200"} 1.0' in text
    assert 'ratchet_requests_total{route="/v1/chat/completions",status="400"} 1.0' in text
    assert 'ratchet_requests_total{route="/v1/models/{model_id:path}",status="404"} 1.0' in text
    assert 'ratchet_requests_total{route="unknown",status="404"} 1.0' in text
    assert "made-up" not in text


async def test_an_id_of_the_callers_is_kept_where_it_is_well_formed(serve: Serve) -> None:
    served = await serve()
    for asked, kept in (("mine-1.a_b", True), ("a b", False), ("", False), ("x" * 65, False), ("ä", False)):
        response = await served.http.get("/health/live", headers=[(b"X-Request-Id", asked.encode())])
        assert kept == (response.headers["x-request-id"] == asked)
        assert response.headers["x-request-id"]


async def test_a_defect_is_a_500_without_its_trace(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    served = await serve()

    def broken(_: object) -> None:
        raise ZeroDivisionError("a secret plan")

    monkeypatch.setattr(PolicyStore, "current", property(broken))
    response = await served.chat(headers={"X-Request-Id": "mine"})
    error = response.json()["error"]
    assert (500, "internal_error") == (response.status_code, error["type"])
    assert "mine" == response.headers["x-request-id"]
    assert "secret" not in response.text
    assert "ZeroDivisionError" in caplog.text
    monkeypatch.undo()
    text = (await served.http.get("/metrics")).text
    assert 'ratchet_requests_total{route="/v1/chat/completions",status="500"} 1.0' in text
    assert 'ratchet_errors_total{kind="defect"} 1.0' in text


async def test_a_caller_who_left_is_counted_as_499(serve: Serve) -> None:
    served = await serve(tgi=Knobs(tokens_per_s=5))
    request = asyncio.create_task(served.chat(best_of=2))
    await served.tgi.state.until(lambda state: state.generating == 2)
    request.cancel()
    await served.tgi.state.until(lambda state: state.generating == 0)
    text = (await served.http.get("/metrics")).text
    assert 'ratchet_requests_total{route="/v1/chat/completions",status="499"} 1.0' in text
    assert 'ratchet_errors_total{kind="ClientGone"} 1.0' in text


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing/here", 404, "not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
    ],
)
async def test_an_unknown_route_is_a_404_in_the_same_envelope(
    serve: Serve, method: str, path: str, status: int, code: str
) -> None:
    served = await serve()
    response = await served.http.request(method, path)
    assert (status, code) == (response.status_code, response.json()["error"]["code"])
