"""Spans from their beginning to the collector: what makes them, and what carries them there.

A thread of the SDK's sends what has ended, in batches, from a queue of bounded length that drops what has no room: a
collector that is slow, away or broken costs requests nothing. Everything but its endpoint is set by OpenTelemetry's own
variables (OTEL_EXPORTER_OTLP_HEADERS, OTEL_TRACES_SAMPLER, OTEL_RESOURCE_ATTRIBUTES, …), which the SDK reads.
"""

from __future__ import annotations

import asyncio
import threading
from functools import partial

import aiohttp
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

import gateway
from gateway.settings import TracingSettings
from gateway.tracing.http import calls
from gateway.tracing.parts import TracedJournal, TracedRace, TracedScorer

_SERVICE = "ratchet-gateway"
_LAST_SPANS_S = 2.0


class Tracing:
    """Makes the parts that leave spans, and sends the spans between ``start`` and ``aclose``.

    Args:
        settings: Where the collector is.
    """

    def __init__(self, settings: TracingSettings) -> None:
        ours = Resource({SERVICE_NAME: _SERVICE, SERVICE_VERSION: gateway.__version__})
        self._exporter = OTLPSpanExporter(endpoint=f"{settings.endpoint}/v1/traces")
        self._provider = TracerProvider(
            resource=Resource.create(ours.merge(OTELResourceDetector().detect()).attributes),
            shutdown_on_exit=False,  # that would wait for a collector that hangs
        )
        self.tracer = self._provider.get_tracer("ratchet", gateway.__version__)
        self.race = partial(TracedRace, tracer=self.tracer)
        self.scorer = partial(TracedScorer, tracer=self.tracer)
        self.journal = partial(TracedJournal, tracer=self.tracer)
        self.calls: tuple[aiohttp.TraceConfig, ...] = (calls(),)

    def start(self) -> None:
        """Begin to send."""
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))

    async def aclose(self) -> None:
        """Send the last spans, if the collector takes them at once."""
        # In a thread that the process's end does not wait for: the SDK's own patience is 30 s, and not to be set.
        last = threading.Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
        last.start()
        await asyncio.to_thread(last.join, _LAST_SPANS_S)
