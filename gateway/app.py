"""The composition root: build every part once, connect them, start and close them with the app."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from fastapi import FastAPI, Request
from fastapi.responses import Response
from fastapi.telemetry import TelemetryConfig
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

import gateway
from gateway.api import chat_completions, cors, directions, errors, feedback, health, models, openapi
from gateway.api.auth import ApiKeys
from gateway.api.connection import ClientGone
from gateway.api.keyfile import Scope
from gateway.api.limits import Limiter, Visit
from gateway.api.observe import Observe
from gateway.backend.containment import Containment
from gateway.backend.health import Fault
from gateway.backend.limit import ServerLimit, ServerLimits
from gateway.backend.pool import BackendPool
from gateway.backend.pools import BackendPools
from gateway.backend.shared_containment import SharedContainment
from gateway.best_of_n.answering import Answerer
from gateway.best_of_n.ledger import FOLDER_VARIABLE, Ledger
from gateway.best_of_n.permits import Permits
from gateway.best_of_n.race import BestOfN
from gateway.errors import GatewayError, SettingsError
from gateway.journal.writer import Journal
from gateway.policy import PolicyStore
from gateway.reward.build import build_scorer
from gateway.settings import RewardSettings, Settings, TracingSettings, load
from gateway.telemetry import Metrics, configure_logging
from gateway.tls import client_context
from gateway.types import Scorer

if TYPE_CHECKING:
    from gateway.tracing import Tracing

_UPKEEP_S = 1.0
# FastAPI's own telemetry would send queries and exceptions' messages, which hold callers' texts; variables that other
# programs share would switch it on.
_NO_TELEMETRY = TelemetryConfig(tracing=False, metrics=False, logs=False, auto_configure=False)

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Parts:
    backends: BackendPools
    containment: SharedContainment
    scorer: Scorer
    journal: Journal
    policies: PolicyStore
    race: BestOfN
    permits: Permits
    limits: ServerLimits
    keys: ApiKeys
    limiter: Limiter
    metrics: Metrics
    tracing: Tracing | None


def from_environment() -> FastAPI:
    """Build the app of a server process: settings from the environment, logs configured."""
    settings = load()
    configure_logging(settings.log_level, settings.log_format)
    return create_app(settings)


def create_app(settings: Settings) -> FastAPI:
    """Build the gateway.

    Raises:
        SettingsError: No reward model is configured, or the file of keys or of certificates is bad.
    """
    parts = build(settings)
    app = FastAPI(
        title="Ratchet",
        version=gateway.__version__,
        summary="An OpenAI-compatible chat API that answers with the best of N candidates.",
        lifespan=lambda _: _lifespan(parts),
        # A path with a slash too many is a 404: a redirect would send the key to any host that the caller names.
        redirect_slashes=False,
        # A browser sends no API key: the pages could not be read behind one.
        openapi_url=None if settings.api.operators == "admin" else "/openapi.json",
        telemetry=_NO_TELEMETRY,
    )
    _add_routes(app, parts, settings)
    _add_error_handlers(app, parts.metrics)
    openapi.describe(app, settings)
    # The last one added sees a request first.
    if parts.tracing is not None:
        from gateway.tracing import TraceRequests

        app.add_middleware(TraceRequests, tracer=parts.tracing.tracer)
    if settings.api.cors_origins:
        app.add_middleware(CORSMiddleware, **cors.options(settings.api.cors_origins))
    app.add_middleware(Observe, metrics=parts.metrics)
    return app


def build(settings: Settings) -> Parts:
    """Build every part. No thread starts, nothing is connected and no model is loaded before the app starts.

    Raises:
        SettingsError: No reward model is configured, or the file of keys or of certificates is bad.
    """
    metrics = Metrics()
    scorer = _scorer(settings.reward, metrics)
    tracing = _tracing(settings.tracing)
    policies = PolicyStore(
        settings.policy, settings.redis, folder=settings.journal.spool_dir, n_limit=settings.race.best_of_max
    )
    ledger_folder = os.environ.get(FOLDER_VARIABLE)
    ledger = Ledger(Path(ledger_folder), settings.workers) if ledger_folder else None
    limits = ServerLimits(
        partial(
            ServerLimit,
            ceiling=settings.race.max_in_flight,
            queue_timeout_s=settings.race.queue_timeout_s,
            sharers=settings.workers if ledger is None else 1,  # with a ledger they need not divide it
            on_refusal=lambda server: metrics.backend_refusals.labels(server).inc(),
        )
    )
    containment = Containment()
    if settings.backend.ca_file is not None:
        client_context(settings.backend.ca_file)  # raises here: pools are opened with the first race, which is too late
    backends = BackendPools(
        settings.backend,
        lambda: policies.current.pools,
        partial(
            BackendPool,
            limits=limits,
            containment=containment,
            on_move=lambda how: metrics.backend_moves.labels(how).inc(),
            trace_configs=(tracing.calls,) if tracing else (),
        ),
    )
    permits = Permits(
        settings.race.max_in_flight,
        max_waiting=settings.race.max_waiting,
        queue_timeout_s=settings.race.queue_timeout_s,
        capacity=backends.capacity,
        total_capacity=backends.total_capacity,
        ledger=ledger,
    )
    return Parts(
        backends=backends,
        containment=SharedContainment(containment, settings.redis),
        scorer=scorer,
        journal=Journal(settings.journal, settings.redis),
        policies=policies,
        race=BestOfN(scorer, permits, settings.race, reward_timeout_s=settings.reward.timeout_s),
        permits=permits,
        limits=limits,
        keys=ApiKeys(settings.api.keys_file),
        limiter=Limiter(settings),
        metrics=metrics,
        tracing=tracing,
    )


def _scorer(settings: RewardSettings, metrics: Metrics) -> Scorer:
    scorer = build_scorer(settings, observe=metrics.scored_batch)
    if scorer is None:
        raise SettingsError(
            "no reward model: set GATEWAY_REWARD__MODEL (in this process) or GATEWAY_REWARD__URL (a server)"
        )
    return scorer


def _tracing(settings: TracingSettings) -> Tracing | None:
    """Return the maker of spans; None without an endpoint, and then OpenTelemetry's SDK is not imported."""
    if not settings.endpoint:
        return None
    try:
        from gateway.tracing import Tracing
    except ImportError as error:
        raise SettingsError(f"GATEWAY_TRACING__ENDPOINT needs ratchet[otel]: {error}") from error
    return Tracing(settings)


