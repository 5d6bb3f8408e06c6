"""One generation as time passes: its tokens fall due one by one, and it ends, fails or is cancelled."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from aiohttp import web

from tests.stubs.knobs import Fault, Knobs
from tests.stubs.state import TgiState
from tests.stubs.tgi_errors import TgiError, of_status
from tests.stubs.tgi_generation import Generated
from tests.stubs.tgi_wire import KEEP_ALIVE, Event


class Generation:
    """Holds a permit from construction until it is left; says to the state how it ended."""

    __slots__ = ("_knobs", "_loop", "_started_at", "_state", "failed", "generated", "limit")

    def __init__(self, state: TgiState, knobs: Knobs, generated: Generated) -> None:
        self.generated = generated
        self.failed = False
        self.limit = generated.n_tokens
        self._knobs = knobs
        self._state = state
        self._loop = asyncio.get_running_loop()
        self._started_at = self._loop.time()
        state.started += 1
        state.generating += 1
        state.peak_generating = max(state.peak_generating, state.generating)
        state.changed()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        state = self._state
        state.generating -= 1
        tokens = self._knobs.tokens_after(self._loop.time() - self._started_at, self.generated.n_tokens)
        state.tokens_generated += min(tokens, self.limit)
        if kind is not None and issubclass(kind, asyncio.CancelledError | ConnectionError):
            state.cancelled += 1
        elif kind is not None or self.failed:
            state.failed += 1
        else:
            state.finished += 1
        state.changed()

    async def until_done_or(self, fault: Fault) -> None:
        """Wait for the last token, or until ``fault`` has its way.

        Raises:
            TgiError: The fault is an error of TGI's own.
        """
        self._meet(fault)
        left_s = self._due_at(self.limit) - self._loop.time()
        if left_s > 0:
            await asyncio.sleep(left_s)
        if fault is Fault.HANG:
            await asyncio.Event().wait()
        if fault is Fault.ERROR_FRAME:
            raise generation_error()

    async def stream(self, response: web.StreamResponse, events: list[Event], fault: Fault) -> None:
        """Send each event when its token is due, those due together in one write, until ``fault`` has its way.

        Raises:
            TgiError: The fault is an error of TGI's own.
        """
        self._meet(fault)
        ready: list[bytes] = []
        for index, data in events:
            if index >= self.limit:
                break
            if ready and self._due_at(index + 1) > self._loop.time():
                await self._write(response, b"".join(ready), fault)
                ready.clear()
            await self._keep_alive_until(response, self._due_at(index + 1))
            ready.append(data)
        if ready:
            await self._write(response, b"".join(ready), fault)
        if fault is Fault.HANG:
            await self._keep_alive_until(response, float("inf"))
        if fault is Fault.ERROR_FRAME:
            raise generation_error()

    def _meet(self, fault: Fault) -> None:
        if fault in {Fault.HANG, Fault.ERROR_FRAME, Fault.DISCONNECT}:
            self.failed = True
            self.limit = min(self._knobs.fault_after_tokens, self.limit)

    def _due_at(self, tokens: int) -> float:
        return self._started_at + (self._knobs.due_s(tokens - 1) if tokens else 0.0)

    async def _keep_alive_until(self, response: web.StreamResponse, due_at: float) -> None:
        while (left_s := due_at - self._loop.time()) > 0:
            await asyncio.sleep(min(left_s, self._knobs.keep_alive_s))
            if left_s > self._knobs.keep_alive_s:
                await response.write(KEEP_ALIVE)

    async def _write(self, response: web.StreamResponse, data: bytes, fault: Fault) -> None:
        if fault is Fault.DRIP:
            await drip(response, data, self._knobs)
        else:
            await response.write(data)


def generation_error() -> TgiError:
    """The backend broke in the middle of a generation."""
    error = of_status(424)
    assert error is not None
    return error


async def drip(response: web.StreamResponse, data: bytes, knobs: Knobs) -> None:
    """Write ``data`` a few bytes at a time."""
    for begin in range(0, len(data), knobs.drip_bytes):
        await response.write(data[begin : begin + knobs.drip_bytes])
        await asyncio.sleep(knobs.drip_interval_ms / 1000)
