"""The choice of the requests that fail, and answers that no healthy server gives."""

from __future__ import annotations

import asyncio

import orjson
from aiohttp import web

from tests.stubs.faults import Picker, hang_up
from tests.stubs.knobs import Fault, Knobs
from tests.stubs.server import json_response
from tests.stubs.state import TgiState
from tests.stubs.tgi_errors import of_status
from tests.stubs.tgi_pace import drip

WHOLE_FAULTS = frozenset({Fault.STATUS, Fault.HTML, Fault.HALF_JSON, Fault.EMPTY, Fault.GARBAGE})
HTML = b"<html><head><title>Bad Gateway</title></head><body><h1>Bad Gateway</h1></body></html>"
HALF_JSON = b'{"object":"chat.completion","id":"","choices":[{"index":0,"message":{"role":"assi'
GARBAGE = bytes(range(128, 256)) * 4 + b"\n\n"


class FaultPicker:
    """Decides for each request whether the knobs' fault applies."""

    def __init__(self, knobs: Knobs) -> None:
        self._knobs = knobs
        self._picker = Picker()
        self._count = 0

    def pick(self, seed: int | None, conversation: bytes = b"") -> Fault:
        """Return the fault of the next request, by its seed and its messages."""
        knobs = self._knobs
        if knobs.fault is Fault.NONE:
            return Fault.NONE
        self._count += 1
        by_turn = knobs.fault_every > 0 and self._count % knobs.fault_every == 0
        by_seed = (
            knobs.fault_seed_modulo > 0
            and seed is not None
            and seed % knobs.fault_seed_modulo == knobs.fault_seed_remainder
        )
        by_text = bool(knobs.fault_text) and knobs.fault_text.encode() in conversation
        return knobs.fault if self._picker.picks(knobs) or by_turn or by_seed or by_text else Fault.NONE


async def whole_fault(fault: Fault, knobs: Knobs, state: TgiState, *, stream: bool) -> web.Response:
    """Return an answer that is wrong from its first byte, at the time when ``fault_after_tokens`` tokens are due."""
    state.failed += 1
    state.changed()
    if knobs.fault_after_tokens:
        await asyncio.sleep(knobs.due_s(knobs.fault_after_tokens - 1))
    if fault is Fault.STATUS:
        error = of_status(knobs.fault_status)
        body = b"" if error is None else orjson.dumps(error.body)
        return json_response(body, status=knobs.fault_status)
    if fault is Fault.HTML:
        return web.Response(body=HTML, status=knobs.fault_status, content_type="text/html")
    body = {Fault.HALF_JSON: HALF_JSON, Fault.GARBAGE: GARBAGE}.get(fault, b"")
    if stream:
        body = b"data: " + body if body else b""
        return web.Response(body=body, content_type="text/event-stream")
    return json_response(body)


async def break_off(http: web.BaseRequest, body: bytes) -> web.StreamResponse:
    """Send the first half of ``body`` and close the connection."""
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(body))})
    await response.prepare(http)
    await response.write(body[: len(body) // 2])
    hang_up(http)
    return response


async def dripped(http: web.BaseRequest, body: bytes, knobs: Knobs) -> web.StreamResponse:
    """Send ``body`` a few bytes at a time."""
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(body))})
    await response.prepare(http)
    await drip(response, body, knobs)
    return response