@asynccontextmanager
async def _lifespan(parts: Parts) -> AsyncIterator[None]:
    """Start the parts; close them at the end in reverse order, so that the journal outlives all that writes to it."""
    async with AsyncExitStack() as stack:
        if parts.tracing is not None:
            parts.tracing.start()
            stack.push_async_callback(parts.tracing.aclose)
        await parts.journal.start()
        stack.push_async_callback(parts.journal.aclose)
        await parts.policies.start()
        stack.push_async_callback(parts.policies.aclose)
        parts.scorer.start()
        stack.push_async_callback(parts.scorer.aclose)
        stack.push_async_callback(parts.backends.aclose)
        await parts.backends.learn()  # the permits of the first request depend on it
        parts.containment.start()
        stack.push_async_callback(parts.containment.aclose)
        stack.push_async_callback(parts.limiter.aclose)
        parts.keys.start()
        stack.push_async_callback(parts.keys.aclose)
        upkeep = asyncio.create_task(_upkeep(parts), name="upkeep")
        stack.callback(upkeep.cancel)
        _log.info("started", version=gateway.__version__, policy=parts.policies.current.version)
        yield
    _log.info("stopped")


async def _upkeep(parts: Parts) -> None:
    """Look after the pools, permits and gauges each second.

    Gauges are set here and not at the scrape, because with several workers any one of them answers for all.
    """
    learning = asyncio.create_task(parts.backends.learn())
    while True:
        if learning.done():  # again, for servers that did not answer when the gateway started
            learning = asyncio.create_task(parts.backends.learn())
        parts.backends.tend()
        await parts.backends.close_unused()
        for arm, check in parts.policies.current.weight_checks():
            parts.backends.check_weights(arm.urls, arm.adapter or "", check)
        parts.permits.serve()  # a replica that is back raised the capacity
        _set_gauges(parts)
        _set_gauges_of_servers(parts)
        await asyncio.sleep(_UPKEEP_S)


