"""Health, readiness, metrics and version, for balancers, operators and Prometheus.

``/health`` is readiness and ``/ping`` is liveness: clients and load generators made for vLLM use these.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from fastapi import APIRouter, Request
from starlette.responses import Response

import gateway
from gateway.api.json_response import json_response
from gateway.api.openapi import NO_KEY
from gateway.api.schemas import ReadyResponse
from gateway.types import Readiness

Probe = Callable[[], Awaitable[Readiness]]


def needed_at_start(probe: Probe) -> Probe:
    """Return a probe that stays ready once the part has been ready.

    Without rewards the gateway still answers. If a reward server that all gateways share fails, taking every gateway
    out of its balancer would turn worse answers into none.
    """
    was_ready = False

    async def lenient() -> Readiness:
        nonlocal was_ready
        found = await probe()
        was_ready = was_ready or found.ready
        return Readiness(was_ready, found.detail)

    return lenient


def routes(
    probes: Mapping[str, Probe],
    render: Callable[[], tuple[bytes, str]],
    operators_only: Callable[[Request], None] = lambda _: None,
) -> APIRouter:
    """Return the routes, for the app to include.

    Args:
        probes: One for each part. A part that is not ready makes the gateway not ready; a ready part with a detail
            makes it degraded.
        render: Returns the metrics' text and content type.
        operators_only: Refuses callers who may not read metrics and the version.
    """
    router = APIRouter(tags=["health"])

    # Some balancers probe with HEAD.
    @router.head("/ping", include_in_schema=False)
    @router.get("/ping", include_in_schema=False)
    @router.head("/health/live", include_in_schema=False)
    @router.get("/health/live", summary="Whether the process runs", openapi_extra=NO_KEY)
    async def live() -> dict[str, str]:
        return {"status": "ok"}

    @router.head("/health", include_in_schema=False)
    @router.get("/health", include_in_schema=False)
    @router.head("/health/ready", include_in_schema=False)
    @router.get(
        "/health/ready",
        summary="Whether requests can be answered, and if not, why",
        responses={200: {"model": ReadyResponse}, 503: {"model": ReadyResponse}},
        openapi_extra=NO_KEY,
    )
    async def ready() -> Response:
        found = dict(zip(probes, await asyncio.gather(*(probe() for probe in probes.values())), strict=True))
        if not all(part.ready for part in found.values()):
            status = "not ready"
        else:
            status = "degraded" if any(part.detail for part in found.values()) else "ready"
        parts = {
            name: {"ready": part.ready, "detail": part.detail}
            | ({"limits": part.facts["limits"]} if "limits" in part.facts else {})
            for name, part in found.items()
        }
        return json_response({"status": status, "parts": parts}, status=503 if status == "not ready" else 200)

    @router.head("/metrics", include_in_schema=False)
    @router.get("/metrics", summary="Prometheus metrics", response_class=Response, openapi_extra=NO_KEY)
    async def metrics(request: Request) -> Response:
        operators_only(request)
        body, content_type = render()
        return Response(body, media_type=content_type)

    @router.head("/version", include_in_schema=False)
    @router.get("/version", include_in_schema=False)
    async def version(request: Request) -> dict[str, str]:
        operators_only(request)
        return {"version": gateway.__version__}

    return router
