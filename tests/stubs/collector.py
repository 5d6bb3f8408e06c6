"""A stub of an OpenTelemetry collector: OTLP over HTTP, protobuf, spans only."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.stubs.knobs import AnyKnobs
from tests.stubs.server import Handler, StubServer
from tests.stubs.state import State


class CollectorFault(StrEnum):
    """The way in which it fails."""

    NONE = "none"
    STATUS = "status"  # 500
    HANG = "hang"  # no answer, ever


@dataclass(slots=True, kw_only=True)
class CollectorKnobs(AnyKnobs):
    fault: CollectorFault = CollectorFault.NONE


@dataclass(frozen=True, slots=True)
class CollectedSpan:
    """One span, its ids in hexadecimal; ``parent_id`` is empty if there is none."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any]
    failed: bool
    began_ns: int
    ended_ns: int


class CollectorStub(StubServer):
    """Takes spans; ``spans`` are those received, ``resource`` is their origin."""

    knobs: CollectorKnobs
    state: State

    def __init__(self, knobs: CollectorKnobs | None = None, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.knobs = CollectorKnobs() if knobs is None else knobs
        self.state = State()
        self.spans: list[CollectedSpan] = []
        self.resource: dict[str, Any] = {}
        super().__init__(host=host, port=port)

    def routes(self) -> dict[tuple[str, str], Handler]:
        return {("POST", "/v1/traces"): self._take}

    async def trace(self, trace_id: str = "") -> list[CollectedSpan]:
        """Return all spans of a trace (the only one by default) once the request's own has come, which ends last."""

        def found(_: State) -> bool:
            return any(span.kind == "SERVER" and span.trace_id.startswith(trace_id) for span in self.spans)

        await self.state.until(found)
        return [span for span in self.spans if span.trace_id.startswith(trace_id)]

    async def _take(self, http: web.BaseRequest) -> web.StreamResponse:
        body = await http.read()
        self.record(http, body)
        self.state.started += 1
        self.state.changed()
        if self.knobs.fault is CollectorFault.HANG:
            await asyncio.Event().wait()
        if self.knobs.fault is CollectorFault.STATUS:
            return web.Response(status=500)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resource = _values(resource.resource.attributes)
            self.spans += [_collected(span) for scope in resource.scope_spans for span in scope.spans]
        self.state.finished += 1
        self.state.changed()
        return web.Response(content_type="application/x-protobuf")


def _collected(span: Span) -> CollectedSpan:
    return CollectedSpan(
        name=span.name,
        kind=Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        attributes=_values(span.attributes),
        failed=span.status.code == Status.STATUS_CODE_ERROR,
        began_ns=span.start_time_unix_nano,
        ended_ns=span.end_time_unix_nano,
    )


def _values(attributes: Iterable[KeyValue]) -> dict[str, Any]:
    return {attribute.key: _value(attribute.value) for attribute in attributes}


def _value(value: AnyValue) -> Any:
    if value.HasField("array_value"):
        return [_value(item) for item in value.array_value.values]
    kind = value.WhichOneof("value")
    return None if kind is None else getattr(value, kind)