def _set_gauges(parts: Parts) -> None:
    metrics, policy, stats = parts.metrics, parts.policies.current, parts.journal.stats
    metrics.races.set(parts.backends.leased)
    metrics.in_flight.set(parts.permits.in_flight)
    metrics.waiting.set(parts.permits.waiting)
    metrics.reward_available.set(parts.scorer.available)
    metrics.reward_away.set(parts.scorer.n_away)
    metrics.tasks.set(len(asyncio.all_tasks()))
    metrics.hub_held.set(parts.backends.held())
    metrics.policy_n.set(policy.n)
    metrics.policy_version.set(policy.version)
    metrics.policy_second_share.set(0.0 if policy.canary is None else policy.canary.share)
    metrics.journal_lag_records.set(stats.lag_records)
    metrics.journal_lag_bytes.set(stats.lag_bytes)
    metrics.journal_lost_records.set(stats.lost_records)
    metrics.journal_stream_ratio.set(stats.stream_share)
    metrics.journal_stream_full.set(stats.full)
    metrics.redis_connected.set(stats.connected)


def _set_gauges_of_servers(parts: Parts) -> None:
    metrics = parts.metrics
    metrics.requests_contained.set(parts.containment.contained)
    for limit in parts.limits.all:
        metrics.backend_limit.labels(limit.name).set(limit.limit)
    for state in parts.backends.states():
        for fault in Fault:
            metrics.backend_ejected.labels(state.name, fault.value).set(state.fault == fault.value)
        metrics.backend_without_adapter.labels(state.name).set(state.lacks_adapter)


def _add_routes(app: FastAPI, parts: Parts, settings: Settings) -> None:
    closed = settings.api.operators == "admin"

    def operators_only(request: Request) -> None:
        if closed:
            parts.keys.authenticate(request.headers.get("authorization"), Scope.ADMIN)

    service = chat_completions.ChatCompletions(
        Answerer(parts.race, parts.backends, parts.policies, parts.journal, parts.metrics, settings),
        parts.keys,
        parts.limiter,
        settings,
        on_error=lambda error: _count_error(parts.metrics, error, streaming=True),
    )
    readiness = {
        "backend": parts.backends.readiness,
        "reward": health.needed_at_start(parts.scorer.readiness),
        "journal": parts.journal.readiness,
        "policy": parts.policies.readiness,
        "keys": parts.keys.readiness,
    }
    app.include_router(chat_completions.routes(service))
    app.include_router(models.routes(settings.api, parts.keys))
    app.include_router(feedback.routes(settings.api, parts.keys, parts.limiter, parts.journal))
    app.include_router(health.routes(readiness, parts.metrics.render, operators_only))
    app.include_router(directions.routes(app))
    if closed:
        app.include_router(openapi.routes(app, operators_only))


def _count_error(metrics: Metrics, error: GatewayError, **facts: bool) -> None:
    metrics.errors.labels(type(error).__name__).inc()
    _log.info("refused", error=type(error).__name__, **facts)


def _add_error_handlers(app: FastAPI, metrics: Metrics) -> None:
    @app.exception_handler(GatewayError)
    async def on_gateway_error(request: Request, error: GatewayError) -> Response:
        _count_error(metrics, error)
        response = errors.respond(error)
        visit: Visit = getattr(request.state, "visit", Visit())
        response.headers.update(visit.headers())
        return response

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> Response:
        message = str(error.detail)
        if error.status_code == 404:
            message = directions.not_found(app, request.url.path)
        elif error.status_code == 405:
            message = f"this route takes {Headers(error.headers).get('allow', 'other methods')}"
        return errors.respond_status(error.status_code, message, error.headers)

    @app.exception_handler(ClientGone)
    async def on_client_gone(_: Request, __: ClientGone) -> Response:
        metrics.errors.labels(ClientGone.__name__).inc()
        return Response(status_code=499)

    @app.exception_handler(Exception)
    async def on_defect(_: Request, error: Exception) -> Response:
        # Starlette raises it again after this answer, so that the server logs the traceback; the caller sees none.
        metrics.errors.labels("defect").inc()
        request_id = structlog.contextvars.get_contextvars().get("request", "")
        return errors.respond_status(
            500,
            "internal error; the server's log has the details under this request's id",
            {"x-request-id": request_id},
        )
