"""Traces across HTTP: a caller's continues here, and ours in the backend."""

from __future__ import annotations

import asyncio
import json

import pytest

from gateway.telemetry import configure_logging
from tests.serving import Serve
from tests.stubs.collector import CollectorStub
from tests.stubs.tgi import TgiStub

TRACE, CALLER = "a" * 32, "b" * 16


def traceparents(tgi: TgiStub) -> list[tuple[str, str, str]]:
    """Return trace, span and flags of the backend's calls."""
    found = [request.headers["traceparent"].split("-") for request in tgi.state.requests]
    return [(trace, span, flags) for _, trace, span, flags in found]


async def test_a_callers_trace_continues_here_and_in_the_backend(serve_traced: Serve, collector: CollectorStub) -> None:
    served = await serve_traced()
    await served.chat(best_of=3, headers={"traceparent": f"00-{TRACE}-{CALLER}-01", "tracestate": "who=caller"})
    spans = await collector.trace(TRACE)
    assert [CALLER] == [span.parent_id for span in spans if span.kind == "SERVER"]
    drawn = {span.span_id for span in spans if span.name == "candidate"}
    asked = traceparents(served.tgi)
    assert {(TRACE, span, "01") for span in drawn} == {(trace, span, flags) for trace, span, flags in asked}
    assert not any("tracestate" in request.headers for request in served.tgi.state.requests)


async def test_a_trace_that_is_not_sampled_has_no_span_and_the_backend_is_informed(
    serve_traced: Serve, collector: CollectorStub
) -> None:
    served = await serve_traced()
    await served.chat(best_of=2, headers={"traceparent": f"00-{TRACE}-{CALLER}-00"})
    await served.chat(best_of=1, headers={"traceparent": f"00-{'c' * 32}-{CALLER}-01"})
    await collector.trace("c" * 32)
    assert {"c" * 32} == {span.trace_id for span in collector.spans}
    assert {(TRACE, "00"), ("c" * 32, "01")} == {(trace, flags) for trace, _, flags in traceparents(served.tgi)}


@pytest.mark.parametrize("traceparent", ["", "nonsense", f"00-{'0' * 32}-{CALLER}-01", f"ff-{TRACE}-{CALLER}-01"])
async def test_a_malformed_traceparent_starts_a_new_trace(
    serve_traced: Serve, collector: CollectorStub, traceparent: str
) -> None:
    served = await serve_traced()
    assert 200 == (await served.chat(best_of=1, headers={"traceparent": traceparent})).status_code
    spans = await collector.trace()
    assert [""] == [span.parent_id for span in spans if span.kind == "SERVER"]
    assert TRACE not in {span.trace_id for span in spans}


async def test_probes_and_scrapes_have_no_span(serve_traced: Serve, collector: CollectorStub) -> None:
    served = await serve_traced()
    for path in ("/health/live", "/health/ready", "/metrics", "/openapi.json"):
        await served.http.get(path)
    await served.http.get("/v1/models")
    await collector.trace()
    assert ["GET /v1/models"] == [span.name for span in collector.spans]


async def test_pipelined_requests_have_a_trace_each(serve_traced: Serve, collector: CollectorStub) -> None:
    """The server starts a pipelined request in the task of the one before it."""
    served = await serve_traced()
    host, port = served.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /v1/models HTTP/1.1\r\nhost: here\r\n\r\n" * 3)
    await collector.state.until(lambda _: len(collector.spans) == 3)
    writer.close()
    assert (3, {""}) == (len({span.trace_id for span in collector.spans}), {span.parent_id for span in collector.spans})
    assert await reader.read(15) == b"HTTP/1.1 200 OK"


async def test_log_lines_have_request_id_and_trace_id(
    serve_traced: Serve, collector: CollectorStub, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("info", "json")
    served = await serve_traced()
    sent = {"x-request-id": "r-1", "traceparent": f"00-{TRACE}-{CALLER}-01"}
    await served.chat(best_of=2, headers=sent)
    await served.chat(temperature=9, headers=sent)
    await served.http.get("/health/live")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    told = {line["event"]: (line.get("request"), line.get("trace_id")) for line in lines}
    assert ("r-1", TRACE) == told["completion"] == told["refused"]
    assert (None, None) == told["started"]
