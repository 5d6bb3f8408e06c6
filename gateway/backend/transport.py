"""httpx2 over aiohttp: less CPU a call, the same exceptions.

huggingface_hub speaks httpx2, whose own transport costs 1.7 ms of CPU for a chat completion where aiohttp's parser
in C needs 0.4. Here the two meet: httpx2's requests and exceptions outside, aiohttp's connections inside.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import contextmanager

import aiohttp
import httpx2
from multidict import CIMultiDict
from yarl import URL

from gateway.errors import strip_traceback

# Idle connections are given up before the servers do it (uvicorn and llama.cpp after 5 s): a request sent on a
# connection that the server is just closing is lost.
IDLE_CONNECTION_S = 4.0
MAX_RESPONSE_BYTES = 32 * 1024 * 1024

TraceConfigs = Sequence[aiohttp.TraceConfig]


class AiohttpTransport(httpx2.AsyncBaseTransport):
    """Sends httpx2 requests through one aiohttp session: no proxies, cookies, redirects or ``.netrc`` from outside.

    The request's ``read`` timeout bounds the whole exchange, ``connect`` the opening of a connection.

    Args:
        max_connections: Connections to each host; more requests than that wait for one.
        tls: Who vouches for https:// hosts; the system, if not given.
        max_response_bytes: A longer response is broken off.
        trace_configs: aiohttp's hooks around each request.
    """

    def __init__(
        self,
        *,
        max_connections: int,
        max_response_bytes: int = MAX_RESPONSE_BYTES,
        tls: ssl.SSLContext | None = None,
        trace_configs: TraceConfigs = (),
    ) -> None:
        self._max_connections = max_connections
        self._tls = tls
        self._trace_configs = list(trace_configs)
        self._max_response_bytes = max_response_bytes
        self._session: aiohttp.ClientSession | None = None
        self._urls: dict[str, URL] = {}

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send the request and return the response, its body still to be read.

        Raises:
            httpx2.TransportError: The subclass that httpx2's own transport would raise.
        """
        timeout = request.extensions.get("timeout", {})
        body = await request.aread()
        with _as_httpx2(request):
            response = await self._open_session().request(
                request.method,
                self._yarl(str(request.url)),
                data=body or None,
                headers=CIMultiDict((key.decode(), value.decode()) for key, value in request.headers.raw),
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=timeout.get("read"), sock_connect=timeout.get("connect")),
            )
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            # Never asked for, and a thousandth of what it may become: no bound on what is received would hold.
            response.close()
            raise httpx2.RemoteProtocolError("the response is compressed", request=request)
        stream = _Body(response, request, self._max_response_bytes)
        return EventResponse(response.status, headers=response.raw_headers, stream=stream, request=request)

    async def aclose(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open_session(self) -> aiohttp.ClientSession:
        # Not in the constructor: a session belongs to the running event loop.
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0,
                    limit_per_host=self._max_connections,
                    keepalive_timeout=IDLE_CONNECTION_S,
                    ssl=self._tls or True,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
                auto_decompress=False,
                trust_env=False,
                trace_configs=self._trace_configs,
            )
        return self._session

    def _yarl(self, url: str) -> URL:
        # A replica has a handful of addresses and is called at each of them a thousand times a second.
        parsed = self._urls.get(url)
        if parsed is None:
            parsed = self._urls[url] = URL(url, encoded=True)
        return parsed


class EventResponse(httpx2.Response):
    """A response whose lines end as those of an event stream do.

    httpx2 ends them wherever Unicode would end a line too, which is right in the middle of JSON that holds U+2028.
    """

    async def aiter_lines(self) -> AsyncGenerator[str]:
        """The lines, without their ends (CR, LF or both)."""
        held: list[bytes] = []
        async for data in self.aiter_bytes():
            held.append(data)
            if b"\n" not in data and b"\r" not in data:
                continue  # a long line is put together once
            lines = b"".join(held).splitlines(keepends=True)
            held = [] if lines[-1].endswith(b"\n") else [lines.pop()]
            for line in lines:
                yield line.decode("utf-8", "replace").rstrip("\r\n")
        if held:
            yield b"".join(held).decode("utf-8", "replace").rstrip("\r\n")


class _Body(httpx2.AsyncByteStream):
    """A response's body as it arrives. Closing it early closes the connection, which is how a draw is cancelled."""

    def __init__(self, response: aiohttp.ClientResponse, request: httpx2.Request, max_bytes: int) -> None:
        self._response = response
        self._request = request
        self._max_bytes = max_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        received = 0
        with _as_httpx2(self._request):
            async for chunk in self._response.content.iter_any():
                received += len(chunk)
                if received > self._max_bytes:
                    self._response.close()
                    raise httpx2.RemoteProtocolError("the response is too long", request=self._request)
                yield chunk

    async def aclose(self) -> None:
        # A response read to its end has given its connection back already; then this does nothing.
        self._response.close()


@contextmanager
def _as_httpx2(request: httpx2.Request) -> Iterator[None]:
    """Turn aiohttp's exceptions into those that callers of httpx2 know.

    A stream of aiohttp's keeps the error that broke it, and a trace of aiohttp's leads to the stream or to the task.
    """
    try:
        yield
    except aiohttp.ConnectionTimeoutError as error:
        raise httpx2.ConnectTimeout("no connection in time", request=request) from strip_traceback(error)
    except TimeoutError as error:
        raise httpx2.ReadTimeout("no complete response in time", request=request) from strip_traceback(error)
    except aiohttp.ClientConnectorError as error:
        raise httpx2.ConnectError("no connection", request=request) from strip_traceback(error)
    except aiohttp.ClientResponseError as error:
        raise httpx2.RemoteProtocolError("the response is not HTTP", request=request) from strip_traceback(error)
    except (aiohttp.ClientError, OSError) as error:
        raise httpx2.ReadError("the connection broke", request=request) from strip_traceback(error)
