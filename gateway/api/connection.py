"""The caller's connection: read a body within its limit, and stop work at once when the caller hangs up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.api.decompression import decompressor_for
from gateway.errors import GatewayError, NotReady, RequestTooLarge, RequestTooSlow, UnsupportedContentType

T = TypeVar("T")


class ClientGone(Exception):
    """The caller closed the connection before the answer."""


async def read_body(request: Request, *, limit_bytes: int, timeout_s: float) -> bytes:
    """Return the request's JSON body, unparsed, and decompressed if it was compressed.

    The body must be declared as JSON: without asking first, a web page may send any other type to a server on its
    reader's machine.

    Raises:
        UnsupportedContentType: The body is declared as another type, or not at all.
        UnsupportedContentEncoding: The body is compressed in a way that is not supported.
        RequestTooLarge: The body is over the limit, as sent or decompressed. No more than the limit is read.
        InvalidRequest: The body cannot be decompressed.
        RequestTooSlow: The body was not complete in time. A slow upload must not hold its place without end.
        ClientGone: The caller hung up while sending.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedContentType("the body must be JSON, sent with content-type: application/json")
    decompressor = decompressor_for(request.headers.getlist("content-encoding"), limit_bytes=limit_bytes)
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit_bytes:
        raise _too_large(limit_bytes)
    body, sent_bytes = bytearray(), 0
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                sent_bytes += len(chunk)
                if sent_bytes > limit_bytes:
                    raise _too_large(limit_bytes)
                body += chunk if decompressor is None else decompressor.feed(chunk)
    except ClientDisconnect as error:
        raise ClientGone from error
    except TimeoutError:
        raise RequestTooSlow(f"the request body did not arrive within {timeout_s:g} seconds") from None
    if decompressor is not None:
        decompressor.finish()
    return bytes(body)


async def cancel_on_disconnect(receive: Receive, work: Awaitable[T]) -> T:
    """Return the result of the work; cancel it at once when the caller closes the connection.

    Raises:
        ClientGone: The caller hung up first. The work has ended by then.
        NotReady: The server is stopping and has waited for this request as long as it may.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_until_disconnect(receive))
    try:
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError as error:
            # A request is cancelled only when the server stops, and the server does not wait for this task. So the
            # caller still gets an answer, from which a balancer learns to ask another gateway.
            raise NotReady("this gateway is shutting down; the request was cut") from error
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        await _end(task, gone)


class EventStream(Response):
    """A streamed response that stops when its caller hangs up, and sends comments while it waits.

    ``start`` waits for the first event for a while, so that an early error still gets an HTTP status and the headers
    can report on the race. After that, each ``keep_alive_s`` of silence sends a comment, and an error is sent as an
    event.

    Args:
        events: The events; closed however the stream ends.
        keep_alive_s: Longest silence, in seconds.
        keep_alive: The comment that is sent after it.
        on_error: Returns the event for an error that comes after the status was sent.
        on_end: Called once the events are closed.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes],
        *,
        keep_alive_s: float,
        keep_alive: bytes,
        on_error: Callable[[GatewayError], bytes],
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._next = asyncio.ensure_future(anext(events, None))
        self._keep_alive_s = keep_alive_s
        self._keep_alive = keep_alive
        self._on_error = on_error
        self._on_end = on_end

    async def start(self, receive: Receive) -> None:
        """Wait up to ``keep_alive_s`` for the first event.

        Raises:
            GatewayError: The stream failed before its first event.
            ClientGone: The caller hung up.
        """
        try:
            await cancel_on_disconnect(receive, asyncio.wait({self._next}, timeout=self._keep_alive_s))
            if self._next.done():
                self._next.result()
        except BaseException:
            await self._close()
            raise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await cancel_on_disconnect(receive, self._send_all(send))
        except ClientGone:
            return
        except NotReady as error:
            await send({"type": "http.response.body", "body": self._on_error(error)})
        finally:
            await self._close()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            while (event := await self._next_or_comment()) is not None:
                await send({"type": "http.response.body", "body": event, "more_body": True})
        except GatewayError as error:
            await send({"type": "http.response.body", "body": self._on_error(error), "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _next_or_comment(self) -> bytes | None:
        await asyncio.wait({self._next}, timeout=self._keep_alive_s)
        if not self._next.done():
            return self._keep_alive
        event = self._next.result()
        self._next = asyncio.ensure_future(anext(self._events, None))
        return event

    async def _close(self) -> None:
        await _end(self._next)
        del self._next  # a failed stream's error is in it, and the traceback of the error leads to this object
        try:
            await self._events.aclose()
        finally:
            self._on_end()


def _too_large(limit_bytes: int) -> RequestTooLarge:
    return RequestTooLarge(f"the request body is over this server's limit of {limit_bytes} bytes")


async def _end(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks, wait until they have ended, and drop the tracebacks of their cancellation."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:
        # Retrieve the CancelledError and drop its traceback. Otherwise task, the race's task group in the traceback and
        # all answers that had arrived keep each other alive until a full collection.
        if task.cancelled():
            try:
                task.result()
            except asyncio.CancelledError as error:
                error.__traceback__ = None


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
