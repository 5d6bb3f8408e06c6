"""The common part of the stubs: an HTTP server on a free port, control routes, and a command line.

The server is aiohttp's low-level one, without its router and middlewares: load tests share two cores with it. A handler
is cancelled the moment its client closes the connection.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Self

import orjson
import uvloop
from aiohttp import web

from tests.stubs.knobs import AnyKnobs, add_arguments, chosen
from tests.stubs.state import RecordedRequest, State

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
BACKLOG = 2048
JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
LENGTH = b"Content-Length: "


class StubServer(ABC):
    """A server with knobs and a state, in this process: ``async with Stub(knobs) as stub``.

    ``stop`` breaks every connection at once, as a crash would; ``start`` then listens on the same port again.
    """

    knobs: AnyKnobs
    state: State

    def __init__(self, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self._host = host
        self._port = port
        self._http: web.Server | None = None
        self._listener: asyncio.Server | None = None
        self._routes: dict[tuple[str, str], Handler] = {
            ("GET", "/_stub/state"): self._get_state,
            ("POST", "/_stub/knobs"): self._set_knobs,
            **self.routes(),
        }

    @abstractmethod
    def routes(self) -> dict[tuple[str, str], Handler]:
        """Return the handlers by method and path."""

    @property
    def url(self) -> str:
        return f"http://{self._host}:{self._port}"

    async def start(self) -> None:
        self._http = web.Server(self._dispatch, handler_cancellation=True, access_log=None)
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(self._http, self._host, self._port, backlog=BACKLOG)
        self._port = self._listener.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._listener is None or self._http is None:
            return
        self._listener.close()
        for connection in self._http.connections:
            if connection.transport is not None:
                connection.transport.abort()
        await self._http.shutdown(1.0)
        await self._listener.wait_closed()
        self._listener = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _dispatch(self, request: web.BaseRequest) -> web.StreamResponse:
        handler = self._routes.get((request.method, request.raw_path))
        if handler is None:
            handler = self._routes.get((request.method, request.path))  # without a query
        if handler is None:
            known = any(path == request.path for _, path in self._routes)
            return web.Response(status=405 if known else 404)
        return await handler(request)

    def record(self, request: web.BaseRequest, body: bytes) -> None:
        requests = self.state.requests
        if requests.maxlen != self.knobs.record_requests:
            requests = self.state.requests = deque(requests, self.knobs.record_requests)
        requests.append(RecordedRequest(request.method, request.raw_path, request.headers, body))

    async def _get_state(self, request: web.BaseRequest) -> web.StreamResponse:
        return json_response(orjson.dumps(self.state.as_json()))

    async def _set_knobs(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            self.knobs.update(orjson.loads(await request.read()))
        except ValueError as error:
            return json_response(orjson.dumps({"error": str(error)}), status=400)
        return json_response(b"{}")


class JsonResponse(web.StreamResponse):
    """A JSON response with status 200 in one write, without aiohttp's own headers: the load tests' fast path."""

    def __init__(self, body: bytes) -> None:
        super().__init__()
        self._content = body

    async def prepare(self, request: web.BaseRequest) -> None:
        self._keep_alive = request.keep_alive
        self._eof_sent = True
        if request.transport is not None:
            connection = b"" if request.keep_alive else b"Connection: close\r\n"
            length = b"%d\r\n" % len(self._content)
            request.transport.write(b"".join((JSON_HEAD, connection, LENGTH, length, b"\r\n", self._content)))

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing is left to write."""


def json_response(body: bytes, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(body=body, status=status, headers={"Content-Type": "application/json", **(headers or {})})


def text_response(text: str, *, status: int = 200) -> web.Response:
    return web.Response(text=text, status=status)


def main(stub: Callable[..., StubServer], knobs: type, description: str) -> None:
    """Run a stub as a program: it prints its URL first, and ends with its standard input, if asked to."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--until-stdin-closes", action="store_true", help="end with the process that started this one")
    add_arguments(parser, knobs)
    arguments = parser.parse_args()
    server = stub(knobs(**chosen(arguments, knobs)), host=arguments.host, port=arguments.port)
    uvloop.run(_serve(server, arguments.until_stdin_closes))


async def _serve(server: StubServer, until_stdin_closes: bool) -> None:
    gc.freeze()  # what is loaded stays; collecting it again and again would be the load test's CPU
    gc.set_threshold(20_000, 50, 50)
    async with server:
        sys.stdout.write(server.url + "\n")
        sys.stdout.flush()
        if until_stdin_closes:
            await asyncio.to_thread(sys.stdin.read)
        else:
            await asyncio.Event().wait()
