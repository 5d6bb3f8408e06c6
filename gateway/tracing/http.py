"""Traces over HTTP: a caller's goes on in ours, and ours in the backend's (W3C ``traceparent``).

Neither ``tracestate`` nor ``baggage`` is read: both may hold whatever a caller likes to write. FastAPI's and aiohttp's
own instrumentation is not used either, for it puts paths, queries and host names of the caller's into spans.
"""

from __future__ import annotations

from types import SimpleNamespace

import aiohttp
import structlog
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, StatusCode, Tracer, format_trace_id, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.tracing.spans import current, ending

_W3C = TraceContextTextMapPropagator()
_API = "/v1/"  # what probes and scrapes ask for every few seconds is elsewhere


class TraceRequests:
    """A span around each request of the API, whose trace its log lines name too. Plain ASGI, within ``Observe``."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request through."""
        if scope["type"] != "http" or not scope["path"].startswith(_API):
            await self._app(scope, receive, send)
            return
        request_id = structlog.contextvars.get_contextvars().get("request", "")
        span = self._tracer.start_span(
            scope["method"],
            context=_callers_context(scope),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": scope["method"], "ratchet.request_id": request_id},
        )
        if span.get_span_context().is_valid:
            structlog.contextvars.bind_contextvars(trace_id=format_trace_id(span.get_span_context().trace_id))

        async def send_and_tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                span.set_attribute("http.response.status_code", message["status"])
                if message["status"] >= 500:
                    span.set_status(StatusCode.ERROR)
            await send(message)

        with ending(span), current(span):
            try:
                await self._app(scope, receive, send_and_tell)
            finally:
                # The route's own pattern, never the path as sent.
                if (route := getattr(scope.get("route"), "path", None)) is not None:
                    span.update_name(f"{scope['method']} {route}")
                    span.set_attribute("http.route", route)


def calls() -> aiohttp.TraceConfig:
    """What gives each call to a backend its trace, and its span the replica that was called."""
    config = aiohttp.TraceConfig()
    config.on_request_start.append(_tell_and_ask)
    return config


async def _tell_and_ask(
    _session: aiohttp.ClientSession, _context: SimpleNamespace, call: aiohttp.TraceRequestStartParams
) -> None:
    span = get_current_span()
    if span.get_span_context().is_valid:  # readiness asks without one
        span.set_attributes({"server.address": call.url.host or "", "server.port": call.url.port or 0})
        _W3C.inject(call.headers)


def _callers_context(scope: Scope) -> Context:
    """The caller's place in a trace. Never this task's: a pipelined request's task begins in the one before it."""
    traceparent = Headers(scope=scope).get("traceparent")
    return _W3C.extract({"traceparent": traceparent} if traceparent else {}, context=Context())
