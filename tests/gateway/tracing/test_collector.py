"""Traces on and off: imports, the collector, and a collector that fails."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from gateway.app import build
from gateway.errors import SettingsError
from gateway.settings import RedisSettings, Settings
from gateway.tracing import LAST_SPANS_S
from tests.gateway.api.test_no_text_in_logs import gateway_process
from tests.serving import MESSAGES, Serve
from tests.stubs.collector import CollectorFault, CollectorKnobs, CollectorStub
from tests.stubs.reward import RewardStub
from tests.stubs.tgi import TgiStub

OFF = """
import sys
from gateway.app import build, create_app
from gateway.settings import Settings
settings = Settings.model_validate({"reward": {"url": "http://reward"}})
create_app(settings)
parts = build(settings)
print(type(parts.race).__name__, type(parts.journal).__name__, type(parts.scorer).__name__)
unwanted = ("opentelemetry.sdk.trace.export", "opentelemetry.exporter", "gateway.tracing")  # redis-py loads the rest
print([name for name in sys.modules if name.startswith(unwanted)])
"""


def test_without_an_endpoint_the_sdk_is_not_loaded() -> None:
    """OpenTelemetry's own variables, which other programs share, do not switch it on."""
    ambient = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_TRACES_EXPORTER": "otlp"}
    told = subprocess.run(
        [sys.executable, "-c", OFF], env=os.environ | ambient, check=True, capture_output=True, text=True
    )
    assert ["BestOfN Journal RemoteScorer", "[]"] == told.stdout.splitlines()


async def test_without_an_endpoint_the_backend_gets_no_traceparent(serve: Serve) -> None:
    served = await serve()
    await served.chat(best_of=2, headers={"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"})
    assert [False, False] == ["traceparent" in request.headers for request in served.tgi.state.requests]


async def test_the_frameworks_own_telemetry_stays_off(
    serve: Serve, collector: CollectorStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would send callers' texts, and variables that other programs share switch it on."""
    monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "20")
    served = await serve(tracing={"endpoint": collector.url})
    await served.http.get("/v1/models?q=text")
    await collector.trace()
    assert ["GET /v1/models"] == [span.name for span in collector.spans]
    assert {"/v1/traces"} == {request.path for request in collector.state.requests}


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gateway.tracing", None)
    with pytest.raises(SettingsError, match=r"GATEWAY_TRACING__ENDPOINT needs ratchet\[otel\]"):
        build(settings("http://127.0.0.1:9"))


async def test_opentelemetrys_variables_name_the_service(
    serve: Serve, collector: CollectorStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=chat,deployment.environment.name=test")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20k")
    served = await serve(tracing={"endpoint": collector.url + "/"})
    await served.http.get("/v1/models")
    await collector.trace()
    assert ("chat", "test") == (collector.resource["service.name"], collector.resource["deployment.environment.name"])
    assert "Bearer k" == collector.state.requests[0].headers["authorization"]


@pytest.mark.parametrize("fault", [CollectorFault.STATUS, CollectorFault.HANG, None])
async def test_a_bad_collector_costs_no_request_anything(
    serve: Serve, collector: CollectorStub, fault: CollectorFault | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even if more spans end than the queue holds: those without room are dropped."""
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
    if fault is None:
        await collector.stop()
    else:
        collector.knobs.update({"fault": fault})
    served = await serve(tracing={"endpoint": collector.url})
    async with asyncio.timeout(30):
        for _ in range(5):
            answers = await asyncio.gather(*(served.chat(best_of=2) for _ in range(4)))
            assert [200] * 4 == [answer.status_code for answer in answers]
    if fault is not None:
        await collector.state.until(lambda state: state.started > 0)
    assert [] == collector.spans


@asynccontextmanager
async def traced_process(
    folder: Path, redis: RedisSettings, collector: CollectorStub, delay_ms: int
) -> AsyncIterator[None]:
    """A gateway in a process of its own, which has answered one chat; it is told to stop, and waited for, at the end.

    Args:
        folder: For its log and its spool.
        redis: Where its records go.
        collector: Where its spans go.
        delay_ms: How long it gathers spans before it sends them.
    """
    async with TgiStub() as tgi, RewardStub() as rewards:
        variables = {
            "GATEWAY_BACKEND__URLS": tgi.url,
            "GATEWAY_REWARD__URL": rewards.url,
            "GATEWAY_REDIS__URL": redis.url,
            "GATEWAY_JOURNAL__SPOOL_DIR": str(folder / "spool"),
            "GATEWAY_TRACING__ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": str(delay_ms),
        }
        async with (
            gateway_process(folder / "log", **variables) as url,
            httpx2.AsyncClient(base_url=url, timeout=30, trust_env=False) as http,
        ):
            body = {"model": "ratchet", "messages": MESSAGES, "best_of": 2}
            assert 200 == (await http.post("/v1/chat/completions", json=body)).status_code
            yield


async def test_a_hanging_collector_delays_the_end_of_the_process_by_seconds_only(
    tmp_path: Path, redis_settings: RedisSettings
) -> None:
    """The SDK itself would wait for 30 s."""
    async with CollectorStub(CollectorKnobs(fault=CollectorFault.HANG)) as collector:
        async with traced_process(tmp_path, redis_settings, collector, delay_ms=20):
            await collector.state.until(lambda state: state.started > 0)
            stopped_s = time.monotonic()
        assert time.monotonic() - stopped_s < LAST_SPANS_S + 20
    assert '"event": "stopped"' in (tmp_path / "log").read_text()


async def test_the_last_spans_are_sent_before_the_process_ends(tmp_path: Path, redis_settings: RedisSettings) -> None:
    async with CollectorStub() as collector:
        async with traced_process(tmp_path, redis_settings, collector, delay_ms=600_000):
            assert [] == collector.spans
        names = {span.name for span in collector.spans}
    assert {"POST /v1/chat/completions", "race", "candidate", "score", "journal write"} == names


def settings(endpoint: str) -> Settings:
    """Return the settings of a gateway that sends its spans to the endpoint."""
    return Settings.model_validate({"reward": {"url": "http://reward"}, "tracing": {"endpoint": endpoint}})
