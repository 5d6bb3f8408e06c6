"""HTTP/1.1 connections: uvicorn's protocol with bounds on a request's headers, on idle time and on unread answers.

uvicorn's fast parser accepts headers of any size, waits for them without end, and keeps an answer that its caller does
not read. A body's size and time are bounded by ``gateway.api.connection``.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import orjson
import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from gateway.api.errors import envelope
from gateway.settings import ApiSettings, Settings
from gateway.upgrades import NoUpgradesProtocol

_log = structlog.get_logger()


class _TooManyHeaders(Exception):
    """Ends parsing; httptools turns it into its own error."""


class BoundedProtocol(NoUpgradesProtocol):
    """One connection.

    Args:
        limits: Bounds of number and size of headers, and of a caller's slowness.
        arguments: uvicorn's own.
    """

    def __init__(self, *, limits: ApiSettings, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._limits = limits
        self._in_headers = False
        self._in_trailers = False
        self._header_bytes = 0
        self._n_headers = 0
        self._line_bytes = 0
        self._too_many = False
        self._headers_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, and bound an unfinished header or trailer."""
        super().data_received(data)
        # The parser itself holds an unfinished line: only received bytes can be counted.
        line = data.rfind(b"\n") + 1
        self._line_bytes = len(data) - line if line else self._line_bytes + len(data)
        if (self._in_headers or self._in_trailers) and self._line_bytes > self._limits.max_header_bytes:
            self._in_headers, self._in_trailers, self._too_many = False, False, True
            self.send_400_response("")
        if self.cycle is None or self.cycle.response_complete:
            self._expect_headers()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_headers, self._header_bytes, self._n_headers = True, 0, 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """Store a header. Drop a trailer: it could smuggle in a header that a balancer has removed."""
        self._n_headers += 1
        self._header_bytes += len(name) + len(value)
        self._refuse_too_many()
        if self._in_headers:
            super().on_header(name, value)

    def on_chunk_header(self) -> None:
        """Assume trailers after a chunk's size, until a piece of the body follows."""
        self._in_trailers = True

    def on_body(self, body: bytes) -> None:
        self._in_trailers = False
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_trailers = False
        super().on_message_complete()

    def on_headers_complete(self) -> None:
        """Refuse too many or too large headers before they are used."""
        self._in_headers = False
        if self._headers_timer is not None:
            self._headers_timer.cancel()
            self._headers_timer = None
        self._header_bytes += len(self.url)
        self._refuse_too_many()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer a request that is not HTTP or has too many headers in OpenAI's envelope; then close."""
        if self.transport.is_closing():
            return
        if self._too_many:
            status, text = 431, "the request's headers are over this server's limits"
        else:
            status, text = 400, "this is not a valid HTTP request"
        body = orjson.dumps(envelope(text, "invalid_request_error", "invalid_http_request"))
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[status] + head + body)
        self._watch_reader()
        self.transport.close()

    def on_response_complete(self) -> None:
        """Bound the time in which the caller reads the rest, and ends the headers of a request it has begun."""
        self._watch_reader()
        if self._in_headers:
            self._expect_headers()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if cycle.scope["http_version"] == "1.0":
            app = _without_chunks(app, cycle)
        super()._start_asgi_task(cycle, app)

    def _refuse_too_many(self) -> None:
        if self._n_headers > self._limits.max_headers or self._header_bytes > self._limits.max_header_bytes:
            self._too_many = True
            raise _TooManyHeaders

    def _expect_headers(self) -> None:
        if self._headers_timer is None and not self.transport.is_closing():
            self._headers_timer = self.loop.call_later(self._limits.header_timeout_s, self._cut, "headers_too_slow")

    def _watch_reader(self) -> None:
        if self._write_timer is None and self.transport.get_write_buffer_size():
            self._write_timer = self.loop.call_later(self._limits.write_timeout_s, self._cut, "reader_too_slow")

    def _cut(self, reason: str) -> None:
        """Abort the connection: a plain close would wait until the caller has read everything."""
        if reason == "reader_too_slow" and not self.transport.get_write_buffer_size():
            self._write_timer = None
            return
        _log.info("connection_cut", reason=reason)
        self._stop_timers()
        self.transport.abort()

    def _stop_timers(self) -> None:
        for timer in (self._headers_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._headers_timer = self._write_timer = None


def _without_chunks(app: ASGIApp, cycle: RequestResponseCycle) -> ASGIApp:
    """Wrap the app for an HTTP/1.0 caller, who cannot read chunks: the end of the connection ends a body.

    uvicorn closes the connection after each such answer, but would send a body of unknown length in chunks.
    """

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        length_is_known = True

        async def send_plain(message: Message) -> None:
            nonlocal length_is_known
            if message["type"] == "http.response.start":
                length_is_known = any(name.lower() == b"content-length" for name, _ in message.get("headers", ()))
                if not length_is_known:
                    cycle.chunked_encoding = False
            elif not length_is_known and cycle.scope["method"] != "HEAD":
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await app(scope, receive, send_plain)

    return answer


def server_options(settings: Settings) -> dict[str, Any]:
    """Return uvicorn's options, the same wherever it is started. They can be pickled, for workers."""
    return {
        "http": partial(BoundedProtocol, limits=settings.api),
        "ws": "none",
        "timeout_keep_alive": settings.api.idle_timeout_s,
        "timeout_graceful_shutdown": int(settings.shutdown_s),
        "log_config": None,
        "access_log": False,
        "server_header": False,
    }
