"""HTTP to the servers of one backend: aiohttp inside, ``gateway.errors`` outside.

aiohttp's parser in C needs 0.4 ms of CPU for a chat completion; httpx2, which huggingface_hub would use, needs 1.7 ms.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import aiohttp
import orjson
import structlog
from multidict import CIMultiDict
from yarl import URL

from gateway.errors import (
    BackendProtocolError,
    BackendTimeout,
    BackendUnreachable,
    InvalidRequest,
    strip_traceback,
)
from gateway.settings import BackendSettings
from gateway.tls import client_context

# We close an idle connection before the server does (uvicorn and llama.cpp after 5 s): a request sent on a connection
# that the server is closing is lost.
IDLE_CONNECTION_S = 4.0
_MAX_CONNECTIONS = 1024  # to one server
MAX_RESPONSE_BYTES = 32 * 1024 * 1024

TraceConfigs = Sequence[aiohttp.TraceConfig]

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Response:
    """A response whose body was read."""

    status: int
    headers: Mapping[str, str]
    content: bytes


class StatusError(Exception):
    """The server answered a draw with an error's status (400 or more)."""

    def __init__(self, status: int, content: bytes) -> None:
        super().__init__(status)
        self.status = status
        self.content = content


class Http:
    """Sends requests over shared connections; ignores the environment's proxies, cookies, redirects and ``.netrc``.

    A response longer than ``max_response_bytes`` is an error; ``trace_configs`` are aiohttp's hooks around requests.
    """

    def __init__(
        self,
        settings: BackendSettings,
        *,
        max_response_bytes: int = MAX_RESPONSE_BYTES,
        trace_configs: TraceConfigs = (),
    ) -> None:
        self._connect_timeout_s = settings.connect_timeout_s
        self._tls = client_context(settings.ca_file) if settings.ca_file else None
        self._max_response_bytes = max_response_bytes
        self._trace_configs = list(trace_configs)
        self._session: aiohttp.ClientSession | None = None
        self._urls: dict[str, URL] = {}
        authorization = {"authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
        self._get_headers = CIMultiDict({"accept": "*/*", "accept-encoding": "identity", **authorization})
        self._post_headers = CIMultiDict({**self._get_headers, "content-type": "application/json"})
        # Servers close the connection after a stream (llama.cpp without notice): no other call may reuse it.
        self._stream_headers = CIMultiDict({**self._post_headers, "connection": "close"})

    async def call(self, url: str, body: object = None, *, timeout_s: float) -> Response:
        """Send a GET, or a POST where there is a body, and read the whole response.

        Raises:
            BackendError: There was no response, or it could not be read.
            InvalidRequest: The body cannot be written as JSON.
        """
        headers = self._get_headers if body is None else self._post_headers
        response = await self._send(url, body, headers, timeout_s)
        try:
            content = b"".join([piece async for piece in self._pieces(response)])
        finally:
            response.close()  # does nothing where the whole body was read: the connection is back in the pool
        return Response(response.status, response.headers, content)

    @asynccontextmanager
    async def stream(self, url: str, body: object, *, timeout_s: float) -> AsyncIterator[AsyncGenerator[str, None]]:
        """POST a body and yield the lines of the event stream that answers it.

        Leaving the context before the stream's end closes the connection, which cancels the draw.

        Raises:
            StatusError: The status is an error's.
            BackendError: There was no response.
            InvalidRequest: The body cannot be written as JSON.
        """
        response = await self._send(url, body, self._stream_headers, timeout_s)
        try:
            if response.status >= 400:
                raise StatusError(response.status, b"".join([piece async for piece in self._pieces(response)]))
            yield split_lines(self._pieces(response))
        finally:
            response.close()

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _send(
        self, url: str, body: object, headers: CIMultiDict[str], timeout_s: float
    ) -> aiohttp.ClientResponse:
        try:
            data = None if body is None else orjson.dumps(body)
        except orjson.JSONEncodeError as error:  # a lone surrogate in a message
            raise InvalidRequest("messages: text that is not valid Unicode", param="messages") from error
        with _as_gateway_errors():
            response = await self._open_session().request(
                "GET" if data is None else "POST",
                self._parsed(url),
                data=data,
                headers=headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=self._connect_timeout_s),
            )
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            # We never ask for compression, and the limit on received bytes would not bound what it expands to.
            response.close()
            raise unreadable("compressed")
        return response

    async def _pieces(self, response: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
        received = 0
        with _as_gateway_errors():
            async for piece in response.content.iter_any():
                received += len(piece)
                if received > self._max_response_bytes:
                    response.close()
                    raise unreadable("too long")
                yield piece

    def _open_session(self) -> aiohttp.ClientSession:
        # Not in the constructor: a session belongs to the running event loop.
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0,
                    limit_per_host=_MAX_CONNECTIONS,
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

    def _parsed(self, url: str) -> URL:
        # A server has a handful of URLs, each called up to a thousand times a second.
        parsed = self._urls.get(url)
        if parsed is None:
            try:
                parsed = self._urls[url] = URL(url)
            except ValueError as error:
                raise BackendUnreachable("the backend's URL is not valid", was_sent=False) from error
        return parsed


async def split_lines(pieces: AsyncIterable[bytes]) -> AsyncGenerator[str, None]:
    """Yield the lines of an event stream without their ends (CR, LF or both).

    Only these end a line: U+2028 and the like may stand in the middle of JSON.
    """
    held: list[bytes] = []
    async for data in pieces:
        held.append(data)
        if b"\n" not in data and b"\r" not in data:
            continue  # so that a long line is joined once
        lines = b"".join(held).splitlines(keepends=True)
        held = [] if lines[-1].endswith(b"\n") else [lines.pop()]
        for line in lines:
            yield line.decode("utf-8", "replace").rstrip("\r\n")
    if held:
        yield b"".join(held).decode("utf-8", "replace").rstrip("\r\n")


def unreadable(reason: str) -> BackendProtocolError:
    """Log why a response cannot be read, and return the error for it."""
    log.warning("backend_answer_unreadable", error=reason)
    return BackendProtocolError("the backend's answer could not be read")


@contextmanager
def _as_gateway_errors() -> Iterator[None]:
    """Raise the gateway's error in place of aiohttp's, whose traceback is stripped: aiohttp's streams keep it alive."""
    try:
        yield
    except aiohttp.ConnectionTimeoutError as error:
        raise BackendUnreachable("the backend could not be reached in time", was_sent=False) from strip_traceback(error)
    except TimeoutError as error:
        raise BackendTimeout("the backend did not answer in time") from strip_traceback(error)
    except aiohttp.ClientConnectorError as error:
        raise BackendUnreachable("the backend could not be reached", was_sent=False) from strip_traceback(error)
    except aiohttp.InvalidURL as error:
        raise BackendUnreachable("the backend's URL is not valid", was_sent=False) from strip_traceback(error)
    except aiohttp.ClientResponseError as error:  # the response is not HTTP
        raise unreadable(type(error).__name__) from strip_traceback(error)
    except (aiohttp.ClientError, OSError) as error:
        raise BackendUnreachable("the connection to the backend broke", broke=True) from strip_traceback(error)
    except ValueError as error:  # aiohttp refuses to send this
        raise unreadable(type(error).__name__) from strip_traceback(error)
