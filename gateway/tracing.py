"""OpenTelemetry traces: spans of requests (``gateway.spans`` makes those inside them), and their way to a collector.

A thread of the SDK sends ended spans in batches, from a queue of bounded length that drops what has no room: a
collector that is slow, broken or away costs requests nothing. OpenTelemetry's own variables, which the SDK reads, set
everything but the endpoint (OTEL_EXPORTER_OTLP_HEADERS, OTEL_TRACES_SAMPLER, OTEL_RESOURCE_ATTRIBUTES, …).

A caller's trace continues in ours and ours in the backend's (W3C ``traceparent``). ``tracestate`` and ``baggage`` are
not read: a caller may write anything there. FastAPI's and aiohttp's own instrumentation is not used: it puts callers'
paths, queries and host names into spans.
"""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import aiohttp
import structlog
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode, Tracer, format_trace_id, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import gateway
from gateway import spans
from gateway.settings import TracingSettings

LAST_SPANS_S = 2.0
_SERVICE = "ratchet-gateway"
_W3C = TraceContextTextMapPropagator()
_API = "/v1/"  # probes and scrapes, which come every few seconds, have other paths


class Tracing:
    """Makes spans and sends them, between ``start`` and ``aclose``."""

    def __init__(self, settings: TracingSettings) -> None:
        ours = Resource({SERVICE_NAME: _SERVICE, SERVICE_VERSION: gateway.__version__})
        self._exporter = OTLPSpanExporter(endpoint=f"{settings.endpoint}/v1/traces")
        self._provider = TracerProvider(
            resource=Resource.create(ours.merge(OTELResourceDetector().detect()).attributes),
            shutdown_on_exit=False,  # that would wait for a collector that hangs
        )
        self.tracer = self._provider.get_tracer("ratchet", gateway.__version__)
        self.calls = aiohttp.TraceConfig()
        """Sends the current trace along with each call to a backend, and notes on its span which replica was called."""
        self.calls.on_request_start.append(_continue_trace)

    def start(self) -> None:
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        spans.use_tracer(self.tracer)

    async def aclose(self) -> None:
        """Stop making spans, and send the last ones if the collector takes them at once."""
        spans.use_tracer(None)
        # In a thread that the end of the process does not wait for: the SDK waits up to 30 s, which cannot be set.
        last = threading.Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
        last.start()
        await asyncio.to_thread(last.join, LAST_SPANS_S)


class TraceRequests:
    """A span around each request of the API; its log lines name the trace. Plain ASGI, inside ``Observe``."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
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

        async def send_and_note(message: Message) -> None:
            if message["type"] == "http.response.start":
                span.set_attribute("http.response.status_code", message["status"])
                if message["status"] >= 500:
                    span.set_status(StatusCode.ERROR)
            await send(message)

        with spans.ending(span), spans.current(span):
            try:
                await self._app(scope, receive, send_and_note)
            finally:
                # The route's own pattern, never the path as sent.
                if (route := getattr(scope.get("route"), "path", None)) is not None:
                    span.update_name(f"{scope['method']} {route}")
                    span.set_attribute("http.route", route)


async def _continue_trace(
    _session: aiohttp.ClientSession, _context: SimpleNamespace, call: aiohttp.TraceRequestStartParams
) -> None:
    span = get_current_span()
    if span.get_span_context().is_valid:  # readiness checks have none
        span.set_attributes({"server.address": call.url.host or "", "server.port": call.url.port or 0})
        _W3C.inject(call.headers)


def _callers_context(scope: Scope) -> Context:
    """Return the caller's place in a trace. Never this task's: a pipelined request's task begins in another's."""
    traceparent = Headers(scope=scope).get("traceparent")
    return _W3C.extract({"traceparent": traceparent} if traceparent else {}, context=Context())
